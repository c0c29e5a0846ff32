"""Known pairs for each built-in metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshnode.errors import UnknownMethod
from meshnode.evaluation.fields import Fields
from meshnode.evaluation.metrics import METRICS, contains, exact, f1, find, score, semantic, semantic_by


def pair(right: Any, given: Any) -> tuple[Fields, Fields]:
    return Fields(answer=right, question="?"), Fields(answer=given)


@pytest.mark.parametrize(
    ("right", "given", "same"),
    [
        ("Paris", "paris", True),
        ("the Eiffel Tower", "Eiffel tower.", True),
        ("a  b", "b", True),
        ("Paris", "Paris, France", False),
        ("naïve", "nai\u0308ve", True),
        (["four", "4"], "4", True),
        (["four", "4"], "5", False),
        (4, 4, True),
        (4, "4", False),
        (4, 4.0, True),
        (["a", "b"], ["a", "b"], True),
        (None, None, True),
        ("", "", True),
    ],
)
def test_exact(right: Any, given: Any, same: bool) -> None:
    assert exact(*pair(right, given)) is same


@pytest.mark.parametrize(
    ("right", "given", "inside"),
    [
        ("Paris", "It is Paris, I think.", True),
        ("par", "It is Paris.", False),
        (["Lyon", "Paris"], "paris", True),
        ("New York", "York, New", False),
        (4, "the answer is 4", True),
        ("", "anything", False),
        ("the", "the", False),
    ],
)
def test_contains(right: Any, given: Any, inside: bool) -> None:
    assert contains(*pair(right, given)) is inside


@pytest.mark.parametrize(
    ("right", "given", "value"),
    [
        ("Paris", "paris", 1.0),
        ("Paris", "Rome", 0.0),
        ("new york city", "york", 0.5),  # p = 1, r = 1/3
        ("cat cat", "cat", 2 / 3),  # counted as often as it is there
        (["Rome", "Paris France"], "Paris", 2 / 3),
        ("the", "a", 1.0),  # both are empty once normalised
        ("the", "Paris", 0.0),
    ],
)
def test_f1(right: Any, given: Any, value: float) -> None:
    assert f1(*pair(right, given)) == pytest.approx(value)


def test_semantic_orders_near_and_far() -> None:
    right = "a parser for command line options"
    same, near, related, far = (
        semantic(*pair(right, given))
        for given in (
            "A parser for command-line options!".replace("-", " "),
            "parses options of the command line",
            "reads arguments given on the command line",
            "encrypts mail",
        )
    )
    assert same == 1.0
    assert same > near > related > far
    assert far < 0.1
    assert semantic(*pair("", "")) == 1.0
    assert semantic(*pair("x", "")) == 0.0


def test_semantic_by_embeddings_takes_the_nearest_right_answer() -> None:
    asked: list[Sequence[str]] = []

    def embed(texts: Sequence[str]) -> Sequence[Sequence[float]]:
        asked.append(texts)
        return [{"warm": (1.0, 1.0), "hot": (0.0, 1.0), "cold": (0.0, -1.0)}[text] for text in texts]

    metric = semantic_by(embed)
    assert metric(*pair(["hot", "cold"], "warm")) == pytest.approx(0.5**0.5)
    assert metric(*pair("cold", "warm")) == 0.0, "never below 0"
    assert asked[0] == ["warm", "hot", "cold"], "one request"


texts = st.text(alphabet="ab c.É1", max_size=12)


@given(texts, texts)
def test_metrics_are_symmetric_bounded_and_full_on_equals(one: str, other: str) -> None:
    for metric in (exact, f1, semantic):
        value = metric(*pair(one, other))
        assert 0.0 <= value <= 1.0
        assert value == pytest.approx(metric(*pair(other, one)))
        assert metric(*pair(one, one)) == 1.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
def test_lacking_answer_is_named(metric: Any) -> None:
    with pytest.raises(LookupError, match="the prediction has no 'answer' to compare; it has text"):
        metric(Fields(answer="x"), Fields(text="x"))
    with pytest.raises(LookupError, match="the example has no 'answer'"):
        metric(Fields(text="x"), Fields(answer="x"))
    with pytest.raises(LookupError, match="the prediction has no 'answer'"):
        metric(Fields(answer="x"), "a bare string")
    with pytest.raises(LookupError, match="empty list"):
        metric(Fields(answer=[]), Fields(answer="x"))


def test_answer_is_read_from_objects_with_attributes_too() -> None:
    class Prediction:
        answer = "Paris"

    assert exact(Fields(answer="paris"), Prediction())


def test_own_metric_wins_and_unknown_one_is_refused_with_the_list() -> None:
    def own(example: Any, prediction: Any) -> float:
        return 0.5

    assert find("exact", {"exact": own}) is own
    assert find("exact") is exact
    with pytest.raises(UnknownMethod, match="'beauty'; there is: contains, exact, f1, semantic, taste"):
        find("beauty", {"taste": own})


@pytest.mark.parametrize(("value", "number"), [(True, 1.0), (False, 0.0), (3, 3.0), (0.25, 0.25)])
def test_score_is_a_float(value: Any, number: float) -> None:
    taken = score(lambda example, prediction: value, {}, {})
    assert taken == number
    assert type(taken) is float


def test_fields_are_read_both_ways() -> None:
    fields = Fields(answer=1, items=2)
    assert fields.answer == fields["answer"] == 1
    assert fields["items"] == 2
    with pytest.raises(AttributeError, match="no field 'question'; there is: answer, items"):
        _ = fields.question
    assert not hasattr(fields, "__deepcopy__")
