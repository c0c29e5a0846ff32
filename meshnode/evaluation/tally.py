"""Takes rows as they come and gives them on in input order, counted."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

from meshnode.evaluation.results import EvaluationResult, Mode, Progress, Row, percent

RATE_OVER_S = 10.0


class Tally:
    """Rows accepted so far. `next_index`: the oldest example without a row; all before it were given to `on_row`.

    Scores are added up in input order, so that the sum has the same last digit whoever finished first.
    """

    def __init__(self, *, keep: bool, on_row: Callable[[Row], None] | None, now: float) -> None:
        self._keep = keep
        self._on_row = on_row
        self._rows: list[Row] = []
        self._early: dict[int, Row] = {}  # rows whose predecessors are still out; at most the coordinator's window
        self._sum = 0.0
        self._nodes: Counter[str] = Counter()
        self._started = now
        self._marks: deque[tuple[float, int]] = deque([(now, 0)])  # (time, rows worked out): for the rate
        self.next_index = 0
        self.done = 0
        self.failed = 0
        self.resumed = 0

    def accept(self, row: Row) -> None:
        """One row, any order, each index once."""
        twice = row.index < self.next_index or row.index in self._early
        assert not twice, f"example {row.index} was counted twice"
        self.done += 1
        self.failed += row.error is not None
        self._nodes[row.node] += 1
        self._early[row.index] = row
        while (ready := self._early.pop(self.next_index, None)) is not None:
            self.next_index += 1
            self._sum += ready.score
            if self._keep:
                self._rows.append(ready)
            if self._on_row is not None:
                self._on_row(ready)

    def progress(self, now: float, total: int | None, retries: int, *, run: str | None = None) -> Progress:
        """A snapshot; the rate is that of the last seconds and leaves out resumed rows."""
        worked = self.done - self.resumed
        while len(self._marks) > 1 and self._marks[0][0] < now - RATE_OVER_S:
            self._marks.popleft()
        since, before = self._marks[0]
        if now - self._marks[-1][0] >= 0.1:
            self._marks.append((now, worked))
        rate = (worked - before) / (now - since) if now > since else 0.0
        left = (total - self.done) / rate if total is not None and rate > 0 else None
        return Progress(
            done=self.done,
            failed=self.failed,
            total=total,
            score=percent(self._total_score(), self.done),
            rate=rate,
            seconds=now - self._started,
            seconds_left=0.0 if total == self.done else left,
            nodes=dict(self._nodes),
            retries=retries,
            run=run,
        )

    def result(
        self, now: float, mode: Mode, *, retries: int, hedges: int, complete: bool, run: str | None = None
    ) -> EvaluationResult:
        """What is done, in input order; rows behind a gap are included."""
        early = [self._early[index] for index in sorted(self._early)] if self._keep else []
        return EvaluationResult(
            score=percent(self._total_score(), self.done),
            examples=self.done,
            failed=self.failed,
            results=self._rows + early,
            nodes={name: self._nodes[name] for name in sorted(self._nodes)},
            retries=retries,
            seconds=now - self._started,
            mode=mode,
            hedges=hedges,
            resumed=self.resumed,
            complete=complete,
            run=run,
        )

    def _total_score(self) -> float:
        return self._sum + sum(self._early[index].score for index in sorted(self._early))
