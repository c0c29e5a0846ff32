"""A pytest plugin: every DSPy program that a test makes has its forward run on a mesh. It finds what the mesh changes.

    pytest -p meshnode.integrations.dspy.proxied tests/      # should fail exactly where `pytest tests/` fails

A node with a worker in threads and a client are started in this process; a call crosses between them as it does between
hosts, over real sockets, encoded and decoded. What stands in for an app is a program that knows each object by its
number. A language model that can't travel, a `DummyLM` say, is used on the node by reference: that is the one thing
that is not as between hosts. At the end it says where forwards ran, and why not on the mesh.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import dspy
from dspy.primitives.module import ProgramMeta

import meshnode
from meshnode.app import App
from meshnode.config import Config
from meshnode.integrations.dspy import models, state, worker
from meshnode.integrations.dspy.codec import NotCarried
from meshnode.integrations.dspy.link import Built, Link
from meshnode.integrations.dspy.proxy import is_remote, local, proxied
from meshnode.integrations.dspy.structure import digest, plain_attributes
from meshnode.integrations.dspy.worker import CALL, Served
from meshnode.values import pack, unpack

PROGRAM = "proxied"
PROBLEM = "dspy-local-"  # begins the name of a model that is used by reference


class Proxying:
    """Programs made while this is open are remote."""

    def __init__(self) -> None:
        self._templates: dict[str, Any] = {}
        self._models: dict[str, Any] = {}
        self._numbers = itertools.count()
        app = App()
        app.program(PROGRAM)(lambda: self._serve)
        node = {"port": 0, "http": False, "gossip_profile": "local", "worker_threads": 64}
        self._node = meshnode.BlockingMesh(Config(name="node", **node), app)
        self._client = meshnode.connect(self._node._node.ready["gossip"], app=app, name="client")
        while not any(member.slots for member in self._client.members()):
            self._client._run(self._client._now(lambda: None))
        self.link = _LoopLink(self._client)
        self._undo = [
            _patched(ProgramMeta, "__call__", self._make(ProgramMeta.__call__)),
            _patched(models, "describe", self._describe(models.describe)),
            _patched(state, "describe", self._describe(models.describe)),
            _patched(worker, "make", self._make_model(models.make)),
            _patched(state, "make", self._make_model(models.make)),
        ]

    def close(self) -> None:
        """Programs made from now on are as DSPy makes them."""
        for undo in self._undo:
            undo()
        self._client.close()
        self._node.close()

    def _make(self, make: Any) -> Any:
        def made(cls: type, *args: Any, **kwargs: Any) -> Any:
            module = make(cls, *args, **kwargs)
            on_the_node = dspy.settings.get("mesh_recording") is not None
            if on_the_node or not hasattr(cls, "forward") or is_remote(module) or "forward" in vars(module):
                return module
            name = f"{cls.__name__}-{next(self._numbers)}"
            try:
                self._templates[name] = local(module)
            except Exception:  # one that can't be copied is no program for another process
                self.link.counts["not proxied"] += 1
                return module
            self.link.know(name, module)
            module.__class__ = proxied(self.link, name, cls)
            return module

        return made

    def _serve(self, inputs: dict[str, Any]) -> Any:
        """On the node: the program that stands in for all."""
        served = Served(self._templates[inputs["name"]], [])
        return served.with_state(inputs["state"])({CALL: inputs[CALL]})

    def _describe(self, describe: Any) -> Any:
        def described(lm: Any) -> Any:
            try:
                return describe(lm)
            except NotCarried:
                name = f"{PROBLEM}{id(lm)}"
                self._models[name] = lm
                return {"model": name, "type": "chat", "cache": False, "kwargs": {}}

        return described

    def _make_model(self, make: Any) -> Any:
        def made(description: Any, known: Any) -> Any:
            lm = self._models.get(description["model"])
            return make(description, known) if lm is None else copy.copy(lm)

        return made


class _LoopLink(Link):
    def __init__(self, client: meshnode.BlockingMesh) -> None:
        node = client._node
        super().__init__(node.mesh, None, client._submit, timeout_s=node.config.task_timeout_s)

    def know(self, name: str, module: Any) -> None:
        self._built[name] = Built(digest(module), plain_attributes(module))

    async def _ask(self, name: str, example: bytes, state_data: bytes) -> dict[str, Any] | None:
        inputs = {CALL: unpack(example)[CALL], "name": name, "state": state_data}
        return await super()._ask(PROGRAM, pack(inputs), None)  # type: ignore[arg-type]  # the state is in the inputs

    def why(self) -> list[str]:
        return sorted(self._said)


def _patched(owner: Any, name: str, value: Any) -> Any:
    before = getattr(owner, name)
    setattr(owner, name, value)
    return lambda: setattr(owner, name, before)


# pytest's hooks.

_open: list[Proxying] = []


def pytest_configure() -> None:
    """Begin before any test module is imported: some make programs at once."""
    _open.append(Proxying())


def pytest_unconfigure() -> None:
    """End."""
    while _open:
        _open.pop().close()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say where forwards ran."""
    for proxying in _open:
        counts = proxying.link.statistics()
        terminalreporter.write_line(f"forwards on the mesh: {counts.get('mesh', 0)}, here: {counts.get('here', 0)}")
        for reason in proxying.link.why():
            terminalreporter.write_line(f"  {reason}")
