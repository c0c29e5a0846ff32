"""A DSPy program's part in choosing demos, on a worker: it bootstraps examples, and shows demos it is sent.

Beside its predictors a state may have

    "demos": […]            to be shown: {predictor: {field: value}}, each to its predictor, or an example's plain
                            {field: value}, to all predictors alike, as DSPy's own optimizers do
    "mesh.bootstrap": {…}   then a run is one attempt of `dspy.BootstrapFewShot`, DSPy's own code: a teacher that sees
                            labelled examples, the metric with its trace, one demo for each predictor of the trace

What is no plain value (a pydantic model, a date) travels in a demo as text, "\\0" and the codec's JSON.
"""

from __future__ import annotations

import contextlib
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dspy
import msgspec

from meshnode.demos.task import BOOTSTRAP, BOOTSTRAPPED, TRACED
from meshnode.errors import InvalidInput
from meshnode.evaluation import metrics
from meshnode.integrations.dspy.codec import Classes, NotCarried, decode, encode
from meshnode.integrations.dspy.structure import named_predictors

Demo = Mapping[str, Any]

_PLAIN = (str, int, float, bool, type(None))
_CODED = "\0"


class Wanted(msgspec.Struct, frozen=True):
    """How to bootstrap. metric: a name; threshold: as DSPy's metric_threshold; labelled: what the teacher sees."""

    metric: str
    threshold: float | None
    labelled: list[dict[str, Any]]


def take(data: bytes) -> tuple[bytes, list[Any] | None, Wanted | None]:
    """A state without what is ours, the demos to show (None: those it has), and how to bootstrap (None: not at all).

    Raises InvalidInput.
    """
    with contextlib.suppress(ValueError, RecursionError):  # who reads the rest says what is wrong
        state = json.loads(data)
        if isinstance(state, dict):
            # A bare dspy.Predict's own state is flat and has demos, too, and always a signature.
            shown = state.pop("demos") if isinstance(state.get("demos"), list) and "signature" not in state else None
            wanted = state.pop(BOOTSTRAP, None)
            if shown is not None or wanted is not None:
                try:
                    how = None if wanted is None else msgspec.convert(wanted, Wanted)
                except msgspec.ValidationError as error:
                    raise InvalidInput(f"the state's {BOOTSTRAP}: {error}") from None
                return json.dumps(state).encode(), shown, how
    return data, None, None


def show(module: Any, demos: Sequence[Any], classes: Classes) -> None:
    """Give a program's predictors these demos and no others, bootstrapped ones first. Raises InvalidInput."""
    predictors = named_predictors(module)
    shown: dict[str, list[Any]] = {name: [] for name in predictors}
    plain: list[Any] = []
    for demo in demos:
        if not isinstance(demo, dict) or not demo:
            raise InvalidInput("a demo is an object of its fields, or of such objects by predictor")
        if all(isinstance(part, dict) for part in demo.values()):
            if unknown := sorted(demo.keys() - predictors.keys()):
                raise InvalidInput(f"a demo is for predictors that this program has not: {', '.join(unknown)[:200]}")
            for name, fields in demo.items():
                shown[name].append(dspy.Example(augmented=True, **_fields(fields, classes)))
        else:
            plain.append(dspy.Example(**_fields(demo, classes)))
    for name, predictor in predictors.items():
        predictor.demos = [*shown[name], *plain]


class Bootstrapping:
    """A program that is bootstrapped when it is called.

    `(example's fields) -> {BOOTSTRAPPED: demo, TRACED: the run's steps}`, or `{BOOTSTRAPPED: None}`.
    """

    def __init__(
        self,
        module: Any,
        wanted: Wanted,
        own_metrics: Mapping[str, Callable[..., Any]],
        inputs_of: Callable[[Mapping[str, Any]], Mapping[str, Any]],
        context: Callable[[], Any],
        classes: Classes,
    ) -> None:
        self._module = module
        self._wanted = wanted
        self._metric = _with_trace(metrics.find(wanted.metric, own_metrics))
        self._inputs_of = inputs_of
        self._context = context
        self._classes = classes
        labelled = [self._example(fields) for fields in wanted.labelled]
        self._teacher = dspy.LabeledFewShot(k=len(labelled)).compile(module, trainset=labelled) if labelled else module

    def __call__(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt. Raises what the program or the metric raises."""
        run: list[Any] = []

        def metric(example: Any, prediction: Any, trace: Any = None) -> Any:
            run[:] = trace or ()
            return self._metric(example, prediction, trace)

        optimizer: Any = dspy.BootstrapFewShot(
            metric=metric, metric_threshold=self._wanted.threshold, max_labeled_demos=0, max_errors=1
        )
        with self._context():
            # The steps of its `compile`, for one example and without its progress bar.
            optimizer._prepare_student_and_teacher(self._module, self._teacher)
            optimizer._prepare_predictor_mappings()
            optimizer.name2traces = {name: [] for name in optimizer.name2predictor}
            succeeded = optimizer._bootstrap_one_example(self._example(inputs))
        if not succeeded:
            return {BOOTSTRAPPED: None}
        made = {name: demos[0] for name, demos in optimizer.name2traces.items() if demos}
        if not made:
            return {BOOTSTRAPPED: None}
        steps = [
            {"predictor": optimizer.predictor2name[id(one)], "inputs": self._plain(given), "outputs": self._plain(said)}
            for one, given, said in run
            if id(one) in optimizer.predictor2name  # a predictor that the program made as it ran has no name
        ]
        return {BOOTSTRAPPED: {name: self._plain(demo) for name, demo in made.items()}, TRACED: steps}

    def _example(self, fields: Mapping[str, Any]) -> Any:
        return dspy.Example(**fields).with_inputs(*self._inputs_of(fields))

    def _plain(self, demo: Any) -> dict[str, Any]:
        return {name: _written(value, self._classes) for name, value in demo.items() if name != "augmented"}


def _written(value: Any, classes: Classes) -> Any:
    if type(value) in _PLAIN and not (isinstance(value, str) and value.startswith(_CODED)):
        return value
    if type(value) is list and all(type(item) in _PLAIN for item in value):
        return value
    try:
        return _CODED + json.dumps(encode(value, classes, json=True))
    except NotCarried as error:
        raise InvalidInput(f"a demo holds {error}, which can't travel") from None


def _fields(written: Mapping[str, Any], classes: Classes) -> dict[str, Any]:
    return {name: _read(value, classes) for name, value in written.items()}


def _read(value: Any, classes: Classes) -> Any:
    if not isinstance(value, str) or not value.startswith(_CODED):
        return value
    try:
        return decode(json.loads(value[len(_CODED) :]), classes)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"a demo's field can't be read ({error})") from None


def _with_trace(metric: Callable[..., Any]) -> Callable[..., Any]:
    """The metric with three arguments; an app's may have two."""
    try:
        inspect.signature(metric).bind(None, None, None)
    except TypeError:
        return lambda example, prediction, _trace=None: metric(example, prediction)
    return metric
