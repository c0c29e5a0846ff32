"""What must hold after every step, of all nodes together (figure 3 of the paper), checked at the cost of the step.

election safety       at most one leader a term
log matching          entries of one index and term hold the same, and stand behind entries of the same term; as
                      each is checked against the one before it, all before agree
leader completeness   who takes office in a term has all that was committed in earlier ones
commit safety         nobody who lacks what a leader commits could be elected, were all to crash now
lease safety          while a leader holds a lease, nobody has taken office in a later term
state-machine safety  no two nodes apply different entries at one index, nor get different outcomes
durability            no message says what its sender's disk would not confirm after a crash
monotony              commit_index never falls while a node runs; entries are applied in order, once
applied once          no command of a client session runs twice
configuration         a snapshot carries the configuration that was committed at its index
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from typing import Any

from consensus.raft import Configuration, Raft, Snapshot
from consensus.raft.effects import Apply, Persist, Role, Send
from consensus.raft.messages import (
    COMMAND,
    CONFIGURATION,
    AppendReply,
    Entry,
    Message,
    PreVote,
    PreVoteReply,
    Vote,
    VoteReply,
    configuration_of,
)
from tests.simulation.raft.disk import Disk
from tests.simulation.raft.machine import Registers


class InvariantBroken(AssertionError):
    """The protocol broke a promise."""


def check(holds: bool, what: str, *details: Any) -> None:
    if not holds:
        raise InvariantBroken(" ".join([what, *map(str, details)]))


class Truth:
    """The history of the cluster as no node can see it."""

    def __init__(self, founders: Configuration) -> None:
        self.leaders: dict[int, str] = {}
        self.entries: dict[tuple[int, int], tuple[int, Entry]] = {}  # (index, term): (term before, entry)
        self.committed: list[Entry] = []  # from index 1 on
        self.committed_in: list[int] = []  # the term of the node that applied it first, or a later one
        self.outcomes: list[Any] = []
        self.configurations: list[tuple[int, Configuration]] = [(0, Configuration())]
        self.snapshots: dict[int, bytes] = {}
        self.reference = Registers()
        self.founders = founders

    def took_office(self, node: str, core: Raft) -> None:
        check(self.leaders.setdefault(core.term, node) == node, "election safety: two leaders in term", core.term)
        last = bisect_left(self.committed_in, core.term)  # how many were committed in earlier terms
        if last:
            log = core.state.log
            found = log.term_at(last)
            expected = self.committed[last - 1].term
            check(
                last <= log.base_index or found == expected,
                f"leader completeness: {node} took office in term {core.term} without entry {last}",
            )

    def persisting(self, core: Raft, effect: Persist) -> None:
        """Entries reached a log."""
        for index, entry in enumerate(effect.entries, effect.first_index):
            before = (
                core.state.log.term_at(index - 1)
                if index == effect.first_index
                else effect.entries[index - effect.first_index - 1].term
            )
            if before is None:  # compacted since; the step that did so checked it
                continue
            known = self.entries.setdefault((index, entry.term), (before, entry))
            check(known == (before, entry), f"log matching: entry {index} of term {entry.term} differs")

    def applying(self, node: str, core: Raft, machine: Registers, effect: Apply) -> list[tuple[int, Any]]:
        """Apply entries to a node's machine, and compare; returns the outcomes of its commands."""
        outcomes = []
        for index, entry in enumerate(effect.entries, effect.first_index):
            if index > len(self.committed):
                self._commit(index, entry, core.term)
            check(self.committed[index - 1] == entry, f"state-machine safety: {node} applies another entry {index}")
            if entry.kind == COMMAND:
                outcome = machine.apply(index, entry.data)
                check(outcome == self.outcomes[index - 1], f"state-machine safety: another outcome of {index}")
                outcomes.append((index, outcome))
        return outcomes

    def leader_commits(self, index: int, term: int, disks: Iterable[Disk]) -> None:
        """A leader counted entry `index` as committed: ask the disks whether that is so."""
        images = [(disk.owner, disk.image) for disk in disks]
        for name, image in images:
            if not image.holds(index, term):
                last = (image.last_term, image.last_index)
                voters = {other for other, each in images if (each.last_term, each.last_index) <= last}
                check(
                    not image.configuration.agreed(voters),
                    f"commit safety: {name} could be elected without entry {index} of term {term}, by {sorted(voters)}",
                )

    def leasing(self, node: str, core: Raft) -> None:
        """A leader trusts its lease."""
        check(max(self.leaders) == core.term, f"lease safety: {node} of term {core.term}, later", max(self.leaders))

    def sending(self, disk: Disk, effect: Send) -> None:
        """A message leaves: its sender's disk must bear it out."""
        check(is_borne_out(disk, effect.message, effect.to), f"durability: {effect} was sent too early")

    def describing(self, snapshot: Snapshot, data: bytes) -> None:
        """A node took a snapshot."""
        committed = [each for index, each in self.configurations if index <= snapshot.index]
        check(snapshot.configuration == committed[-1], f"configuration: not that of index {snapshot.index}")
        check(self.snapshots.setdefault(snapshot.index, data) == data, f"two snapshots at {snapshot.index} differ")

    def stepped(self, node: str, core: Raft, commit_before: int) -> None:
        state = core.state
        check(core.commit_index >= commit_before, f"monotony: commit_index of {node} fell from {commit_before}")
        check(
            state.applied_index <= state.commit_index <= state.log.last_index
            and state.log.base_index <= state.snapshot.index <= state.commit_index
            and state.durability.durable_index <= state.log.last_index
            and state.durability.durable_number <= state.durability.number
            and (state.leadership is not None) == (state.role is Role.LEADER),
            f"{node} contradicts itself",
        )

    def _commit(self, index: int, entry: Entry, term: int) -> None:
        check(index == len(self.committed) + 1, "entries are committed in order")
        self.committed.append(entry)
        self.committed_in.append(max(term, self.committed_in[-1] if self.committed_in else 0))
        self.outcomes.append(self.reference.apply(index, entry.data) if entry.kind == COMMAND else None)
        if entry.kind == CONFIGURATION:
            self.configurations.append((index, configuration_of(entry)))


def is_borne_out(disk: Disk, message: Message, to: str) -> bool:
    """Whether a sender that crashed now would come back as one that could have sent this."""
    image = disk.image
    if isinstance(message, PreVoteReply) and message.granted:
        return True  # it names the asker's term, and promises nothing
    term = message.term - (1 if isinstance(message, PreVote) else 0)
    if image.hard_state.term < term:
        return False
    if isinstance(message, Vote):
        return (image.hard_state.term, image.hard_state.vote) == (term, disk.owner) or image.hard_state.term > term
    if isinstance(message, VoteReply) and message.granted:
        return (image.hard_state.term, image.hard_state.vote) == (term, to) or image.hard_state.term > term
    if isinstance(message, AppendReply):
        return image.last_index >= message.match_index
    return True
