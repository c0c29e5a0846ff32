"""`/metrics`: what the node counts anyway, put into Prometheus' words when it is scraped.

Nothing is counted here: a collector reads the node's own figures at each scrape, so metrics cost nothing in between.
Names are in base units; labels have few values; no ids of sessions, runs or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import median
from typing import Any, get_args

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from meshnode.mesh import MemberState
from meshnode.observe.served import Served
from meshnode.spans import Spans


def exporter(node: Served) -> Callable[[], bytes]:
    """A function that renders the node's metrics in the text format."""
    registry = CollectorRegistry()
    registry.register(_NodeCollector(node))
    ProcessCollector(registry=registry)
    return lambda: generate_latest(registry)


class _NodeCollector(Collector):
    def __init__(self, node: Served) -> None:
        self._node = node

    def describe(self) -> Iterable[Metric]:
        """Nothing: registering must not read a node that has not started."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment."""
        status = self._node.status()
        workers = self._node.health().get("workers") or {}
        yield from _members(self._node, workers)
        yield from _workers(workers)
        yield from _models((self._node.health().get("model") or {}).get("models") or ())
        yield from _consensus(status)
        yield from _channels(status.get("channels") or {})
        yield from _evaluations(status.get("evaluated") or {})
        yield from _spans(self._node.spans)


def _members(node: Served, workers: Mapping[str, Any]) -> Iterator[Metric]:
    members = node.members()
    by_state = GaugeMetricFamily("meshnode_members", "Nodes this node knows, by state.", labels=["state"])
    for state in get_args(MemberState):
        by_state.add_metric([state], sum(member.state == state for member in members))
    yield by_state
    me = next((member for member in members if member.node_id == node.ready.get("node_id")), None)
    if me is not None:
        yield GaugeMetricFamily(
            "meshnode_worker_slots", "Tasks this node's workers can run at once.", value=workers.get("slots", me.slots)
        )
        yield GaugeMetricFamily(
            "meshnode_worker_busy", "Tasks this node's workers run now.", value=workers.get("busy", me.busy)
        )
    yield GaugeMetricFamily("meshnode_serving", "1 while this node takes work.", value=float(node.serving))


def _workers(counts: Mapping[str, Any]) -> Iterator[Metric]:
    if "restarts" not in counts:
        return  # no worker has been started
    yield CounterMetricFamily("meshnode_worker_restarts", "Workers started again.", value=counts["restarts"])
    yield GaugeMetricFamily("meshnode_worker_waiting", "Tasks waiting for a worker.", value=counts.get("waiting", 0))
    yield CounterMetricFamily(
        "meshnode_worker_run_seconds", "Time spent in programs and metrics.", value=counts.get("run_seconds", 0.0)
    )
    tasks = CounterMetricFamily("meshnode_worker_tasks", "Tasks that ended, by how they did.", labels=["status"])
    raised = counts.get("raised", 0)
    tasks.add_metric(["ok"], counts.get("done", 0) - raised)
    tasks.add_metric(["raised"], raised)
    for status in ("timed_out", "cancelled", "refused", "declined"):
        tasks.add_metric([status], counts.get(status, 0))
    tasks.add_metric(["given_up"], counts.get("tasks_given_up", 0))
    yield tasks
    # A worker that crashed too often in a row is not started again: what an alert should look at.
    yield GaugeMetricFamily("meshnode_worker_given_up", "Workers not started again.", value=len(counts["given_up"]))


def _models(models: Iterable[Mapping[str, Any]]) -> Iterator[Metric]:
    requests = CounterMetricFamily(
        "meshnode_lm_requests", "Requests of this node's programs to models.", labels=["model", "status"]
    )
    tokens = CounterMetricFamily("meshnode_lm_tokens", "Tokens of those that were answered.", labels=["model", "kind"])
    for one in models:
        requests.add_metric([one["model"], "ok"], one["answered"])
        requests.add_metric([one["model"], "failed"], one["failed"])
        tokens.add_metric([one["model"], "prompt"], one["prompt_tokens"])
        tokens.add_metric([one["model"], "completion"], one["completion_tokens"])
    yield requests
    yield tokens


def _consensus(status: Mapping[str, Any]) -> Iterator[Metric]:
    if status.get("term") is None:
        return
    has_leader = GaugeMetricFamily("meshnode_raft_has_leader", "1 if this node knows the leader.")
    has_leader.add_metric([], float(status.get("leader") is not None))
    yield has_leader
    for name, text in (("term", "Raft's term."), ("commit_index", "Last committed entry of the log.")):
        if status.get(name) is not None:
            yield GaugeMetricFamily(f"meshnode_raft_{name}", text, value=status[name])
    yield from _log(status.get("log") or {})


def _log(log: Mapping[str, Any]) -> Iterator[Metric]:
    for name, text in (
        ("leader_changes", "Changes of leader that this node noticed."),
        ("proposals_committed", "Writes of this node that were committed."),
        ("proposals_failed", "Writes of this node that failed or were given up."),
    ):
        if name in log:
            yield CounterMetricFamily(f"meshnode_raft_{name}", text, value=log[name])
    if (sync := log.get("sync")) is None:
        return  # nothing is kept on disk
    yield HistogramMetricFamily(
        "meshnode_wal_fsync_duration_seconds",
        "Time the disk takes to make the log durable.",
        buckets=list(sync["buckets"].items()),
        sum_value=sync["sum_s"],
    )
    yield GaugeMetricFamily("meshnode_wal_failed", "1 once the log could not be written.", value=bool(log["failed"]))
    yield CounterMetricFamily("meshnode_wal_bytes", "Bytes written to the log.", value=log["bytes"])


def _evaluations(evaluated: Mapping[str, int]) -> Iterator[Metric]:
    if evaluated:
        examples = CounterMetricFamily("meshnode_eval_examples", "Examples evaluated for this node.", labels=["status"])
        examples.add_metric(["ok"], evaluated["examples"] - evaluated["failed"])
        examples.add_metric(["failed"], evaluated["failed"])
        yield examples


def _spans(spans: Spans | None) -> Iterator[Metric]:
    if spans is not None:
        counted = CounterMetricFamily("meshnode_spans", "Operations traced, or let by.", labels=["kept"])
        counted.add_metric(["yes"], spans.counted)
        counted.add_metric(["no"], spans.skipped)
        yield counted


# What a channel counts: its own name for it, ours, and what it is.
_COUNTED = (
    ("sent", "sent_messages", "Messages sent to peers."),
    ("received", "received_messages", "Messages received from peers."),
    ("bytes_sent", "sent_bytes", "Bytes sent to peers."),
    ("bytes_received", "received_bytes", "Bytes received from peers."),
    ("retried", "retried_messages", "Messages sent again for want of an acknowledgement."),
    ("gaps", "gaps", "Gaps noticed in what peers publish."),
)
_MEASURED = (
    ("queued", "queue_depth", "Messages waiting to be sent."),
    ("in_flight", "in_flight", "Calls of ours that wait for a reply."),
    ("serving", "serving", "Calls of others that are being answered."),
    ("links", "links", "Peers with a link that is up."),
)


def _channels(channels: Mapping[str, Mapping[str, Any]]) -> Iterator[Metric]:
    for families, kind in ((_COUNTED, CounterMetricFamily), (_MEASURED, GaugeMetricFamily)):
        for key, name, text in families:
            family = kind(f"meshnode_channel_{name}", text, labels=["channel"])
            for channel, counts in channels.items():
                family.add_metric([channel], counts.get(key, 0))
            yield family
    dropped = CounterMetricFamily(
        "meshnode_channel_dropped", "Messages dropped, by the rule that dropped them.", labels=["channel", "reason"]
    )
    for channel, counts in channels.items():
        for reason, count in (counts.get("dropped") or {}).items():
            dropped.add_metric([channel, reason], count)
    yield dropped
    yield _round_trips(channels)


def _round_trips(channels: Mapping[str, Mapping[str, Any]]) -> Metric:
    """Two figures per channel and none per peer: with a thousand peers that would be thousands of series."""
    family = GaugeMetricFamily(
        "meshnode_channel_rtt_seconds",
        "Round trips: the median of the typical peer, and the 99th percentile of the worst.",
        labels=["channel", "peer"],
    )
    for channel, counts in channels.items():
        measured = [peer["rtt"] for peer in (counts.get("peers") or {}).values() if peer["rtt"]["count"]]
        if measured:
            family.add_metric([channel, "typical"], median(rtt["p50_s"] for rtt in measured))
            family.add_metric([channel, "worst"], max(rtt["p99_s"] for rtt in measured))
    return family
