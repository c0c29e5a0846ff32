"""The wire's bytes: golden ones that another language could check itself by, and what hypothesis can think of."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from channels import envelope as env
from channels.codec import Codec, JsonCodec, MessagePackCodec
from channels.envelope import VERSION, Packet
from channels.errors import Fault, Malformed
from channels.zmq_wire import Announcement

CODECS: list[Codec] = [MessagePackCodec(), JsonCodec()]
FAST = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))

#: Message and the bytes a packet [1, 7, 1.5, [message]] has. Changing one breaks every node out there: raise VERSION.
GOLDEN: list[tuple[env.Message, str]] = [
    (
        env.Request(1, "echo", b"hi", 10.0, 40.0, False, {"t": "x"}),
        "94 01 07 cb3ff8000000000000 91 98 01 01 a46563686f c4026869 cb4024000000000000 cb4044000000000000 c2"
        "81a174a178",
    ),
    (env.Response(1, True, b"ok"), "94 01 07 cb3ff8000000000000 91 94 02 01 c3 c4026f6b"),
    (
        env.Response(1, False, Fault("no", "why", 0.5)),
        "94 01 07 cb3ff8000000000000 91 94 02 01 c2 93a26e6fa3776879cb3fe0000000000000",
    ),
    (env.Part(1, 0, b"p"), "94 01 07 cb3ff8000000000000 91 94 03 01 00 c40170"),
    (env.End(1, 1), "94 01 07 cb3ff8000000000000 91 94 04 01 01 c0"),
    (env.Cancel(1), "94 01 07 cb3ff8000000000000 91 92 05 01"),
    (env.Credit(1, 16), "94 01 07 cb3ff8000000000000 91 93 06 01 10"),
    (
        env.Event("e", b"", 1.0, 2.0, 3, "k"),
        "94 01 07 cb3ff8000000000000 91 97 07 a165 c400 cb3ff0000000000000 cb4000000000000000 03 a16b",
    ),
    (
        env.Publish("t", 5, b"b", 1.0, 2.0),
        "94 01 07 cb3ff8000000000000 91 97 08 a174 05 c40162 cb3ff0000000000000 cb4000000000000000 a0",
    ),
    (env.Subscribe({"t": 2}), "94 01 07 cb3ff8000000000000 91 92 09 81a17402"),
    (env.Ack(9, 4), "94 01 07 cb3ff8000000000000 91 93 0a 09 04"),
    (env.Chunk(2, 0, 300000), "94 01 07 cb3ff8000000000000 91 94 0b 02 00 ce000493e0"),
    (env.ChunkAck(2, 0), "94 01 07 cb3ff8000000000000 91 94 0c 02 00 c0"),
    (env.Window(64), "94 01 07 cb3ff8000000000000 91 92 0d 40"),
    (
        env.Goodbye(Fault("malformed", "x")),
        "94 01 07 cb3ff8000000000000 91 92 0e 93a96d616c666f726d6564a178cb0000000000000000",
    ),
    (env.Whole(2, 5, env.Part(1, 0, b"")), "94 01 07 cb3ff8000000000000 91 94 0f 02 05 94 03 01 00 c400"),
    (env.Reliable(3, 2, env.Cancel(1)), "94 01 07 cb3ff8000000000000 91 94 10 03 02 92 05 01"),
]


@pytest.mark.parametrize(("message", "golden"), GOLDEN, ids=lambda value: type(value).__name__)
def test_the_bytes_of_each_message_are_the_agreed_ones(message: env.Message, golden: str) -> None:
    packet, frame = Packet(1, 7, 1.5, [message]), bytes.fromhex(golden)
    assert MessagePackCodec().encode(packet) == frame
    assert MessagePackCodec().decode(frame) == packet


def test_every_kind_of_message_has_golden_bytes() -> None:
    kinds = {type(message) for message, _ in GOLDEN}
    assert kinds == set(env.Message.__args__)


def test_the_bytes_of_an_announcement_are_the_agreed_ones() -> None:
    announcement = Announcement(1, "node-a", "node-b", bytes(range(8)))
    assert msgspec.msgpack.encode(announcement).hex() == "9401a66e6f64652d61a66e6f64652d62c4080001020304050607"


def test_fields_appended_by_a_newer_version_are_skipped_and_missing_ones_filled_in() -> None:
    raw = msgspec.msgpack.encode([1, 7, 1.5, [[1, 5, "echo", b"", 1.0, 2.0, False, None, "new"], [4, 5, 0]], "new"])
    assert MessagePackCodec().decode(raw).messages == [env.Request(5, "echo", b"", 1.0, 2.0), env.End(5, 0)]


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
def test_another_version_is_told_apart_from_garbage(codec: Codec) -> None:
    newer = codec.encode(Packet(VERSION + 1, 7, 0.0, []))
    with pytest.raises(Malformed, match=f"version {VERSION + 1}, we speak {VERSION}"):
        codec.decode(newer)
    library = msgspec.json if isinstance(codec, JsonCodec) else msgspec.msgpack
    with pytest.raises(Malformed, match="version 9"):
        codec.decode(library.encode([9, {"another": "shape"}]))
    for garbage in (b"", b"\xc1", b"[]", b"\x90", b"null", library.encode([VERSION, 7, 0.0, [[99, 1]]])):
        with pytest.raises(Malformed, match="not a packet"):
            codec.decode(garbage)


ids = st.integers(0, 2**53)
times = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=20)
bodies = st.binary(max_size=200)
faults = st.builds(Fault, texts, texts, times)
plain = st.one_of(
    st.builds(env.Request, ids, texts, bodies, times, times, st.booleans(), st.none() | st.dictionaries(texts, texts)),
    st.builds(env.Response, ids, st.just(value=True), bodies)
    | st.builds(env.Response, ids, st.just(value=False), faults),
    st.builds(env.Part, ids, ids, bodies),
    st.builds(env.Event, texts, bodies, times, times, ids, texts),
)
messages = st.one_of(
    plain,
    st.builds(env.End, ids, ids, st.none() | faults),
    st.builds(env.Cancel, ids),
    st.builds(env.Credit, ids, ids),
    st.builds(env.Publish, texts, ids, bodies, times, times, texts),
    st.builds(env.Subscribe, st.dictionaries(texts, ids, max_size=3)),
    st.builds(env.Ack, ids, ids),
    st.builds(env.Chunk, ids, ids, ids),
    st.builds(env.ChunkAck, ids, ids, st.none() | faults),
    st.builds(env.Window, ids),
    st.builds(env.Goodbye, faults),
    st.builds(env.Whole, ids, ids, plain),
    st.builds(env.Reliable, ids, ids, plain),
)
packets = st.builds(Packet, st.just(VERSION), ids, times, st.lists(messages, max_size=6))


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@FAST
@given(packet=packets)
def test_what_is_encoded_is_decoded_the_same(codec: Codec, packet: Packet) -> None:
    assert codec.decode(codec.encode(packet)) == packet


@pytest.mark.parametrize("codec", CODECS, ids=lambda codec: type(codec).__name__)
@FAST
@given(frame=st.binary(max_size=300))
def test_any_bytes_are_a_packet_or_malformed(codec: Codec, frame: bytes) -> None:
    with suppress(Malformed):
        assert isinstance(codec.decode(frame), Packet)


@FAST
@given(packet=packets, at=st.integers(0, 10**6), value=st.integers(0, 255), cut=st.integers(0, 10**6))
def test_a_damaged_packet_is_a_packet_or_malformed(packet: Packet, at: int, value: int, cut: int) -> None:
    frame = bytearray(MessagePackCodec().encode(packet))
    frame[at % len(frame)] = value
    for damaged in (bytes(frame), bytes(frame[: cut % len(frame)])):
        with suppress(Malformed):
            assert isinstance(MessagePackCodec().decode(damaged), Packet)


def test_deep_nesting_is_malformed_not_a_crash() -> None:
    with pytest.raises(Malformed):
        MessagePackCodec().decode(b"\x91" * 100_000)
    with pytest.raises(Malformed):
        JsonCodec().decode(b"[" * 100_000)
