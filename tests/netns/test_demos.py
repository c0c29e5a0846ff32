"""A round of demo selection whose links are cut under it: each side chooses alone, a new round replaces that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import wait_until
from tests.meshnode.demos.app import examples
from tests.netns.conftest import MORE, Lab, in_lab

pytestmark = [pytest.mark.netns, pytest.mark.xdist_group("netns")]

PATIENCE_S = 120  # reached on failure only


@pytest.fixture
def four(tmp_path: Path) -> Iterator[Lab]:
    with in_lab(tmp_path, "local", MORE) as lab:
        lab.environment |= {
            "MESHNODE_APP": "tests.meshnode.demos.app:app",
            "MESHNODE_WORKERS": "1",
            "DEMOS_DELAY_S": "0.05",  # so that the cut comes before the decision
        }
        lab.start_all()
        yield lab


class Choosing:
    """`meshnode demos select` on one host, at work."""

    def __init__(self, lab: Lab, host: str, deadline_s: int, number: int = 0) -> None:
        self._told = lab.folder / f"{host}-{number}.told"
        self._said = lab.folder / f"{host}-{number}.said"
        self.proof = lab.folder / f"{host}-{number}.proof"
        data = lab.folder / "data.jsonl"
        data.write_text("".join(json.dumps(example) + "\n" for example in examples(16)))
        arguments = ("demos", "select", "colour", str(data), "-k", "2", "--json", "--deadline", str(deadline_s))
        self._process = lab.open(host, *arguments, "--out", str(self.proof), output=self._said, errors=self._told)

    def told(self) -> str:
        return self._told.read_text()

    def result(self) -> Any:
        try:
            code = self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()
        assert code == 0, self.told()
        return json.loads(self._said.read_text())


def test_a_cut_under_a_round_makes_both_sides_choose_alone_and_a_new_round_replaces_it(four: Lab) -> None:
    held = 0

    def begun() -> Choosing | None:
        nonlocal held
        held += 1
        choosing = Choosing(four, "a", 8, held)
        wait_until(lambda: any(word in choosing.told() for word in ("candidates: ", "alone: ")), "a to begin")
        if "alone: " not in choosing.told():
            return choosing
        choosing.result()  # not all programs were known there yet
        return None

    within_a = wait_until(begun, "a round of four", PATIENCE_S)
    for host in ("a", "b"):
        four.cut_both_ways(host, "c", "d")
    within_c = Choosing(four, "c", 8)
    for side in (within_a.result(), within_c.result()):
        assert side["decided"] == "local"
        assert side["reason"]
        assert side["proof"] is None
        assert len(side["demos"]) == 2
    assert "alone: " in within_a.told()
    four.heal()
    wait_until(four.converged, "both sides to meet again", PATIENCE_S)

    def decided() -> Choosing | None:
        nonlocal held
        held += 1
        choosing = Choosing(four, "c", 30, held)
        return choosing if choosing.result()["decided"] == "mesh" else None

    again = wait_until(decided, "a round of the whole mesh", PATIENCE_S)
    assert len(json.loads(again.proof.read_text())["validators"]) == 4
    checked = four.meshnode("d", "demos", "verify", str(again.proof))
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.startswith("holds: 2 demos")
