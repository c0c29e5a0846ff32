"""Alert rules and the Grafana dashboard against a real scrape, judged by Prometheus' own promtool."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import ROOT, Cluster

ALERTS = ROOT / "docker" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "docker" / "grafana" / "meshnode.json"
METRIC = re.compile(r"\b(?:meshnode|process)_[a-z0-9_]+")


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
    done = subprocess.run(command, input=given, capture_output=True, text=True, cwd=folder, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_alerts_are_valid_and_fire_when_they_should(promtool: str) -> None:
    judge(promtool, "check", "config", "prometheus.yml", folder=ALERTS.parent)
    judge(promtool, "test", "rules", "alerts_test.yml", folder=ALERTS.parent)
    tests = (ALERTS.parent / "alerts_test.yml").read_text()
    untested = {name for name in re.findall(r"alert: (\w+)", ALERTS.read_text()) if f"alertname: {name}" not in tests}
    assert untested <= {"MeshnodeDiskSlow"}  # a histogram: its quantile is Prometheus' own


def test_a_real_scrape_has_all_that_alerts_and_dashboard_ask_for(cluster: Cluster) -> None:
    node = cluster.start("node-1", arguments=("--data-dir", str(cluster.folder / "data")))
    cluster.meshnode("vars", "register", "depth", "int", "1")
    scrape = httpx.get(f"http://{node.http}/metrics", verify=False).text
    # A family without a sample yet (a fresh node has dropped nothing) is announced by its TYPE line.
    given = set(re.findall(r"^(?:# TYPE )?([a-z0-9_]+)", scrape, re.MULTILINE))
    expressions = [
        target["expr"] for panel in json.loads(DASHBOARD.read_text())["panels"] for target in panel.get("targets", [])
    ]
    assert len(expressions) > 15
    asked = set(METRIC.findall(" ".join(expressions))) | set(METRIC.findall(ALERTS.read_text()))
    assert asked <= given
    assert "meshnode_raft_has_leader 1.0" in scrape
    assert re.search(r"meshnode_raft_proposals_committed_total [1-9]", scrape)
    assert re.search(r"meshnode_wal_fsync_duration_seconds_count [1-9]", scrape)
    health = httpx.get(f"http://{node.http}/health", verify=False).json()
    assert set(health["components"]) >= {"storage", "consensus", "membership", "workers", "channels"}
    assert (health["components"]["storage"]["status"], health["components"]["consensus"]["status"]) == ("ok", "ok")


def test_the_scrape_keeps_prometheus_rules(cluster: Cluster, promtool: str) -> None:
    node = cluster.start("node-1", arguments=("--data-dir", str(cluster.folder / "data")))
    assert judge(promtool, "check", "metrics", given=httpx.get(f"http://{node.http}/metrics", verify=False).text) == ""
