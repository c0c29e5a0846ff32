"""demos select, show, verify: demos that the mesh agreed on, and the proof that it did."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from meshnode.cli.options import json_option, node_option

if TYPE_CHECKING:
    from meshnode.demos import Selection

proof_argument = click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))


@click.group()
def demos() -> None:
    """Choose demos with the whole mesh, and check what was chosen."""


@demos.command()
@click.argument("program")
@click.argument("data", type=click.Path(exists=True, dir_okay=False))
@click.option("-k", "k", type=click.IntRange(1), default=8, help="How many demos [8].")
@click.option("--metric", default="exact", help="What scores a prediction [exact].")
@click.option("--deadline", "deadline_s", metavar="S", type=float, default=60.0, help="Seconds it may take [60].")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Where to keep the proof.")
@node_option
@json_option
def select(
    program: str,
    data: str,
    k: int,
    metric: str,
    deadline_s: float,
    out: Path | None,
    node: str | None,
    as_json: bool,
) -> None:
    """Choose demos for a program from examples in a file of JSON lines; shows the round as it goes on."""
    import msgspec

    from meshnode.cli.client import post_for_lines
    from meshnode.evaluation.dataset import read_json_lines
    from meshnode.local_nodes import find

    body = {
        "program": program,
        "train": list(read_json_lines(data)),
        "k": k,
        "metric": metric,
        "deadline_s": deadline_s,
    }
    found: dict[str, Any] = {}
    with _live(program) as show:
        for line in post_for_lines(find(node), "/demos", body, timeout_s=deadline_s + 10):
            if "progress" in line:
                show(line["progress"])
            else:
                found = line["result"]
    if out is not None and found["proof"] is not None:
        out.write_bytes(msgspec.json.encode(found["proof"]))
    _print(found, as_json)


@demos.command()
@proof_argument
@json_option
def show(file: Path, as_json: bool) -> None:
    """Show what a proof proves: the demos, their scores, who proposed and who validated; as JSON the runs they come
    from, too. Refuses one that does not hold."""
    _print(_plain(_checked(file)), as_json)


@demos.command()
@proof_argument
def verify(file: Path) -> None:
    """Check a proof offline; exit 1 with the reason if it does not hold."""
    chosen = _checked(file)
    assert chosen.proof is not None, "it was made of one"
    signers = len(chosen.proof.certificate.signatures)
    runs = sum(bool(trace) for trace in chosen.traces)
    click.echo(
        f"holds: {len(chosen.demos)} demos, digest {chosen.digest}, {runs} with the trace of a run, "
        f"{signers} of {len(chosen.proof.validators)} validators signed"
    )


@contextmanager
def _live(program: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where the round is: in a terminal one line, written over; else a line for each phase. On stderr."""
    from meshnode.demos.progress import RoundProgress, describe

    writes_over = sys.stderr.isatty()
    before = ""

    def show(progress: dict[str, Any]) -> None:
        nonlocal before
        told = RoundProgress(**progress)
        if writes_over:
            sys.stderr.write(f"\r\x1b[K{program}: {describe(told)}")
        elif told.phase != before:
            sys.stderr.write(f"{program}: {describe(told)}\n")
        sys.stderr.flush()
        before = told.phase

    try:
        yield show
    finally:
        if writes_over and before:
            sys.stderr.write("\n")


def _checked(file: Path) -> Selection:
    import msgspec

    from consensus.selection.agreement import Proof
    from meshnode.demos import of_proof
    from meshnode.errors import InvalidInput

    try:
        proof = msgspec.json.decode(file.read_bytes(), type=Proof)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{file} is no proof: {error}") from None
    return of_proof(proof)


def _plain(chosen: Selection) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(chosen)
    return plain


def _print(found: dict[str, Any], as_json: bool) -> None:
    import json

    from meshnode.cli.output import print_json, print_pairs, print_table

    if as_json:
        print_json(found)
        return
    pairs = {"decided": found["decided"], "digest": found["digest"]}
    if found["reason"]:
        pairs["reason"] = found["reason"]
    if found["proof"] is not None:
        pairs["validators"] = ", ".join(node_id[:12] for node_id in found["proof"]["validators"])
    print_pairs(pairs)
    rows = zip(found["scores"], found["proposers"], found["traces"], found["demos"], strict=True)
    print_table(
        ("#score", "by", "#steps", "demo"),
        (
            (f"{score:.3f}", " ".join(one[:12] for one in by), str(len(trace)), json.dumps(demo, ensure_ascii=False))
            for score, by, trace, demo in rows
        ),
    )
