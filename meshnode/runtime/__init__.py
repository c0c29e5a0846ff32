"""One node at run time: start and stop in order, drive the cores, dispatch messages, supervise tasks."""
