"""From a message's type to its channel, and from what arrives to whoever answers it.

Two kinds of command share the wire. Ours begin with "mesh." and carry a typed struct, encoded and validated by
msgspec. All others are handlers that users declared with `@app.handler`; they travel on inference and carry any value
that `meshnode.values` can pack. A responder that returns at once is answered at once: no task is made for it.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from types import CoroutineType
from typing import Any

import msgspec

from channels.errors import Fault
from channels.transport import Channel, ChannelName, Channels, FaultError, Incoming, Reply
from meshnode.decoding import UNDECODABLE
from meshnode.errors import MeshError, Unreachable, to_fault
from meshnode.mesh import Caller, Event, R, Request, Responder
from meshnode.spans import Open, Spans, await_within, opened_here
from meshnode.values import pack, unpack

OURS = "mesh."
OBSERVING = "mesh.observe."
_encode = msgspec.msgpack.Encoder().encode
_VALUES = frozenset({bytes, str, int, float, bool, list, dict, tuple, type(None)})


class Context(msgspec.Struct, frozen=True, gc=False):
    """What a user's handler is told: who asks, and until when (on the running loop's clock)."""

    peer: str
    deadline: float
    trace: Mapping[str, str] | None = None


UserHandler = Callable[[Any, Context], Any]


class Dispatch:
    """Sends typed messages and answers them. One per node; `attach` gives it the channels once they are open.

    spans: where what passes is traced; None: nothing is, and nothing paid for it.
    """

    def __init__(self, spans: Spans | None = None) -> None:
        self.spans = spans
        self._responders: dict[str, Callable[[Incoming], Reply]] = {}
        self._came_over: dict[str, ChannelName] = {}
        self._decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {}
        self._channels: Mapping[ChannelName, Channel] = {}
        self._on_left: list[Callable[[str], None]] = []

    def attach(self, channels: Channels) -> None:
        """Use these channels from now on."""
        self._channels = {name: channels[name] for name in channels.addresses}

    def serve(self, kind: type[Request[Any]] | type[Event], responder: Responder) -> None:
        """Answer a kind of message with `responder(message, caller)`."""
        if not kind.command.startswith(OURS) or kind.command in self._responders:
            raise AssertionError(f"{kind.command!r} must begin with {OURS!r} and be served once")
        decode = msgspec.msgpack.Decoder(kind).decode

        def answer(incoming: Incoming) -> Reply:
            try:
                message = decode(incoming.body)
            except UNDECODABLE as error:
                raise FaultError(Fault("malformed", f"{incoming.command}: {error}")) from None
            return _reply(responder, message, Caller(incoming.peer, incoming.deadline, incoming.context), _encode)

        self._responders[kind.command] = answer
        self._came_over[kind.command] = kind.channel

    def channel_of(self, command: str) -> ChannelName | None:
        """The channel on which a command travels; None if nobody answers it here."""
        is_users = command in self._responders and not command.startswith(OURS)
        return self._came_over.get(command, "inference" if is_users else None)

    def serve_raw(self, command: str, receive: Callable[[str, bytes], None]) -> None:
        """Hand the body of a cast on as it came: for protocols that have an encoding of their own."""

        def answer(incoming: Incoming) -> Reply:
            receive(incoming.peer, incoming.body)
            return b""

        self._responders[command] = answer

    def serve_user(self, name: str, handler: UserHandler) -> None:
        """Answer `call`s of a user's method with `handler(args, context)`."""
        if name.startswith(OURS) or name in self._responders:
            raise MeshError(f"handler {name!r}: choose a name that is not taken and does not begin with {OURS!r}")

        def answer(incoming: Incoming) -> Reply:
            caller = Context(incoming.peer, incoming.deadline, incoming.context)
            return _reply(handler, unpack(incoming.body), caller, pack)

        self._responders[name] = answer

    def handle(self, incoming: Incoming) -> Reply:
        """What the channels call for each request or cast that arrives."""
        responder = self._responders.get(incoming.command)
        if responder is None:
            raise FaultError(Fault("unknown_command", self._unknown(incoming.command)))
        try:
            if incoming.context is not None and (span := self._begin(incoming.command, incoming)) is not None:
                reply: Reply = span.owner.around_reply(span, lambda: responder(incoming))
                return reply
            return responder(incoming)
        except FaultError:
            raise
        except Exception as error:
            raise FaultError(to_fault(error)) from error

    def on_left(self, tell: Callable[[str], None]) -> None:
        """Call `tell(peer)` whenever the link to a peer breaks."""
        self._on_left.append(tell)

    def left(self, peer: str) -> None:
        """What the channels call when the link to a peer breaks."""
        for tell in self._on_left:
            tell(peer)

    def methods(self) -> list[str]:
        """The users' handlers on this node, sorted."""
        return sorted(name for name in self._responders if not name.startswith(OURS))

    async def request(self, peer: str, message: Request[R], *, timeout_s: float) -> R:
        """Ask a peer with one of our messages."""
        kind = type(message)
        reply: R = self._decode_reply(
            kind, await self.ask(kind.channel, peer, kind.command, _encode(message), timeout_s)
        )
        return reply

    def ask(self, name: ChannelName, peer: str, command: str, body: bytes, timeout_s: float) -> Awaitable[bytes]:
        """Ask a peer with a body that is encoded; for a user's handler on inference, by `meshnode.values`."""
        channel, spans = self._channels.get(name) or self._channel(name), self.spans
        if spans is None:
            return channel.request(peer, command, body, timeout_s=timeout_s)
        if spans.passing > 0 and opened_here() is None:  # as `lets_by`, for most calls pay no more than this
            spans.passing -= 1
            return channel.request(peer, command, body, timeout_s=timeout_s)
        span = self._begin(command)
        if span is None:
            return channel.request(peer, command, body, timeout_s=timeout_s)
        span.attributes["peer"] = peer
        return await_within(span, channel.request(peer, command, body, timeout_s=timeout_s, context=span.context))

    def _begin(self, command: str, incoming: Incoming | None = None) -> Open | None:
        # What looks at the mesh is not part of what it looks at.
        if self.spans is None or command.startswith(OBSERVING):
            return None
        if incoming is None:
            return self.spans.begin(command)
        return self.spans.begin(command, incoming.context, {"peer": incoming.peer})

    async def stream(self, peer: str, message: Request[R], *, timeout_s: float) -> AsyncIterator[R]:
        """Ask a peer and iterate over its streamed reply."""
        kind = type(message)
        span = self._begin(kind.command)
        context = None if span is None else span.context
        parts = self._channel(kind.channel).stream(
            peer, kind.command, _encode(message), timeout_s=timeout_s, context=context
        )
        try:
            async for part in parts:
                yield self._decode_reply(kind, part)
        except BaseException as error:
            if span is not None:
                span.end(None if isinstance(error, GeneratorExit) else error)
            raise
        finally:
            # The channel still knows of it: a stream that nobody reads any more would go on until its time is up.
            if (close := getattr(parts, "aclose", None)) is not None:
                await close()
            if span is not None:
                span.end()

    async def cast(self, peer: str, message: Event) -> None:
        """Send without an answer, as the message's channel promises."""
        await self._channel(message.channel).cast(peer, message.command, _encode(message))

    def publish(self, message: Event) -> None:
        """Send to all that subscribe to this kind."""
        self._channel(message.channel).publish(message.command, _encode(message))

    def subscribe(self, kind: type[Event], receive: Callable[[str, Any], None]) -> Callable[[], None]:
        """Call `receive(peer, event)` for each event of a kind; what does not decode is dropped."""
        decode = msgspec.msgpack.Decoder(kind).decode

        def deliver(peer: str, topic: str, body: bytes) -> None:
            if topic != kind.command:
                return
            try:
                event = decode(body)
            except UNDECODABLE:
                return
            receive(peer, event)

        return self._channel(kind.channel).subscribe(kind.command, deliver)

    def _channel(self, name: ChannelName) -> Channel:
        try:
            return self._channels[name]
        except KeyError:
            raise Unreachable("the node is not started; use `async with Node(...)`") from None

    def _decode_reply(self, kind: type[Request[Any]], body: bytes) -> Any:
        decoder = self._decoders.get(kind)
        if decoder is None:
            decoder = self._decoders[kind] = msgspec.msgpack.Decoder(kind.reply)
        try:
            return decoder.decode(body)
        except UNDECODABLE as error:
            raise MeshError(
                f"{kind.command}: the peer's answer is malformed ({error}); run one version of meshnode"
            ) from None

    def _unknown(self, command: str) -> str:
        known = ", ".join(self.methods()) or "none"
        return f"this node has no handler {command!r}; its handlers: {known}"


def _reply(responder: Callable[[Any, Any], Any], message: Any, caller: Any, encode: Callable[[Any], bytes]) -> Reply:
    answer = responder(message, caller)
    kind = answer.__class__
    if kind in _VALUES:  # the common cases first: what comes below asks a value for attributes it does not have
        return encode(answer)
    if kind is CoroutineType or inspect.isawaitable(answer):
        return _later(answer, encode)
    if hasattr(answer, "__aiter__"):
        return _parts(answer, encode)
    return encode(answer)


async def _later(answer: Awaitable[Any], encode: Callable[[Any], bytes]) -> bytes:
    try:
        return encode(await answer)
    except Exception as error:
        raise FaultError(to_fault(error)) from error


async def _parts(answer: AsyncIterator[Any], encode: Callable[[Any], bytes]) -> AsyncIterator[bytes]:
    try:
        async for part in answer:
            yield encode(part)
    except Exception as error:
        raise FaultError(to_fault(error)) from error
