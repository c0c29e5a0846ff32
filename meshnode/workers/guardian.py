"""Kills the process groups of workers whose node died without closing them.

A worker asks the kernel to die with the node (PR_SET_PDEATHSIG), but what it has forked does not inherit that. So the
node holds a pipe to a small shell that is told each worker's process group; when the node dies, however it dies, the
pipe ends and the shell kills every group it knows. It is a group leader itself, so no Ctrl-C reaches it.
"""

from __future__ import annotations

import contextlib
import subprocess

_SCRIPT = r"""
groups=" "
while read -r verb group; do
    case $verb in
        +) groups="$groups$group " ;;
        -) groups="${groups%% $group *} ${groups#* $group }" ;;
    esac
done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class Guardian:
    """One shell, for all workers of one pool. Where there is no shell it guards nothing."""

    def __init__(self) -> None:
        self._shell: subprocess.Popen[bytes] | None = None
        with contextlib.suppress(OSError):
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", _SCRIPT],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )

    def add(self, group: int) -> None:
        """Kill this process group when the node dies."""
        self._tell(f"+ {group}\n")

    def remove(self, group: int) -> None:
        """This group is gone."""
        self._tell(f"- {group}\n")

    def close(self) -> None:
        """Kill all groups that are left, and end."""
        if self._shell is not None and self._shell.stdin is not None:
            with contextlib.suppress(OSError):
                self._shell.stdin.close()
            self._shell.wait()
            self._shell = None

    def _tell(self, line: str) -> None:
        if self._shell is not None and self._shell.stdin is not None:
            with contextlib.suppress(OSError):  # it was killed; workers still die with the node
                self._shell.stdin.write(line.encode())
                self._shell.stdin.flush()
