"""A cache of language models' answers that the nodes of a mesh share: what one has paid for, none pays for again.

    store      a node's own part: least recently used goes first, bounded in bytes and in entries
    service    who holds what, and asking them; over `meshnode.mesh`
    door       a node's workers ask through a socket that only this user can reach
    asking     the worker's side of that socket, blocking, for any thread

Keys and values are bytes here; what they mean is the business of who puts them (`meshnode.integrations.dspy.cache`).
Nothing of this is ever an error to who asks: what is late, lost, full or gone is a miss.
"""

from __future__ import annotations

ENTRY_BYTES = 1024 * 1024  # a larger value is not shared
KEY_BYTES = 32
#: A node that holds a part of the cache says so by this tag; its value is the size of that part in bytes.
TAG = "lm-cache"
#: Tell worker processes where the door is, and how long, in seconds, an answer may take; no settings of a node.
DOOR_VARIABLE = "_MESHNODE_LM_CACHE_DOOR"
WAIT_VARIABLE = "_MESHNODE_LM_CACHE_WAIT_S"
