"""cluster up, down, status, logs: several nodes on this machine, as processes or, with --docker, as containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from meshnode.cli.options import json_option

docker_option = click.option("--docker", "in_docker", is_flag=True, help="Containers instead of processes.")
project_option = click.option(
    "--project", metavar="NAME", default="meshnode", help="With --docker: what all its names begin with [meshnode]."
)


@click.group()
def cluster() -> None:
    """Run several nodes on this machine, for trying things out."""


@cluster.command()
@click.option("-n", "--nodes", "count", metavar="N", type=click.IntRange(1, 64), default=3, help="How many nodes [3].")
@click.option("--app", metavar="MODULE:ATTR", help="The app each node runs, from the current directory.")
@click.option("--workers", metavar="N", type=int, help="Worker processes of each [1].")
@click.option(
    "--port",
    metavar="N",
    type=click.IntRange(0, 65530),
    default=0,
    help="The first node's base port on this machine; its page is at N+5. 0: free ones [0].",
)
@click.option(
    "--data-dir",
    metavar="DIR",
    type=click.Path(path_type=Path),
    help="Keep each node's state in DIR/NAME; without it nothing is kept.",
)
@docker_option
@click.option("--image", metavar="IMAGE", default="meshnode", help="With --docker: the image to run [meshnode].")
@project_option
@json_option
def up(
    count: int,
    app: str | None,
    workers: int | None,
    port: int,
    data_dir: Path | None,
    in_docker: bool,
    image: str,
    project: str,
    as_json: bool,
) -> None:
    """Start nodes until N run; those that run already stay."""
    from meshnode.cli import cluster_containers, cluster_processes
    from meshnode.cli.output import print_json, print_table, say

    if in_docker and data_dir is not None:
        raise click.UsageError("--data-dir is for processes; a container keeps its state in a volume until `down`")
    if in_docker:
        place = cluster_containers.Project(project)
        nodes, started = cluster_containers.up(place, count, image=image, app=app, workers=workers, port=port)
        hints = _container_hints(place, nodes, image)
    else:
        nodes, started = cluster_processes.up(count, app=app, workers=workers, data_dir=data_dir, port=port)
        hints = _process_hints(nodes)
    if as_json:
        print_json(nodes)
        return
    print_table(tuple(nodes[0]), (tuple(node.values()) for node in nodes))
    say(f"{started} started, {len(nodes)} run. Next:")
    width = max(map(len, hints))
    for what, hint in hints.items():
        say(f"  {what:<{width}}  {hint}")


@cluster.command()
@docker_option
@project_option
@json_option
def down(in_docker: bool, project: str, as_json: bool) -> None:
    """Stop every node that `up` started: gracefully, and after a while by force."""
    from meshnode.cli import cluster_containers, cluster_processes
    from meshnode.cli.output import print_json, say

    if in_docker:
        stopped, forced = cluster_containers.down(cluster_containers.Project(project))
    else:
        stopped, forced = cluster_processes.down()
    if as_json:
        print_json({"stopped": stopped, "forced": forced})
        return
    say(f"stopped {', '.join(stopped)}" if stopped else "no node of a cluster was running")
    if forced:
        say(f"by force: {', '.join(forced)}")


@cluster.command()
@docker_option
@project_option
@json_option
def status(in_docker: bool, project: str, as_json: bool) -> None:
    """List the nodes that `up` started; exit 1 if one of them has died."""
    from meshnode.cli.output import print_json, print_table, say

    nodes = _nodes(in_docker, project)
    if as_json:
        print_json(nodes)
    elif nodes:
        print_table(tuple(nodes[0]), (tuple(node.values()) for node in nodes))
    else:
        say(f"no cluster is up; start one: meshnode cluster up -n 3{' --docker' if in_docker else ''}")
    if any(node["state"] != "running" for node in nodes):
        click.get_current_context().exit(1)


@cluster.command()
@click.argument("name", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on, until Ctrl-C.")
@click.option("--tail", metavar="N", type=click.IntRange(0), default=100, help="Lines of each to begin with [100].")
@docker_option
@project_option
def logs(name: str | None, follow: bool, tail: int, in_docker: bool, project: str) -> None:
    """Print what the nodes logged: all of them, or one."""
    from meshnode.cli.cluster_logs import show
    from meshnode.errors import MeshError

    found = {node["name"]: node for node in _nodes(in_docker, project)}
    if not found:
        raise MeshError("no cluster is up, so there are no logs")
    if name is not None and name not in found:
        raise MeshError(f"no node {name!r} in the cluster; there is: {', '.join(found)}")
    wanted = found if name is None else {name: found[name]}
    if in_docker:
        reading = ["docker", "logs", "--tail", str(tail), *(["--follow"] if follow else [])]
        show({one: [*reading, node["container"]] for one, node in wanted.items()})
    else:
        reading = ["tail", "-n", str(tail), *(["-F"] if follow else [])]
        show({one: [*reading, node["log"]] for one, node in wanted.items()})


def _nodes(in_docker: bool, project: str) -> list[dict[str, Any]]:
    from meshnode.cli import cluster_containers, cluster_processes

    return cluster_containers.status(cluster_containers.Project(project)) if in_docker else cluster_processes.status()


def _process_hints(nodes: list[dict[str, Any]]) -> dict[str, str]:
    first, last = nodes[0]["name"], nodes[-1]["name"]
    return {
        "one more": f"meshnode start --port 0 --seed {nodes[0]['gossip']}",
        "dashboard": f"http://{nodes[0]['http']}/",
        "members": f"meshnode members --node {first}",
        "set": f"meshnode vars register temperature float 0.7 --node {first}",
        "read": f"meshnode vars get temperature --node {last}",
        "call": f"meshnode call METHOD ARGS-JSON --to {last} --node {first}    # a handler of your --app",
        "logs": "meshnode cluster logs -f",
        "stop": "meshnode cluster down",
    }


def _container_hints(place: Any, nodes: list[dict[str, Any]], image: str) -> dict[str, str]:
    first, last = nodes[0], nodes[-1]
    inside, other = f"docker exec {first['container']} meshnode", f"docker exec {last['container']} meshnode"
    its = place.flags
    return {
        "seed": f"{first['gossip']}, in containers on the network {place.network}",
        "one more": f"meshnode cluster up -n {len(nodes) + 1} --docker{its}{_flag('image', image, 'meshnode')}",
        "dashboard": f"http://{first['http']}/",
        "members": f"{inside} members",
        "set": f"{inside} vars register temperature float 0.7",
        "read": f"{other} vars get temperature",
        "call": f"{inside} call METHOD ARGS-JSON --to {last['name']}    # a handler of your --app",
        "cut off": f"docker network disconnect {place.network} {last['container']}    # connect heals it",
        "logs": f"meshnode cluster logs -f --docker{its}",
        "stop": f"meshnode cluster down --docker{its}",
    }


def _flag(name: str, value: str, default: str) -> str:
    return "" if value == default else f" --{name} {value}"
