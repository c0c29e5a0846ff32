"""The example program against the embedded model over real HTTP."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from examples.app import app, choose, prompt
from examples.docstrings import Example
from examples.model import Model, ModelError
from meshnode.lm.limits import Settings
from meshnode.lm.nearest import answer
from meshnode.lm.prompts import Message
from meshnode.lm.server import running

pytestmark = pytest.mark.xdist_group("examples")  # one data set for all tests that read it

ASKED = prompt([Example(docstring="Parse JSON", answer="json")], "parse")


def test_more_demonstrations_raise_the_score_far_above_chance(real: tuple[list[Example], list[Example]]) -> None:
    train, dev = real
    sample = dev[:150]

    def share(per_module: int) -> float:
        shown = choose(train, per_module)
        said = (answer([Message("user", prompt(shown, example["docstring"]))]) for example in sample)
        return sum(one == example["answer"] for one, example in zip(said, sample, strict=True)) / len(sample)

    none, few, more = share(0), share(1), share(6)
    chance = 1 / len({example["answer"] for example in dev})
    assert none == 0.0
    assert few > 3 * chance
    assert more > few + 0.15
    assert more > 10 * chance


async def test_the_program_answers_from_many_threads_the_same_as_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = [Example(docstring=f"Word{n} word{n} does it", answer=f"m{n}") for n in range(20)]
    for name in ("train.jsonl", "dev.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps(example) + "\n" for example in train))
    monkeypatch.setenv("DOCSTRINGS", str(tmp_path))
    async with running(Settings(latency_s=0.05, key="k")) as server:
        monkeypatch.setenv("LM_BASE", server.base)
        monkeypatch.setenv("LM_KEY", "k")
        model = Model()
        monkeypatch.setattr("examples.app.Model", lambda: model)
        program = app.programs["module_of"]()

        def all_answers() -> list[str]:
            with ThreadPoolExecutor(8) as pool:
                return [p["answer"] for p in pool.map(program, ({"docstring": f"about word{n}"} for n in range(20)))]

        assert await asyncio.to_thread(all_answers) == [f"m{n}" for n in range(20)]
        assert server.statistics.asked == 20
        assert server.statistics.in_flight_max > 1
        model.close()


async def test_the_small_declarations_do_what_they_say() -> None:
    assert app.programs["reverse"]()({"text": "abc"}) == {"answer": "cba"}
    assert app.metrics["exact"]({"answer": "a"}, {"answer": "a"}) is True
    assert app.metrics["exact"]({"answer": "a"}, {"answer": "A"}) is False
    assert await app.handlers["echo"]({"a": [1]}, None) == {"a": [1]}
    assert app.location == "examples.app:app"


async def test_a_refused_question_is_asked_again_when_the_server_said() -> None:
    async with running(Settings(rate=4.0, burst=1)) as server:
        model = Model(server.base)
        assert await asyncio.gather(*(asyncio.to_thread(model.ask, ASKED) for _ in range(3))) == ["json"] * 3
        assert server.statistics.refused > 0
        model.close()


async def test_a_failing_server_is_asked_again() -> None:
    async with running(Settings(failure_rate=0.5, seed=3)) as server:
        model = Model(server.base)
        assert [await asyncio.to_thread(model.ask, ASKED) for _ in range(4)] == ["json"] * 4
        assert server.statistics.failed > 0
        model.close()


async def test_a_wrong_key_is_not_tried_again_and_says_what_to_check() -> None:
    async with running(Settings(key="right")) as server:
        model = Model(server.base, key="wrong")
        with pytest.raises(ModelError, match=r"401: the API key is wrong; check LM_BASE, LM_KEY"):
            await asyncio.to_thread(model.ask, ASKED)
        assert server.statistics.asked == 1
        model.close()


def test_an_endpoint_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    model = Model("http://127.0.0.1:9/v1")
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9/v1.* did not answer in 8 tries, the last with ConnectError"):
        model.ask(ASKED)
    model.close()


def test_without_an_endpoint_it_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LM_BASE", raising=False)
    with pytest.raises(ModelError, match="start one with `meshnode lm serve` and set LM_BASE"):
        Model()
