"""Which candidates are shown together, and how often."""

from __future__ import annotations

from collections import Counter

import pytest

from meshnode.demos.contexts import MAX_SEEN, contexts


@pytest.mark.parametrize(
    ("candidates", "shown", "examples", "runs"),
    [(128, 8, 248, 4096), (128, 32, 248, 4096), (10, 3, 6, 4096), (1, 5, 3, 100), (7, 7, 9, 4), (100, 1, 5, 10)],
)
def test_all_are_shown_about_equally_often_within_the_runs_given(
    candidates: int, shown: int, examples: int, runs: int
) -> None:
    held_out = range(1000, 1000 + examples)
    plan = list(contexts(candidates, shown, held_out, runs, "seed"))
    size = min(shown, candidates)
    parts = -(-candidates // size)
    assert parts <= len(plan) <= max(parts, runs)
    assert all(example in held_out and len(set(places)) == size for example, places in plan)
    often = Counter(place for _, places in plan for place in places)
    assert set(often) == set(range(candidates))
    if candidates % size == 0:
        assert len(set(often.values())) == 1, "with the same examples each"
    assert max(often.values()) <= 2 * min(often.values()) + MAX_SEEN
    assert max(Counter(example for example, _ in plan).values()) <= (MAX_SEEN + 1) * parts


def test_the_seed_alone_decides() -> None:
    first = list(contexts(20, 4, range(30), 500, "round"))
    assert first == list(contexts(20, 4, range(30), 500, "round"))
    assert first != list(contexts(20, 4, range(30), 500, "another"))
    assert len({places for _, places in first}) > 50, "ever other company"


def test_nothing_to_show_is_no_run() -> None:
    assert list(contexts(0, 4, range(30), 500, "round")) == []
    assert list(contexts(4, 4, [], 500, "round")) == []
