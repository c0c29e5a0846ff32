"""What `meshnode wal inspect` prints: each entry in words, what is torn, what is damaged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from consensus.machines.composite import encode_advance, encode_all, encode_command
from consensus.machines.variables import Set
from consensus.raft import messages
from consensus.raft.configuration import Configuration
from consensus.raft.sessions import Close, Open, Run, Runs, encode
from meshnode.persistence.errors import DirectoryUnusable
from meshnode.persistence.inspection import Line, describe, inspect
from meshnode.persistence.log import open_log

CONFIGURATION = messages.configuration_entry(1, Configuration()).data


@pytest.fixture
async def directory(tmp_path: Path) -> Path:
    """A data directory with a log of five entries, the last two of them replaced once."""
    log, _ = open_log(tmp_path / "raft" / "log", "mesh", "node")
    log.append([(1, 1, messages.NOOP, b""), (2, 1, messages.CONFIGURATION, CONFIGURATION)])
    log.set_hard_state(1, "node")
    await log.sync()
    log.append([(3, 1, messages.COMMAND, encode(Open())), (4, 1, messages.COMMAND, encode_advance(1234))])
    await log.sync()
    log.append([(4, 2, messages.COMMAND, encode(Run(3, 1, 0, encode_command(Set("temperature", 0.3)))))])
    log.append([(5, 2, messages.COMMAND, b"\xffgarbage")])
    await log.sync()
    await log.close()
    return tmp_path


def meshnode(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "meshnode", "wal", "inspect", *arguments], capture_output=True, text=True, check=False
    )


def test_a_log_is_told_in_words(directory: Path) -> None:
    lines = list(inspect(directory))
    assert [(line.what, line.index, line.term) for line in lines] == [
        ("segment", 1, None),
        ("entry", 1, 1),
        ("entry", 2, 1),
        ("hard_state", None, 1),
        ("entry", 3, 1),
        ("entry", 4, 1),
        ("void", 4, None),
        ("entry", 4, 2),
        ("entry", 5, 2),
        ("end", None, None),
    ]
    texts = [line.text for line in lines if line.what in ("entry", "hard_state")]
    assert texts[0] == "no-op of a new leader"
    assert texts[1].startswith("configuration Configuration(")
    assert texts[2] == "voted for node"
    assert texts[3] == "open a client session"
    assert texts[4] == "time 1234 ms"
    assert texts[5].startswith("client 3 #1: Set(name='temperature', value=0.3")
    assert texts[6] == "8 bytes of kind 0: ff67617262616765"
    log = directory / "raft" / "log"
    assert all(list(inspect(path)) == lines for path in (log.parent, log, log / "00000001.wal"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (encode(Open()), "open a client session"),
        (encode(Close(3)), "close client session 3"),
        (encode(Run(3, 1, 0, b"\xff")), "client 3 #1: 1 bytes: ff"),
        (encode(Runs(3, 4, 3, 2, b"\xff")), "client 3 #4 to #5: 1 bytes: ff"),
        (
            encode(Runs(3, 4, 3, 2, encode_all([Set("t", 0.3), Set("t", 0.4)]))),
            "client 3 #4 to #5: Sets(names='t', values=[0.3, 0.4], writers='', wall_ms=[0, 0])",
        ),
    ],
)
def test_each_command_of_a_client_session_is_told(data: bytes, said: str) -> None:
    assert describe((1, 1, messages.COMMAND, data)) == said


def test_torn_and_damaged_are_told_apart_and_nothing_is_changed(directory: Path) -> None:
    path = directory / "raft" / "log" / "00000001.wal"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    assert [line.what for line in inspect(directory)][-1] == "torn"
    data = bytearray(whole)
    data[200] ^= 1
    path.write_bytes(data)
    *_, last = inspect(directory)
    assert (last.what, last.file) == ("damaged", str(path))
    assert path.read_bytes() == data


def test_a_path_without_a_log_is_said(tmp_path: Path) -> None:
    with pytest.raises(DirectoryUnusable, match="there is no log here"):
        list(inspect(tmp_path))
    with pytest.raises(DirectoryUnusable, match="No such file"):
        list(inspect(tmp_path / "00000001.wal"))


def test_the_command_prints_people_a_line_each_and_scripts_one_json_value(directory: Path) -> None:
    outcome = meshnode(str(directory))
    assert (outcome.returncode, outcome.stderr) == (0, "")
    assert "temperature" in outcome.stdout
    outcome = meshnode(str(directory), "--json", "--from", "4")
    assert outcome.returncode == 0
    lines = msgspec.convert(json.loads(outcome.stdout), list[Line])
    assert [line.index for line in lines if line.what == "entry"] == [4, 4, 5]


def test_the_command_fails_for_a_damaged_log_naming_file_and_offset(directory: Path) -> None:
    path = directory / "raft" / "log" / "00000001.wal"
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    outcome = meshnode(str(directory))
    assert outcome.returncode == 1
    assert outcome.stderr.startswith(f"error: {path}: damaged at offset 0: ")
    assert meshnode(str(directory / "nothing here")).returncode == 1
    assert set(os.listdir(path.parent)) == {"00000001.wal", "lock"}
