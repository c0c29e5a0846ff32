"""What models were asked, added up over workers."""

from __future__ import annotations

from typing import Any

from meshnode.lm.usage import MAX_MODELS, OTHER, Tally
from meshnode.observe.health import model_health


def one(tally: Tally) -> dict[str, Any]:
    (told,) = tally.describe()
    return told


def test_requests_and_tokens_add_up() -> None:
    tally = Tally()
    tally.count("tiny", prompt_tokens=10, completion_tokens=2)
    tally.count("tiny", prompt_tokens=5)
    tally.count("tiny", error="429: slow down")
    assert one(tally) == {
        "model": "tiny",
        "answered": 2,
        "failed": 1,
        "prompt_tokens": 15,
        "completion_tokens": 2,
        "failing": 1,
        "error": "429: slow down",
    }


def test_what_was_taken_is_told_once_and_adds_up_elsewhere() -> None:
    worker, node = Tally(), Tally()
    for _ in range(3):
        worker.count("tiny", prompt_tokens=1)
        node.add(worker.take())
    assert worker.take() == []
    assert (one(node)["answered"], one(node)["prompt_tokens"]) == (3, 3)


def test_failures_in_a_row_are_counted_over_reports_and_end_with_an_answer() -> None:
    worker, node = Tally(), Tally()
    for _ in range(4):
        worker.count("tiny", error="refused")
        node.add(worker.take())
    assert (one(node)["failing"], one(node)["error"]) == (4, "refused")
    worker.count("tiny")
    worker.count("tiny", error="late")
    node.add(worker.take())
    assert (one(node)["failing"], one(node)["error"]) == (1, "late")
    worker.count("tiny")
    node.add(worker.take())
    assert (one(node)["failing"], one(node)["error"], one(node)["failed"]) == (0, "", 5)


def test_names_without_end_are_one_model() -> None:
    tally = Tally()
    for number in range(MAX_MODELS + 10):
        tally.count(f"model-{number}")
    models = {model["model"]: model["answered"] for model in tally.describe()}
    assert (len(models), models[OTHER]) == (MAX_MODELS + 1, 10)


def test_a_model_that_fails_time_after_time_is_degraded_until_it_answers() -> None:
    tally = Tally()
    assert model_health(tally.describe())["status"] == "off"
    tally.count("tiny")
    assert model_health(tally.describe())["status"] == "ok"
    for _ in range(3):
        tally.count("tiny", error="ConnectError: no one at http://me:s3cr3t-x@host")
    health = model_health(tally.describe())
    assert health["status"] == "degraded"
    assert health["last_error"].startswith("tiny: ConnectError")
    assert "s3cr3t" not in str(health)
    tally.count("tiny")
    assert model_health(tally.describe()) == {"status": "ok", "last_error": None, "models": tally.describe()}
