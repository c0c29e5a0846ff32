"""What a pool is asked, what it answers, and the messages between pool and worker.

Messages travel as a MessagePack array of all that one loop tick had to say, each an array that starts with its kind.
Pool and worker are of one version, so nothing here is kept compatible. `job` is the pool's number for one task or one
tool call; `call` is the worker's number for a tool call it makes.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from meshnode.lm.usage import Use

MAX_ATTEMPTS = 3
MAX_TOOL_DEPTH = 8
MESSAGE_CHARACTERS = 4_000
TRACEBACK_CHARACTERS = 20_000


class Task(msgspec.Struct, array_like=True, frozen=True, kw_only=True):
    """One run of a program.

    program: its name in the app. state: the program's state as JSON, None for as built. inputs: a mapping, packed by
    `meshnode.values`. metric: the name of a metric to score with, if any. example: what the metric compares with,
    packed; None: the inputs. timeout_s: how long the program may run, from its start in the worker.
    attempt: 1 for the first try anywhere. id: the caller's own, for logs.
    caller, session: who asks, and in which session; told to the program. variables: values of that session, packed,
    over those the node pushed. depth: how many tool calls led here.
    """

    program: str
    inputs: bytes
    id: str = ""
    state: bytes | None = None
    metric: str | None = None
    example: bytes | None = None
    timeout_s: float = 120.0
    attempt: int = 1
    caller: str = ""
    session: str = ""
    variables: bytes | None = None
    depth: int = 0


class TaskError(msgspec.Struct, array_like=True, frozen=True):
    """An exception that user code raised: its type's name, its text, its traceback without our frames."""

    type: str
    message: str
    traceback: str = ""


class TaskResult(msgspec.Struct, array_like=True, frozen=True):
    """What came of one task: the prediction, packed (empty if the program raised), and its score if a metric was named.

    error: the program's, or the metric's, own exception; a result, not a failure to run. seconds: time spent in
    program and metric. worker: which one ran it.
    """

    prediction: bytes = b""
    score: float | None = None
    error: TaskError | None = None
    seconds: float = 0.0
    worker: str = ""


# To a worker.


class Begin(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """Load the app at `location` with `path` as sys.path, and run up to `threads` tasks at once as worker `name`."""

    name: str
    location: str
    path: list[str]
    threads: int


class Run(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """Run a task."""

    job: int
    task: Task


class RunTool(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """Call one of the app's tools with packed arguments, a mapping."""

    job: int
    name: str
    args: bytes
    timeout_s: float


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Nobody waits for this job any more."""

    job: int


class Ping(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """Are you there?"""


class Variables(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """All variables as they are now, a packed mapping; runs that start later see them."""

    values: bytes


class ToolAnswer(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """The outcome of a tool call that a program made: a packed value, or the code and text of an error."""

    call: int
    value: bytes
    code: str = ""
    message: str = ""


class Stop(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """Exit now."""


# From a worker.


class Hello(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """A worker process is up and waits for `Begin`."""

    pid: int


class Ready(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """The app is loaded; these are its programs and tools."""

    programs: list[str]
    tools: list[str]


class Failed(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """The app could not be loaded; the worker exits."""

    message: str


class Done(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """A job came to its end and holds its slot no longer. For a tool the prediction is the tool's value."""

    job: int
    result: TaskResult


class Declined(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """A job could not be run; `code` is a MeshError's. It holds its slot no longer."""

    job: int
    code: str
    message: str


class TimedOut(msgspec.Struct, array_like=True, frozen=True, tag=25):
    """A job ran longer than it may. It still holds its slot: `Done` or `Stuck` follows."""

    job: int


class Stuck(msgspec.Struct, array_like=True, frozen=True, tag=26):
    """A job that timed out can't be stopped: this worker should be replaced."""

    job: int


class Pong(msgspec.Struct, array_like=True, frozen=True, tag=27):
    """I am."""


class ToolCall(msgspec.Struct, array_like=True, frozen=True, tag=28):
    """The program of `job` calls a tool of its session's owner with packed arguments, a mapping."""

    call: int
    job: int
    name: str
    args: bytes


class Asked(msgspec.Struct, array_like=True, frozen=True, tag=29):
    """What programs asked of models since this was told last."""

    uses: list[Use]


ToWorker: TypeAlias = Begin | Run | RunTool | Cancel | Ping | Variables | ToolAnswer | Stop
FromWorker: TypeAlias = Hello | Ready | Failed | Done | Declined | TimedOut | Stuck | Pong | ToolCall | Asked

encode = msgspec.msgpack.Encoder().encode
decode_to_worker = msgspec.msgpack.Decoder(list[ToWorker]).decode
decode_from_worker = msgspec.msgpack.Decoder(list[FromWorker]).decode
