"""What a mesh key costs: every figure of an open mesh and of a sealed one, alternated in the same run.

`python -m benchmarks.encryption [ROUNDS] [DOCUMENT]`: one call and many through the full stack, bodies of 1 MiB, the
first call to a peer (a new connection: CURVE's handshake and, in a mesh, the knock before it), and the pieces by
themselves. Half a minute a round; the table goes into DOCUMENT, too (docs/channels.md has a place for it).
"""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.measure import drive, process, put
from benchmarks.rpc_peers import announce, meshnode_drive, run, until_terminated

MIB = 1 << 20
CALLS = {1: 2_000, 256: 20_000}
BODIES = 150
CONNECTIONS = 30


@contextmanager
def mesh(key_file: Path | None) -> Iterator[None]:
    """Nodes started meanwhile have this key, or none."""
    os.environ.pop("MESHNODE_KEY_FILE", None)
    if key_file is not None:
        os.environ["MESHNODE_KEY_FILE"] = str(key_file)
    yield


async def serve() -> None:
    import meshnode

    app = meshnode.App()

    @app.handler("echo")
    async def echo(args: Any, _context: Any) -> Any:
        return args

    @app.handler("sink")
    async def sink(args: Any, _context: Any) -> int:
        return len(args)

    async with meshnode.Node(meshnode.Config(port=0, name="server", http=False, workers=0), app=app) as node:
        announce(node.ready["gossip"])
        await until_terminated()


async def bulk(address: str) -> float:
    """MiB a second, 8 bodies in flight."""
    import meshnode

    async with meshnode.Node(meshnode.Config(port=0, role="client", http=False, seeds=(address,))) as node:
        server = next(member.node_id for member in node.members() if member.name == "server")
        await node.call(server, "sink", b"")  # connects
        body = os.urandom(MIB)
        rate = await drive(lambda: node.call(server, "sink", body), in_flight=8, count=BODIES, warm_up=8)
        return rate.per_s


async def first_calls(*, secured: bool) -> float:
    """Milliseconds of a call to a peer without a connection, both in this process."""
    from channels.security import Security, new_keys
    from channels.zeromq import open_channels

    keys = {name: new_keys() for name in "ab"}
    owners = {public: name for name, (public, _) in keys.items()}
    a, b = [
        await open_channels(
            name,
            handler=lambda incoming: incoming.body,
            security=Security(public_key=keys[name][0], secret_key=keys[name][1], allowed=owners.get)
            if secured
            else None,
        )
        for name in "ab"
    ]
    took = []
    for _ in range(CONNECTIONS):
        a.set_peer("b", b.addresses, keys["b"][0] if secured else None)
        start = time.perf_counter()
        await a["inference"].request("b", "echo", b"", timeout_s=10)
        took.append((time.perf_counter() - start) * 1e3)
        a.drop_peer("b")
        while b["inference"].statistics()["links"]:  # noqa: ASYNC110 - else the answer may take the old way
            await asyncio.sleep(0.001)
    await asyncio.gather(a.close(), b.close())
    return statistics.median(took)


def pieces() -> Iterator[tuple[str, float]]:
    """Microseconds of each step, alone."""
    from meshnode.identity import make_identity, verify
    from meshnode.security.keyfile import KeyFile, make_key
    from meshnode.security.ring import KeyRing
    from meshnode.security.seal import SealedEnvelope

    def timed(work: Callable[[], object], count: int = 1000) -> float:
        start = time.perf_counter()
        for _ in range(count):
            work()
        return (time.perf_counter() - start) / count * 1e6

    ring, identity, body = KeyRing(KeyFile((make_key(),))), make_identity(), os.urandom(700)
    a, b = SealedEnvelope(ring, "a"), SealedEnvelope(ring, "b")
    yield "seal a datagram of 700 bytes", timed(lambda: a.seal(body, "mesh"))
    sealed = iter([a.seal(body, "mesh") for _ in range(1000)])
    yield "open one", timed(lambda: b.open(next(sealed), "mesh"))
    strangers = iter([SealedEnvelope(ring, "x").seal(body, "mesh")[:-1] + b"!" for _ in range(200)])

    def forged() -> None:
        try:
            b.open(next(strangers), "mesh")
        except Exception:
            return

    yield "refuse a forged one", timed(forged, 200)
    yield "sign a claim", timed(lambda: identity.sign(body))
    signature = identity.sign(body)
    yield "check a claim heard for the first time", timed(lambda: verify(identity.public_key, signature, body), 300)


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        from meshnode.security.keyfile import KeyFile, make_key, save_keys

        key_file = Path(folder) / "mesh.key"
        save_keys(key_file, KeyFile((make_key(),)))
        figures: dict[str, dict[bool, list[float]]] = {}

        def note(name: str, secured: bool, value: float) -> None:
            figures.setdefault(name, {False: [], True: []})[secured].append(value)

        for _ in range(rounds):
            for secured in (False, True):
                with mesh(key_file if secured else None), process("benchmarks.encryption", "serve") as address:
                    for in_flight, count in CALLS.items():
                        with process("benchmarks.encryption", "calls", address, str(in_flight), str(count)) as line:
                            per_s, p50, _ = map(float, line.split())
                        note(f"{in_flight} in flight, calls/s", secured, per_s)
                        note(f"{in_flight} in flight, p50 us", secured, p50)
                    with process("benchmarks.encryption", "bulk", address) as line:
                        note("bodies of 1 MiB through a node, MiB/s", secured, float(line))
                note(
                    "first call to a peer (connection, handshake, knock), ms",
                    secured,
                    run(first_calls(secured=secured)),
                )
        lines = [f"Medians of {rounds} alternated runs, load {os.getloadavg()[0]:.1f}.", ""]
        lines += ["| | open | encrypted | ratio |", "|---|---|---|---|"]
        for name, taken in figures.items():
            plain, sealed = (statistics.median(taken[secured]) for secured in (False, True))
            shown = [f"{value:,.0f}" if value >= 100 else f"{value:.1f}" for value in (plain, sealed)]
            lines.append(f"| {name} | {shown[0]} | {shown[1]} | {sealed / plain:.2f}x |")
        print("\n" + "\n".join(lines))
        if len(sys.argv) > 2:
            put(Path(sys.argv[2]), "encryption", "\n".join(lines))
        for name, microseconds in pieces():
            print(f"  {name:<40}{microseconds:>8.1f} us")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve"]:
            run(serve())
        case ["calls", address, in_flight, count]:
            rate = run(meshnode_drive(address, int(in_flight), int(count)))
            announce(f"{rate.per_s} {rate.p50_us} {rate.p99_us}")
        case ["bulk", address]:
            announce(str(run(bulk(address))))
        case _:
            main()
