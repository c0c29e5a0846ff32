"""What holds for every test of evaluation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from meshnode.evaluation import fleet


@pytest.fixture(autouse=True)
async def quiet_loop() -> AsyncIterator[None]:
    """What goes wrong in a callback reaches only the loop's handler: here it fails the test."""
    heard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: heard.append(context))
    yield
    assert not heard


@pytest.fixture(autouse=True)
def little_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet, "AUTO_PATIENCE_S", 0.1)
