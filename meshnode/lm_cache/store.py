"""One node's part of the shared cache, in memory: least recently used entries go first."""

from __future__ import annotations

from collections import OrderedDict

from meshnode.lm_cache import ENTRY_BYTES, KEY_BYTES

OVERHEAD_BYTES = 200  # of an entry beside its value: the key, the dict's slot and link, two bytes objects
MAX_ENTRIES = 1_000_000


class Store:
    """At most `max_bytes`, overhead included, in at most `max_entries`. Not safe for threads: one loop owns it."""

    def __init__(self, max_bytes: int, max_entries: int = MAX_ENTRIES) -> None:
        self._max_bytes = max_bytes
        self._max_entries = max_entries
        self._values: OrderedDict[bytes, bytes] = OrderedDict()
        self.bytes = 0  # never above max_bytes
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        """The value, used just now."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def put(self, key: bytes, value: bytes) -> bool:
        """Keep a value, in the place of an older one; False if it is too large, or no key, and isn't kept."""
        size = len(value) + OVERHEAD_BYTES
        if len(key) != KEY_BYTES or not value or len(value) > ENTRY_BYTES or size > self._max_bytes:
            return False
        before = self._values.pop(key, None)
        if before is not None:
            self.bytes -= len(before) + OVERHEAD_BYTES
        while self._values and (self.bytes + size > self._max_bytes or len(self._values) >= self._max_entries):
            _, old = self._values.popitem(last=False)
            self.bytes -= len(old) + OVERHEAD_BYTES
            self.evicted += 1
        self._values[key] = value
        self.bytes += size
        return True
