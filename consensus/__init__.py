"""Agreement, pure: no clock, socket, disk or event loop. State machines that take messages and return effects."""
