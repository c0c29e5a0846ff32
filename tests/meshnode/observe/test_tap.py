"""Filters of `meshnode tap`, and what a slow reader gets."""

from __future__ import annotations

import asyncio

import pytest

from meshnode.cli.tap import readable
from meshnode.errors import InvalidInput
from meshnode.observe.tap import WAITING, TapRoutes, matcher
from meshnode.spans import Span
from tests.meshnode.observe.standin import StandIn

SPAN = Span("f" * 32, "a" * 16, "", "evaluate qa", "host-a", 0, 0.5, "overloaded", {"peer": "host-b"})


@pytest.mark.parametrize("text", ["", "QA", "evaluate host-a", "peer=host-b", "ffff", "error", "slow>0.4", "error qa"])
def test_a_filter_fits_when_all_its_words_do(text: str) -> None:
    assert matcher(text)(SPAN)


@pytest.mark.parametrize("text", ["host-c", "evaluate host-c", "slow>0.6", "peer=host-a"])
def test_a_filter_does_not_fit_when_one_word_does_not(text: str) -> None:
    assert not matcher(text)(SPAN)


def test_a_filter_that_makes_no_sense_is_refused() -> None:
    for text in ("slow>soon", "x" * 300):
        with pytest.raises(InvalidInput):
            matcher(text)


async def test_a_slow_reader_loses_spans_and_is_told_how_many() -> None:
    node = StandIn()
    assert node.spans is not None
    stream = TapRoutes(node)._own(lambda span: True)
    first = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0)
    span = node.spans.begin("x")
    assert span is not None
    for _ in range(WAITING + 5):
        node.spans.keep(span, 0.0, "")
    batch = await first
    assert (len(batch.spans), batch.dropped) == (WAITING, 5)
    await stream.aclose()
    assert node.spans._listeners == []


def test_a_span_is_one_line_for_people() -> None:
    line = {"kind": "span", **{field: getattr(SPAN, field) for field in SPAN.__struct_fields__}}
    assert "host-a" in readable(line)
    assert "500.00 ms  evaluate qa  overloaded  peer=host-b" in readable(line)
