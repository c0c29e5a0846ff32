"""Writes on their way to a leader: told, answered, lost and told again, over a channel that this test is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import chain
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from channels.errors import Fault
from consensus.raft import sessions as clients
from meshnode.errors import OutcomeUnknown, Overloaded
from meshnode.replication import submission
from meshnode.replication.messages import EXPIRED, LOST, UNACKNOWLEDGED, UNKNOWN, Propose, Proposed, Submit, Submitted
from meshnode.replication.submission import Submission

LEADER = "leader"


class Asking:
    """A submission whose leader is this test: `told` is what it was told and has not answered."""

    def __init__(self) -> None:
        self.told: list[Submit] = []
        self.applied: list[int] = []
        self.echo = Echo()
        self.has_link = True
        self.asked: list[Propose] = []
        mesh: Any = SimpleNamespace(me=SimpleNamespace(node_id="me"), request=self._request)
        self.submission: Submission[bytes, bytes] = Submission(
            mesh,
            self.echo,
            leader=lambda: LEADER,
            look=self._look,
            heard=lambda _: None,
            propose=self._propose,
            tell=self._tell,
            applied=lambda index, _: self.applied.append(index),
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
        return [list(chain.from_iterable(map(told, each.entries))) for each in self.told]

    def answer(self, outcomes: list[Any] | None = None, *, source: str = LEADER, fault: Fault | None = None) -> None:
        """Answer the oldest: each command with itself, unless told otherwise."""
        asked = self.told.pop(0)
        outcomes = list(map(echo, asked.entries)) if outcomes is None else outcomes
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
        return Proposed(list(map(echo, message.entries)), LEADER, 5)

    async def _look(self) -> None:
        """The leader is known."""

    async def _propose(self, entries: list[bytes]) -> Proposed:
        raise AssertionError(f"this node leads nothing: {entries}")


class Echo:
    """Commands are bytes, and their own answers. `settled_results`: of those that were answered together."""

    def __init__(self) -> None:
        self.settled_results: list[bytes] = []

    def size(self, command: bytes) -> int | None:
        return None if command.startswith(b"alone") else len(command)

    def encode(self, command: bytes) -> bytes:
        return command

    def encode_all(self, commands: Sequence[bytes]) -> bytes:
        return msgspec.msgpack.encode(list(commands))

    def settle(self, future: asyncio.Future[bytes], index: int, answer: bytes) -> None:
        assert index > 0
        future.set_result(answer)

    def results(self, answer: bytes) -> list[bytes]:
        return self.answers(answer)

    def settled(self, index: int, results: list[bytes]) -> None:
        assert index > 0
        self.settled_results += results

    def answers(self, answer: bytes) -> list[bytes]:
        return msgspec.msgpack.decode(answer, type=list[bytes])


def command_of(entry: bytes) -> clients.Run | clients.Runs:
    return msgspec.msgpack.decode(entry, type=clients.Run | clients.Runs)


def echo(entry: bytes) -> bytes:
    """The answer to all that an entry holds."""
    held = command_of(entry)
    return held.command if isinstance(held, clients.Run) else held.commands


def told(entry: bytes) -> list[bytes]:
    """The commands in an entry."""
    held = command_of(entry)
    return [held.command] if isinstance(held, clients.Run) else msgspec.msgpack.decode(held.commands, type=list[bytes])


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
    await asyncio.sleep(0)
    assert asking.applied == [5, 5]


async def test_who_wrote_goes_on_before_this_nodes_copy_takes_the_write_in(asking: Asking) -> None:
    seen: list[list[int]] = []

    async def writer() -> None:
        await asking.submit(b"a")
        seen.append(list(asking.applied))

    task = asyncio.create_task(writer())
    await asking.until_told(1)
    asking.answer()
    await task
    await asyncio.sleep(0)
    assert seen == [[5]]
    assert asking.applied == [5, 5]


async def test_a_write_is_taken_in_soon_though_others_are_written_in_every_turn(asking: Asking) -> None:
    first = asking.submit(b"a")
    asking.answer()
    assert await first == b"a"
    asking.submit(b"on its way")
    for number in range(3):
        asking.submit(b"%d" % number)
        await asyncio.sleep(0)
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
    assert list(map(told, asking.asked[0].entries)) == [[b"a"]]


async def pack(asking: Asking, *commands: bytes) -> list[asyncio.Future[bytes]]:
    """Writes that go out as one entry."""
    ahead = asking.submit(b"ahead")
    futures = [asking.submit(command) for command in commands]
    asking.answer()
    await ahead
    await asking.until_told(1)
    return futures


async def test_several_writes_are_one_entry_and_have_one_answer(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b", b"c")
    (entry,) = asking.told[0].entries
    held = command_of(entry)
    assert isinstance(held, clients.Runs)
    assert (held.session, held.sequence, held.acknowledged, held.count) == (7, 3, 2, 3)
    asking.answer()
    assert await asyncio.gather(*futures) == [b"a", b"b", b"c"]


async def test_one_that_goes_alone_parts_those_before_from_those_behind(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b", b"alone", b"c", b"alone again", b"d", b"e")
    assert list(map(told, asking.told[0].entries)) == [
        [b"a", b"b"],
        [b"alone"],
        [b"c"],
        [b"alone again"],
        [b"d", b"e"],
    ]
    numbers = [command_of(entry).sequence for entry in asking.told[0].entries]
    assert numbers == [3, 5, 6, 7, 8]
    asking.answer()
    assert await asyncio.gather(*futures) == [b"a", b"b", b"alone", b"c", b"alone again", b"d", b"e"]


async def test_an_entry_holds_so_many_bytes(asking: Asking) -> None:
    large = [bytes([at]) * (100 << 10) for at in range(5)]
    futures = await pack(asking, *large)
    assert [len(told(entry)) for entry in asking.told[0].entries] == [2, 2, 1]
    asking.answer()
    assert await asyncio.gather(*futures) == large


@pytest.mark.parametrize(
    "outcome", [LOST, UNKNOWN, [LOST, UNKNOWN, UNACKNOWLEDGED], b"\xc1", [b"one"], b"\x91\xc4\x01x"]
)
async def test_what_went_together_goes_again_each_for_itself(asking: Asking, outcome: Any) -> None:
    futures = await pack(asking, b"a", b"b", b"c")
    asking.answer([outcome])
    await asking.until_told(1)
    assert list(map(told, asking.told[0].entries)) == [[b"a"], [b"b"], [b"c"]]
    assert [command_of(entry).sequence for entry in asking.told[0].entries] == [3, 4, 5]
    asking.answer()
    assert await asyncio.gather(*futures) == [b"a", b"b", b"c"]


async def test_of_an_answer_that_is_malformed_in_part_nothing_is_counted_twice(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b", b"alone", b"c", b"d")
    first, alone, _ = map(echo, asking.told[0].entries)
    asking.answer([first, alone, b"\xc1"])
    await asking.until_told(1)
    assert list(map(told, asking.told[0].entries)) == [[b"c"], [b"d"]]
    asking.answer()
    assert await asyncio.gather(*futures) == [b"a", b"b", b"alone", b"c", b"d"]
    assert asking.echo.settled_results == []  # each was settled by itself


async def test_some_that_went_together_may_be_answered_and_others_not(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b", b"c")
    asking.answer([[b"a", LOST, b"c"]])
    assert await futures[0] == b"a"
    assert await futures[2] == b"c"
    await asking.until_told(1)
    assert list(map(told, asking.told[0].entries)) == [[b"b"]]
    asking.answer()
    assert await futures[1] == b"b"


async def test_one_given_up_leaves_the_others_that_went_together(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b", b"c")
    futures[1].cancel()
    asking.answer()
    assert await futures[0] == b"a"
    assert await futures[2] == b"c"
    last = asking.submit(b"d")
    await asking.until_told(1)
    assert command_of(asking.told[0].entries[0]).acknowledged == 5
    asking.answer()
    assert await last == b"d"


async def test_a_session_that_is_gone_takes_nothing_in_doubt_with_it(asking: Asking) -> None:
    futures = await pack(asking, b"a", b"b")
    asking.answer([[UNKNOWN, LOST]])
    await asking.until_told(1)
    asking.answer([EXPIRED, EXPIRED])
    with pytest.raises(OutcomeUnknown):
        await futures[0]
    await asking.until_told(1)
    assert list(map(told, asking.told[0].entries)) == [[b"b"]]
    asking.answer()
    assert await futures[1] == b"b"
