"""How alike two demos are: a fixed-point number from 0 to SCALE, the same on every machine.

Tokens are found in bytes: runs of ASCII letters, digits and underscores, and each other character by itself. So nothing
hangs on which version of Unicode a Python knows.
"""

from __future__ import annotations

import math
import re
from collections import Counter

from consensus.selection.candidates import texts_of
from consensus.selection.scores import SCALE

_TOKEN = re.compile(rb"[a-z0-9_]+|[\xc0-\xff][\x80-\xbf]*")


def tokens_of(demo: bytes) -> Counter[bytes]:
    """How often each token stands in the values of a demo's fields; the fields' names say nothing."""
    return Counter(token for text in texts_of(demo) for token in _TOKEN.findall(text.lower()))


def jaccard(one: Counter[bytes], other: Counter[bytes]) -> int:
    """Shared tokens over all tokens, each counted once, rounded down; two demos without any are the same."""
    union = len(one.keys() | other.keys())
    return len(one.keys() & other.keys()) * SCALE // union if union else SCALE


def cosine(one: Counter[bytes], other: Counter[bytes]) -> int:
    """The cosine between the counts of tokens, rounded down; two demos without any token are the same."""
    if not one or not other:
        return SCALE if not one and not other else 0
    dot = sum(count * other[token] for token, count in one.items())
    squares = sum(count * count for count in one.values()) * sum(count * count for count in other.values())
    # dot / sqrt(squares), in whole numbers: isqrt of the square of the result.
    return math.isqrt(dot * dot * SCALE * SCALE // squares)


def similarity(one: Counter[bytes], other: Counter[bytes]) -> int:
    """The larger of the two: alike in which words they use, or in how often."""
    return max(jaccard(one, other), cosine(one, other))
