"""What consensus refuses, and who is to blame.

    ConsensusError
      Refused                 this node would not take the request; nothing was or will be applied: retry is safe
        NotLeader             ask `leader` instead (None: none is known yet)
        TransferUnderWay      leadership is being handed over: retry in a moment
        Backlogged            too much is proposed and not yet committed: retry later
        EntryTooLarge         a command above the limit: never retry as it is
        ChangeRefused         a membership change or transfer that is not allowed now, with the reason
      OutcomeUnknown          it may or may not have been applied: retry only in a client session, which applies once
      SessionExpired          the client session is gone; whether the command was applied before can't be known
      ProtocolViolation       a peer sent what a correct peer never sends: the message is refused, the state unchanged

A broken promise of our own code is none of these: it raises AssertionError and stops the node.
"""

from __future__ import annotations


class ConsensusError(Exception):
    """Base of all that consensus refuses."""


class Refused(ConsensusError):
    """The request was not taken, and never will be applied."""


class NotLeader(Refused):
    """Only the leader can do this; `leader` is who this node believes it to be."""

    def __init__(self, leader: str | None) -> None:
        self.leader = leader
        super().__init__(f"not the leader; ask {leader}" if leader else "not the leader, and none is known")


class TransferUnderWay(Refused):
    """Leadership is being handed to `target`; no proposals meanwhile."""

    def __init__(self, target: str) -> None:
        self.target = target
        super().__init__(f"leadership is being transferred to {target}")


class Backlogged(Refused):
    """`waiting` bytes are proposed and not committed, and `limit` is the most."""

    def __init__(self, waiting: int, limit: int) -> None:
        super().__init__(f"{waiting} bytes wait to be committed, the limit is {limit}")


class EntryTooLarge(Refused):
    """A command of `size` bytes where `limit` is the most."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a command of {size} bytes is above the limit of {limit}")


class ChangeRefused(Refused):
    """A membership change or a transfer that can't be done now; the text says why."""


class OutcomeUnknown(ConsensusError):
    """The command may or may not have been applied."""


class SessionExpired(ConsensusError):
    """The client session is not in the replicated table (any more)."""


class ProtocolViolation(ConsensusError):
    """`source` sent what a correct peer never sends."""

    def __init__(self, source: str, what: str) -> None:
        self.source = source
        super().__init__(f"{source}: {what}")
