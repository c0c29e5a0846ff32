"""A connection is shut by its number, which may be another's by then."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from channels.zmq_wire import shut


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def listen(stack: ExitStack) -> tuple[socket.socket, str]:
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    return listener, f"tcp://0.0.0.0:{listener.getsockname()[1]}"


def connect(stack: ExitStack, listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """(the peer's end, ours)."""
    peer = stack.enter_context(socket.create_connection(listener.getsockname(), 30))
    return peer, stack.enter_context(listener.accept()[0])


def test_a_connection_that_came_in_there_is_shut(stack: ExitStack) -> None:
    listener, address = listen(stack)
    peer, ours = connect(stack, listener)
    shut(ours.fileno(), address)
    assert peer.recv(1) == b""


def test_a_connection_that_came_in_elsewhere_is_left_alone(stack: ExitStack) -> None:
    (_, address), (other, _) = listen(stack), listen(stack)
    peer, ours = connect(stack, other)
    shut(ours.fileno(), address)
    ours.sendall(b"!")
    assert peer.recv(1) == b"!"


def test_a_listener_is_left_alone(stack: ExitStack) -> None:
    listener, address = listen(stack)
    shut(listener.fileno(), address)
    peer, ours = connect(stack, listener)
    ours.sendall(b"!")
    assert peer.recv(1) == b"!"


def test_what_is_no_socket_is_left_alone_and_nothing_stays_open(stack: ExitStack) -> None:
    listener, address = listen(stack)
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    before = len(list(Path("/dev/fd").iterdir()))
    shut(writer, address)
    shut(1_000_000, address)
    assert len(list(Path("/dev/fd").iterdir())) == before
    os.write(writer, b"!")
    assert os.read(reader, 1) == b"!"
    assert listener.fileno() >= 0
