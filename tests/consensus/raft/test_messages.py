"""On the wire: what is encoded comes back, and what is no message is refused."""

from __future__ import annotations

import random

import msgspec
import pytest

from consensus.raft import Configuration, Settings, Snapshot, Stored
from consensus.raft.messages import (
    Append,
    AppendReject,
    AppendReply,
    Entry,
    HardState,
    Message,
    PreVote,
    PreVoteReply,
    ReadIndex,
    ReadIndexReply,
    SnapshotChunk,
    SnapshotReply,
    TimeoutNow,
    Vote,
    VoteReply,
    configuration_entry,
    configuration_of,
    decode,
    encode,
)
from tests.consensus.raft.cluster import Node

MESSAGES: list[Message] = [
    PreVote(1, 2, 3),
    PreVoteReply(1, True),
    Vote(1, 2, 3, transfer=True),
    VoteReply(1, False),
    Append(3, 2, 1, 2, 9, [Entry(1, b"x"), Entry(2, b"", 1)]),
    AppendReply(1, 2, 3),
    AppendReject(1, 2, 3, 4, 5),
    SnapshotChunk(4, Snapshot(3, 2, Configuration(("a",), ("b",), ("c",))), 100, b"data", False),
    SnapshotReply(1, 2, 3),
    TimeoutNow(7),
    ReadIndex(1, 2),
    ReadIndexReply(1, 2, 3),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda each: type(each).__name__)
def test_a_message_comes_back_as_it_was(message: Message) -> None:
    assert decode(encode(message)) == message


def test_the_bytes_of_an_append_are_fixed() -> None:
    assert encode(MESSAGES[4]).hex() == "9704030201020992930" + "1c40178009302c40001"


def test_a_configuration_comes_back_from_its_entry() -> None:
    configuration = Configuration(("a", "b"), ("c",))
    assert configuration_of(configuration_entry(3, configuration)) == configuration


@pytest.mark.parametrize("bad", [Append(-1, 0, 0, 0, 0, []), Append(1, 0, 0, 0, 0, [Entry(1, b"", 9)])])
def test_values_out_of_range_are_refused(bad: Message) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode(encode(bad))


def test_garbage_is_refused_and_nothing_else_happens() -> None:
    rng = random.Random(3)
    for number in range(3000):
        data = bytearray(encode(MESSAGES[number % len(MESSAGES)]))
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            decode(bytes(data))
        except msgspec.DecodeError:
            continue


def test_a_disk_that_contradicts_itself_is_refused() -> None:
    for stored in (
        Stored(HardState(1), Snapshot(), [Entry(2, b"")]),
        Stored(HardState(3), Snapshot(), [Entry(2, b""), Entry(1, b"")]),
        Stored(HardState(1), Snapshot(5, 2), []),
    ):
        with pytest.raises(ValueError, match="stored"):
            Node("a", stored)


@pytest.mark.parametrize(
    "wrong",
    [{"heartbeat_ticks": 15}, {"lease_ticks": 23}, {"disk_timeout_ticks": 0}, {"retry_ticks": 0}, {"window_bytes": 0}],
)
def test_settings_that_contradict_each_other_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Settings(**wrong)
