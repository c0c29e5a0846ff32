"""The nodes this user runs on this machine, so that the command line finds them and their tokens.

One JSON file per node, readable by its owner only, in the user's runtime directory:

    $MESHNODE_RUNTIME_DIR, else $XDG_RUNTIME_DIR/meshnode, else ~/.cache/meshnode/run

It holds what `--ready-file` holds, the token for state-changing requests, and when the process started: a process id
alone may belong to somebody else by now. Files whose process is gone are removed by whoever comes across them.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from meshnode.errors import ConfigError, MeshError

MIN_TOKEN = 20
NO_NODE = "no node is running here; start one: meshnode start"


@dataclass(frozen=True)
class LocalNode:
    """Where to reach a node. `http` is "host:port"; `token` None: only reading will work."""

    http: str
    token: str | None = None
    name: str | None = None
    node_id: str | None = None
    pid: int | None = None
    gossip: str | None = None


@contextlib.contextmanager
def registered(ready: Mapping[str, Any], token: str) -> Iterator[Path]:
    """Be found by the command line while the block lasts. `ready` is what `--ready-file` holds."""
    path = _nodes_dir() / f"{ready['node_id']}.json"
    write_private(path, {**ready, "token": token, "started": process_start(int(ready["pid"]))})
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def running() -> list[LocalNode]:
    """The nodes that run now, sorted by name; cleans up after those that were killed."""
    found = []
    for path in sorted(_nodes_dir().glob("*.json")):
        record = read_private(path)
        if record is None:
            continue
        if not is_running(record.get("pid"), record.get("started")):
            path.unlink(missing_ok=True)
        elif record.get("http"):
            told = {field: record.get(field) for field in ("token", "name", "node_id", "pid", "gossip")}
            found.append(LocalNode(record["http"], **told))
    return sorted(found, key=lambda node: (node.name or "", node.http))


def find(wanted: str | None) -> LocalNode:
    """The node that `--node` means: a name, an id or HOST:HTTPPORT; None: the only one that runs here.

    The token of a node elsewhere comes from the file that MESHNODE_TOKEN_FILE names. Raises MeshError if none or
    several fit.
    """
    nodes = running()
    if wanted is None:
        fitting = nodes
    elif ":" in wanted:
        return next((node for node in nodes if _same_address(node.http, wanted)), None) or _remote(wanted)
    else:
        fitting = [node for node in nodes if wanted in (node.name, node.node_id)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(f"{node.name} ({node.http})" for node in fitting or nodes)
    if fitting:
        raise MeshError(f"{len(fitting)} nodes fit: {listed}; pick one with --node NAME or --node HOST:HTTPPORT")
    if not nodes:
        raise MeshError(NO_NODE if wanted is None else f"no node named {wanted!r}: {NO_NODE}")
    raise MeshError(f"no node named {wanted!r} is running here; there is: {listed}")


def runtime_dir() -> Path:
    """The user's runtime directory, made if it is missing. Raises ConfigError if others could read it."""
    given = os.environ.get("MESHNODE_RUNTIME_DIR")
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if given:
        path = Path(given)
    elif xdg and os.access(xdg, os.W_OK):
        path = Path(xdg) / "meshnode"
    else:
        path = cache_dir() / "run"
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.stat()
        if found.st_uid == os.getuid() and stat.S_IMODE(found.st_mode) & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name another place in MESHNODE_RUNTIME_DIR") from None
    if found.st_uid != os.getuid():
        raise ConfigError(f"{path} belongs to another user; name a directory of your own in MESHNODE_RUNTIME_DIR")
    return path


def cache_dir() -> Path:
    """Where logs of detached nodes go; may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "meshnode"


def write_private(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file, readable by the owner only, whole: aside and renamed."""
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            json.dump(value, file)
            file.write("\n")
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> dict[str, Any] | None:
    """What `write_private` wrote; None if it is gone, damaged, or not ours."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor) as file:
            if os.fstat(file.fileno()).st_uid != os.getuid():
                return None
            value = json.load(file)
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def process_start(pid: int) -> str | None:
    """When a process started, in whatever unit the system tells it; None if there is no such process."""
    try:
        # After the name in parentheses, which may itself hold spaces and parentheses: state is field 3, starttime 22.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return None if Path("/proc/self/stat").exists() else _process_start_by_ps(pid)
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def is_running(pid: object, started: object) -> bool:
    """Whether the very process that started then still runs."""
    return isinstance(pid, int) and pid > 0 and started is not None and process_start(pid) == started


def _process_start_by_ps(pid: int) -> str | None:
    answer = subprocess.run(["/bin/ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None


def _nodes_dir() -> Path:
    path = runtime_dir() / "nodes"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def _same_address(one: str, other: str) -> bool:
    def normal(address: str) -> str:
        return address.replace("localhost:", "127.0.0.1:", 1)

    return normal(one) == normal(other)


def _remote(address: str) -> LocalNode:
    try:
        parts = urlsplit(f"//{address}")
        right = bool(parts.hostname and parts.port and parts.netloc == address)
    except ValueError:
        right = False
    if not right:
        raise ConfigError(f"--node {address}: write a name or HOST:HTTPPORT, for example 127.0.0.1:7705")
    file = os.environ.get("MESHNODE_TOKEN_FILE")
    return LocalNode(http=address, token=read_token(Path(file), "MESHNODE_TOKEN_FILE") if file else None)


def read_token(path: Path, called: str) -> str:
    """The token in a file, without the line end; `called` says where the file was named. Raises ConfigError."""
    try:
        token = path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{called} {path}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    if not token:
        raise ConfigError(f"{called} {path} is empty; put the node's token into it")
    return token


def node_token(path: Path | None) -> str:
    """The token a node demands: of its token file, else a new one. Raises ConfigError for one that could be guessed."""
    if path is None:
        return secrets.token_urlsafe(32)
    token = read_token(path, "token file")
    if len(token) < MIN_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"token file {path}: a token has at least {MIN_TOKEN} letters, digits and signs, and no space; make one: "
            'python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return token
