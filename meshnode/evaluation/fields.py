"""An example or a prediction as a metric sees it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Fields(dict[str, Any]):
    """A dict whose values can be read as attributes, too: `prediction["answer"]` and `prediction.answer`.

    A field named as one of dict's own methods (`items`, say) is reached by its key only.
    """

    __slots__ = ()

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}; there is: {', '.join(self) or 'none'}") from None


def as_fields(value: Any) -> Any:
    """Fields of a plain mapping; anything else (a dspy.Example, a string) as it is."""
    return Fields(value) if isinstance(value, Mapping) and not isinstance(value, Fields) else value
