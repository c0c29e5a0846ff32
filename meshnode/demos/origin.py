"""Whether a candidate says what the training set says. All validators have that, so none need believe a proposer.

A demo of plain fields is an example of the training set, all its fields as they are there, and may have more: what else
the program said. One with another label than the training set's scores nothing and is shown to no program. A demo with
a part for each predictor (DSPy) holds what the program itself wrote, as a metric accepted it at its proposer; of that
only its score can tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import msgspec


def written(fields: Mapping[str, Any]) -> bytes:
    """Fields as a demo has them: JSON, sorted; what JSON does not know becomes text."""
    return msgspec.json.encode(fields, enc_hook=str, order="sorted")


def true_to(examples: Iterable[Mapping[str, Any]]) -> Callable[[bytes], bool]:
    """What tells whether a demo is true to these examples."""
    known = {written(example) for example in examples}
    names = {tuple(sorted(msgspec.json.decode(example))) for example in known}

    def is_true(demo: bytes) -> bool:
        fields = msgspec.json.decode(demo)
        if all(isinstance(part, dict) for part in fields.values()):
            return True
        found = (wanted for wanted in names if fields.keys() >= set(wanted))
        return any(written({name: fields[name] for name in wanted}) in known for wanted in found)

    return is_true
