"""Sessions: they live by the log's time, and what they own goes with them."""

from __future__ import annotations

from typing import Any

import pytest

from consensus.machines.composite import (
    Advanced,
    Change,
    Command,
    Machine,
    decode_result,
    encode_advance,
    encode_command,
)
from consensus.machines.sessions import Granted, Renew, SessionChange, Start, Stop, Stopped
from consensus.machines.values import Declaration, Refusal, RefusedByRule
from consensus.machines.variables import Register, Set, Written
from consensus.raft import sessions as clients


class Replica:
    """A machine with one client, which never repeats a command."""

    def __init__(self) -> None:
        self.machine = Machine()
        self.index = self.sequence = 0
        self.changes: list[Change] = []
        self.client = self._apply(clients.encode(clients.Open())).session

    def run(self, command: Command) -> Any:
        self.sequence += 1
        run = clients.Run(self.client, self.sequence, self.sequence - 1, encode_command(command))
        return decode_result(self._apply(clients.encode(run)).result)

    def advance(self, log_ms: int) -> list[Change]:
        before = len(self.changes)
        self._apply(encode_advance(log_ms))
        return self.changes[before:]

    def _apply(self, data: bytes) -> Any:
        self.index += 1
        outcome, changes = self.machine.apply(self.index, data)
        self.changes += changes
        return outcome


@pytest.fixture
def replica() -> Replica:
    return Replica()


def test_a_session_lives_until_its_time_passes_in_the_log(replica: Replica) -> None:
    replica.advance(1000)
    assert replica.run(Start("s", "node-a", 500)) == Granted(1500)
    assert replica.advance(1499) == []
    assert replica.run(Renew("s")) == Granted(1999)
    assert replica.advance(1998) == []
    assert replica.advance(1999) == [SessionChange("s", "expired", "node-a", replica.index)]
    answer = replica.run(Renew("s"))
    assert (answer.subject, answer.rule) == ("s", "session")


def test_the_logs_time_never_falls(replica: Replica) -> None:
    replica.advance(5000)
    replica.run(Start("s", "node-a", 500))
    outcome, _ = replica.machine.apply(replica.index + 1, encode_advance(100))
    assert outcome == Advanced(5000)
    assert replica.machine.log_ms == 5000


def test_no_session_ends_without_time_in_the_log(replica: Replica) -> None:
    replica.run(Start("s", "node-a", 100))
    for _ in range(1000):
        replica.run(Stop("another"))
    assert replica.machine.sessions.get("s") is not None


def test_a_repeated_start_renews_and_a_different_one_is_refused(replica: Replica) -> None:
    assert replica.run(Start("s", "node-a", 500, {"app": "x"})) == Granted(500)
    replica.advance(100)
    assert replica.run(Start("s", "node-a", 500, {"app": "x"})) == Granted(600)
    for other in (Start("s", "node-b", 500, {"app": "x"}), Start("s", "node-a", 600, {"app": "x"})):
        assert replica.run(other).rule == "conflict"
    assert [change.what for change in replica.changes if isinstance(change, SessionChange)] == ["started"]


@pytest.mark.parametrize("end", ["stop", "expire"])
def test_what_a_session_owns_goes_with_it_in_the_same_entry(replica: Replica, end: str) -> None:
    replica.run(Start("s", "node-a", 500))
    for name in ("c", "a", "b"):
        replica.run(Register(Declaration(name, "int", 0, session="s")))
    replica.run(Register(Declaration("stays", "int", 0)))
    replica.run(Set("b", 7))
    before = len(replica.changes)
    if end == "stop":
        assert replica.run(Stop("s")) == Stopped(True)
    else:
        replica.advance(500)
    gone = replica.changes[before:]
    assert gone[0] == SessionChange("s", "stopped" if end == "stop" else "expired", "node-a", replica.index)
    assert [(change.name, change.what, change.version) for change in gone[1:]] == [  # type: ignore[union-attr]  # told apart above
        (name, "removed", version) for version, name in enumerate(("a", "b", "c"), replica.index)
    ]
    assert [variable.declaration.name for variable in replica.machine.variables] == ["stays"]
    assert replica.run(Stop("s")) == Stopped(False)
    assert replica.run(Start("s", "node-a", 500)) == Granted(replica.machine.log_ms + 500)


def test_several_sessions_expire_in_the_order_of_their_time(replica: Replica) -> None:
    for name, ttl_ms in (("late", 900), ("b", 500), ("a", 500), ("lives", 5000)):
        replica.run(Start(name, "node-a", ttl_ms))
    assert [change.id for change in replica.advance(1000)] == ["a", "b", "late"]  # type: ignore[union-attr]  # all are of sessions
    assert [session.id for session in replica.machine.sessions] == ["lives"]
    assert replica.advance(4999) == []
    assert len(replica.advance(5000)) == 1


def test_a_variable_owned_by_a_dead_session_is_refused(replica: Replica) -> None:
    command = Register(Declaration("v", "int", 0, session="nobody"))
    with pytest.raises(RefusedByRule, match="does not live"):
        replica.machine.check(command)
    answer = replica.run(command)
    assert isinstance(answer, Refusal)
    assert (answer.subject, answer.rule) == ("v", "session")
    replica.run(Start("nobody", "node-a", 500))
    replica.machine.check(command)
    assert isinstance(replica.run(command), Written)


@pytest.mark.parametrize(
    "command",
    [Start("", "node", 500), Start("s" * 200, "node", 500), Start("s", "", 500), Start("s", "node", 99), Renew("s")],
)
def test_a_bad_session_command_is_refused_before_and_when_applied(replica: Replica, command: Command) -> None:
    with pytest.raises(RefusedByRule) as caught:
        replica.machine.check(command)
    assert replica.run(command) == caught.value.refusal
    assert len(replica.machine.sessions) == 0
