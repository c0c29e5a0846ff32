"""Writes on their way to a leader: told, answered, lost and told again, over a channel that this test is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from channels.errors import Fault
from consensus.raft import sessions as clients
from meshnode.errors import Overloaded
from meshnode.replication import submission
from meshnode.replication.messages import LOST, Propose, Proposed, Submit, Submitted
from meshnode.replication.submission import Submission

LEADER = "leader"


class Asking:
    """A submission whose leader is this test: `told` is what it was told and has not answered."""

    def __init__(self) -> None:
        self.told: list[Submit] = []
        self.applied: list[int] = []
        self.has_link = True
        self.asked: list[Propose] = []
        mesh: Any = SimpleNamespace(me=SimpleNamespace(node_id="me"), request=self._request)
        self.submission: Submission[bytes] = Submission(
            mesh,
            leader=lambda: LEADER,
            look=self._look,
            heard=lambda _: None,
            propose=self._propose,
            tell=self._tell,
            applied=lambda index, _: self.applied.append(index),
            settle=lambda future, answer: future.set_result(answer),
            read=lambda _, answers: answers,
        )

    async def open(self) -> None:
        """Write once, so that there is a leader and a session."""
        first = self.submit(b"first")
        await self.until_told(1)
        self.answer()
        assert await first == b"first"

    def submit(self, command: bytes) -> asyncio.Future[bytes]:
        return self.submission.submit(command, 60.0)

    async def until_told(self, count: int) -> None:
        while len(self.told) < count:  # noqa: ASYNC110 - it tells by a call, whenever it likes
            await asyncio.sleep(0.001)

    def commands(self) -> list[list[bytes]]:
        """What waits for an answer, by request."""
        return [[run.command for run in runs(each.entries)] for each in self.told]

    def answer(self, outcomes: list[Any] | None = None, *, source: str = LEADER, fault: Fault | None = None) -> None:
        """Answer the oldest: each command with itself, unless told otherwise."""
        asked = self.told.pop(0)
        outcomes = [run.command for run in runs(asked.entries)] if outcomes is None else outcomes
        answer = Submitted(asked.number, outcomes, LEADER, 5, fault)
        self.submission.answered(source, msgspec.msgpack.encode(answer))

    def _tell(self, peer: str, raw: bytes) -> bool:
        assert peer == LEADER
        if self.has_link:
            self.told.append(msgspec.msgpack.decode(raw, type=Submit))
        return self.has_link

    async def _request(self, _peer: str, message: Propose, **_: Any) -> Proposed:
        if message.entries == [clients.encode(clients.Open())]:
            return Proposed([7], LEADER, 1)
        self.asked.append(message)
        return Proposed([run.command for run in runs(message.entries)], LEADER, 5)

    async def _look(self) -> None:
        """The leader is known."""

    async def _propose(self, entries: list[bytes]) -> Proposed:
        raise AssertionError(f"this node leads nothing: {entries}")


def runs(entries: Sequence[bytes]) -> list[clients.Run]:
    return [msgspec.msgpack.decode(entry, type=clients.Run) for entry in entries]


@pytest.fixture
async def asking() -> Any:
    asking = Asking()
    await asking.open()
    yield asking
    await asking.submission.close()


async def test_one_write_alone_leaves_at_once(asking: Asking) -> None:
    future = asking.submit(b"a")
    assert asking.commands() == [[b"a"]]
    asking.answer()
    assert await future == b"a"
    assert asking.applied == [5, 5]


async def test_what_comes_while_few_are_on_their_way_goes_together(asking: Asking) -> None:
    first, *others = [asking.submit(b"%d" % number) for number in range(4)]
    await asyncio.sleep(0)
    assert asking.commands() == [[b"0"]]
    asking.answer()
    await asking.until_told(1)
    assert asking.commands() == [[b"%d" % number for number in range(1, 4)]]
    asking.answer()
    assert await asyncio.gather(first, *others) == [b"%d" % number for number in range(4)]


async def test_many_writes_go_in_several_requests_at_a_time(asking: Asking) -> None:
    futures = [asking.submit(b"%d" % number) for number in range(600)]
    await asking.until_told(3)
    while not all(future.done() for future in futures):
        await asking.until_told(1)
        asking.answer()
    assert [await future for future in futures] == [b"%d" % number for number in range(600)]


async def test_a_lost_link_has_the_write_told_again_as_it_was(asking: Asking) -> None:
    future = asking.submit(b"a")
    before = asking.told.pop()
    asking.submission.lost("somebody else")
    asking.submission.lost(LEADER)
    await asking.until_told(1)
    assert asking.told[0].entries == before.entries
    assert asking.told[0].number != before.number
    asking.answer()
    assert await future == b"a"


async def test_what_is_not_answered_in_time_is_told_again(asking: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submission, "TRY_S", 0.0)
    future = asking.submit(b"a")
    await asking.until_told(2)
    asking.told.reverse()  # the newest is waited for
    asking.answer()
    assert await future == b"a"


async def test_only_the_leader_asked_answers_and_only_once(asking: Asking) -> None:
    future = asking.submit(b"a")
    asked = asking.told[0]
    asking.answer([b"a lie"], source="somebody else")
    asking.submission.answered(LEADER, b"garbage")
    assert not future.done()
    asking.told.append(asked)
    asking.answer()
    asking.told.append(asked)
    asking.answer([b"too late"])
    assert await future == b"a"


async def test_what_was_lost_goes_again_and_what_is_refused_fails(asking: Asking) -> None:
    lost = asking.submit(b"a")
    asking.answer([LOST])
    await asking.until_told(1)
    assert asking.commands() == [[b"a"]]
    asking.answer()
    assert await lost == b"a"
    refused = asking.submit(b"b")
    asking.answer([], fault=Fault("overloaded", "too much waits", 0.2))
    with pytest.raises(Overloaded, match="too much waits"):
        await refused


async def test_without_a_link_the_write_is_asked_instead_of_told(asking: Asking) -> None:
    asking.has_link = False
    assert await asking.submit(b"a") == b"a"
    assert [run.command for run in runs(asking.asked[0].entries)] == [b"a"]
