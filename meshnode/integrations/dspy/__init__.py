"""DSPy on the mesh: any program and any optimizer of DSPy's, unmodified, over many hosts. `pip install meshnode[dspy]`

    codec        values with DSPy's and pydantic's types as plain ones, by an allow-list
    structure    a program's predictors by name, and what tells two shapes apart
    state        what of a program travels: demos, instructions, fields' texts; everything else is refused
    models       language models: name and sampling settings travel, endpoints and keys do not
    failures     exceptions, raised at the caller with their type
    worker       on a node: runs a call and records trace, usage and history
    forwards     which node gets a call; link: sends it, replays what came back; proxy: the program that does so
    journal      keeps finished calls, for a run to be resumed
    consensus    DemoConsensus: demos that the whole mesh agreed on; demos: a worker's part in it
    cache        DSPy's cache with the mesh behind it; sharing: who turns it on
    optimizers   Evaluate, BootstrapFewShot and RandomSearch that use the mesh's width

The seam is `Module.forward`: DSPy's own threads wait for the network, its metrics, order, scores and progress bars stay
its own.

The core imports none of this; a worker does when a program turns out to be a `dspy.Module`.
"""

from __future__ import annotations

from meshnode.integrations.dspy.link import Link
from meshnode.integrations.dspy.proxy import is_remote, local, remote
from meshnode.integrations.dspy.worker import adapt

__all__ = ["Link", "adapt", "is_remote", "local", "remote"]
