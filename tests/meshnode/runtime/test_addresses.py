"""Where a node's HTTP server is looked for."""

from __future__ import annotations

import pytest

from meshnode.config import Config
from meshnode.runtime.addresses import http_address


@pytest.mark.parametrize(
    ("bind", "found_at"),
    [
        ("127.0.0.1", "127.0.0.1:7705"),
        ("192.0.2.7", "192.0.2.7:7705"),
        ("0.0.0.0", "127.0.0.1:7705"),
        ("::", "[::1]:7705"),
    ],
)
def test_who_is_on_the_machine_finds_http_also_where_it_listens_everywhere(bind: str, found_at: str) -> None:
    assert http_address(Config(http_bind=bind), 7705) == found_at
