"""A module-typed variable swaps a program's strategy while it runs: the next run uses it, nothing is restarted.

    meshnode start --app examples.strategy_swap:app
    meshnode vars set strategy reason

With DSPy the builders would be `dspy.Predict` and `dspy.ChainOfThought`; here they need no model: one answers at once,
the other writes its steps down first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import meshnode

app = meshnode.App()

Strategy = Callable[[Mapping[str, Any]], dict[str, Any]]


def predict() -> Strategy:
    """{"numbers"} to {"answer"}, at once."""
    return lambda inputs: {"answer": sum(inputs["numbers"]), "strategy": "predict"}


def chain_of_thought() -> Strategy:
    """{"numbers"} to {"answer"} and the {"reasoning"} that leads to it."""

    def run(inputs: Mapping[str, Any]) -> dict[str, Any]:
        steps, total = [], 0
        for number in inputs["numbers"]:
            steps.append(f"{total} + {number} = {total + number}")
            total += number
        return {"answer": total, "reasoning": "; ".join(steps), "strategy": "reason"}

    return run


strategy = app.variable("strategy", "module", "predict", choices={"predict": predict, "reason": chain_of_thought})


@app.program("add")
class Add:
    """{"numbers"} to {"answer"}, by the strategy that is chosen when the run begins."""

    def init(self, session: Any) -> None:  # noqa: ARG002 (the variable knows its value in this session)
        """Build the strategy, once for each that is ever chosen, not for each run."""
        self.strategy = strategy.build()

    def forward(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run it."""
        result: dict[str, Any] = self.strategy(inputs)
        return result


@app.metric("right")
def right(example: Mapping[str, Any], prediction: Mapping[str, Any], trace: object = None) -> bool:  # noqa: ARG001 (as DSPy calls it)
    """Whether the answer is the sum."""
    return bool(prediction["answer"] == sum(example["numbers"]))
