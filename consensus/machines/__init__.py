"""Replicated state: what every node of a mesh agrees on, as pure machines over Raft's log.

    values.py      types and rules of variables; the checks, used before proposing and when applying alike
    variables.py   Register, Unregister, Set, Compare -> Written, Compared, Refusal; changes for watchers
    sessions.py    Start, Renew, Stop -> Granted, Stopped, Refusal; expiry by the log's time
    composite.py   both in one `Machine`, behind Raft's client sessions; snapshot, restore, digest

What a Variables API on a node does with them

    write     `machine.check(command)` refuses a bad one before it is proposed (RefusedByRule; `refusal` names variable
              and rule). Then propose `clients.encode(Run(session, sequence, acknowledged, encode_command(command)))`
              in the node's client session (consensus/raft/sessions.py; Open it once), and retry it under the same
              sequence until it is answered. `Applied.result` is for `decode_result`: Written, Compared or Refusal
              (the state may have changed since the check). `Expired` or `Stale`: the outcome is unknown. Several plain
              Sets go as one `Runs(..., count, encode_all(sets))`; their results are for `decode_results`.
    cas       `Compare(name, expected, value)`; `Set(..., version=n)` for compare by version.
    register  `Register(Declaration(...))`: repeated or concurrent, the same declaration is answered `Written`.
    read      `machine.variables.get(name).value`, after a ReadIndex or lease for a linearizable one. A cache may hold
              the value: every change of it comes out of `apply`.
    watch     `apply` returns changes in log order, each with a version of its own, which is a cursor. After a
              reconnect, changes with a version above the cursor come from `Variable.history`, and if the oldest there
              has `before` above the cursor, some were dropped: say so, or give the present value. After `restore` (a
              snapshot was installed) compare versions likewise.
    sessions  `Start(id, owner, ttl_ms)`, then `Renew` at a third of the time to live; `Declaration(session=id)` makes
              a variable end with it. `Stop` frees everything in one entry.
    leader    proposes `encode_advance(log_ms)` as composite.py says, or no session ever expires.
"""
