"""What the core asks to be done. The service and the simulator perform these in the order given."""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from meshnode.membership.messages import Exchange, Holder, Message, Ping, Shout
from meshnode.mesh import MemberChange


class Send(msgspec.Struct, frozen=True):
    """Send a datagram to "host:port". It may be lost. `peer` is the node id there, "" if not known."""

    address: str
    message: Message
    peer: str = ""


class SendReliable(msgspec.Struct, frozen=True):
    """Ask a peer over the coordination channel and hand its answer to the core.

    An Exchange's answer goes to `finish_exchange`, a Ping's Ack to `step`; no answer, nothing.
    """

    peer: str
    message: Exchange | Ping


class Changed(msgspec.Struct, frozen=True):
    """What is believed of a member changed."""

    change: MemberChange


class Forgotten(msgspec.Struct, frozen=True):
    """A member was dead or gone for so long that it is not kept any more."""

    node_id: str


class Heard(msgspec.Struct, frozen=True):
    """A user's event or query reached this node; each one once."""

    shout: Shout


class Answered(msgspec.Struct, frozen=True):
    """A member answered the query with this number."""

    number: int
    node_id: str
    payload: bytes


class Duplicated(msgspec.Struct, frozen=True):
    """Another process runs with this node's identity, and it was first: this node must stop."""

    holder: Holder


class Expelled(msgspec.Struct, frozen=True):
    """The mesh's certificate authority has revoked this node: it must stop."""


Effect: TypeAlias = Send | SendReliable | Changed | Forgotten | Heard | Answered | Duplicated | Expelled
