"""`mesh.DemoConsensus`: an optimizer whose demos the whole mesh agreed on.

Every node bootstraps on its own share of the train set, as DSPy's BootstrapFewShot does, every node scores every
candidate on a held-out part, and the nodes vote; see docs/demos.md. The compiled program carries the demos, and
`demo_selection`: what was decided, by whom, and the proof that anyone can check.

Code does not travel: the metric is one that the nodes' app declares, by its name or as that very function.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

import dspy
import msgspec
from dspy.teleprompt.teleprompt import Teleprompter

from consensus.selection.choice import Weights
from meshnode.app import App
from meshnode.demos import RoundProgress, Selection
from meshnode.demos.select import Demos
from meshnode.errors import InvalidInput, MeshError
from meshnode.evaluation import metrics
from meshnode.evaluation.candidates import can_run, why_none
from meshnode.integrations.dspy import state
from meshnode.integrations.dspy.codec import NotCarried
from meshnode.integrations.dspy.demos import show
from meshnode.integrations.dspy.proxy import local, program_of
from meshnode.integrations.dspy.structure import classes_of, named_predictors
from meshnode.mesh import Mesh
from meshnode.values import pack


class DemoConsensus(Teleprompter):
    """Compiles a remote program with demos that the mesh chose; `selection` is its last choice.

    metric: an `@app.metric`, by name or the function itself, or a built-in one's name. k: demos at most.
    metric_threshold, max_labeled_demos: as of `dspy.BootstrapFewShot`. weights: see `consensus.selection.choice`; None
    for the mesh's variables. deadline_s: within it `compile` ends, if need be with demos chosen alone.
    on_progress: called with where the round is, on the node's thread.
    """

    def __init__(
        self,
        mesh: Mesh,
        demos: Demos,
        app: App | None,
        run: Callable[[Coroutine[Any, Any, Any]], Any],
        *,
        metric: str | Callable[..., Any],
        k: int = 8,
        metric_threshold: float | None = None,
        max_labeled_demos: int = 16,
        weights: Weights | None = None,
        deadline_s: float = 60.0,
        on_progress: Callable[[RoundProgress], None] | None = None,
    ) -> None:
        super().__init__()
        self._mesh, self._demos, self._run = mesh, demos, run
        own = app.metrics if app is not None else {}
        self._metric_name = metric if isinstance(metric, str) else _name_of(metric, own)
        self._metric = metrics.find(self._metric_name, own)
        self._k = k
        self._threshold = metric_threshold
        self._labelled = max_labeled_demos
        self._weights = weights
        self._deadline_s = deadline_s
        self._on_progress = on_progress
        self.selection: Selection | None = None

    def compile(self, student: Any, *, trainset: Sequence[Any]) -> Any:
        """The program with the demos chosen from `trainset`. Raises InvalidInput if it is none of `mesh.remote`."""
        name = program_of(student)
        if name is None:
            raise InvalidInput('compile takes a program of the mesh: mesh.remote("name", program)')
        compiled = student.reset_copy()
        classes = classes_of(compiled)
        chosen = self._chosen(name, compiled, [_fields(example) for example in trainset], classes)
        if chosen.decided == "mesh" or chosen.demos:
            show(compiled, chosen.demos, classes)
        compiled.demo_selection = self.selection = chosen
        compiled._compiled = True
        return compiled

    def _chosen(
        self, name: str, program: Any, examples: list[dict[str, Any]], classes: Mapping[str, type]
    ) -> Selection:
        try:
            base = msgspec.json.decode(state.dump(program, classes))
            pack(examples)
            if not any(can_run(member, name, {}) for member in self._mesh.members()):
                raise why_none(self._mesh.members(), name, {})
        except NotCarried as error:
            return self._alone(program, examples, f"{error} can't travel")
        except MeshError as error:
            return self._alone(program, examples, str(error))
        found: Selection = self._run(
            self._demos.select(
                name,
                examples,
                k=self._k,
                metric=self._metric_name,
                weights=self._weights,
                deadline_s=self._deadline_s,
                threshold=self._threshold,
                state=base,
                labelled=self._labelled,
                on_progress=self._on_progress,
            )
        )
        return found

    def _alone(self, program: Any, examples: list[dict[str, Any]], reason: str) -> Selection:
        """Here, by DSPy's own optimizer: no node can choose from this."""
        inputs = {name for one in named_predictors(program).values() for name in one.signature.input_fields}
        outputs = {name for one in named_predictors(program).values() for name in one.signature.output_fields}
        train = [dspy.Example(**fields).with_inputs(*(inputs - outputs) & fields.keys()) for fields in examples]
        optimizer: Any = dspy.BootstrapFewShot(
            metric=self._metric,
            metric_threshold=self._threshold,
            max_bootstrapped_demos=self._k,
            max_labeled_demos=self._labelled,
        )
        made = optimizer.compile(local(program), trainset=train)
        made_of = {
            name: [demo.toDict() for demo in predictor.demos if demo.get("augmented")]
            for name, predictor in named_predictors(made).items()
        }
        demos = [
            {name: _unmarked(made[place]) for name, made in made_of.items() if place < len(made)}
            for place in range(max(map(len, made_of.values()), default=0))
        ]
        digest = hashlib.sha256(repr(demos).encode()).hexdigest()
        return Selection(demos=demos, scores=[], digest=digest, decided="local", reason=reason)


def _name_of(metric: Callable[..., Any], own: Mapping[str, Callable[..., Any]]) -> str:
    for name, known in {**metrics.METRICS, **own}.items():
        if known is metric:
            return name
    raise InvalidInput("the nodes don't have this metric; declare it in the app with @app.metric and pass its name")


def _unmarked(demo: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in demo.items() if name != "augmented"}


def _fields(example: Any) -> dict[str, Any]:
    return dict(example) if isinstance(example, dict) else dict(example.toDict())
