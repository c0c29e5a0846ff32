"""What members tell each other: claims about members, and the datagrams that carry them.

A claim is a statement about one member, encoded once by whoever makes it and passed on as the same bytes, so that a
signature in it stays valid and a copy that was seen before is known by its bytes alone.

    Alive(record)          the subject itself: "this is me", at an incarnation of its own choosing
    Suspect, Dead          an accuser: "it did not answer at incarnation i"; a higher Alive refutes it
    Left                   the subject itself: "I go"
    Load                   the subject itself: slots and busy, by a version of its own
    Revoked                the mesh's certificate authority: "it is out", for good

Datagrams (array-like MessagePack, the first item is the tag):

    Ping(sequence) -> Ack             direct probe
    PingRequest -> Ack or Nack        "probe it for me"; the nack says that the asked one lives (Lifeguard §IV-A)
    Gossip                            nothing but claims
    Stranger                          answer to a ping meant for somebody else: the process you know is gone
    Twin                              "somebody else runs with your identity"; who started later stops
    JoinRequest -> JoinAnswer | JoinRefusal     small and stateless; the full state comes by PushPull

Every datagram that a probe sends anyway carries claims in `updates`, as many as fit (SWIM §4.1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, ClassVar, TypeAlias

import msgspec

from channels.transport import ChannelName
from meshnode.errors import TooLarge
from meshnode.mesh import Request, Role

DATAGRAM_BYTES = 1400  # below the smallest path MTU in common use, with IPv6 and UDP headers and a tunnel's
SEAL_BYTES = 64  # what the envelope may take of it: mesh tag, nonce, authentication tag
HEAD_BYTES = 160  # what a datagram's own fields may take of it; the rest is for claims
METADATA_BYTES = 512  # tags and programs of one member, encoded
RECORD_BYTES = 1100  # a whole record: it must fit one datagram

NodeId: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Name: TypeAlias = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Address: TypeAlias = Annotated[str, msgspec.Meta(min_length=3, max_length=300)]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]


class Record(msgspec.Struct, array_like=True, frozen=True):
    """How to reach a member and what it can do, as it says itself.

    started: when its process began, Unix microseconds; tells two lives of one identity apart. incarnation: begins at
    `started`, so that a later life outranks what was said of an earlier one; only the member raises it.
    """

    node_id: NodeId
    name: Name
    incarnation: Count
    address: Address  # gossip, "host:port"
    started: Count
    role: Role = "node"
    channels: dict[ChannelName, str] = {}
    http: str = ""
    tags: dict[str, str] = {}
    programs: tuple[str, ...] = ()
    key: bytes = b""  # the CURVE key that the channels authenticate the member by
    identity: bytes = b""  # the Ed25519 key whose hash is the node id; checks `signature`
    admission: bytes = b""  # proves that the subject holds a key of the mesh
    certificate: bytes = b""  # where a mesh has a certificate authority
    signature: bytes = b""


class Alive(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """The member itself: here I am."""

    record: Record


class Suspect(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """An accuser: it does not answer. `identity` is the accuser's key, whose hash is its node id."""

    node_id: NodeId
    incarnation: Count
    accuser: NodeId
    identity: bytes = b""
    signature: bytes = b""


class Dead(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """An accuser: it was suspected for long enough and did not refute. `identity` as in Suspect."""

    node_id: NodeId
    incarnation: Count
    accuser: NodeId
    identity: bytes = b""
    signature: bytes = b""


class Left(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """The member itself: I go. `identity` is its key."""

    node_id: NodeId
    incarnation: Count
    identity: bytes = b""
    signature: bytes = b""


class Load(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """The member itself: of `slots` tasks it can run at once, `busy` are taken. `version` begins at its `started`."""

    node_id: NodeId
    version: Count
    slots: Count
    busy: Count


class Shout(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """A user's event, or with `asks` a query that every member may answer to `origin`."""

    origin: NodeId
    number: Count  # the origin's own count; with `origin` it names the event
    name: Name
    payload: bytes
    asks: bool = False


class Revoked(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """The certificate authority: this node belongs no more. Outranks whatever is said of it, now and later."""

    node_id: NodeId
    incarnation: Count  # REVOKED
    signature: bytes = b""


REVOKED = 1 << 62  # above every incarnation, which are microseconds

News: TypeAlias = Suspect | Dead | Left | Revoked
Claim: TypeAlias = Alive | News
Update: TypeAlias = Claim | Load | Shout
LoadNow: TypeAlias = tuple[Count, Count, Count]  # version, slots, busy

NO_LOAD: LoadNow = (0, 0, 0)


class Ping(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """Are you there? `target` is who the sender takes the receiver for."""

    sequence: Count
    target: NodeId
    source: NodeId
    load: LoadNow
    updates: list[bytes] = []


class Ack(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """I am here. `started` tells which life of the identity answers."""

    sequence: Count
    source: NodeId
    started: Count
    load: LoadNow
    updates: list[bytes] = []


class PingRequest(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """Ping `target` at `address` for me."""

    sequence: Count
    target: NodeId
    address: Address
    source: NodeId
    updates: list[bytes] = []


class Nack(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """The target of your ping request has not answered me yet; I live."""

    sequence: Count
    source: NodeId


class Gossip(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """Nothing but claims."""

    source: NodeId
    updates: list[bytes]


class Stranger(msgspec.Struct, array_like=True, frozen=True, tag=16):
    """You pinged somebody else at my address."""

    sequence: Count
    source: NodeId
    updates: list[bytes] = []


class Twin(msgspec.Struct, array_like=True, frozen=True, tag=17):
    """This process runs with your identity, too: find out which of you started first."""

    name: Name
    address: Address
    started: Count


class Answer(msgspec.Struct, array_like=True, frozen=True, tag=18):
    """A member's answer to a query (`Shout` with `asks`)."""

    number: Count
    source: NodeId
    payload: bytes


class JoinRequest(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """Let me in. `mesh_id` is empty for who has been in no mesh.

    Padded so that no answer is longer than its request: a forged source address gains an attacker nothing.
    """

    nonce: bytes
    node_id: NodeId
    name: Name
    mesh_id: str
    padding: bytes = b""


class Holder(msgspec.Struct, array_like=True, frozen=True):
    """Who the answering member believes to run with an identity."""

    name: Name
    address: Address
    started: Count


class JoinAnswer(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """Come in: this is the mesh, and this is me. `holder` has your identity already, as far as I know.

    `clock_ms`: Unix time where the answer was made, so that who asks can compare clocks; 0: not told.
    """

    nonce: bytes
    mesh_id: str
    alive: bytes
    holder: Holder | None = None
    clock_ms: int = 0


class JoinRefusal(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """No, and why. `retry`: ask again, I am still joining myself. `node_id` is the answering member's."""

    nonce: bytes
    node_id: NodeId
    reason: str
    retry: bool


Message: TypeAlias = Ping | Ack | PingRequest | Nack | Gossip | Stranger | Twin | Answer
Joining: TypeAlias = JoinRequest | JoinAnswer | JoinRefusal
Datagram: TypeAlias = Message | Joining


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """One member in a state exchange: its own record, what is claimed of it (empty: nothing worse), for how long."""

    alive: bytes
    claim: bytes
    age_s: Count
    load: LoadNow


class Exchange(msgspec.Struct, array_like=True, frozen=True):
    """One half of a state exchange (anti-entropy).

    source: the sender's own Alive. load: its own, so that who just joined can choose by it. digests: one 8-byte digest
    per bucket of members, empty if none are to be compared. entries: members the sender thinks the receiver lacks.
    wanted: buckets whose entries the sender asks for.
    """

    source: bytes
    load: LoadNow
    digests: bytes = b""
    entries: list[Entry] = []
    wanted: bytes = b""


class PushPull(Request[Exchange], array_like=True, frozen=True):
    """Compare what we know; on the coordination channel."""

    command: ClassVar[str] = "mesh.membership.push_pull"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = Exchange

    mesh_id: str
    exchange: Exchange


class Reach(Request[Ack], array_like=True, frozen=True):
    """A ping on the coordination channel, for networks that lose or block datagrams."""

    command: ClassVar[str] = "mesh.membership.reach"
    channel: ClassVar[ChannelName] = "coordination"
    reply: ClassVar[Any] = Ack

    ping: Ping


_encode = msgspec.msgpack.Encoder().encode
_decode_update: Callable[[bytes], Update] = msgspec.msgpack.Decoder(Update).decode
_decode_datagram: Callable[[bytes], Datagram] = msgspec.msgpack.Decoder(Datagram).decode


def encode(message: Message | Joining | Update) -> bytes:
    """MessagePack of any message or claim."""
    return _encode(message)


def decode_update(raw: bytes) -> Update:
    """A claim, load or shout from its bytes. Raises msgspec.MsgspecError on anything else."""
    return _decode_update(raw)


def decode_datagram(raw: bytes) -> Datagram:
    """A datagram's content from its bytes. Raises msgspec.MsgspecError on anything else."""
    return _decode_datagram(raw)


def metadata_bytes(tags: dict[str, str], programs: Sequence[str]) -> int:
    """How much of METADATA_BYTES tags and programs take."""
    return len(_encode((tags, programs)))


def check_size(record: Record) -> None:
    """Raises TooLarge, naming the cap, for a record that gossip can't carry."""
    took = metadata_bytes(record.tags, record.programs)
    if took > METADATA_BYTES:
        raise TooLarge(
            f"tags and program names take {took} bytes, the cap is {METADATA_BYTES}; use fewer or shorter ones"
        )
    whole = len(encode(Alive(record)))
    if whole > RECORD_BYTES:
        raise TooLarge(
            f"the membership record takes {whole} bytes, the cap is {RECORD_BYTES}; use a shorter name or address"
        )
