from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import ConfigError
from meshnode.lm.limits import Settings, TokenBucket


def test_a_burst_passes_and_the_next_waits_for_its_token() -> None:
    bucket = TokenBucket(10.0, 3)
    assert [bucket.take(5.0) for _ in range(4)] == [0.0, 0.0, 0.0, pytest.approx(0.1)]


def test_waiting_as_long_as_told_is_enough() -> None:
    bucket = TokenBucket(3.0, 1)
    now = 0.0
    for _ in range(100):
        assert bucket.take(now) == 0.0
        wait_s = bucket.take(now)
        assert wait_s > 0.0
        now += wait_s


def test_a_rest_saves_no_more_than_the_burst() -> None:
    bucket = TokenBucket(10.0, 2)
    bucket.take(0.0)
    assert [bucket.take(1000.0) > 0.0 for _ in range(4)] == [False, False, True, True]


@given(st.floats(0.5, 1000.0), st.integers(1, 50), st.lists(st.floats(0.0, 0.5), min_size=1, max_size=200))
def test_never_more_than_rate_times_time_plus_burst_pass(rate: float, burst: int, gaps: list[float]) -> None:
    bucket = TokenBucket(rate, burst)
    now, passed = 0.0, 0
    for gap in gaps:
        now += gap
        passed += bucket.take(now) == 0.0
    assert passed <= rate * now + burst + 1e-6


def test_a_clock_that_steps_back_gives_no_tokens() -> None:
    bucket = TokenBucket(1.0, 1)
    assert bucket.take(100.0) == 0.0
    assert bucket.take(50.0) > 0.0


@pytest.mark.parametrize(
    ("bad", "named"),
    [
        ({"latency_s": -1.0}, "latency_s"),
        ({"latency_s": 0.1, "jitter_s": 0.2}, "jitter_s"),
        ({"rate": 0.0}, "rate"),
        ({"burst": 0}, "burst"),
        ({"max_concurrent": 0}, "max_concurrent"),
        ({"failure_rate": 1.5}, "failure_rate"),
    ],
)
def test_a_senseless_setting_is_refused_by_name(bad: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{named} must be .* \(got "):
        Settings(**bad)
