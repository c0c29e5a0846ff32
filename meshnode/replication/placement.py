"""Who should vote and who should learn: a pure decision the leader makes now and then.

    a node joins            learner, if there is room among the first `target`
    a learner is level      voter, as soon as that keeps the number of voters odd
    a voter is dead         replaced when another node is level; never just dropped, for that helps nobody
    a node leaves           dropped; if that makes the number of voters even, one more becomes a learner

The number of voters is odd, for an even one tolerates no more failures than the odd one below it.
"""

from __future__ import annotations

from collections.abc import Set

from consensus.raft.configuration import Configuration


def place(
    now: Configuration,
    *,
    me: str,
    living: Set[str],
    dead: Set[str],
    leaving: Set[str],
    level: Set[str],
    target: int,
) -> Configuration | None:
    """The configuration to change to, or None if all is well.

    me: the leader. living: nodes that may vote and are alive. dead: those dead for long enough to be given up.
    leaving: nodes that go or have gone. level: learners whose log is as long as the leader's, voters always count.
    target: how many voters there should be (odd).
    """
    if now.outgoing:
        return None  # a change is under way
    staying = [voter for voter in now.voters if voter not in leaving]
    healthy = [voter for voter in staying if voter not in dead]
    candidates = sorted(node for node in living - leaving if node not in now.voters)
    ready = [node for node in candidates if node in now.learners and node in level]

    voters = _keep(healthy, target, me)
    missing = _odd(min(target, len(healthy) + len(ready))) - len(voters)
    voters += ready[: max(0, missing)]
    if len(voters) < len(staying) and len(voters) < target:
        # Too few healthy ones to replace the dead: these keep their vote, they may come back.
        voters += [voter for voter in staying if voter in dead][: len(staying) - len(voters)]
    voters = _keep(voters, _odd(len(voters)), me)
    if not voters:
        return None
    others = [node for node in [*healthy, *candidates] if node not in voters]
    preferred = sorted(others, key=lambda node: (node not in now.members, node))
    learners = preferred[: max(0, target - len([voter for voter in voters if voter not in dead]))]
    wanted = Configuration(tuple(sorted(voters)), tuple(sorted(learners)))
    return wanted if wanted != Configuration(now.voters, now.learners) else None


def _odd(count: int) -> int:
    return count if count % 2 else max(0, count - 1)


def _keep(voters: list[str], count: int, me: str) -> list[str]:
    """The first `count`, the leader among them: handing over for the sake of a number would be a disturbance."""
    return sorted(voters, key=lambda node: (node != me, node))[:count]
