"""What may be shown of a text or a setting: secrets are hidden, by the name they bear or by how they look.

Whatever leaves a node for people's eyes passes here: logs, /health, /config, errors that quote what was given.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

HIDDEN = "[hidden]"

_SECRET_NAME = re.compile(
    r"(?i)(^|[_.-])(token|secret|password|passwd|passphrase|api_?key|private_?key|authorization)s?$"
)
_SECRET_VARIABLE = re.compile(r"(?i)(key|token|secret|password)$")
# A bearer token, credentials in an address, and keys in the form providers give them out.
_SECRET_TEXT = re.compile(r"(?i)(?<=bearer )[\w.~+/=-]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)|\bsk-[\w-]{8,}")
_MIN_SECRET = 8  # shorter values of variables named like secrets are "1" or "none", and would hide plain words


class Redaction:
    """Hides values by their name, and known or recognisable secrets inside any text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        known = sorted((re.escape(secret) for secret in secrets), key=len, reverse=True)
        self._known = re.compile("|".join(known)) if known else None

    def value(self, name: str, value: Any) -> Any:
        """A value that is shown under a name, and whatever is in it."""
        if _SECRET_NAME.search(name) and value is not None:
            # `prompt_tokens: 812` counts words.
            return value if isinstance(value, int) and name.endswith("tokens") else HIDDEN
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self.value(str(key), inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.value("", inner) for inner in value]
        return value if value is None or isinstance(value, int | float) else self.text(str(value))

    def text(self, text: str) -> str:
        """A text, whatever it is about."""
        if self._known is not None:
            text = self._known.sub(HIDDEN, text)
        return _SECRET_TEXT.sub(HIDDEN, text)


def secrets_of(environment: Mapping[str, str]) -> list[str]:
    """The values of environment variables that are named like secrets (LM_KEY, …_TOKEN, …)."""
    return [value for name, value in environment.items() if _SECRET_VARIABLE.search(name) and len(value) >= _MIN_SECRET]


def hide_secrets(values: Mapping[str, Any]) -> dict[str, Any]:
    """A copy for showing: what is named like a secret, or looks like one, is hidden."""
    redaction = Redaction(secrets_of(os.environ))
    return {name: redaction.value(name, value) for name, value in values.items()}


def hide_in_text(text: str) -> str:
    """A text from elsewhere, without the secrets that can be recognised in it."""
    return Redaction(secrets_of(os.environ)).text(text)
