"""What comes from the network is data: a hostile state or call is refused and changes nothing."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping
from typing import Any

import dspy
import pytest

from meshnode.errors import AppError, InvalidInput
from meshnode.integrations.dspy import codec, state
from meshnode.integrations.dspy.codec import TAG, NotCarried, decode, encode
from meshnode.integrations.dspy.signatures import signature_as_data, signature_from_data
from meshnode.integrations.dspy.structure import classes_of, named_predictors
from meshnode.integrations.dspy.worker import CALL, REPLY, Served
from meshnode.workers.programs import Programs
from tests.meshnode.integrations.dspy import app as programs

LM = {"model": "openai/tiny", "type": "chat", "cache": False, "kwargs": {}}


def good() -> dict[str, Any]:
    module = programs.qa()
    whole: dict[str, Any] = json.loads(state.dump(module, classes_of(module)))
    return whole


def changed(change: Callable[[dict[str, Any]], Any]) -> bytes:
    whole = good()
    change(whole["predict"])
    return json.dumps(whole).encode()


HOSTILE: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "an endpoint": lambda p: p.update(config={"api_base": "http://evil"}),
    "a key": lambda p: p.update(config={"api_key": "x"}),
    "a nested setting": lambda p: p.update(config={"temperature": {"a": 1}}),
    "a forward": lambda p: p.update(forward="x"),
    "code": lambda p: p.update(module_src="import os"),
    "a dunder": lambda p: p.update(__class__="x"),
    "a stage": lambda p: p.update(stage="x"),
    "traces": lambda p: p.update(traces=[1]),
    "demos that are no list": lambda p: p.update(demos={"a": 1}),
    "a demo that is a text": lambda p: p.update(demos=["x"]),
    "a demo of a strange class": lambda p: p.update(demos=[{"q": {TAG: "model", "class": "Popen", "fields": {}}}]),
    "a demo of a strange tag": lambda p: p.update(demos=[{"q": {TAG: "code"}}]),
    "a demo that is one": lambda p: p.update(demos=[{TAG: "model", "class": "Image", "fields": {"url": "x"}}]),
    "a demo of bytes that are none": lambda p: p.update(demos=[{"q": {TAG: "packed", "bytes": "!"}}]),
    "a deep demo": lambda p: p.update(demos=[{"q": json.loads("[" * 200 + "]" * 200)}]),
    "too many demos": lambda p: p.update(demos=[{}] * 3000),
    "a signature with a class": lambda p: p["signature"].update(base="x"),
    "instructions that are no text": lambda p: p["signature"].update(instructions=["x"]),
    "a field more": lambda p: p["signature"]["fields"].append({"prefix": "a", "description": "b"}),
    "a field with more": lambda p: p["signature"]["fields"][0].update(default="x"),
    "a field that is no text": lambda p: p["signature"]["fields"][0].update(prefix=1),
    "no signature": lambda p: p.pop("signature"),
    "a model elsewhere": lambda p: p.update(lm={**LM, "api_base": "http://evil"}),
    "a model with an endpoint": lambda p: p.update(lm={**LM, "kwargs": {"api_base": "http://evil"}}),
    "a model saved with an endpoint": lambda p: p.update(
        lm={"_dspy_lm_class": "os.system", "model": "openai/tiny", "model_type": "chat", "api_base": "http://evil"}
    ),
    "another model": lambda p: p.update(lm={**LM, "model": "openai/dear"}),
}


def snapshot(served: Served) -> Any:
    return {
        name: (p.dump_state(), p.config, p.lm, vars(p).keys()) for name, p in named_predictors(served._module).items()
    }


def served(build: Callable[[], Any] = programs.qa) -> Served:
    return Served(build(), [dspy.LM("openai/tiny", api_base="http://127.0.0.1:9/v1", api_key="x", num_retries=0)])


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_state_is_refused_and_changes_nothing(what: str) -> None:
    program = served()
    before = snapshot(program)
    with pytest.raises(InvalidInput):
        program.with_state(changed(HOSTILE[what]))
    assert snapshot(program) == before


@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"null", b"\xff", b'{"x": 1}', b"[" * 100_000, b'{"predict": ' + b"[" * 5000, b" " * 3_000_000],
    ids=["empty", "list", "null", "no text", "strange name", "deep", "deeper", "megabytes"],
)  # fmt: skip
def test_state_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        served().with_state(data)


def test_worker_refuses_a_hostile_state_as_invalid_input() -> None:
    made = Programs(_app())
    with pytest.raises(InvalidInput, match="api_base"):
        made.build("qa", changed(HOSTILE["an endpoint"]))
    assert made.build("qa", changed(lambda p: None)).name == "qa"


def test_worker_builds_a_program_once_for_all_its_states() -> None:
    calls = []
    app = _app(lambda: calls.append(1))
    made = Programs(app)
    for number in range(3):
        made.build("qa", changed(lambda p, n=number: p["signature"].update(instructions=f"Do {n}.")))  # type: ignore[misc]  # a lambda's default
    assert len(calls) == 1


def test_state_of_another_shape_says_so() -> None:
    with pytest.raises(AppError, match="another shape"):
        served(lambda: dspy.ChainOfThought("question, more -> answer")).with_state(json.dumps(good()).encode())


def test_state_as_dspy_saves_it_is_read(tmp_path: Any) -> None:
    module = programs.two_steps()
    module.query.demos = [dspy.Example(question="q", query="r", augmented=True)]
    module.save(tmp_path / "saved.json")
    copy = served(programs.two_steps).with_state((tmp_path / "saved.json").read_bytes())
    assert [dict(demo) for demo in copy._module.query.demos] == [{"question": "q", "query": "r", "augmented": True}]


@pytest.mark.parametrize("build", [programs.qa, programs.bare, programs.two_steps, programs.typed, programs.several])
def test_state_goes_there_and_back(build: Callable[[], Any]) -> None:
    module = build()
    for predictor in named_predictors(module).values():
        predictor.demos = [dspy.Example(fact=programs.Fact(text="a"), when=datetime.date(2026, 1, 2), pair=(1, 2))]
        predictor.signature = predictor.signature.with_instructions("Do as told.")
        predictor.config["temperature"] = 0.5
    classes = {**classes_of(module), "Fact": programs.Fact, "Label": programs.Label}
    other = build()
    state.apply(state.dump(module, classes), other, classes, [])
    for name, predictor in named_predictors(other).items():
        mine = named_predictors(module)[name]
        assert predictor.demos == mine.demos
        assert predictor.signature.equals(mine.signature)
        assert predictor.config == mine.config


def call(**changes: Any) -> dict[str, Any]:
    settings: Any = {"max_trace_size": 10, "disable_history": True, "max_errors": 1, "num_threads": 1}
    whole: dict[str, Any] = {
        "args": [],
        "kwargs": {"question": "x"},
        "lm": None,
        "adapter": None,
        "async": False,
        "settings": settings,
    }
    return {CALL: {**whole, **changes}}


@pytest.mark.parametrize(
    "changes",
    [
        {"kwargs": {"question": "x", "config": {"api_base": "http://evil"}}},
        {"kwargs": {"question": "x", "lm": "openai/dear"}},
        {"kwargs": {"question": "x", "signature": "a -> b"}},
        {"kwargs": ["question"]},
        {"args": {"a": 1}},
        {"adapter": "os.system"},
        {"lm": {**LM, "api_base": "http://evil"}},
        {"lm": {**LM, "kwargs": {"base_url": "http://evil"}}},
        {"settings": {"callbacks": []}},
        {"more": 1},
    ],
)
def test_hostile_call_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        served()(call(**changes))


def test_call_for_a_model_that_is_not_here_is_given_back() -> None:
    assert "openai/dear" in served()(call(lm={**LM, "model": "openai/dear"}))[REPLY]["refused"]


def test_model_out_of_reach_is_told_as_trouble() -> None:
    assert "LMTransportError" in served()(call(lm=LM))[REPLY]["trouble"]


@pytest.mark.parametrize(
    "value",
    [
        dspy.Prediction(score=0.5, feedback="good"),
        dspy.Example(a=1, b=[{"c": (1, 2)}]).with_inputs("a"),
        dspy.History(messages=[{"q": "x"}]),
        dspy.Image(url="https://example.org/a.png"),
        programs.Fact(text="x", label=programs.Label.YES),
        {TAG: "not ours", "x": [1]},
        [programs.Label.NO, None, b"bytes", {1, 2}, datetime.datetime(2026, 1, 2, 3)],
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("as_json", [False, True])
def test_values_go_there_and_back(value: Any, as_json: bool) -> None:
    classes = classes_of(programs.typed())
    plain = encode(value, classes, json=as_json)
    back = decode(json.loads(json.dumps(plain)) if as_json else plain, classes)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [object(), print, dspy.Tool(print), programs.qa(), type("S", (str,), {})("x")],
    ids=["object", "function", "tool", "module", "subclass"],
)
def test_what_can_not_travel_is_told(value: Any) -> None:
    with pytest.raises(NotCarried):
        encode(value, classes_of(programs.typed()))


def test_an_image_is_rebuilt_without_looking_at_its_address() -> None:
    made = decode({TAG: "model", "class": "Image", "fields": {"url": "/etc/passwd"}}, codec.known_classes([]))
    assert made.url == "/etc/passwd"


def _app(built: Callable[[], Any] = lambda: None) -> Any:
    import meshnode

    app = meshnode.App()

    @app.program("qa")
    def qa() -> Any:
        built()
        return programs.qa()

    return app


def a_signature() -> dict[str, Any]:
    made: dict[str, Any] = signature_as_data(dspy.Signature("question, place: int -> answer: list, sure: bool", "Say."))
    return made


HOSTILE_SIGNATURES: Mapping[str, Callable[[dict[str, Any]], Any]] = {
    "no fields": lambda s: s.pop("fields"),
    "a base": lambda s: s.update(base="os"),
    "instructions that are no text": lambda s: s.update(instructions=1),
    "a field with more": lambda s: s["fields"][0].append("x"),
    "a field that is none": lambda s: s["fields"].append("x"),
    "a type to import": lambda s: s["fields"][0].__setitem__(2, "os.system"),
    "a private name": lambda s: s["fields"][0].__setitem__(0, "__class__"),
    "no kind": lambda s: s["fields"][0].__setitem__(1, "both"),
    "too many fields": lambda s: s.update(fields=s["fields"] * 100),
}


@pytest.mark.parametrize("what", HOSTILE_SIGNATURES)
def test_hostile_signature_in_a_trace_is_refused(what: str) -> None:
    data = a_signature()
    made = signature_from_data(data)
    assert signature_as_data(made) == data
    HOSTILE_SIGNATURES[what](data)
    with pytest.raises(InvalidInput):
        signature_from_data(data)


def test_a_signature_with_a_type_of_the_programs_own_is_not_carried() -> None:
    with pytest.raises(NotCarried, match="Fact"):
        signature_as_data(programs.Sorting)
