"""What can go wrong on a channel.

    ChannelError
    ├── Unreachable        the peer is unknown here, or its link is down
    ├── Overloaded         a bound was met; the sender was refused, not queued (`retry_after_s`)
    ├── DeadlineExceeded   no reply in time; the peer may still have acted      (also a TimeoutError)
    ├── Refused            the peer answered with an error of its own (`code` names it)
    │   ├── UnknownCommand     the peer has no handler by that name
    │   └── Malformed          the peer could not decode what we sent
    ├── TooLarge           the message exceeds a limit; it was not sent
    ├── AddressInUse       a port we were asked to bind is taken
    └── Closed             the channel is closed

Each is one line that says what happened and what to do next. On the wire an error is a `Fault`
(code, message, retry_after_s); `error_from_fault` turns it back into an exception. A layer above may hand
`open_channels` a function of the same shape to raise its own family instead.
"""

from __future__ import annotations

import msgspec


class Fault(msgspec.Struct, array_like=True, frozen=True):
    """A typed error on the wire. `code` is snake_case and stable; `retry_after_s` is seconds, 0 = no hint."""

    code: str
    message: str
    retry_after_s: float = 0.0


class ChannelError(Exception):
    """Base of everything this package raises on purpose."""

    code = "channel_error"

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Unreachable(ChannelError):
    """The peer is unknown here, or its link is down: nothing was delivered."""

    code = "unreachable"


class Overloaded(ChannelError):
    """A bound on what may be in flight was met: refused at once, safe to retry after `retry_after_s`."""

    code = "overloaded"


class DeadlineExceeded(ChannelError, TimeoutError):
    """No reply within the time given; whether the peer acted is not known."""

    code = "deadline_exceeded"


class TooLarge(ChannelError):
    """The message exceeds a limit and was not sent."""

    code = "too_large"


class AddressInUse(ChannelError):
    """A port we were asked to bind is taken by another process."""

    code = "address_in_use"


class Closed(ChannelError):
    """The channel is closed."""

    code = "closed"


class Refused(ChannelError):
    """The peer answered with an error; `fault` is what it sent."""

    code = "refused"

    def __init__(self, message: str, *, fault: Fault | None = None, retry_after_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.fault = fault or Fault(self.code, message)


class UnknownCommand(Refused):
    """The peer has no handler by that name."""

    code = "unknown_command"


class Malformed(Refused):
    """The peer could not decode what we sent."""

    code = "malformed"


_BY_CODE: dict[str, type[ChannelError]] = {
    error.code: error for error in (Unreachable, Overloaded, DeadlineExceeded, TooLarge, Closed)
}
_REFUSED: dict[str, type[Refused]] = {error.code: error for error in (UnknownCommand, Malformed)}


def error_from_fault(fault: Fault) -> Exception:
    """The exception a fault stands for; a code this version does not know becomes `Refused`."""
    plain = _BY_CODE.get(fault.code)
    if plain is not None:
        return plain(fault.message, retry_after_s=fault.retry_after_s)
    return _REFUSED.get(fault.code, Refused)(fault.message, fault=fault, retry_after_s=fault.retry_after_s)
