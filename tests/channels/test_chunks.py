"""The window of chunks: narrow where a queue would grow, wide where the way is long."""

from __future__ import annotations

from channels.chunks import MAX_WINDOW, Pace


def run(pace: Pace, *, way_s: float, chunks_per_s: float, acknowledgements: int = 5000) -> None:
    """Acknowledge as a link with a fixed delay and one bottleneck would: the rest of the window waits before it."""
    for _ in range(acknowledgements):
        pace.acknowledged(max(way_s, pace.window / chunks_per_s))


def test_on_a_short_way_the_window_stays_small() -> None:
    pace = Pace(3)
    run(pace, way_s=0.0003, chunks_per_s=3_500)  # 1.8 GB/s
    assert 3 <= pace.window <= 6


def test_on_a_long_way_the_window_fills_it() -> None:
    pace = Pace(3)
    run(pace, way_s=0.02, chunks_per_s=750)  # 390 MB/s at 20 ms: 15 chunks
    assert 15 <= pace.window <= 25


def test_the_window_is_bounded() -> None:
    pace = Pace(3)
    run(pace, way_s=1.0, chunks_per_s=1e9)
    assert pace.window == MAX_WINDOW


def test_the_window_shrinks_when_the_way_gets_busy_and_learns_a_new_one() -> None:
    pace = Pace(3)
    run(pace, way_s=0.02, chunks_per_s=1_000)
    wide = pace.window
    run(pace, way_s=0.02, chunks_per_s=100, acknowledgements=500)
    assert pace.window < wide / 2
    run(pace, way_s=0.1, chunks_per_s=1_000, acknowledgements=20_000)  # a longer way is no queue for ever
    assert pace.window > wide
