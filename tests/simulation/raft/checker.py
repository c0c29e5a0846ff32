"""Is a history of concurrent operations linearizable? (Wing & Gong 1993, with the memoisation of Lowe 2017.)

An operation takes effect at one instant between its call and its return. The search picks, again and again, one of
the operations that no other returned before, and undoes the choice when it leads nowhere; a pair of (operations
chosen, state) that failed once is not tried again. An operation without a known outcome may take effect at any time
after its call, or never.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

Model = Callable[[Any, "Operation"], tuple[bool, Hashable]]


@dataclass(slots=True)
class Operation:
    """`action` and `result` are the model's; without a return, the result is not known."""

    called: float
    action: tuple[Any, ...]
    returned: float = inf
    result: Any = None
    client: str = ""


def register(state: Any, operation: Operation) -> tuple[bool, Hashable]:
    """A register with ("read",), ("write", value), ("exchange", value), whose result is the value before, and
    ("cas", expected, value)."""
    kind, *arguments = operation.action
    known = operation.returned != inf
    if kind == "read":
        return not known or operation.result == state, state
    if kind == "write":
        return True, arguments[0]
    if kind == "exchange":
        return not known or operation.result == state, arguments[0]
    swaps = state == arguments[0]
    return not known or operation.result == swaps, arguments[1] if swaps else state


def is_linearizable(history: Sequence[Operation], initial: Hashable = None, model: Model = register) -> bool:
    """Whether some order of the operations explains all results."""
    operations = sorted(history, key=lambda each: each.called)
    # Reads that nobody saw the result of constrain nothing.
    operations = [each for each in operations if each.returned != inf or each.action[0] != "read"]
    must = sum(1 << position for position, each in enumerate(operations) if each.returned != inf)
    seen: set[tuple[int, Hashable]] = set()
    stack: list[tuple[int, Hashable]] = [(0, initial)]
    while stack:
        chosen, state = stack.pop()
        if chosen & must == must:
            return True
        if (chosen, state) in seen:
            continue
        seen.add((chosen, state))
        position = ((chosen + 1) & ~chosen).bit_length() - 1  # all before it are chosen
        earliest_return = inf
        candidates = []
        for at in range(position, len(operations)):
            operation = operations[at]
            if operation.called > earliest_return:
                break  # some operation not chosen yet returned before this was called, and so for all later ones
            if not chosen >> at & 1:
                candidates.append(at)
                earliest_return = min(earliest_return, operation.returned)
        for at in reversed(candidates):
            if operations[at].called <= earliest_return:
                fits, after = model(state, operations[at])
                if fits:
                    stack.append((chosen | 1 << at, after))
    return False
