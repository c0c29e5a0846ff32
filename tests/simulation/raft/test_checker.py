"""The judge is judged: histories whose verdict is known."""

from __future__ import annotations

import itertools
import random
from math import inf
from typing import Any

import pytest

from tests.simulation.raft.checker import Operation, is_linearizable, register


def op(called: float, returned: float, *action: Any, result: Any = None) -> Operation:
    return Operation(called, action, returned, result)


GOOD = {
    "nothing": [],
    "one after another": [op(0, 1, "write", 1), op(2, 3, "read", result=1)],
    "a read during a write sees the old value": [op(0, 9, "write", 1), op(1, 2, "read", result=None)],
    "or the new one": [op(0, 9, "write", 1), op(1, 2, "read", result=1)],
    "two writes at once, in either order": [
        op(0, 5, "write", 1),
        op(0, 5, "write", 2),
        op(6, 7, "read", result=1),
    ],
    "a write without an answer took effect late": [
        op(0, inf, "write", 1),
        op(1, 2, "read", result=None),
        op(3, 4, "read", result=1),
    ],
    "or never": [op(0, inf, "write", 1), op(1, 2, "read", result=None)],
    "of two swaps one wins": [
        op(0, 5, "cas", None, 1, result=True),
        op(0, 5, "cas", None, 2, result=False),
        op(6, 7, "read", result=1),
    ],
    "each exchange gives what the one before it put there": [
        op(0, 5, "exchange", 1, result=2),
        op(0, 5, "exchange", 2, result=None),
        op(6, 7, "read", result=1),
    ],
    "a lost swap explains a value": [op(0, inf, "cas", None, 1), op(1, 2, "read", result=1)],
}
BAD = {
    "a stale read": [op(0, 1, "write", 1), op(2, 3, "write", 2), op(4, 5, "read", result=1)],
    "a lost write": [op(0, 1, "write", 1), op(2, 3, "read", result=None)],
    "a value from nowhere": [op(0, 1, "write", 1), op(0, 1, "read", result=2)],
    "new, then old": [
        op(0, 9, "write", 1),
        op(1, 2, "read", result=1),
        op(3, 4, "read", result=None),
    ],
    "two swaps of one value both win": [op(0, 5, "cas", None, 1, result=True), op(0, 5, "cas", None, 2, result=True)],
    "two exchanges give the same": [op(0, 5, "exchange", 1, result=None), op(0, 5, "exchange", 2, result=None)],
    "a read before its write was called": [op(5, 6, "write", 1), op(0, 1, "read", result=1)],
    "a write that took effect twice": [
        op(0, 1, "write", 1),
        op(2, 3, "write", 2),
        op(2, 3, "read", result=2),
        op(4, 5, "read", result=1),
    ],
    "a swap failed without reason": [op(0, 1, "write", 1), op(2, 3, "cas", 1, 2, result=False)],
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_is_accepted(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_history_is_refused(name: str) -> None:
    assert not is_linearizable(BAD[name])


def by_trying_all_orders(history: list[Operation]) -> bool:
    """The definition itself, for small histories."""
    unknown = [each for each in history if each.returned == inf]
    known = [each for each in history if each.returned != inf]
    for count in range(len(unknown) + 1):
        for taken in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *taken]):
                if any(b.returned < a.called for a, b in itertools.combinations(order, 2)):
                    continue
                state: Any = None
                for each in order:
                    fits, state = register(state, each)
                    if not fits:
                        break
                else:
                    return True
    return False


def test_the_search_agrees_with_the_definition_on_random_histories() -> None:
    rng = random.Random(7)
    verdicts = []
    for _ in range(400):
        history = []
        for _ in range(rng.randrange(1, 6)):
            called = rng.random()
            returned = inf if rng.random() < 0.2 else called + rng.random()
            action: tuple[Any, ...] = rng.choice(
                [
                    ("read",),
                    ("write", rng.randrange(2)),
                    ("exchange", rng.randrange(2)),
                    ("cas", rng.choice([None, 0, 1]), rng.randrange(2)),
                ]
            )
            result = rng.choice([None, 0, 1]) if action[0] in ("read", "exchange") else rng.random() < 0.5
            history.append(op(called, returned, *action, result=None if action[0] == "write" else result))
        verdicts.append(is_linearizable(history))
        assert verdicts[-1] == by_trying_all_orders(history)
    assert 50 < sum(verdicts) < 350


def test_a_long_history_is_judged_quickly() -> None:
    rng = random.Random(1)
    history, value, time = [], None, 0.0
    for number in range(3000):
        time += rng.random()
        if rng.random() < 0.5:
            value = number
            history.append(op(time - 1, time + 1, "write", number))
            time += 2
        else:
            history.append(op(time - 1, time + 1, "read", result=value))
    assert is_linearizable(history)
