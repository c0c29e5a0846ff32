"""How good a prediction is: built-in metrics by name, and what any metric must return.

A metric is DSPy's: `(example, prediction, trace=None) -> float | bool`. The built-ins compare `example["answer"]`, a
text or a list of equally right ones, with `prediction["answer"]`, after the normalisation of SQuAD (Rajpurkar 2016):
lower case, without punctuation, articles and extra white space.

    exact      1 if equal (as `dspy.evaluate.answer_exact_match`), else 0
    contains   1 if the prediction contains the answer as whole words
    f1         harmonic mean of precision and recall over tokens
    semantic   cosine of TF-IDF vectors of words and character trigrams; `semantic_by` takes embeddings instead

An app's own metric of the same name wins (`find`).
"""
# ruff: noqa: ARG001 - `trace` is part of DSPy's signature of a metric; ours have no use for it

from __future__ import annotations

import inspect
import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from meshnode.errors import UnknownMethod

#: (example, prediction, trace=None) -> float | bool; called with two arguments
Metric: TypeAlias = Callable[..., Any]
#: texts -> one vector each
Embed: TypeAlias = Callable[[Sequence[str]], Sequence[Sequence[float]]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def find(name: str, own: Mapping[str, Metric] | None = None) -> Metric:
    """The app's own metric of that name, else the built-in one; raises UnknownMethod listing what there is."""
    metric = (own or {}).get(name) or METRICS.get(name)
    if metric is None:
        known = ", ".join(sorted({*METRICS, *(own or {})}))
        raise UnknownMethod(f"no metric {name!r}; there is: {known}; declare your own with @app.metric({name!r})")
    return metric


def score(metric: Metric, example: Any, prediction: Any) -> float:
    """Call a metric and take its value as a finite float; raises what it raises, TypeError or ValueError otherwise."""
    value = metric(example, prediction)
    if inspect.iscoroutine(value):
        value.close()
        raise TypeError("the metric is asynchronous; write a plain function, it runs in a thread")
    if value is None or isinstance(value, str | bytes):
        raise TypeError(f"the metric returned {value!r}; return a number or a bool")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"the metric returned a {type(value).__name__}; return a number or a bool") from None
    if not math.isfinite(number):
        raise ValueError(f"the metric returned {number}; return a finite number")
    return number


def normalize(text: str) -> str:
    """SQuAD's normalisation, with Unicode decomposed first."""
    text = unicodedata.normalize("NFD", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())


def exact(example: Any, prediction: Any, trace: object = None) -> bool:
    """1 if the normalised answers are equal, or the values are, where they aren't text."""
    given = _answer(prediction, "prediction")
    if isinstance(given, list | tuple):
        return list(given) == list(_right_answers(example))
    return any(
        normalize(right) == normalize(given) if isinstance(right, str) and isinstance(given, str) else right == given
        for right in _right_answers(example)
    )


def contains(example: Any, prediction: Any, trace: object = None) -> bool:
    """1 if the prediction contains one of the right answers as whole words; an empty answer is in nothing."""
    given = f" {normalize(_text(_answer(prediction, 'prediction')))} "
    return any(words in given for right in _right_answers(example) if (words := f" {normalize(_text(right))} ").strip())


def f1(example: Any, prediction: Any, trace: object = None) -> float:
    """Token F1 of SQuAD against the best of the right answers; two empty texts are equal."""
    given = normalize(_text(_answer(prediction, "prediction"))).split()
    return max(_token_f1(given, normalize(_text(right)).split()) for right in _right_answers(example))


def semantic(example: Any, prediction: Any, trace: object = None) -> float:
    """TF-IDF cosine to the nearest of the right answers, 0 to 1."""
    given = _text(_answer(prediction, "prediction"))
    return max(_tf_idf_cosine(given, _text(right)) for right in _right_answers(example))


def semantic_by(embed: Embed) -> Metric:
    """The same with the cosine of embeddings, not below 0; declare it as an app's "semantic" to use it by name."""

    def embedded(example: Any, prediction: Any, trace: object = None) -> float:
        right = [_text(answer) for answer in _right_answers(example)]
        given, *others = embed([_text(_answer(prediction, "prediction")), *right])
        return max(0.0, max(_cosine(dict(enumerate(given)), dict(enumerate(other))) for other in others))

    return embedded


METRICS: Mapping[str, Metric] = {"exact": exact, "contains": contains, "f1": f1, "semantic": semantic}
#: Those that take microseconds: a way through a thread would cost several times as much.
IMMEDIATE: frozenset[Metric] = frozenset({exact, contains, f1})


def _answer(fields: Any, what: str) -> Any:
    if not isinstance(fields, Mapping):
        found = getattr(fields, "answer", None)
        if found is None:
            raise LookupError(f"the {what} has no 'answer' to compare; use a metric of your own")
        return found
    if "answer" not in fields:
        there = ", ".join(map(str, fields)) or "nothing"
        raise LookupError(f"the {what} has no 'answer' to compare; it has {there}; use a metric of your own")
    return fields["answer"]


def _right_answers(example: Any) -> Sequence[Any]:
    answer = _answer(example, "example")
    if not isinstance(answer, list | tuple):
        return (answer,)
    if not answer:
        raise LookupError("the example's 'answer' is an empty list; give at least one right answer")
    return answer


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _token_f1(given: Sequence[str], right: Sequence[str]) -> float:
    if not given or not right:
        return float(given == right)
    common = (Counter(given) & Counter(right)).total()
    # 2pr / (p + r) with p = common / len(given), r = common / len(right)
    return 2 * common / (len(given) + len(right))


def _terms(text: str) -> Iterator[str]:
    for word in normalize(text).split():
        yield word
        padded = f"^{word}$"
        for start in range(len(padded) - 2):
            yield f"#{padded[start : start + 3]}"


def _tf_idf_cosine(one: str, other: str) -> float:
    if normalize(one) == normalize(other):
        return 1.0
    first, second = Counter(_terms(one)), Counter(_terms(other))
    # Smooth idf over the two texts: ln((1 + n) / (1 + df)) + 1 with n = 2; a shared term weighs 1, a lone one 1.41.
    lone = math.log(3 / 2) + 1
    weighted = [
        {term: (1 + math.log(count)) * (1.0 if term in there else lone) for term, count in here.items()}
        for here, there in ((first, second), (second, first))
    ]
    return _cosine(weighted[0], weighted[1])


def _cosine(one: Mapping[Any, float], other: Mapping[Any, float]) -> float:
    dot = math.fsum(weight * other[term] for term, weight in one.items() if term in other)
    norms = math.sqrt(math.fsum(w * w for w in one.values()) * math.fsum(w * w for w in other.values()))
    return min(1.0, dot / norms) if norms else 0.0
