"""One node of the mesh: what it is made of, how that is put together, and what it offers.

    node        Node, the front: its life (start, leave, stop), what it knows and what it does
    assembly    makes the parts in order and connects them
    parts       what a running node consists of; how it joins and leaves
    binding     what it listens on, bound before anyone is told of it; by which addresses others reach that (addresses)
    facade      the `Mesh` that everything above sees, from the directory of members and the dispatch of messages
    work        its own workers;    events  short messages to every node

Nothing here decides: that is done by the pure cores and the services of membership, replication and workers.
"""

from meshnode.node.node import Node

__all__ = ["Node"]
