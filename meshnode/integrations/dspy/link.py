"""The caller's side: sends a program's forward to a node and makes what comes back look as if it had run here.

Where a call runs:

    on a node      usually; what the program raised there is raised here
    another node   if the first could not: lost, full, broken, its language model out of reach
    here           if no node could, or something in the call can't travel; why is said once, as a warning

So a failure of the infrastructure is never seen by DSPy, which would score it as the program's own.
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import dspy
import structlog
from dspy.clients.base_lm import record_history
from dspy.utils.callback import BaseCallback

from meshnode.app import App
from meshnode.errors import AppError, InvalidInput, MeshError, RemoteError
from meshnode.integrations.dspy import failures, models, state
from meshnode.integrations.dspy.codec import NotCarried, decode, encode
from meshnode.integrations.dspy.forwards import Forwards
from meshnode.integrations.dspy.journal import Journal, key_of
from meshnode.integrations.dspy.signatures import signature_from_data
from meshnode.integrations.dspy.structure import classes_of, digest, named_predictors, plain_attributes, submodules
from meshnode.integrations.dspy.worker import CALL, REPLY, Recording, check_privileged, models_of
from meshnode.mesh import Mesh
from meshnode.values import pack, unpack

log = structlog.get_logger("meshnode.dspy")
T = TypeVar("T")

TROUBLE_TRIES = 3  # nodes whose language model may be out of reach before the call runs here


class Link:
    """One client's way to run DSPy programs on the mesh. Safe to use from many threads.

    submit: runs a coroutine on the node's loop. counts: forwards by where they ran, "mesh", "here" or "journal".
    """

    def __init__(
        self,
        mesh: Mesh,
        app: App | None,
        submit: Callable[[Coroutine[Any, Any, Any]], Future[Any]],
        *,
        timeout_s: float,
    ) -> None:
        self._mesh = mesh
        self._app = app
        self._submit = submit
        self._timeout_s = timeout_s
        self._forwards: dict[str, Forwards] = {}
        self._built: dict[str, Built] = {}
        self._models: list[Any] | None = None
        self._lock = threading.Lock()
        self._said: set[str] = set()
        self.journal: Journal | None = None
        self.counts: Counter[str] = Counter()

    def build(self, name: str) -> Any:
        """The program as its builder makes it; remembers its shape. Raises AppError."""
        if self._app is None:
            raise AppError("this client has no app, so it knows no program; connect(…, app=app)")
        builder = self._app.programs.get(name)
        if builder is None:
            raise AppError(f"no program {name!r}; the app has: {', '.join(sorted(self._app.programs)) or 'none'}")
        made = builder()
        if not isinstance(made, dspy.Module):
            raise AppError(f"program {name!r} is a {type(made).__name__}, not a dspy.Module; use mesh.evaluate for it")
        self._built[name] = Built(digest(made), plain_attributes(made))
        return made

    def fits(self, name: str, module: Any) -> bool:
        """Whether the nodes' own build of a program plus a state is this very program."""
        built = self._built[name]
        mine = plain_attributes(module)
        return digest(module) == built.digest and all(mine.get(k) == v for k, v in built.attributes.items())

    def call(self, name: str, module: Any, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What `module(*args, **kwargs)` returns or raises, from wherever it ran."""
        prepared = self._prepare(name, module, args, kwargs, is_async=False)
        key, reply = self._kept(prepared)
        if reply is None and prepared is not None:
            reply = self._wait(self._ask(name, *prepared))
        done = None if reply is None else self._read(name, module, reply)
        if done is None:
            reply, done = self._here(module, lambda: base.forward(module, *args, **kwargs), key)  # type: ignore[attr-defined]  # a Module has it
        return self._finish(module, reply, done, key)

    async def acall(self, name: str, module: Any, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As `call`, for a program that is awaited."""
        prepared = self._prepare(name, module, args, kwargs, is_async=True)
        key, reply = self._kept(prepared)
        if reply is None and prepared is not None:
            reply = await asyncio.wrap_future(self._submit(self._ask(name, *prepared)))
        done = None if reply is None else self._read(name, module, reply)
        if done is None:
            run = base.aforward(module, *args, **kwargs)  # type: ignore[attr-defined]  # made only where it is
            reply, done = await self._here_async(module, run, key)
        return self._finish(module, reply, done, key)

    # Asking.

    def _prepare(
        self, name: str, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_async: bool
    ) -> tuple[bytes, bytes] | None:
        """The call and the program's state as they travel; None if the call must run here."""
        try:
            settings = dspy.settings
            if settings.send_stream is not None or settings.stream_listeners:
                raise NotCarried("a stream of the answer, or of its status,")
            if settings.rm is not None:
                raise NotCarried("a retriever (dspy.settings.rm)")
            if not self.fits(name, module):
                raise NotCarried("a change of the program's fields or attributes since it was built")
            if wish := wish_to_see_inside(module):
                raise NotCarried(f"what {wish} wants to be told of")
            check_privileged(module, kwargs)
            classes = classes_of(module)
            call = {
                "args": [encode(value, classes) for value in args],
                "kwargs": {key: encode(value, classes) for key, value in kwargs.items()},
                "lm": models.describe(settings.lm),
                "adapter": models.describe_adapter(settings.adapter),
                "async": is_async,
                "settings": {
                    "max_trace_size": settings.max_trace_size,
                    "disable_history": bool(settings.disable_history or not settings.max_history_size),
                    "max_errors": settings.max_errors,
                    "num_threads": settings.num_threads,
                },
            }
            return pack({CALL: call}, name="inputs"), state.dump(module, classes)
        except NotCarried as error:
            self._say(f"{name} runs here: {error} can't travel")
        except MeshError as error:
            self._say(f"{name} runs here: {error}")
        return None

    async def _ask(self, name: str, example: bytes, state_data: bytes) -> dict[str, Any] | None:
        """On the loop: what a node replied; None if the call must run here."""
        forwards = self._forwards.get(name)
        if forwards is None:
            forwards = self._forwards[name] = Forwards(self._mesh, name, timeout_s=self._timeout_s)
        said = ""
        try:
            for _ in range(TROUBLE_TRIES):
                answer = await forwards.run(example, state_data)
                if answer.error is not None:
                    if answer.error.type == "InvalidInput":
                        raise InvalidInput(answer.error.message)
                    raise RemoteError(f"{answer.error.type}: {answer.error.message}", code=answer.error.type)
                reply = unpack(answer.prediction)[REPLY]
                if "refused" in reply:
                    self._say(f"{name} runs here: {reply['refused']}")
                    return None
                if "trouble" not in reply:
                    self.counts["mesh"] += 1
                    return dict(reply)
                said = reply["trouble"]
            self._say(f"{name} runs here: the nodes' language model is out of reach ({said})")
        except MeshError as error:
            self._say(f"{name} runs here: {error}")
        return None

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = self._submit(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C while waiting ends it at the node, too
            raise

    # Here.

    def _here(self, module: Any, run: Callable[[], Any], key: bytes | None) -> tuple[dict[str, Any] | None, _Done]:
        """Run it in this thread; as a reply, too, if it is to be kept."""
        self.counts["here"] += 1
        if key is None:
            with self._model_here():
                return None, _Done([], [], [], run(), None)
        recording = Recording(module, classes_of(module))
        with self._model_here(), recording.context({}):
            try:
                recording.prediction = run()
            except Exception as error:
                recording.error = error
        return _recorded(recording)

    async def _here_async(
        self, module: Any, run: Awaitable[Any], key: bytes | None
    ) -> tuple[dict[str, Any] | None, _Done]:
        """As `_here`, for one that is awaited."""
        self.counts["here"] += 1
        if key is None:
            with self._model_here():
                return None, _Done([], [], [], await run, None)
        recording = Recording(module, classes_of(module))
        with self._model_here(), recording.context({}):
            try:
                recording.prediction = await run
            except Exception as error:
                recording.error = error
        return _recorded(recording)

    def _model_here(self) -> Any:
        """The app's own model for a caller that has configured none, as on a node."""
        if dspy.settings.lm is not None or self._app is None or self._app.lm_builder is None:
            return dspy.context()
        with self._lock:
            if self._models is None:
                self._models = models_of(self._app)
        return dspy.context(lm=self._models[0])

    def _kept(self, prepared: tuple[bytes, bytes] | None) -> tuple[bytes | None, dict[str, Any] | None]:
        """In a session: the call's key there, and what an earlier run kept under it."""
        if prepared is None or self.journal is None:
            return None, None
        key = self.journal.occurrence(key_of(*prepared))
        return key, self.journal.find(key)

    def _read(self, name: str, module: Any, reply: Mapping[str, Any]) -> _Done | None:
        """A reply as DSPy's objects; None if it can't be read: a broken node's garbage is not the program's failure."""
        try:
            return read(module, reply, self._near(name))
        except (MeshError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
            self._say(f"{name} runs here: a reply can't be read ({type(error).__name__}: {error})")
            return None

    def _near(self, name: str) -> Iterable[str]:
        builder = None if self._app is None else self._app.programs.get(name)
        return () if builder is None else (builder.__module__,)

    def _finish(self, module: Any, reply: Mapping[str, Any] | None, done: _Done, key: bytes | None) -> Any:
        if key is not None and self.journal is not None and reply is not None and done.error is None:
            self.journal.keep(key, reply)
        done.replay(module)
        if done.error is not None:
            raise done.error
        return done.prediction

    def _say(self, what: str) -> None:
        if what not in self._said:
            self._said.add(what)
            log.warning(what)

    def statistics(self) -> dict[str, int]:
        """Forwards by where they ran, and the sends they took with their retries and hedges."""
        figures = Counter(self.counts)
        for forwards in list(self._forwards.values()):
            figures.update(forwards.statistics())
        return dict(figures)


class Built:
    """What a program was as its builder made it: its shape, and the numbers and texts that do not travel."""

    __slots__ = ("attributes", "digest")

    def __init__(self, shape: str, attributes: dict[str, Any]) -> None:
        self.digest = shape
        self.attributes = attributes


@dataclass
class _Done:
    """One finished forward in DSPy's own objects. `history`: entries, each with the modules that made the call."""

    trace: list[tuple[Any, Any, Any]]
    usage: list[tuple[str, dict[str, Any]]]
    history: list[tuple[dict[str, Any], list[Any]]]
    prediction: Any
    error: Exception | None

    def replay(self, module: Any) -> None:
        """Bring trace, usage and history to where DSPy would have put them."""
        trace = dspy.settings.trace
        if trace is not None and dspy.settings.max_trace_size > 0:
            for step in self.trace:
                if len(trace) >= dspy.settings.max_trace_size:
                    trace.pop(0)
                trace.append(step)
        if dspy.settings.usage_tracker is not None:
            for model, entry in self.usage:
                dspy.settings.usage_tracker.add_usage(model, entry)
        if self.history and not dspy.settings.disable_history:
            before = list(dspy.settings.caller_modules or [])
            for entry, callers in self.history:
                lm = next((part.lm for part in reversed([module, *callers]) if getattr(part, "lm", None)), None)
                with dspy.context(caller_modules=before + callers):
                    record_history(lm or dspy.settings.lm or _NOBODY, {**entry, "response": None})


def _recorded(recording: Recording) -> tuple[dict[str, Any] | None, _Done]:
    reply = recording.reply()
    # The trace and the usage went to the recording; they are brought to DSPy as those of a node are.
    done = _Done(recording.trace, recording.usage, [], recording.prediction, recording.error)
    return (reply if "trace" in reply else None), done


def wish_to_see_inside(module: Any) -> str | None:
    """A callback's handler that is told of what happens within a program, beside its beginning and its end."""
    callbacks = [*(dspy.settings.callbacks or []), *getattr(dspy.settings.lm, "callbacks", [])]
    for part in submodules(module):
        callbacks += part.callbacks
    for callback in callbacks:
        for name, does_nothing in vars(BaseCallback).items():
            is_inner = name.startswith("on_") and not name.startswith(("on_evaluate", "on_compile"))
            if is_inner and getattr(type(callback), name, does_nothing) is not does_nothing:
                return f"{type(callback).__name__}.{name}"
    return None


def read(module: Any, reply: Mapping[str, Any], near: Iterable[str] = ()) -> _Done:
    """A reply as DSPy's objects, with the module's own predictors. Raises whatever a broken reply leads to."""
    classes = classes_of(module)
    predictors = named_predictors(module)
    signature_of = _signatures(module)
    trace = []
    for name, like, inputs, outputs in reply["trace"]:
        # A predictor that the program made as it ran is none of ours to DSPy, here as there.
        if name is not None:
            predictor = predictors[name]
        else:
            predictor = copy.copy(predictors[like]) if type(like) is str else dspy.Predict(signature_from_data(like))
        trace.append((predictor, decode(inputs, classes), decode(outputs, classes, signature_of)))
    parts = submodules(module)
    history = [(dict(entry), [parts[place] for place in places[1:]]) for entry, places in reply["history"]]
    usage = [(str(model), dict(entry)) for model, entry in reply["usage"]]
    error = None if reply["error"] is None else failures.rebuild(reply["error"], module, classes, near)
    if reply["place"] is not None:
        return _Done(trace, usage, history, trace[reply["place"]][2], error)
    return _Done(trace, usage, history, decode(reply["prediction"], classes, signature_of), error)


def _signatures(module: Any) -> Callable[[Any], Any]:
    predictors = named_predictors(module)

    def signature_of(name: Any) -> Any:
        predictor = predictors.get(name)
        return None if predictor is None else predictor.signature

    return signature_of


class _Nobody:
    """Whose history it would be, had the caller a model of its own."""

    @property
    def history(self) -> list[Any]:
        return []


_NOBODY = _Nobody()
