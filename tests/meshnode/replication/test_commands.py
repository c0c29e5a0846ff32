"""What becomes of a machine's answers, also of those that no machine gives."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from consensus.machines.values import refuse
from consensus.machines.variables import Set, Written, WrittenAll
from meshnode.errors import InvalidInput, OutcomeUnknown
from meshnode.replication.commands import OwnCommands

encode = msgspec.msgpack.encode


def settled(answer: bytes) -> tuple[asyncio.Future[object], list[tuple[int, int]]]:
    wrote: list[tuple[int, int]] = []
    future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    commands = OwnCommands(lambda index, version: wrote.append((index, version)))
    commands.settle(future, 9, answer)  # type: ignore[arg-type]  # of results
    return future, wrote


async def test_an_answer_is_the_result_or_the_rule_that_refused_it() -> None:
    future, wrote = settled(encode(Written(7)))
    assert await future == Written(7)
    assert wrote == [(9, 7)]
    future, wrote = settled(encode(refuse("n", "range", "too large").refusal))
    with pytest.raises(InvalidInput, match="too large"):
        await future
    assert wrote == []


@pytest.mark.parametrize("answer", [b"", b"\xc1", b"\x91\xa1\xff", b"\x91" * 5000, encode(WrittenAll(1, 2))])
async def test_an_answer_that_says_nothing_leaves_nobody_waiting(answer: bytes) -> None:
    future, wrote = settled(answer)
    with pytest.raises(OutcomeUnknown, match="can't be understood"):
        await future
    assert wrote == []


def test_only_plain_sets_of_plain_values_go_together() -> None:
    commands = OwnCommands(lambda *_: None)
    for value in (1, 0.5, True, "text", 1 - (1 << 63)):
        assert commands.size(Set("n", value, {}, "me", 1)) is not None
    odd = [Set("n", 1 << 63), Set("n", "ü"), Set("n", 1, {"a": "b"}), Set("n", 1, version=3), Set("n", 1, writer="ü")]
    for each in odd:
        assert commands.size(each) is None
