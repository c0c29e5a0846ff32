"""How what is ours runs on the event loop: drivers of pure cores, supervised tasks, the loop itself."""
