"""Signatures of predictors that a program makes as it runs: they are in its trace, and in none of its attributes.

They travel as data, fields of plain types only:

    {"instructions": "…", "fields": [[name, "input" | "output", type's name, prefix, description], …]}
"""

from __future__ import annotations

from typing import Any

import dspy

from meshnode.errors import InvalidInput
from meshnode.integrations.dspy.codec import NotCarried

_TYPES: dict[str, type] = {kind.__name__: kind for kind in (str, int, float, bool, list, dict)}
_KINDS = {"input": dspy.InputField, "output": dspy.OutputField}
MAX_FIELDS = 200


def signature_as_data(signature: Any) -> dict[str, Any]:
    """Raises NotCarried if a field's type is not plain."""
    fields = []
    for kind, infos in (("input", signature.input_fields), ("output", signature.output_fields)):
        for name, info in infos.items():
            plain = next((plain for plain, made in _TYPES.items() if made is info.annotation), None)
            if plain is None:
                raise NotCarried(f"a trace of a predictor that the program makes as it runs, with {info.annotation},")
            extra = info.json_schema_extra
            fields.append([name, kind, plain, str(extra["prefix"]), str(extra["desc"])])
    return {"instructions": str(signature.instructions), "fields": fields}


def signature_from_data(data: Any) -> Any:
    """Reverse of `signature_as_data`. Raises InvalidInput for what it has not made."""
    if type(data) is not dict or data.keys() != {"instructions", "fields"} or type(data["fields"]) is not list:
        raise InvalidInput("a signature is its instructions and its fields")
    if len(data["fields"]) > MAX_FIELDS or type(data["instructions"]) is not str:
        raise InvalidInput(f"a signature has a text and at most {MAX_FIELDS} fields")
    fields, texts = {}, {}
    for field in data["fields"]:
        if type(field) is not list or len(field) != 5 or not all(type(part) is str for part in field):
            raise InvalidInput("a field is five texts")
        name, kind, annotation, prefix, description = field
        if not name.isidentifier() or name.startswith("_") or kind not in _KINDS or annotation not in _TYPES:
            raise InvalidInput(f"no field: {field[:3]}")
        fields[name] = (_TYPES[annotation], _KINDS[kind]())
        texts[name] = {"prefix": prefix, "description": description}
    made = dspy.Signature(fields, data["instructions"])
    return made.load_state({"instructions": data["instructions"], "fields": [texts[name] for name in made.fields]})
