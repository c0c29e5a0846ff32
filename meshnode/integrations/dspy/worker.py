"""A node's side: runs a program for a caller that wants all of it back, the trace, the usage and the LM's history.

A call comes as a task whose inputs are one key, `CALL`, and its reply is one key, `REPLY`; see `forward`. A task with
any other inputs is one example of an evaluation: the program's inputs are chosen from its fields, and its prediction's
fields are the reply.

The state of a call was checked and applied to a copy by `with_state`; the worker keeps that copy for the calls to come.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import dspy
from dspy.utils.callback import BaseCallback
from dspy.utils.usage_tracker import UsageTracker

from meshnode.app import App
from meshnode.errors import InvalidInput
from meshnode.integrations.dspy import demos, failures, state
from meshnode.integrations.dspy.codec import Classes, NotCarried, decode, encode
from meshnode.integrations.dspy.models import as_models, check_sampling, make, make_adapter
from meshnode.integrations.dspy.sharing import share_in_worker
from meshnode.integrations.dspy.signatures import signature_as_data
from meshnode.integrations.dspy.structure import classes_of, named_predictors, submodules
from meshnode.lm import usage

CALL = "mesh.dspy.call"
REPLY = "mesh.dspy.reply"
#: What `dspy.Predict` takes beside its inputs; "config" may come with sampling settings only.
PRIVILEGED = ("signature", "demos", "config", "lm", "new_signature", "_trace")
_TEXT = 200_000  # characters of one text in the LM's history


class Served:
    """A built `dspy.Module` as a worker calls it: `(inputs) -> dict`, or an awaitable of one for `acall`."""

    def __init__(self, module: Any, models: list[Any], metrics: Mapping[str, Callable[..., Any]] = {}) -> None:
        self._module = module
        self._models = models
        self._metrics = metrics
        self._classes = classes_of(module)
        for predictor in named_predictors(module).values():
            if predictor.lm is not None:
                predictor.lm = _recorded(predictor.lm.copy())

    def with_state(self, data: bytes) -> Served | demos.Bootstrapping:
        """A copy that has this state. Raises InvalidInput or AppError; this one never changes."""
        module = state.copy_of(self._module)
        data, shown, wanted = demos.take(data)
        try:
            state.apply(data, module, self._classes, self._known_models())
        except NotCarried as error:
            raise InvalidInput(f"the state asks for {error} can't be had here") from None
        if shown is not None:
            demos.show(module, shown, self._classes)
        served = Served(module, self._models, self._metrics)
        if wanted is None:
            return served
        return demos.Bootstrapping(module, wanted, self._metrics, served._inputs_of, served._plainly, self._classes)

    def __call__(self, inputs: Mapping[str, Any]) -> Any:
        """Run one task."""
        if inputs.keys() == {CALL}:
            return self._serve(inputs[CALL])
        with self._plainly():
            return as_mapping(self._module(**self._inputs_of(inputs)))

    def _plainly(self) -> Any:
        """DSPy's settings for a run of which nobody wants more than its outcome."""
        counted = {"usage_tracker": Counting(), "callbacks": _with_failures()}
        return dspy.context(lm=self._default_model(), trace=[], disable_history=True, **counted)

    def _serve(self, call: Any) -> Any:
        if type(call) is not dict or call.keys() != {"args", "kwargs", "lm", "adapter", "async", "settings"}:
            raise InvalidInput("a call is args, kwargs, lm, adapter, async and settings")
        args, kwargs = decode(call["args"], self._classes), decode(call["kwargs"], self._classes)
        if type(args) is not list or type(kwargs) is not dict:
            raise InvalidInput("a call's args are a list, its kwargs an object by name")
        check_privileged(self._module, kwargs)
        try:
            lm = self._default_model() if call["lm"] is None else make(call["lm"], self._known_models())
        except NotCarried as error:
            return {REPLY: {"refused": f"it needs {error} can't be had on a node"}}
        settings = {"lm": _recorded(lm), "adapter": make_adapter(call["adapter"]), **_settings(call["settings"])}
        if call["async"]:
            return self._serve_async(args, kwargs, settings)
        recording = Recording(self._module, self._classes)
        with recording.context(settings):
            try:
                recording.prediction = self._module(*args, **kwargs)
            except Exception as error:  # whatever the program raises is its outcome
                recording.error = error
        return {REPLY: recording.reply()}

    async def _serve_async(self, args: list[Any], kwargs: dict[str, Any], settings: dict[str, Any]) -> Any:
        recording = Recording(self._module, self._classes)
        with recording.context(settings):
            try:
                recording.prediction = await self._module.acall(*args, **kwargs)
            except Exception as error:  # as above
                recording.error = error
        return {REPLY: recording.reply()}

    def _known_models(self) -> list[Any]:
        own = [predictor.lm for predictor in named_predictors(self._module).values() if predictor.lm is not None]
        configured = [dspy.settings.lm] if isinstance(dspy.settings.lm, dspy.LM) else []
        return [*self._models, *own, *configured]

    def _default_model(self) -> Any:
        return self._models[0].copy() if self._models else dspy.settings.lm

    def _inputs_of(self, example: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of an example that the program takes."""
        parameters = inspect.signature(type(self._module).forward).parameters.values()
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {"self"}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            signatures = [predictor.signature for predictor in named_predictors(self._module).values()]
            outputs = {name for signature in signatures for name in signature.output_fields}
            names |= {name for signature in signatures for name in signature.input_fields} - outputs
        return {name: value for name, value in example.items() if name in names and name not in PRIVILEGED}


class Counting(UsageTracker):
    """DSPy's own record of a run's usage, which the node's metrics also get to know; a cache's answers are none."""

    def add_usage(self, lm: str, usage_entry: dict[str, Any]) -> None:
        """One answered request."""
        prompt, completion = (usage_entry.get(name) or 0 for name in ("prompt_tokens", "completion_tokens"))
        usage.count(lm, prompt_tokens=prompt, completion_tokens=completion)
        super().add_usage(lm, usage_entry)


class Failures(BaseCallback):
    """Counts the requests that no model answered, after all of DSPy's own tries."""

    def __init__(self) -> None:
        self._asked: dict[str, str] = {}

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """A model is asked."""
        del inputs
        self._asked[call_id] = str(getattr(instance, "model", type(instance).__name__))

    def on_lm_end(self, call_id: str, outputs: dict[str, Any] | None, exception: Exception | None = None) -> None:
        """It answered, or not."""
        del outputs
        model = self._asked.pop(call_id, "")
        if exception is not None:
            usage.count(model, error=f"{type(exception).__name__}: {exception}")


class Recording:
    """What one run of a program leaves: its outcome, the trace, the usage and the LM's history."""

    def __init__(self, module: Any, classes: Classes) -> None:
        self.prediction: Any = None
        self.error: Exception | None = None
        self._module = module
        self._classes = classes
        self.trace: list[Any] = []
        self._usage = Counting()
        self._history: list[Any] = []

    def context(self, settings: Mapping[str, Any]) -> Any:
        """DSPy's settings for the run."""
        told = {"usage_tracker": self._usage, "callbacks": _with_failures(), "mesh_recording": self}
        return dspy.context(**settings, trace=self.trace, **told)

    @property
    def usage(self) -> list[tuple[str, dict[str, Any]]]:
        """Each call's usage by its model's name."""
        return [(lm, entry) for lm, entries in self._usage.usage_data.items() for entry in entries]

    def reply(self) -> dict[str, Any]:
        """All of it as it travels, or why it can't."""
        predictors = named_predictors(self._module)
        names = {id(predictor): name for name, predictor in predictors.items()}
        if self.error is not None and (failures.is_trouble(self.error) or "No LM is loaded" in str(self.error)):
            return {"trouble": f"{type(self.error).__name__}: {self.error}"}

        def predictor_of(signature: Any) -> str | None:
            return failures.predictor_of(signature, self._module)

        try:
            trace = []
            for predictor, inputs, outputs in self.trace:
                name = names.get(id(predictor))
                like: Any = predictor_of(predictor.signature) if name is None else None
                if name is None and like is None:
                    like = signature_as_data(predictor.signature)
                trace.append([name, like, encode(inputs, self._classes), encode(outputs, self._classes, predictor_of)])
            place = next((i for i, step in enumerate(self.trace) if step[2] is self.prediction), None)
            return {
                "prediction": encode(self.prediction, self._classes, predictor_of) if place is None else None,
                "place": place,  # the prediction is this step's, the very object
                "trace": trace,
                "usage": [[lm, _plain(entry)] for lm, entry in self.usage],
                "history": self._told_history(),
                "error": failures.describe(self.error, self._module, self._classes) if self.error else None,
            }
        except NotCarried as error:
            return {"refused": f"{error} can't travel"}

    def remember(self, entry: dict[str, Any]) -> None:
        """One call of a model, made by the modules that run now."""
        if not dspy.settings.disable_history:
            self._history.append((entry, list(dspy.settings.caller_modules or [])))

    def _told_history(self) -> list[Any]:
        places = {id(module): place for place, module in enumerate(submodules(self._module))}
        names = ("prompt", "messages", "kwargs", "outputs", "usage", "cost", "timestamp", "uuid", "model",
                 "response_model", "model_type")  # fmt: skip
        return [
            [
                {name: _plain(entry.get(name)) for name in names},
                [places[id(module)] for module in callers if id(module) in places],
            ]
            for entry, callers in self._history
        ]


def as_mapping(prediction: Any) -> dict[str, Any]:
    """A prediction's fields as plain values, for a metric that runs on the node. Raises TypeError if it has none."""
    if isinstance(prediction, dspy.Example):
        return dict(prediction.toDict())
    if isinstance(prediction, Mapping):
        return dict(prediction)
    raise TypeError(f"the program returned a {type(prediction).__name__}; return a dspy.Prediction")


def check_privileged(module: Any, kwargs: Mapping[str, Any]) -> None:
    """Refuse what would reach `dspy.Predict` beside its inputs, but sampling settings. Raises InvalidInput."""
    own = inspect.signature(type(module).forward).parameters
    for name in PRIVILEGED:
        if name in kwargs and (name not in own or isinstance(module, dspy.Predict)):
            if name == "config":
                check_sampling(kwargs[name])
            else:
                raise InvalidInput(f"{name!r} may not travel; run it locally (mesh.local)")


def adapt(module: Any, app: App) -> Callable[[Mapping[str, Any]], Any]:
    """What a worker calls for a program that is a `dspy.Module`; the models are those of `@app.lm`."""
    models = models_of(app)
    share_in_worker()  # last: the builders may have configured a cache
    return Served(module, models, app.metrics)


def models_of(app: App) -> list[Any]:
    """What `@app.lm` makes; empty if it is not declared."""
    return [] if app.lm_builder is None else as_models(app.lm_builder())


def _recorded(lm: Any) -> Any:
    """The model, its calls kept with the run that makes them and nowhere else: a worker would grow without end."""
    if lm is not None:
        lm.update_history = _remember
    return lm


def _with_failures() -> list[Any]:
    return [*(dspy.settings.get("callbacks") or []), Failures()]


def _remember(entry: dict[str, Any]) -> None:
    recording = dspy.settings.get("mesh_recording")
    if recording is not None:
        recording.remember(entry)


def _settings(given: Any) -> dict[str, Any]:
    if type(given) is not dict or given.keys() != {"max_trace_size", "disable_history", "max_errors", "num_threads"}:
        raise InvalidInput("a call's settings are not those that travel")
    if not all(type(value) is int for name, value in given.items() if name != "disable_history"):
        raise InvalidInput("a call's settings are whole numbers")
    return {**given, "disable_history": bool(given["disable_history"]), "max_history_size": 0}


def _plain(value: Any) -> Any:
    """For the record only: what is neither plain nor a container of it becomes its text."""
    if isinstance(value, str):
        return str(value)[:_TEXT]
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    dump = getattr(value, "model_dump", None)
    return _plain(dump()) if callable(dump) else str(value)[:_TEXT]
