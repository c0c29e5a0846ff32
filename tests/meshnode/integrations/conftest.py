"""Integrations are extras: without the library their tests are not looked at."""

from __future__ import annotations

from importlib.util import find_spec

collect_ignore = [] if find_spec("dspy") else ["dspy"]
