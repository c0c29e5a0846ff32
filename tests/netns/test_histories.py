"""Shared variables over links that break: what clients on three hosts saw is one linearizable history."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Any

import pytest

from tests.e2e.conftest import PATIENCE_S, wait_until
from tests.netns.conftest import ADDRESS, NAMES, PORT, Lab
from tests.simulation.raft.checker import Operation, is_linearizable

pytestmark = [pytest.mark.netns, pytest.mark.xdist_group("netns"), pytest.mark.timeout(600)]


class Clients:
    """One client process on each host."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.files = {host: lab.folder / f"history-{host}.jsonl" for host in NAMES}
        self.processes: list[subprocess.Popen[bytes]] = []

    def begin(self) -> None:
        for number, host in enumerate(NAMES, 1):
            self._start(host, number)
            if number == 1:  # it registers the variable
                wait_until(lambda: self.operations("a"), "the first operations")

    def _start(self, host: str, number: int) -> None:
        file = self.files[host]
        arguments = ("-m", "tests.netns.client", f"{ADDRESS[host]}:{PORT}", str(number))
        self.processes.append(self.lab.python(host, *arguments, output=file, errors=file.with_suffix(".log")))

    def operations(self, host: str) -> list[Operation]:
        lines = self.files[host].read_text().splitlines(keepends=True)
        told = [json.loads(line) for line in lines if line.endswith("\n")]
        return [
            Operation(called, tuple(action), inf if returned is None else returned, result, host)
            for called, returned, action, result in told
        ]

    def some_more(self, *hosts: str, wanted: int = 8) -> None:
        """Wait until clients on these hosts had so many further operations done."""

        def done(host: str) -> int:
            return sum(operation.returned != inf for operation in self.operations(host))

        before = {host: done(host) for host in hosts}
        enough = f"{wanted} operations on {hosts}"
        wait_until(lambda: all(done(host) >= before[host] + wanted for host in hosts), enough)

    def end(self) -> list[Operation]:
        """Let them end; the whole history."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            assert process.wait(PATIENCE_S) == 0
        return [operation for host in NAMES for operation in self.operations(host)]


@contextmanager
def operating(lab: Lab) -> Iterator[Clients]:
    clients = Clients(lab)
    try:
        clients.begin()
        yield clients
    finally:
        lab.heal()
        for process in clients.processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def leader(lab: Lab, *among: str) -> str | None:
    """The host whose node leads, by the word of hosts that reach each other."""
    ids = {member["node_id"]: name for name, member in lab.members(among[0]).items()}
    told: set[Any] = {ids.get(lab.ask(host, "/status")["leader"]) for host in among}
    return told.pop() if len(told) == 1 else None


def test_histories_are_linearizable_while_links_break_and_heal(lab: Lab) -> None:
    wait_until(lambda: len(lab.ask("a", "/status")["voters"]) == 3, "three voters")
    with operating(lab) as clients:
        clients.some_more(*NAMES)
        # The leader is cut off: the others elect one of them, and it does nothing that counts meanwhile.
        first = str(wait_until(lambda: leader(lab, *NAMES), "a leader all agree on"))
        others = [host for host in NAMES if host != first]
        lab.cut_both_ways(first, *others)
        wait_until(lambda: leader(lab, *others) in others, "the others to elect one of them")
        clients.some_more(*others)
        lab.heal()
        clients.some_more(*NAMES)
        # The leader is heard by nobody, yet hears all.
        second = str(wait_until(lambda: leader(lab, *NAMES), "a leader all agree on"))
        others = [host for host in NAMES if host != second]
        for host in others:
            lab.cut(second, host)
        wait_until(lambda: leader(lab, *others) in others, "the others to elect one of them")
        clients.some_more(*others)
        lab.heal()
        # The leader and one follower can't reach each other: the third host joins them.
        third = str(wait_until(lambda: leader(lab, *NAMES), "a leader all agree on"))
        lab.cut_both_ways(third, next(host for host in NAMES if host != third))
        clients.some_more(third)
        lab.heal()
        clients.some_more(*NAMES)
        history = clients.end()
    assert is_linearizable(history, initial=0), [str(each) for each in sorted(history, key=lambda each: each.called)]
