"""Spans to an OpenTelemetry collector, by OTLP over HTTP. Needs the extra: pip install 'meshnode[otel]'.

    meshnode start --otlp http://collector:4318/v1/traces

Our spans keep their ids, so those of all nodes meet in one trace. A thread sends them in batches; a collector that
is away costs spans, never the node.
"""

from __future__ import annotations

from collections.abc import Callable

from meshnode.errors import ConfigError
from meshnode.spans import Span, Spans

try:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags
except ImportError as error:
    raise ConfigError(f"OpenTelemetry is not installed ({error.name}): pip install 'meshnode[otel]'") from None

QUEUED = 4096
TIMEOUT_S = 5.0


def export(spans: Spans, endpoint: str, *, exporter: SpanExporter | None = None) -> Callable[[], None]:
    """Send each span that ends to `endpoint` (or `exporter`); returns what sends the rest and stops, and may block."""
    resource = Resource.create({"service.name": "meshnode", "service.instance.id": spans.node})
    processor = BatchSpanProcessor(
        exporter or OTLPSpanExporter(endpoint, timeout=TIMEOUT_S),
        max_queue_size=QUEUED,
        export_timeout_millis=TIMEOUT_S * 1000,
    )
    stop = spans.listen(lambda span: processor.on_end(convert(span, resource)))

    def close() -> None:
        stop()
        processor.shutdown()  # type: ignore[no-untyped-call] # the library left this one untyped

    return close


def convert(span: Span, resource: Resource) -> ReadableSpan:
    """One of our spans as OpenTelemetry has them; a failed one has its error's code as description."""
    status = Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.OK)
    return ReadableSpan(
        span.name,
        _context(span.trace, span.id),
        parent=_context(span.trace, span.parent) if span.parent else None,
        resource=resource,
        attributes={f"meshnode.{name}": value for name, value in span.attributes.items()},
        status=status,
        start_time=span.start_ns,
        end_time=span.start_ns + int(span.seconds * 1e9),
        instrumentation_scope=InstrumentationScope("meshnode"),
    )


def _context(trace: str, span: str) -> SpanContext:
    return SpanContext(int(trace, 16), int(span, 16), is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
