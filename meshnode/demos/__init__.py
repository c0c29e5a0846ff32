"""Demos that the whole mesh chose: every node proposes, every node scores, and up to f of 3f + 1 may lie.

    chosen = await node.demos.select("qa", train, k=8, deadline_s=60)
    chosen.demos, chosen.digest, chosen.decided, chosen.reason

    select      opens a round, takes part in others' rounds, or chooses alone and says why
    validator   one node's part in a round: propose, score, commit, reveal, vote
    bench       runs the program on this node's workers, for candidates and scores
    contexts    which candidates are shown together when they are scored
    origin      whether a candidate says what the training set says
    trace       the run a candidate came from, as it travels
    journal     what was signed and revealed, on disk before it is sent; a restarted validator goes on from it
    weights     what quality, diversity and cost count: variables of the mesh
    progress    where a round is, told as it goes on
    result      what was chosen, and the proof that anyone can check offline

What decides is `consensus.selection`, `consensus.bft` and `consensus.machines.rounds`. docs/demos.md says what is
Byzantine-tolerant here and what is crash-tolerant only.
"""

from __future__ import annotations

from meshnode.demos.progress import RoundProgress
from meshnode.demos.result import Selection, of_proof
from meshnode.demos.select import Choose, Demos, Told

__all__ = ["Choose", "Demos", "RoundProgress", "Selection", "Told", "of_proof"]
