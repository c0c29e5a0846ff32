"""What decoding raises for bytes that others made: named once, for not all of it is msgspec's own."""

from __future__ import annotations

from typing import Final

import msgspec

#: Of text that is not UTF-8, and of nesting without end, msgspec raises Python's own errors.
UNDECODABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
