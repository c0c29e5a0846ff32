"""What lies under docker/ for systemd and Kubernetes: valid by their own rules, and settings this node knows."""

from __future__ import annotations

import configparser
import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from meshnode.config import Config
from meshnode.errors import ConfigError

FILES = Path(__file__).parents[3] / "docker"
SCHEMA = json.loads(Path(__file__).with_name("kubernetes.schema.json").read_text())
PORTS = {"gossip": 7700, "inference": 7701, "coordination": 7702, "telemetry": 7703, "real-time": 7704, "http": 7705}


def manifest() -> dict[str, dict[str, Any]]:
    return {one["kind"]: one for one in yaml.safe_load_all((FILES / "kubernetes.yaml").read_text())}


def faults(thing: dict[str, Any]) -> list[str]:
    """What Kubernetes' own schema has against an object; the schema knows no field beside its own."""
    group = {"v1": "core.v1", "apps/v1": "apps.v1", "policy/v1": "policy.v1"}[thing["apiVersion"]]
    root = {**SCHEMA, "$ref": f"#/$defs/io.k8s.api.{group}.{thing['kind']}"}
    return [f"{error.json_path}: {error.message}" for error in jsonschema.Draft202012Validator(root).iter_errors(thing)]


def test_the_manifest_keeps_to_kubernetes_own_schema() -> None:
    assert set(manifest()) == {"Service", "StatefulSet", "PodDisruptionBudget"}
    assert {kind: faults(thing) for kind, thing in manifest().items()} == {kind: [] for kind in manifest()}


def set_replicas(thing: dict[str, Any]) -> None:
    thing["spec"]["replicas"] = "three"


def misspell_probe(thing: dict[str, Any]) -> None:
    container = thing["spec"]["template"]["spec"]["containers"][0]
    container["livenesProbe"] = container.pop("livenessProbe")


def drop_name(thing: dict[str, Any]) -> None:
    del thing["spec"]["template"]["spec"]["containers"][0]["name"]


@pytest.mark.parametrize("spoil", [set_replicas, misspell_probe, drop_name])
def test_the_schema_finds_what_is_wrong(spoil: Callable[[dict[str, Any]], None]) -> None:
    spoiled = copy.deepcopy(manifest()["StatefulSet"])
    spoil(spoiled)
    assert faults(spoiled)


def test_the_manifests_parts_fit_together_and_its_settings_are_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    service, sets = manifest()["Service"], manifest()["StatefulSet"]["spec"]
    pod = sets["template"]["spec"]
    (container,) = pod["containers"]
    assert sets["serviceName"] == service["metadata"]["name"]
    labels = sets["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == sets["selector"]["matchLabels"] == labels
    assert service["spec"]["clusterIP"] == "None"
    assert {one["name"]: one["port"] for one in service["spec"]["ports"]} == PORTS
    assert {one["name"]: one["containerPort"] for one in container["ports"]} == PORTS
    mounted = {one["name"] for one in container["volumeMounts"]}
    assert mounted == {one["name"] for one in pod["volumes"]} | {
        one["metadata"]["name"] for one in sets["volumeClaimTemplates"]
    }
    filled = {"metadata.name": "meshnode-1", "status.podIP": "10.1.2.3"}
    for variable in container["env"]:
        value = variable.get("value") or filled[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        monkeypatch.setenv(variable["name"], value)
    config = Config.load()
    name, replicas = service["metadata"]["name"], sets["replicas"]
    assert config.seeds == tuple(f"{name}-{number}.{name}:7700" for number in range(replicas))
    assert config.bootstrap_expect == replicas
    assert (config.name, config.advertise, config.http_bind) == ("meshnode-1", "10.1.2.3", "0.0.0.0")
    assert pod["enableServiceLinks"] is False
    monkeypatch.setenv("MESHNODE_PORT", "tcp://10.0.0.1:7700")  # as with service links it would be
    with pytest.raises(ConfigError, match="MESHNODE_PORT"):
        Config.load()


def test_the_services_settings_are_ours_and_its_unit_is_systemds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unit = tmp_path / "meshnode.service"
    text = (FILES / "meshnode.service").read_text()
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign] # as the standard library documents it
    parser.read_string(text)
    assert parser["Service"]["ExecStart"] == "/opt/meshnode/bin/meshnode start"
    for line in text.splitlines():
        if line.startswith("Environment="):
            variable, _, value = line.removeprefix("Environment=").partition("=")
            monkeypatch.setenv(variable, value)
    monkeypatch.setenv("MESHNODE_CONFIG_FILE", str(FILES / "meshnode.toml"))
    config = Config.load()
    assert (config.bind, config.data_dir) == ("0.0.0.0", Path("/var/lib/meshnode"))

    if shutil.which("systemd-analyze") is None:
        return  # what follows is systemd's own judgement
    unit.write_text(text.replace("/opt/meshnode/bin/meshnode", sys.executable))
    assert verify(unit) == []
    unit.write_text(unit.read_text().replace("RestartSec=2", "RestartSec=soon").replace("[Unit]", "[Unit]\nAftr=x"))
    assert len(verify(unit)) == 2


def verify(unit: Path) -> list[str]:
    """What systemd says of this unit; what it says of others on this machine is not ours."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True, timeout=120
    )
    return [line for line in done.stderr.splitlines() if "meshnode.service" in line]
