"""What the nodes of the DSPy tests run; callers build the same programs by the same builders."""

from __future__ import annotations

import enum
import os
import signal
from typing import Any, Literal

import dspy
from pydantic import BaseModel

import meshnode

app = meshnode.App()
PROBE = os.environ.get("DSPY_TEST_PROBE", "")  # a directory; what a program writes there tells where it ran


class Label(enum.Enum):
    YES = "yes"
    NO = "no"


class Fact(BaseModel):
    text: str
    weight: float = 1.0
    label: Label = Label.NO


class Sorting(dspy.Signature):
    """Sort it."""

    fact: Fact = dspy.InputField()
    picture: dspy.Image = dspy.InputField()
    history: dspy.History = dspy.InputField()
    kind: Literal["json", "mail"] = dspy.OutputField()


class TwoSteps(dspy.Module):
    """A query first, then the answer; compiled, saved and traced as a program of two predictors."""

    def __init__(self) -> None:
        super().__init__()
        self.query = dspy.Predict("question -> query")
        self.reply = dspy.ChainOfThought("question, query -> answer")

    def forward(self, question: str) -> Any:
        query = self.query(question=question).query
        return dspy.Prediction(answer=self.reply(question=question, query=query).answer, query=query)


class Typed(dspy.Module):
    """Sends back what it is given, and what it made of it: typed values there and back."""

    def __init__(self) -> None:
        super().__init__()
        self.sort = dspy.Predict(Sorting)

    def forward(self, fact: Fact, picture: dspy.Image, history: dspy.History) -> Any:
        sorted_ = self.sort(fact=fact, picture=picture, history=history)
        return dspy.Prediction(
            kind=sorted_.kind, fact=fact, picture=picture, history=history, where=os.getpid(), pair=(1, 2.5)
        )


class Raising(dspy.Module):
    """Raises what it is told to, after one step that leaves a trace."""

    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        self.step(question=question)
        if question == "own":
            raise Strange("mine")
        if question == "hidden":
            raise type("Hidden", (Exception,), {})("mine")
        if question == "unreachable":
            raise dspy.utils.exceptions.LMTransportError("no route", model="openai/tiny")
        if question == "crash" and PROBE:
            os.kill(os.getpid(), signal.SIGKILL)
        if question == "parse":
            raise dspy.utils.exceptions.AdapterParseError(
                "ChatAdapter", self.step.signature, "gibberish", parsed_result={"answer": "half"}
            )
        if question == "limit":
            raise dspy.utils.exceptions.ContextWindowExceededError(model="openai/tiny", message="too long")
        raise ValueError("not", 2)


class Strange(Exception):
    pass


class Awaited(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = dspy.Predict("question -> answer")

    def forward(self, question: str) -> Any:
        return self.step(question=question)

    async def aforward(self, question: str) -> Any:
        found = await self.step.acall(question=question)
        return dspy.Prediction(answer=found.answer, awaited=True)


@app.program("qa")
def qa() -> Any:
    return dspy.ChainOfThought("question -> answer")


@app.program("bare")
def bare() -> Any:
    return dspy.Predict("question -> answer")


@app.program("two_steps")
def two_steps() -> Any:
    return TwoSteps()


@app.program("typed")
def typed() -> Any:
    return Typed()


@app.program("raising")
def raising() -> Any:
    return Raising()


@app.program("awaited")
def awaited() -> Any:
    return Awaited()


@app.program("several")
def several() -> Any:
    return dspy.Predict("question -> answer", n=2)


@app.program("cached")
def cached() -> Any:
    program = dspy.Predict("question -> answer")
    program.lm = dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x")
    return program


@app.lm
def lm() -> Any:
    return dspy.LM("openai/tiny", api_base=os.environ["LM_BASE"], api_key="x", cache=False)


@app.metric("same")
def same(example: Any, prediction: Any, trace: Any = None) -> bool:
    return bool(example["answer"] == prediction["answer"])


@app.metric("said_something")
def said_something(example: Any, prediction: Any, trace: Any = None) -> bool:
    """Strict while it bootstraps, as DSPy's metrics may be: then both steps must be in the trace."""
    del example
    return bool(prediction.answer) and (trace is None or len(trace) == 2)
