"""Asks a node over HTTP. The standard library's client: it starts faster than any other, and sends and receives at
once, which a streamed evaluation needs (httpx reads no answer before it has sent all)."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from meshnode.errors import MeshError, Unreachable, error_of
from meshnode.local_nodes import LocalNode

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
SILENCE_TIMEOUT_S = 60.0  # of a stream: the node says something every two seconds


def get(node: LocalNode, path: str) -> Any:
    """The JSON a GET answers. Raises Unreachable, or the error the node answered with."""
    with _Exchange(node, ANSWER_TIMEOUT_S) as exchange:
        exchange.connection.request("GET", path)
        return _value(exchange.connection.getresponse())


def get_lines(node: LocalNode, path: str) -> Iterator[Any]:
    """The JSON lines of an answer without end. Raises Unreachable, or the error the node answered with."""
    for line in get_text_lines(node, path):
        if line:
            yield json.loads(line)


def get_text_lines(node: LocalNode, path: str) -> Iterator[str]:
    """The lines of an answer without end, stripped. Raises Unreachable, or the error the node answered with."""
    with _Exchange(node, SILENCE_TIMEOUT_S) as exchange:
        exchange.connection.request("GET", path)
        response = exchange.connection.getresponse()
        if response.status != 200:
            _value(response)
        for line in response:
            yield line.decode().strip()


def post(node: LocalNode, path: str, body: Any = None, *, timeout_s: float = ANSWER_TIMEOUT_S) -> Any:
    """The JSON a POST with the node's token answers."""
    with _Exchange(node, timeout_s) as exchange:
        headers = {"Content-Type": "application/json", **_authorization(node)}
        exchange.connection.request("POST", path, json.dumps(body).encode(), headers)
        return _value(exchange.connection.getresponse())


def post_for_lines(node: LocalNode, path: str, body: Any, *, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Send JSON and yield the JSON lines answered; the last has a "result". Raises what the node answers as an error.

    timeout_s: how long it may say nothing.
    """
    with _Exchange(node, timeout_s) as exchange:
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson", **_authorization(node)}
        exchange.connection.request("POST", path, json.dumps(body).encode(), headers)
        yield from _lines(exchange.connection.getresponse())


def post_lines(node: LocalNode, path: str, chunks: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Send chunks of JSON lines and yield the JSON lines answered, both at once; the last has a "result".

    Raises what `chunks` raises, or the error the node answered with. Closing the iterator hangs up, which cancels.
    """
    with _Exchange(node, SILENCE_TIMEOUT_S) as exchange:
        connection = exchange.connection
        connection.putrequest("POST", path)
        for name, value in {"Transfer-Encoding": "chunked", **_authorization(node)}.items():
            connection.putheader(name, value)
        connection.endheaders()
        with _Sender(connection.sock, chunks) as sender:
            try:
                yield from _lines(connection.getresponse())
            except (OSError, http.client.HTTPException, ValueError):
                sender.raise_what_stopped_it()
                raise


def _lines(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    if response.status != 200:
        _value(response)
    for line in response:
        value = json.loads(line)
        if "error" in value:
            raise _error(value, response.status)
        yield value
        if "result" in value:
            return
    raise http.client.IncompleteRead(b"")


class _Exchange:
    """One connection; what goes wrong below HTTP becomes a line that says which node did not answer."""

    def __init__(self, node: LocalNode, timeout_s: float) -> None:
        parts = urlsplit(f"//{node.http}")
        self._node = node
        self._timeout_s = timeout_s
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=CONNECT_TIMEOUT_S)

    def __enter__(self) -> _Exchange:
        try:
            self.connection.connect()
        except OSError as error:
            raise Unreachable(f"no node answers at {self._node.http} ({_reason(error)}); is it running?") from None
        self.connection.sock.settimeout(self._timeout_s)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.connection.close()
        if isinstance(error, TimeoutError) and not isinstance(error, MeshError):
            raise Unreachable(f"{self._node.http} gave no answer within {self._timeout_s:g} s; see its log") from None
        if isinstance(error, OSError | http.client.HTTPException) and not isinstance(error, MeshError):
            raise Unreachable(f"{self._node.http} hung up ({_reason(error)}); did the node stop?") from None


class _Sender:
    """A thread that sends a body while the answer is read."""

    def __init__(self, connection: socket.socket, chunks: Iterable[bytes]) -> None:
        self._connection = connection
        self._chunks = chunks
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._send, name="upload", daemon=True)

    def __enter__(self) -> _Sender:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes the thread if it waits for the node to take more. A source that blocks is left: it is a daemon.
        _shut_down(self._connection)
        self._thread.join(1.0)

    def raise_what_stopped_it(self) -> None:
        """The source's own error, if that is why the exchange broke."""
        self._thread.join(1.0)
        if self._error is not None:
            raise self._error

    def _send(self) -> None:
        try:
            for chunk in self._chunks:
                self._connection.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self._connection.sendall(b"0\r\n\r\n")
        except OSError:
            return  # the node has answered early, or is gone: the reader sees which
        except Exception as error:
            self._error = error
            _shut_down(self._connection)


def _shut_down(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # it was down already


def _authorization(node: LocalNode) -> dict[str, str]:
    return {"Authorization": f"Bearer {node.token}"} if node.token else {}


def _value(response: http.client.HTTPResponse) -> Any:
    content = response.read()
    try:
        value = json.loads(content)
    except ValueError:
        raise MeshError(
            f"an answer that is not JSON (HTTP {response.status}); is this a meshnode's HTTP port?"
        ) from None
    if response.status >= 400:
        raise _error(value, response.status)
    return value


def _error(value: Any, status: int) -> MeshError:
    error = value.get("error") if isinstance(value, dict) else None
    if not isinstance(error, dict):
        return MeshError(f"the node answered HTTP {status}")
    message = str(error.get("message"))
    if error.get("code") == "unauthorized":
        message = "this node wants its token; put it into a file and name that in MESHNODE_TOKEN_FILE"
    return error_of(str(error.get("code")), message)


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
