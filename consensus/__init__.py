"""Agreement, pure: no clock, no socket, no disk, no event loop. State machines that take messages and return effects."""
