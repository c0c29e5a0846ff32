"""OpenTelemetry: what a collector gets of a node, over real HTTP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

import meshnode
from tests.e2e.app import app

pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="the extra otel is not installed")


class Collector(HTTPServer):
    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        super().__init__(("127.0.0.1", 0), _Collect)


class _Collect(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        assert isinstance(self.server, Collector)
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            import gzip

            body = gzip.decompress(body)
        self.server.bodies.append(body)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Nothing on stderr."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever)
    thread.start()
    yield collector
    collector.shutdown()
    collector.server_close()
    thread.join()


async def test_a_collector_gets_the_spans_with_their_ids(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.integrations import otel

    monkeypatch.setattr(otel, "TIMEOUT_S", 60.0)
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    async with meshnode.Node(meshnode.Config(name="a", port=0, http=False, otlp=endpoint), app=app) as node:
        await node.call("a", "echo", 1)
        assert node.spans is not None
        ours = [span for span in node.spans.ring if span.name == "echo"]
    sent: dict[str, Any] = {}
    for body in collector.bodies:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            told = {one.key: one.value.string_value for one in group.resource.attributes}
            assert (told["service.name"], told["service.instance.id"]) == ("meshnode", "a")
            sent |= {span.span_id.hex(): span for scope in group.scope_spans for span in scope.spans}
    assert len(ours) == 2  # asked and answered
    for span in ours:
        got = sent[span.id]
        assert (got.name, got.trace_id.hex(), got.parent_span_id.hex()) == (span.name, span.trace, span.parent)
        assert got.end_time_unix_nano - got.start_time_unix_nano == int(span.seconds * 1e9)


async def test_a_collector_that_is_away_does_not_disturb_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    from meshnode.integrations import otel

    monkeypatch.setattr(otel, "TIMEOUT_S", 0.5)
    config = meshnode.Config(name="a", port=0, http=False, otlp="http://127.0.0.1:1/v1/traces")
    async with meshnode.Node(config, app=app) as node:
        assert await node.call("a", "echo", 1) == 1
