"""Everything meshnode raises on purpose.

    MeshError
    ├── ConfigError          a setting or an argument is wrong; nothing was started
    ├── AppError             the app could not be loaded, or lacks what was asked of it
    ├── JoinError            no seed let us in
    ├── Unreachable          the peer is unknown, or its link is down; nothing was delivered
    ├── Overloaded           refused because a bound was met; retry after `retry_after_s`
    ├── MeshTimeout          no answer in time (also a TimeoutError)
    ├── UnknownMethod        the peer has no such handler, program, tool or metric
    ├── InvalidInput         a value broke a rule; the message names value and rule
    ├── TooLarge             a value exceeds a limit; it was not sent
    ├── RemoteError          the peer's own code raised; `code`, `message` and `details` are what it sent
    ├── WorkerCrashed        user code took its worker process down more often than allowed
    ├── NoLeader             no leader within the deadline; retry
    ├── OutcomeUnknown       a write may or may not have happened
    └── Closed               the node is stopping or stopped

Each message is one line: what happened, to which thing, and what to do next.
"""

from __future__ import annotations

from channels.errors import Fault


class MeshError(Exception):
    """Base of every error meshnode raises on purpose."""

    code = "mesh_error"

    def __init__(self, message: str, *, retry_after_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class ConfigError(MeshError):
    """A setting or an argument is wrong; nothing was started."""

    code = "config_error"


class AppError(MeshError):
    """The app could not be loaded, or lacks what was asked of it."""

    code = "app_error"


class JoinError(MeshError):
    """No seed let us in."""

    code = "join_error"


class Unreachable(MeshError):
    """The peer is unknown here, or its link is down: nothing was delivered, another peer may be tried."""

    code = "unreachable"


class Overloaded(MeshError):
    """Refused because a bound was met; safe to retry after `retry_after_s` seconds or elsewhere."""

    code = "overloaded"


class MeshTimeout(MeshError, TimeoutError):
    """No answer within the time given; whether the peer acted is not known."""

    code = "deadline_exceeded"


class UnknownMethod(MeshError):
    """The peer has no handler, program, tool or metric by that name."""

    code = "unknown_command"


class InvalidInput(MeshError):
    """A value broke a rule; the message names the value and the rule."""

    code = "malformed"


class TooLarge(MeshError):
    """A value exceeds a limit and was not sent."""

    code = "too_large"


class WorkerCrashed(MeshError):
    """User code took its worker process down more often than allowed."""

    code = "worker_crashed"


class NoLeader(MeshError):
    """There is no leader to write through within the deadline; safe to retry."""

    code = "no_leader"


class OutcomeUnknown(MeshError):
    """A write may or may not have happened; read before writing again."""

    code = "outcome_unknown"


class Closed(MeshError):
    """The node is stopping or stopped."""

    code = "closed"


class RemoteError(MeshError):
    """The peer's own code raised: `code` is its type's name, the message its text."""

    code = "remote_error"

    def __init__(self, message: str, *, code: str = "remote_error", retry_after_s: float = 0.0) -> None:
        super().__init__(message, retry_after_s=retry_after_s)
        self.code = code


_BY_CODE: dict[str, type[MeshError]] = {
    error.code: error
    for error in (
        ConfigError,
        AppError,
        JoinError,
        Unreachable,
        Overloaded,
        MeshTimeout,
        UnknownMethod,
        InvalidInput,
        TooLarge,
        WorkerCrashed,
        NoLeader,
        OutcomeUnknown,
        Closed,
    )
}


def from_fault(fault: Fault) -> MeshError:
    """The exception a fault on the wire stands for; a code that is not ours becomes `RemoteError`."""
    return error_of(fault.code, fault.message, fault.retry_after_s)


def error_of(code: str, message: str, retry_after_s: float = 0.0) -> MeshError:
    """The exception of that code; one that is not ours becomes `RemoteError`."""
    error = _BY_CODE.get(code)
    if error is None:
        return RemoteError(message, code=code, retry_after_s=retry_after_s)
    return error(message, retry_after_s=retry_after_s)


def to_fault(error: BaseException) -> Fault:
    """How an exception travels: ours by its code, any other by its type's name."""
    if isinstance(error, MeshError):
        return Fault(error.code, str(error), error.retry_after_s)
    return Fault(type(error).__name__, str(error) or type(error).__name__)
