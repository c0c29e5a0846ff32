"""Where user code runs: worker processes that a node starts, feeds, watches and replaces.

    protocol     Task, TaskResult, and the messages between pool and worker
    assignment   decides, pure: which task goes to which worker, who is tried again, who runs alone
    pool         performs it: starts workers, sends tasks, times, kills, restarts, drains, reloads
    hosts        where workers live: processes over a local ZeroMQ socket, or threads of this process
    runner       inside a worker: runs programs, metrics and tools in threads and on a loop
    process      `python -m meshnode.workers.process`, the worker process

A task's way:

    pool.run -> assignment -> Run (packed per tick) -> ipc -> runner -> thread -> program -> metric -> Done -> pool.run

Workers hold no state. When one dies its tasks go to another; a task that was there at a crash runs alone from then on,
so one that kills its worker takes no other with it, and after `MAX_ATTEMPTS` it fails with WorkerCrashed.

What is not promised: that a task runs once only (one that was lost half-way runs again), and that a child process which
left its worker's process group dies with it.
"""
