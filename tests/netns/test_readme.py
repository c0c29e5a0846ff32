"""README's way from one laptop to three hosts, line by line as it stands there, on hosts that know their names."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.e2e.conftest import ROOT, wait_until
from tests.netns.conftest import ADDRESS, NAMES, Lab, in_lab

pytestmark = [pytest.mark.netns, pytest.mark.xdist_group("netns"), pytest.mark.timeout(600)]

README = (ROOT / "README.md").read_text()
LINE = re.compile(r"^    (?:host-(?P<host>[abc])\$ )?(?P<command>(?:pip|meshnode) .*?)\s*(?:#.*)?$", re.MULTILINE)


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Lab]:
    """Three hosts that resolve each other's names, each with a directory of its own; no key, no settings."""
    with in_lab(tmp_path, "local") as lab:
        del lab.environment["MESHNODE_KEY_FILE"]
        places = [Path("/etc/netns", lab.namespace(name)) for name in NAMES]  # `ip netns exec` lays it over /etc
        names = "127.0.0.1 localhost\n" + "".join(f"{ADDRESS[name]} host-{name}\n" for name in NAMES)
        try:
            for name, place in zip(NAMES, places, strict=True):
                place.mkdir(parents=True)
                (place / "hosts").write_text(names)
                (tmp_path / name).mkdir()
            yield lab
        finally:
            for place in places:
                shutil.rmtree(place, ignore_errors=True)


def test_three_hosts_are_a_mesh_by_the_five_lines_of_the_readme(hosts: Lab) -> None:
    section = README.partition("## From one laptop to three hosts\n")[2].partition("\n## ")[0]
    first, keygen, *starts, evaluate, page = (match.groupdict() for match in LINE.finditer(section))
    assert first["command"] == "pip install ."
    assert [one["host"] for one in starts] == ["a", "b", "c"], "with the two above: five lines"
    (app,) = re.findall(r"```python\n(import meshnode\n.*?)```", section, re.DOTALL)[:1]

    run(hosts, "a", keygen["command"])
    for name in NAMES:
        (hosts.folder / name / "app.py").write_text(app)
        if name != "a":
            shutil.copy(hosts.folder / "a" / "mesh.key", hosts.folder / name)
    for number, one in enumerate(starts, 1):
        with (hosts.folder / f"{one['host']}.log").open("wb") as log:
            hosts.processes[one["host"]] = subprocess.Popen(
                command(hosts, one["host"], one["command"]),
                stdout=log, stderr=log, cwd=hosts.folder / one["host"], env=hosts.variables(one["host"]),
            )  # fmt: skip
        wait_until(partial(sees, hosts, one["host"], number), f"{one['host']} to see {number}")

    (hosts.folder / evaluate["host"] / "dev.jsonl").write_text('{"question": "ab", "answer": "AB"}\n' * 30)
    assert "100.00" in run(hosts, evaluate["host"], evaluate["command"])
    assert "http://127.0.0.1:7705/" in run(hosts, page["host"], page["command"])


def command(lab: Lab, host: str, line: str) -> list[str]:
    program, *arguments = shlex.split(line)
    assert program == "meshnode"
    return ["ip", "netns", "exec", lab.namespace(host), sys.executable, "-m", "meshnode", *arguments]


def run(lab: Lab, host: str, line: str) -> str:
    done = subprocess.run(
        command(lab, host, line),
        capture_output=True, text=True, cwd=lab.folder / host, env=lab.variables(host), timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def sees(lab: Lab, host: str, count: int) -> bool:
    try:
        told = lab.ask(host, "/members")
    except ConnectionError:
        return False  # nobody listens yet
    # While it joins, it says so instead.
    return isinstance(told, list) and [one["state"] for one in told] == ["alive"] * count
