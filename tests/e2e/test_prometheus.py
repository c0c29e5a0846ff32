"""Metrics, alert rules and the Grafana dashboard against real scrapes, judged by Prometheus' own promtool."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import ROOT, Cluster, RunningNode, wait_until
from tests.e2e.lm_app import examples
from tests.e2e.model_server import ModelServer

ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "docker" / "grafana" / "meshnode.json"
METRIC = re.compile(r"\b(?:meshnode|process)_[a-z0-9_]+")
APP = "tests.e2e.lm_app:app"
PATIENCE_S = 180.0  # only reached when something is wrong

Series = dict[tuple[str, frozenset[tuple[str, str]]], float]

pytestmark = pytest.mark.xdist_group("prometheus")


@pytest.fixture
def promtool() -> str:
    """Its path. CI must have it; elsewhere its tests are skipped and say why."""
    path = shutil.which("promtool")
    if path is None:
        why = "no promtool here: apt-get install prometheus"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return path


def judge(*command: str, given: str = "", folder: Path = ROOT) -> str:
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Watched:
    """One node's HTTP side, with the token."""

    def __init__(self, cluster: Cluster, node: RunningNode) -> None:
        self.node = node
        (path,) = (cluster.folder / "run").rglob(f"{node.ready['node_id']}.json")
        record = json.loads(path.read_text())
        bearer = {"Authorization": f"Bearer {record['token']}"}
        self.http = httpx.Client(base_url=f"http://{node.http}", headers=bearer, timeout=PATIENCE_S, verify=False)

    def close(self) -> None:
        self.http.close()

    def scrape(self) -> str:
        return self.http.get("/metrics").text

    def series(self) -> Series:
        families = text_string_to_metric_families(self.scrape())
        return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}

    def value(self, name: str, **labels: str) -> float:
        """The sum over all series that have these labels."""
        return total(self.series(), name, labels)

    def are_well(self, *components: str) -> bool:
        told = self.http.get("/health").json()["components"]
        return all(told[name]["status"] == "ok" for name in components)

    def write(self, variable: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/variables/{variable}", json=body)

    def evaluate(self, rows: list[dict[str, Any]]) -> str:
        lines = [{"program": "word_of", "metric": "exact", "distributed": True}, *rows]
        return self.http.post("/evaluate", content="\n".join(map(json.dumps, lines)).encode()).text


def total(series: Series, name: str, labels: dict[str, str]) -> float:
    return sum(value for (named, has), value in series.items() if named == name and labels.items() <= dict(has).items())


@dataclass
class Told:
    """What the second node of a mesh told: as it began, in the midst of work and after it, with the first one dead,
    and with it back."""

    began: Series
    busy: Series
    working: Series
    orphaned: Series
    healed: Series
    text: str
    health: dict[str, Any]
    ailing: dict[str, Any]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Told]:
    """A mesh of two that goes through all that metrics tell of."""
    folder = tmp_path_factory.mktemp("prometheus")
    cluster, model = Cluster(folder), ModelServer(folder)
    try:
        model.start("--latency", "0.05")
        cluster.environment |= {"LM_BASE": model.base, "MESHNODE_GOSSIP_PROFILE": "local"}
        first = start(cluster, "node-1")
        with closing(Watched(cluster, start(cluster, "node-2", first.seed))) as second:
            yield live(cluster, model, first, second)
    finally:
        cluster.close()
        model.kill()


def start(cluster: Cluster, name: str, *seeds: str) -> RunningNode:
    return cluster.start(name, *seeds, app=APP, arguments=("--data-dir", str(cluster.folder / name)))


def live(cluster: Cluster, model: ModelServer, first: RunningNode, second: Watched) -> Told:
    began = second.series()
    assert second.write("depth", op="register", kind="int", value="1").status_code == 200

    # Half of these run on the other node; one of them kills its worker here or there.
    busy = at_work(second, [*examples(24), {"text": 7, "answer": "fails"}])
    busy = wait_until(lambda: busy or at_work(second, examples(24)), "a worker at work", PATIENCE_S)
    # Its own worker dies as well, whoever it was above.

    def killed() -> bool:
        worker = second.http.get("/health").json()["components"]["workers"]["workers"][0]
        with contextlib.suppress(OSError, TypeError):  # it ended by itself, or is just being started
            os.kill(worker["pid"], signal.SIGKILL)
            return True
        return False

    wait_until(killed, "a worker to kill", PATIENCE_S)
    wait_until(lambda: second.value("meshnode_worker_restarts_total"), "a worker that is started again", PATIENCE_S)

    with second.http.stream("GET", "/events") as looking:  # looks at the other node over telemetry
        lines = looking.iter_lines()
        wait_until(lambda: f"node:{first.ready['node_id']}" in next(lines), "a glance of the other node", PATIENCE_S)

    # A key that is not this server's: the model refuses whoever asks, from now on.
    key = cluster.folder / "key"
    key.write_text("another")
    model.kill()
    model.start("--key-file", str(key))

    def refused() -> float:
        second.evaluate(examples(4))
        return second.value("meshnode_lm_requests_total", status="failed")

    wait_until(lambda: refused() >= 3, "refusals by the model", PATIENCE_S)
    wait_until(lambda: second.are_well("storage", "consensus", "membership"), "a mesh in order", PATIENCE_S)
    working, text, health = second.series(), second.scrape(), second.http.get("/health").json()

    first.kill()
    wait_until(lambda: not second.value("meshnode_raft_has_leader"), "the leader to be missed", PATIENCE_S)
    wait_until(lambda: second.value("meshnode_members", state="dead"), "the death to be known", PATIENCE_S)
    assert second.write("depth", op="set", value="2", timeout_s=0.5).status_code in (503, 504)
    orphaned, ailing = second.series(), second.http.get("/health").json()

    start(cluster, "node-1", second.node.seed)
    wait_until(lambda: second.value("meshnode_raft_has_leader"), "the leader to be back", PATIENCE_S)
    return Told(began, busy, working, orphaned, second.series(), text, health, ailing)


def at_work(watched: Watched, rows: list[dict[str, Any]]) -> Series | None:
    """Evaluate these; what is told while the node's own workers run some of them, if a look comes in time."""
    seen: Series | None = None
    with ThreadPoolExecutor(1) as aside:
        evaluating = aside.submit(watched.evaluate, rows)
        while seen is None and not evaluating.done():
            series = watched.series()
            seen = series if total(series, "meshnode_worker_busy", {}) else None
        evaluating.result()
    return seen


#: Each name that is promised, its labels, and between which two moments its value differs.
MOVES: list[tuple[str, dict[str, str], str, str]] = [
    ("meshnode_members", {"state": "alive"}, "working", "orphaned"),
    ("meshnode_members", {"state": "dead"}, "working", "orphaned"),
    ("meshnode_raft_has_leader", {}, "working", "orphaned"),
    ("meshnode_raft_term", {}, "working", "healed"),
    ("meshnode_raft_commit_index", {}, "began", "working"),
    ("meshnode_raft_leader_changes_total", {}, "working", "healed"),
    ("meshnode_raft_proposals_committed_total", {}, "began", "working"),
    ("meshnode_raft_proposals_failed_total", {}, "working", "orphaned"),
    ("meshnode_wal_fsync_duration_seconds_count", {}, "began", "working"),
    ("meshnode_wal_fsync_duration_seconds_sum", {}, "began", "working"),
    ("meshnode_wal_fsync_duration_seconds_bucket", {"le": "+Inf"}, "began", "working"),
    *(
        (f"meshnode_channel_{way}_{what}_total", {"channel": channel}, "began", "working")
        for way in ("sent", "received")
        for what in ("messages", "bytes")
        for channel in ("inference", "coordination", "telemetry")
    ),
    ("meshnode_channel_rtt_seconds", {"channel": "inference", "peer": "worst"}, "began", "working"),
    ("meshnode_channel_dropped_total", {}, "began", "healed"),
    ("meshnode_worker_busy", {}, "began", "busy"),
    ("meshnode_worker_restarts_total", {}, "began", "working"),
    ("meshnode_eval_examples_total", {"status": "ok"}, "began", "working"),
    ("meshnode_eval_examples_total", {"status": "failed"}, "began", "working"),
    ("meshnode_lm_requests_total", {"model": "tiny", "status": "ok"}, "began", "working"),
    ("meshnode_lm_requests_total", {"model": "tiny", "status": "failed"}, "began", "working"),
    ("meshnode_lm_tokens_total", {"model": "tiny", "kind": "prompt"}, "began", "working"),
    ("meshnode_lm_tokens_total", {"model": "tiny", "kind": "completion"}, "began", "working"),
]


@pytest.mark.parametrize(
    ("name", "labels", "before", "after"), MOVES, ids=["-".join((move[0], *move[1].values())) for move in MOVES]
)
def test_what_happens_moves_the_metric_that_tells_of_it(
    told: Told, name: str, labels: dict[str, str], before: str, after: str
) -> None:
    earlier, later = total(getattr(told, before), name, labels), total(getattr(told, after), name, labels)
    assert earlier != later, f"{name} stays {earlier}"
    if name.endswith(("_total", "_count", "_sum", "_bucket")):
        assert later > earlier


def test_every_channel_has_every_figure_and_no_id_is_a_label(told: Told) -> None:
    channels = {"inference", "coordination", "telemetry", "real_time"}
    for name in ("sent_messages_total", "received_bytes_total", "queue_depth"):
        found = {dict(has)["channel"] for named, has in told.working if named == f"meshnode_channel_{name}"}
        assert found == channels
    labels = {label for name, has in told.working if name.startswith("meshnode_") for label, _ in has}
    assert labels <= {"state", "channel", "reason", "peer", "status", "kind", "model", "le", "kept"}
    assert len(told.working) < 250  # few series a node, however much it has done


def test_a_real_scrape_has_all_that_alerts_and_dashboard_ask_for(told: Told) -> None:
    # A family without a sample yet (nothing was dropped, say) is announced by its TYPE line.
    given = set(re.findall(r"^(?:# TYPE )?([a-z0-9_]+)", told.text, re.MULTILINE))
    expressions = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) > 15
    asked = set(METRIC.findall(" ".join(expressions))) | set(METRIC.findall(ALERTS.read_text()))
    assert "meshnode_lm_requests_total" in asked
    assert asked <= given


def test_the_scrape_keeps_prometheus_rules(told: Told, promtool: str) -> None:
    assert judge(promtool, "check", "metrics", given=told.text) == ""


def test_alerts_are_valid_and_fire_when_they_should(promtool: str) -> None:
    judge(promtool, "check", "config", "prometheus.yml", folder=ALERTS.parent)
    judge(promtool, "check", "config", "compose.yml", folder=ALERTS.parent)
    judge(promtool, "test", "rules", "alerts_test.yml", folder=ALERTS.parent)
    tests = (ALERTS.parent / "alerts_test.yml").read_text()
    untested = {name for name in re.findall(r"alert: (\w+)", ALERTS.read_text()) if f"alertname: {name}" not in tests}
    assert untested <= {"MeshnodeDiskSlow"}  # a histogram: its quantile is Prometheus' own


def test_health_tells_each_component_and_is_degraded_without_a_leader_or_a_model(told: Told) -> None:
    parts = told.health["components"]
    assert set(parts) >= {"storage", "consensus", "membership", "workers", "channels", "model"}
    assert [parts[name]["status"] for name in ("storage", "consensus", "membership")] == ["ok"] * 3
    assert (parts["model"]["status"], told.health["status"]) == ("degraded", "degraded")
    assert parts["model"]["last_error"].startswith("tiny: 401")
    assert told.ailing["components"]["consensus"]["status"] == "degraded"
