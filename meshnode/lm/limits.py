"""What the embedded server may refuse, and what it counts. Pure: the clock comes in as an argument."""

from __future__ import annotations

import msgspec

from meshnode.errors import ConfigError


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """How the server behaves; the defaults are a fast server without limits or faults. Raises ConfigError on nonsense.

    latency_s: seconds before each answer (of a stream: before its first word), plus or minus up to jitter_s.
    rate: requests per second, None for no limit; burst: how many may come at once (None: as many as one second's).
    max_concurrent: requests in work at once, None for no limit. What exceeds either is refused with 429.
    failure_rate: the share of requests, 0 to 1, that end in a 500 after their latency.
    seed: of the jitter and the failures, drawn in the order requests arrive.
    key: what `Authorization: Bearer …` must carry, None for an open server.
    model: the name that GET /v1/models tells; requests may name any, there is only one.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    rate: float | None = None
    burst: int | None = None
    max_concurrent: int | None = None
    failure_rate: float = 0.0
    seed: int = 0
    key: str | None = None
    model: str = "tiny"

    def __post_init__(self) -> None:
        rules = (
            (self.latency_s >= 0, "latency_s", "0 or more seconds"),
            (0 <= self.jitter_s <= self.latency_s, "jitter_s", "from 0 to latency_s"),
            (self.rate is None or self.rate > 0, "rate", "more than 0 requests per second"),
            (self.burst is None or self.burst >= 1, "burst", "1 or more"),
            (self.max_concurrent is None or self.max_concurrent >= 1, "max_concurrent", "1 or more"),
            (0 <= self.failure_rate <= 1, "failure_rate", "from 0 to 1"),
        )
        for holds, name, rule in rules:
            if not holds:
                raise ConfigError(f"{name} must be {rule} (got {getattr(self, name)!r})")


class TokenBucket:
    """Lets `rate` requests per second pass, and up to `burst` at once after a rest."""

    def __init__(self, rate: float, burst: int | None = None) -> None:
        self._rate = rate
        self._size = float(burst if burst is not None else max(1, int(rate)))
        self._tokens = self._size  # 0 <= tokens <= size
        self._at: float | None = None

    def take(self, now: float) -> float:
        """0.0 and one token less if the request may pass; else the seconds until one could, and nothing taken."""
        elapsed = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        self._tokens = min(self._size, self._tokens + elapsed * self._rate)
        # A caller that waits exactly as long as told must pass, whatever the rounding of floats.
        if self._tokens >= 1.0 - 1e-9:
            self._tokens = max(0.0, self._tokens - 1.0)
            return 0.0
        return (1.0 - self._tokens) / self._rate


class Statistics(msgspec.Struct):
    """Counts since the server started; `asked` counts all questions, whatever came of them.

    asked = answered + refused (429) + failed (500) + unauthorized (401) + invalid (400, 413) + in_flight
    """

    asked: int = 0
    answered: int = 0
    refused: int = 0
    failed: int = 0
    unauthorized: int = 0
    invalid: int = 0
    in_flight: int = 0
    in_flight_max: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
