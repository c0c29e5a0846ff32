"""The registry of nodes on this machine: found by name or address, private, and never stale."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from meshnode import local_nodes
from meshnode.errors import ConfigError, MeshError
from meshnode.local_nodes import LocalNode, find, node_token, process_start, registered, running


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "run"
    monkeypatch.setenv("MESHNODE_RUNTIME_DIR", str(path))
    monkeypatch.delenv("MESHNODE_TOKEN_FILE", raising=False)
    return path


@pytest.fixture
def ended() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def ready(name: str = "a", port: int = 7705, pid: int | None = None) -> dict[str, object]:
    pid = os.getpid() if pid is None else pid
    return {"name": name, "node_id": f"id-{name}-{port}", "pid": pid, "http": f"127.0.0.1:{port}", "gossip": "g:1"}


def test_the_only_node_is_found_without_asking_for_it() -> None:
    with registered(ready(), "secret"):
        assert find(None) == LocalNode("127.0.0.1:7705", "secret", "a", "id-a-7705", os.getpid(), "g:1")


def test_nothing_is_left_once_a_node_has_gone(runtime: Path) -> None:
    with registered(ready(), "secret"):
        assert list((runtime / "nodes").iterdir())
    assert not list((runtime / "nodes").iterdir())
    with pytest.raises(MeshError, match="no node is running here; start one: meshnode start"):
        find(None)


def test_one_of_several_is_picked_by_name_id_or_address() -> None:
    with registered(ready("a", 1), "one"), registered(ready("b", 2), "two"):
        assert find("b").token == "two"
        assert find("id-a-1").token == "one"
        assert find("127.0.0.1:2").token == "two"
        assert find("localhost:1").token == "one"
        with pytest.raises(MeshError, match=r"2 nodes fit: a \(127.0.0.1:1\), b \(127.0.0.1:2\); pick one with --node"):
            find(None)
        with pytest.raises(MeshError, match=r"no node named 'c' is running here; there is: a .*, b"):
            find("c")


def test_a_name_that_two_nodes_have_is_ambiguous() -> None:
    with registered(ready("a", 1), "one"), registered(ready("a", 2), "two"):
        with pytest.raises(MeshError, match="2 nodes fit"):
            find("a")
        assert find("127.0.0.1:2").token == "two"


def test_only_the_owner_can_read_tokens(runtime: Path) -> None:
    with registered(ready(), "secret") as path:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(runtime.stat().st_mode) == 0o700


def test_a_directory_open_to_others_is_closed(runtime: Path) -> None:
    runtime.mkdir(mode=0o755)
    runtime.chmod(0o755)
    running()
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700


def test_a_directory_of_someone_else_is_refused(runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: os.stat(runtime).st_uid + 1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        running()


def test_files_of_ended_processes_are_removed(runtime: Path, ended: int) -> None:
    path = runtime / "nodes" / "old.json"
    running()
    path.write_text(json.dumps({**ready(pid=ended), "token": "t", "started": "1"}))
    assert running() == []
    assert not path.exists()


def test_a_process_id_used_again_by_another_process_is_not_the_node(runtime: Path) -> None:
    path = runtime / "nodes" / "old.json"
    running()
    path.write_text(json.dumps({**ready(), "token": "t", "started": "1"}))
    assert running() == []
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": "x"}', "{}", "[" * 5000])
def test_a_damaged_file_is_passed_over(runtime: Path, content: str) -> None:
    running()
    (runtime / "nodes" / "bad.json").write_text(content)
    with registered(ready(), "secret"):
        assert find(None).name == "a"


def test_a_link_planted_in_the_directory_is_not_followed(runtime: Path, tmp_path: Path) -> None:
    running()
    outside = tmp_path / "outside.json"
    outside.write_text(json.dumps({**ready(), "token": "t", "started": process_start(os.getpid())}))
    (runtime / "nodes" / "link.json").symlink_to(outside)
    assert running() == []


def test_a_zombie_does_not_run() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken note
        assert process_start(process.pid) is None
    finally:
        process.wait()


def test_a_node_elsewhere_takes_its_token_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find("host-a:7705") == LocalNode("host-a:7705")
    file = tmp_path / "token"
    file.write_text("secret\n")
    monkeypatch.setenv("MESHNODE_TOKEN_FILE", str(file))
    assert find("host-a:7705") == LocalNode("host-a:7705", "secret")
    file.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        find("host-a:7705")
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        find("host-a:7705")


@pytest.mark.parametrize("address", ["host:", "host:x", ":7705", "host:99999", "a:b:c", "host:80/path"])
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigError, match="HOST:HTTPPORT"):
        find(address)


def test_the_directory_is_the_users_own_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MESHNODE_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert local_nodes.runtime_dir() == tmp_path / "meshnode"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert local_nodes.runtime_dir() == tmp_path / "cache" / "meshnode" / "run"


def test_a_node_takes_its_token_from_a_file_and_refuses_one_that_could_be_guessed(tmp_path: Path) -> None:
    assert node_token(None) != node_token(None)
    file = tmp_path / "token"
    file.write_text("correct-horse-battery-staple\n")
    assert node_token(file) == "correct-horse-battery-staple"
    for wrong in ("", "secret", "correct horse battery staple", "pässword-pässword-pässword"):
        file.write_text(wrong)
        with pytest.raises(ConfigError, match=str(file)):
            node_token(file)
    file.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        node_token(file)
