"""The same set gives the same demos in any order; liars can't move a score outside the honest range."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from consensus.bft.messages import digest_of
from consensus.selection.agreement import Agreement, Rules, agreement_error
from consensus.selection.candidates import (
    MAX_DEMO_BYTES,
    MAX_TRACE_BYTES,
    Candidate,
    Merged,
    demo_error,
    merge,
    set_digest,
    trace_error,
)
from consensus.selection.choice import Weights, choose, result_digest, select
from consensus.selection.scores import SCALE, Commitment, Reveal, qualities, reveal_error, to_fixed, trimmed_median
from consensus.selection.similarity import cosine, jaccard, similarity, tokens_of
from tests.consensus.bft.ring import make_round, sign_with, verify

ROUND = make_round(4)
words = st.lists(
    st.sampled_from(["red", "green", "blue", "seven", "eight", "nine", "ü", "日", "x_1"]), min_size=1, max_size=6
)
score = st.integers(0, SCALE)


def demo(text: str, answer: str = "a") -> bytes:
    return msgspec.json.encode({"question": text, "answer": answer})


def candidate(text: str, node: str = "v0", trace: bytes = b"[]") -> Candidate:
    return Candidate(demo(text), trace, node)


candidates = st.lists(
    st.builds(lambda text, node: candidate(" ".join(text), node), words, st.sampled_from(["v0", "v1", "v2", "v3"])),
    min_size=1,
    max_size=12,
)


# Candidates.


def test_byte_identical_candidates_are_one_with_all_its_proposers() -> None:
    (one,) = merge([candidate("same", "v2"), candidate("same", "v0"), candidate("same", "v2")])
    assert one.proposers == ("v0", "v2")


def test_another_trace_is_another_candidate() -> None:
    assert len(merge([candidate("same"), candidate("same", trace=b'[{"x":1}]')])) == 2


@pytest.mark.parametrize(
    "bad",
    [
        b"",
        b"{}",
        b"[1]",
        b"\xff",
        b'{"a":{"b":{"deep":1}}}',
        b'{"a":{}}',
        b'{"a":{"b":[[1]]}}',
        b"[" * 10_000,
        b'{"a":"' + b"x" * MAX_DEMO_BYTES + b'"}',
    ],
)
def test_what_is_no_demo_is_refused_with_the_reason(bad: bytes) -> None:
    assert demo_error(bad)


def test_a_demo_may_have_plain_values_and_lists_of_them() -> None:
    assert demo_error(b'{"a":"x","b":[1,2.5,null,true,"y"]}') is None


def test_a_demo_may_have_a_part_for_each_predictor_and_all_of_their_texts_count() -> None:
    parts = b'{"query":{"question":"a b","query":"c"},"reply":{"answer":"d"}}'
    assert demo_error(parts) is None
    assert tokens_of(parts) == tokens_of(b'{"q":"a b c d"}')


def test_a_signature_covers_round_proposer_demo_and_trace() -> None:
    others = (candidate("y"), candidate("x", "v1"), candidate("x", trace=b'[{"x":1}]'))
    signed = {one.signed_bytes(ROUND) for one in (candidate("x"), *others)}
    assert len(signed | {candidate("x").signed_bytes(make_round(5))}) == 5


@pytest.mark.parametrize(
    "bad", [b"", b"{}", b"[1]", b"\xff", b'[{"a":[[1]]}]', b"[" * 10_000, b"[" + b" " * MAX_TRACE_BYTES]
)
def test_what_is_no_trace_is_refused_with_the_reason(bad: bytes) -> None:
    assert trace_error(bad)


def test_a_trace_is_a_list_of_steps_and_none_for_a_plain_example() -> None:
    assert trace_error(b"[]") is None
    assert trace_error(b'[{"predictor":"p","inputs":{"q":"x"},"outputs":{"a":[1,null]}},{"left_out":1}]') is None


def test_golden_digests() -> None:
    (one,) = merge([Candidate(b'{"a":"b"}', b"[]", "v0")])
    assert one.digest.hex() == "08aeb087478e3eb05da8219601b490e7fbf069d62420f42a35f7f5af0e5d257b"
    assert set_digest([one]).hex() == "773cc5f00193e6c299184f7701c226300ef65c9984cec8e899c3ddd339d8c838"
    assert (
        result_digest(choose([one], [5], 1, Weights())).hex()
        == "691a74e95525739408f82abe795c813b0f14e2bd67b20f8c50956560ea05c932"
    )


# Scores.


def vector(node: str, scores: tuple[int, ...], salt: bytes = b"s" * 32) -> Reveal:
    bare = Reveal(node, digest_of(b"set"), scores, salt)
    return msgspec.structs.replace(bare, signature=sign_with(node, bare.signed_bytes(ROUND)))


def commitment(reveal: Reveal) -> Commitment:
    return Commitment(reveal.node_id, reveal.commitment_hash(ROUND))


def why(reveal: Reveal, promised: Commitment | None) -> str | None:
    return reveal_error(reveal, promised, digest_of(b"set"), 2, ROUND, verify)


def test_a_reveal_that_opens_its_commitment_counts() -> None:
    assert why(vector("v0", (1, 2)), commitment(vector("v0", (1, 2)))) is None


@pytest.mark.parametrize(
    ("reveal", "promised", "reason"),
    [
        (vector("v0", (1, 2)), None, "nothing"),
        (vector("v0", (1, 2)), commitment(vector("v1", (1, 2))), "nothing"),
        (vector("v0", (1, 3)), commitment(vector("v0", (1, 2))), "committed to"),
        (vector("v0", (1,)), commitment(vector("v0", (1,))), "other candidates"),
        (vector("v0", (1, SCALE + 1)), commitment(vector("v0", (1, SCALE + 1))), "outside"),
        (vector("v0", (-1, 1)), commitment(vector("v0", (-1, 1))), "outside"),
        (vector("v0", (1, 2), b"short"), commitment(vector("v0", (1, 2), b"short")), "salt"),
        (vector("x", (1, 2)), commitment(vector("x", (1, 2))), "no validator"),
        (
            msgspec.structs.replace(vector("v0", (1, 2)), signature=b"x" * 64),
            commitment(vector("v0", (1, 2))),
            "signature",
        ),
    ],
)
def test_a_reveal_that_does_not_count_says_why(reveal: Reveal, promised: Commitment | None, reason: str) -> None:
    assert reason in str(why(reveal, promised))


def test_a_commitment_hides_equal_scores_of_two_validators() -> None:
    assert vector("v0", (1, 2)).commitment_hash(ROUND) != vector("v1", (1, 2)).commitment_hash(ROUND)


@pytest.mark.parametrize(
    ("given_score", "fixed"),
    [(0.5, 500_000), (-1, 0), (2, SCALE), (float("nan"), 0), (float("inf"), SCALE), (1e-9, 0), (True, SCALE)],
)
def test_a_metrics_value_becomes_fixed_point(given_score: float, fixed: int) -> None:
    assert to_fixed(given_score) == fixed


@given(
    st.integers(0, 4).flatmap(lambda f: st.tuples(st.just(f), st.lists(score, min_size=f + 1, max_size=3 * f + 2))),
    st.data(),
)
def test_up_to_f_liars_cannot_move_a_score_outside_the_honest_range(
    case: tuple[int, list[int]], data: st.DataObject
) -> None:
    f, honest = case
    lies = data.draw(st.lists(score, max_size=f))
    assume(len(honest) + len(lies) >= 2 * f + 1)
    assert min(honest) <= trimmed_median(honest + lies, f) <= max(honest)


def test_more_than_f_liars_could_move_it() -> None:
    assert trimmed_median([10, 11, SCALE, SCALE], 1) > 11


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="3 are needed"):
        trimmed_median([1, 2], 1)


@given(candidates, st.data())
def test_the_quality_of_every_chosen_demo_lies_in_the_honest_range(
    proposed: list[Candidate], data: st.DataObject
) -> None:
    merged = merge(proposed)
    rows = st.lists(score, min_size=len(merged), max_size=len(merged))
    honest = {f"v{number}": data.draw(rows) for number in range(3)}
    chosen = select(merged, {**honest, "liar": data.draw(rows)}, 1, 4, Weights())
    for one in chosen:
        place = [m.digest for m in merged].index(one.digest)
        said = [scores[place] for scores in honest.values()]
        assert min(said) <= one.quality <= max(said)


# Likeness.


@given(words, words)
def test_likeness_is_symmetric_bounded_and_whole_for_the_same(one: list[str], other: list[str]) -> None:
    a, b = tokens_of(demo(" ".join(one))), tokens_of(demo(" ".join(other)))
    assert similarity(a, b) == similarity(b, a)
    assert 0 <= similarity(a, b) <= SCALE
    assert similarity(a, a) == SCALE


def test_likeness_by_hand() -> None:
    one, other = tokens_of(b'{"q":"a b"}'), tokens_of(b'{"q":"b c"}')
    assert jaccard(one, other) == SCALE // 3
    assert cosine(one, other) == SCALE // 2
    assert similarity(tokens_of(b'{"q":"A,b!"}'), one) == SCALE, "case and signs say nothing"
    assert similarity(one, tokens_of(b'{"q":"!"}')) == 0
    assert similarity(tokens_of(b'{"q":"?"}'), tokens_of(b'{"q":"!"}')) == SCALE


# The value of a vote.


@pytest.mark.parametrize("harm", [b"\xa2q\xff", b"\xa2qa" + b"\x91" * 100_000])
def test_a_liars_value_of_bad_text_or_endless_nesting_is_refused_like_any_other(harm: bytes) -> None:
    value = msgspec.msgpack.encode(Agreement(Rules("qa", 1), bytes(32), (), bytes(32)))
    assert value[2:5] == b"\xa2qa", "the purpose"
    wrong = agreement_error(value[:2] + harm + value[5:], (), make_round(), None, lambda reveal: None)
    assert wrong is not None
    assert wrong.startswith("this is no agreement")


# The choice.

ALIKE = (
    "the capital of france is the city of paris on the river seine today",
    "the capital of france is the city of paris on the river seine",
)


def test_near_duplicates_are_never_both_chosen() -> None:
    merged = merge([candidate(ALIKE[0]), candidate(ALIKE[1], "v1"), candidate("sheep eat grass")])
    chosen = choose(merged, [SCALE] * 3, 3, Weights())
    assert len(chosen) == 2


@given(candidates, st.data())
def test_no_two_chosen_demos_are_near_duplicates(proposed: list[Candidate], data: st.DataObject) -> None:
    merged = merge(proposed)
    scores = data.draw(st.lists(score, min_size=len(merged), max_size=len(merged)))
    limit = data.draw(st.integers(100_000, SCALE))
    chosen = choose(merged, scores, 8, Weights(near_duplicate=limit))
    counted = [tokens_of(one.demo) for one in chosen]
    for place, one in enumerate(counted):
        assert all(similarity(one, other) < limit for other in counted[:place])


@given(candidates, st.randoms(use_true_random=False), st.data())
def test_any_order_of_arrival_gives_the_same_demos_and_digest(
    proposed: list[Candidate], rng: object, data: st.DataObject
) -> None:
    merged = merge(proposed)
    rows = st.lists(score, min_size=len(merged), max_size=len(merged))
    vectors = {f"v{number}": data.draw(rows) for number in range(4)}
    shuffled, order = list(proposed), list(vectors.items())
    rng.shuffle(shuffled)  # type: ignore[attr-defined] # hypothesis' Random
    rng.shuffle(order)  # type: ignore[attr-defined] # hypothesis' Random
    first = select(merged, vectors, 1, 4, Weights())
    second = select(merge(shuffled), dict(order), 1, 4, Weights())
    assert first == second
    assert result_digest(first) == result_digest(second)


def test_quality_decides_first_and_diversity_next() -> None:
    merged = merge([candidate("red green blue"), candidate("red green seven"), candidate("one two three")])
    by_text = {one.demo: place for place, one in enumerate(merged)}
    scores = [0, 0, 0]
    scores[by_text[demo("red green blue")]] = 900_000
    scores[by_text[demo("red green seven")]] = 890_000
    scores[by_text[demo("one two three")]] = 800_000
    diverse = choose(merged, scores, 2, Weights(quality=1000, diversity=1000))
    assert [one.demo for one in diverse] == [demo("red green blue"), demo("one two three")]
    plain = choose(merged, scores, 2, Weights(diversity=0))
    assert [one.demo for one in plain] == [demo("red green blue"), demo("red green seven")]


def test_of_equally_good_demos_the_shorter_is_taken_and_of_equal_ones_the_smaller_digest() -> None:
    merged = merge([candidate("one two three four five six"), candidate("seven")])
    assert choose(merged, [5, 5], 1, Weights(cost=1000))[0].demo == demo("seven")
    merged = merge([candidate("seven"), candidate("eight")])
    assert choose(merged, [5, 5], 1, Weights())[0].digest == min(one.digest for one in merged)


def by_nodes(**texts: str) -> tuple[Merged, ...]:
    """Candidates of several nodes: the words of a node's text are one each."""
    return merge(candidate(text, node) for node, words_of in texts.items() for text in words_of.split())


def test_no_node_brings_in_more_than_its_share_and_the_others_fill_the_set() -> None:
    merged = by_nodes(liar="l1 l2 l3 l4 l5 l6", a="a1 a2 a3", b="b1 b2 b3", c="c1 c2 c3")
    praised = [SCALE if one.proposers == ("liar",) else 0 for one in merged]
    chosen = choose(merged, praised, 8, Weights(), f=1)
    assert sum(one.proposers == ("liar",) for one in chosen) == 3, "8 of 4 proposers, one of whom may lie"
    assert len(chosen) == 8
    damned = [SCALE - score for score in praised]
    assert not any(one.proposers == ("liar",) for one in choose(merged, damned, 8, Weights(), f=1))


def test_who_copies_anothers_candidates_takes_nothing_from_its_share() -> None:
    merged = by_nodes(liar="a1 a2 a3", a="a1 a2 a3 a4 a5 a6", b="b1", c="c1")
    scores = [SCALE if "a" in one.proposers else 0 for one in merged]
    chosen = choose(merged, scores, 6, Weights(cost=0, diversity=0), f=1)
    assert sum("a" in one.proposers for one in chosen) == 4, "two of its own share, two of the liar's"


def test_below_the_least_quality_nothing_is_taken() -> None:
    assert choose(merge([candidate("x")]), [10], 1, Weights(min_quality=11)) == ()


def test_a_liars_huge_candidate_does_not_make_others_look_cheap() -> None:
    small, large = candidate("seven"), candidate(" ".join(f"w{number}" for number in range(500)))
    huge = candidate(" ".join(f"z{number}" for number in range(2000)))
    weights = Weights(cost=1000)

    def first(*proposed: Candidate) -> bytes:
        merged = merge(proposed)
        scores = [600_000 if one.demo == large.demo else 300_000 if one.demo == small.demo else 0 for one in merged]
        return choose(merged, scores, 1, weights)[0].demo

    assert first(small, large) == first(small, large, huge)


def test_no_candidates_give_no_demos() -> None:
    assert select((), {}, 1, 4, Weights()) == ()
    assert qualities({"a": (), "b": (), "c": ()}, 1) == ()


@pytest.mark.parametrize(
    "weights",
    [Weights(quality=-1), Weights(near_duplicate=0), Weights(min_quality=SCALE + 1), Weights(cost_limit_tokens=0)],
)
def test_impossible_weights_say_so(weights: Weights) -> None:
    assert weights.error()
    assert Weights().error() is None
