"""Evaluate a program over a data set, on this process's own workers or on every node of the mesh.

    dataset      examples, read as they are needed
    plan         decides, pure: which example goes to which node, what is retried, hedged, counted; capacity: one node
    fleet        tells the plan which nodes there are; candidates: which may run a program, what a failure means
    coordinator  performs the plan over a `Mesh`; the front door, `evaluate`
    scoring      from a reply to a row; metrics: exact, contains, f1, semantic, or your own
    tally        rows in input order, progress; results: what is handed over
    journal      keeps finished rows in `meshnode.storage`, for a run to be resumed

What is promised: every example is counted exactly once; what the program itself raises is one failed row; what the
infrastructure does wrong is tried again elsewhere and never becomes a score; a local and a distributed run give equal
rows in equal order. What is not: that an example runs only once (a lost or late call is repeated).

Nothing here sees the node but through `meshnode.mesh.Mesh`.
"""
