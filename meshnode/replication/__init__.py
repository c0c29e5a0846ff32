"""Replicated state on the mesh: the Raft core at work, and everybody who follows what it commits.

    storage     what the core persists, on disk (write-ahead log and snapshots) or, for a node without a data directory,
                in memory: such a node never comes back under its identity, so it has nothing to remember
    replica     the core under the driver: proposals in batches, reads, applying to the machine
    placement   decides, pure: who votes, who learns, who is replaced
    following   for everybody else: the committed stream, from any node that has it
    messages    what travels on the coordination channel
    service     one door for all of it: propose, barrier, watch, status

A command's way:

    variables.set -> service (client session, retried until the deadline) -> Submit to the leader, a batch per tick
      -> core: Persist and Send at once -> Apply -> machine -> outcome, back by the batch
"""
