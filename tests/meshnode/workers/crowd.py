"""The app of these tests: programs that behave and programs that don't. Worker processes import it by name."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import meshnode

app = meshnode.App()
style = app.variable("style", str, "plain")


@app.program("echo")
def echo() -> Any:
    return lambda inputs: {"answer": inputs["text"]}


@app.program("echo_async")
def echo_async() -> Any:
    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"answer": inputs["text"]}

    return run


class Stateful:
    """Counts how often it is built in this process, and takes a state."""

    built = 0

    def __init__(self) -> None:
        Stateful.built += 1
        self.greeting = "hello"

    def load_state(self, state: dict[str, Any]) -> None:
        self.greeting = state["greeting"]

    def __call__(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return {"answer": f"{self.greeting} {inputs['text']}", "built": Stateful.built}


app.program("stateful")(Stateful)


@app.program("session")
def with_session() -> Any:
    def run(inputs: dict[str, Any], session: Any = None) -> dict[str, Any]:
        seen = {"caller": session.caller, "id": session.id, "variables": dict(session.variables)}
        return {"answer": style.get(), **seen}

    return run


class Prepared:
    """Prepares itself from a variable, and says for which value, and as which of all preparations in this process."""

    prepared = 0

    def init(self, session: Any) -> None:
        Prepared.prepared += 1
        self.style = f"{style.get()} of {session.variables.get('house', 'nobody')}"
        self.number = Prepared.prepared
        if style.get() == "impossible":
            raise ValueError("no such style")

    def forward(self, inputs: dict[str, Any], session: Any = None) -> dict[str, Any]:
        assert style.get() == session.variables["style"]
        return {"answer": self.style, "number": self.number}


class PreparedAsync(Prepared):
    async def forward(self, inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return {"answer": self.style, "number": self.number}


class PreparedWhollyAsync(PreparedAsync):
    async def init(self, session: Any) -> None:  # type: ignore[override]
        await asyncio.sleep(0)
        super().init(session)


app.program("prepared")(Prepared)
app.program("prepared_async")(PreparedAsync)
app.program("prepared_wholly_async")(PreparedWhollyAsync)


@app.program("takes_state")
def takes_state() -> Any:
    def run(inputs: dict[str, Any], session: Any = None, state: Any = None) -> dict[str, Any]:
        return {"answer": f"{(state or {}).get('greeting', 'hello')} {inputs['text']}, {style.get()}"}

    return run


@app.program("takes_state_async")
def takes_state_async() -> Any:
    plain = takes_state()

    async def run(inputs: dict[str, Any], state: Any = None) -> dict[str, Any]:
        return dict(plain(inputs, None, state))

    return run


@app.program("raises")
def raises() -> Any:
    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        deep(inputs["text"])
        return {}

    return run


def deep(text: str) -> None:
    if text == "exit":
        sys.exit(7)
    raise ValueError(f"no {text}")


@app.program("returns")
def returns() -> Any:
    kinds: dict[str, Any] = {"list": [1], "socket": {"x": threading.Lock()}, "none": None}
    return lambda inputs: kinds[inputs["text"]]


@app.program("broken_builder")
def broken_builder() -> Any:
    raise RuntimeError("no model here")


@app.program("pid")
def pid() -> Any:
    return lambda inputs: {"answer": os.getpid()}


@app.program("wait")
def wait() -> Any:
    """Say that it began by a file, and end when another one appears."""

    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        began = Path(inputs["began"])
        began.write_text(str(os.getpid()))
        while not Path(inputs["end"]).exists():
            time.sleep(0.005)
        return {"answer": os.getpid()}

    return run


def say(path: Path, text: str) -> None:
    path.write_text(text)


def is_there(path: Path) -> bool:
    return path.exists()


@app.program("wait_async")
def wait_async() -> Any:
    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        began, end = Path(inputs["began"]), Path(inputs["end"])
        say(began, str(os.getpid()))
        try:
            while not is_there(end):  # noqa: ASYNC110 - what is waited for is in another process
                await asyncio.sleep(0.005)
        except asyncio.CancelledError:
            say(began, "cancelled")
            raise
        return {"answer": os.getpid()}

    return run


@app.program("misbehave")
def misbehave() -> Any:
    def run(inputs: dict[str, Any]) -> dict[str, Any]:
        path = inputs.get("path", "")
        match inputs["how"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "kill_once" if mark(path):
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                ctypes.string_at(0)
            case "exit":
                os._exit(3)
            case "stop" if mark(path):
                os.kill(os.getpid(), signal.SIGSTOP)
            case "spin":
                while True:
                    pass
            case "sleep":
                time.sleep(600)
            case "memory":
                hog = [bytearray(1 << 24) for _ in range(12)]  # no more: others need memory, too
                time.sleep(600 + len(hog))
            case "print":
                print("garbage \x00\xff" * 1000)
                os.write(1, b"\x92\x01\x02" * 5000)
                sys.stderr.write("more\n")
            case "fork":
                child = os.fork()
                if child == 0:
                    time.sleep(600)
                Path(path).write_text(str(child))
                os.kill(os.getpid(), signal.SIGKILL)
            case "fork_and_return":
                if os.fork() == 0:
                    Path(path).write_text(str(os.getpid()))
            case "spawn":
                spawned = subprocess.Popen(["sleep", "600"])
                Path(path).write_text(f"{spawned.pid} {os.getpid()}")
                time.sleep(600)
        return {"answer": "fine", "pid": os.getpid()}

    return run


def mark(path: str) -> bool:
    """True the first time."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


@app.program("block_loop")
def block_loop() -> Any:
    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        time.sleep(600)  # noqa: ASYNC251 - the mistake itself
        return {}

    return run


@app.program("deaf")
def deaf() -> Any:
    async def run(inputs: dict[str, Any]) -> dict[str, Any]:
        say(Path(inputs["began"]), "")
        while True:
            try:
                await asyncio.sleep(600)
            except asyncio.CancelledError:
                continue

    return run


@app.metric("length")
def length(example: Any, prediction: Any, trace: Any = None) -> float:
    if prediction.answer == "crash":
        raise KeyError("length")
    return float("nan") if prediction["answer"] == "nan" else len(example["text"]) - len(prediction["answer"])


@app.tool
def shout(text: str, times: int = 1) -> str:
    """Louder.

    text: what to say.
    """
    if text == "bad":
        raise ValueError("not that")
    return text.upper() * times


@app.tool
async def whisper(text: str) -> str:
    return text.lower()


@app.program("uses_tools")
def uses_tools() -> Any:
    def run(inputs: dict[str, Any], session: Any) -> dict[str, Any]:
        return {"answer": session.tools.call(inputs["tool"], inputs["args"])}

    return run


@app.program("uses_tools_async")
def uses_tools_async() -> Any:
    async def run(inputs: dict[str, Any], session: Any) -> dict[str, Any]:
        first, second = await asyncio.gather(session.tools.shout(text="a"), session.tools.whisper(text="B"))
        return {"answer": first + second}

    return run
