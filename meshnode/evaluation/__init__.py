"""Evaluate a program over a data set, on this process's own workers or on every node of the mesh.

    dataset      examples, read as they are needed
    plan         decides, pure: which example goes to which node, what is retried, hedged, counted
    coordinator  performs the plan over a `Mesh`, scores, reports progress, journals
    results      rows in input order, the score, the figures of the run
    metrics      exact, contains, f1, semantic, or your own

What is promised: every example is counted exactly once; what the program itself raises is one failed row; what the
infrastructure does wrong is tried again elsewhere and never becomes a score; a local and a distributed run give equal
rows in equal order. What is not: that an example runs only once (a lost or late call is repeated).

The front door is `coordinator.evaluate`. Nothing here sees the node but through `meshnode.mesh.Mesh`.
"""
