"""The page in a real browser, over real nodes: what happens in the mesh appears without a reload."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import meshnode
from tests.e2e.conftest import Cluster, RunningNode

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 150_000
MANY_NODES = Path(__file__).with_name("many_nodes.js").read_text()

# One mesh serves all tests of this file, from what only looks to what kills: they stay on one worker, in order.
pytestmark = pytest.mark.xdist_group("page")


def chromium() -> str:
    """The browser's path. CI must have one; elsewhere the tests are skipped and say why."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        why = "no chromium here: apt-get install chromium"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    from playwright.sync_api import expect, sync_playwright

    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, browser: Browser) -> Iterator[Cluster]:
    """Three nodes with a variable; asked for after the browser, so that a skipped test starts none."""
    mesh = Cluster(tmp_path_factory.mktemp("page"))
    try:
        mesh.environment["MESHNODE_GOSSIP_PROFILE"] = "local"
        mesh.start_many(3, "--page-edits")
        mesh.meshnode("vars", "register", "temperature", "float", "0.7", "--node", "node-1")
        yield mesh
    finally:
        mesh.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the browser's console said: nothing is expected there."""
    return []


@pytest.fixture
def page(browser: Browser, complaints: list[str]) -> Iterator[Page]:
    # Where no graphics card draws it, what moves takes a core; all but one test look at other things.
    page = browser.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    yield page
    page.close()


def look(page: Page, node: RunningNode) -> None:
    page.goto(f"http://{node.http}/")
    page.wait_for_selector("#link[data-state=live]", timeout=PATIENCE_MS)


def row(page: Page, name: str) -> Any:
    return page.locator("#member-rows tr", has=page.locator("td.name", has_text=name))


def value_of(page: Page, variable: str) -> Any:
    return page.locator("#variables tr", has_text=variable).locator(".value")


def test_it_is_read_on_a_phone_and_used_by_keyboard(mesh: Cluster, page: Page, complaints: list[str]) -> None:
    from playwright.sync_api import expect

    page.set_viewport_size({"width": 375, "height": 800})
    page.emulate_media(reduced_motion="reduce", color_scheme="dark")
    look(page, mesh.nodes[0])
    expect(page.locator("#mesh .node")).to_have_count(3, timeout=PATIENCE_MS)
    assert page.evaluate("document.documentElement.scrollWidth") == 375
    page.locator("#mesh .node[tabindex='0']").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    expect(page.locator("#details-title")).to_contain_text("node-2")
    page.keyboard.press("Escape")
    expect(page.locator("#details")).to_be_hidden()
    operable = page.locator("button, input, select, [role=button], [role=img], svg[role]")
    has_name = "one.textContent.trim() || one.ariaLabel || one.labels?.length"
    assert operable.evaluate_all(f"all => all.filter(one => !({has_name})).map(one => one.outerHTML)") == []
    assert page.evaluate("document.getAnimations().length") == 0  # nothing moves for those who asked for that
    assert complaints == []


def test_a_hundred_nodes_are_drawn(mesh: Cluster, page: Page, complaints: list[str]) -> None:
    page.emulate_media(reduced_motion="no-preference")
    look(page, mesh.nodes[0])
    frames = sorted(page.evaluate(MANY_NODES, 100))
    print(f"100 nodes: a frame takes {frames[60]:.1f} ms (median), {frames[114]:.1f} ms (95th percentile)")
    assert page.locator("#mesh .node").count() >= 100
    assert 200 < page.locator("#mesh .link").count() <= 400
    assert complaints == []


def test_a_variable_is_edited_with_the_token_only(mesh: Cluster, page: Page) -> None:
    from playwright.sync_api import expect

    token = mesh.meshnode("page", "--token", "--node", "node-2").stdout.split()[-1]
    look(page, mesh.nodes[1])
    page.get_by_role("button", name="Edit temperature").click()
    page.fill("#editor-value", "0.5")
    page.fill("#editor-token", "wrong")
    page.get_by_role("button", name="Set for all nodes").click()
    expect(page.locator("#editor-error")).to_contain_text("not this node's token", timeout=PATIENCE_MS)
    page.fill("#editor-token", token)
    page.get_by_role("button", name="Set for all nodes").click()
    expect(page.locator("#editor")).not_to_be_visible(timeout=PATIENCE_MS)
    expect(value_of(page, "temperature")).to_have_text("0.5", timeout=PATIENCE_MS)
    assert token not in page.content()


def test_what_happens_in_the_mesh_appears_without_a_reload(mesh: Cluster, page: Page, complaints: list[str]) -> None:
    from playwright.sync_api import expect

    look(page, mesh.nodes[0])
    page.evaluate("window.loaded = true")
    expect(page.locator("#member-rows tr")).to_have_count(3, timeout=PATIENCE_MS)

    mesh.start("node-4", mesh.nodes[0].seed)
    expect(row(page, "node-4")).to_contain_text("alive", timeout=PATIENCE_MS)
    expect(page.locator("#lately")).to_contain_text("node-4 joined")
    # Every node's own figures reach this page, not only those of the node that serves it.
    for node in mesh.nodes:
        expect(row(page, node.ready["name"])).to_contain_text("MB", timeout=PATIENCE_MS)

    mesh.meshnode("vars", "set", "temperature", "0.25", "--node", "node-4")
    expect(value_of(page, "temperature")).to_have_text("0.25", timeout=PATIENCE_MS)
    expect(page.locator("#lately")).to_contain_text("temperature is 0.25 (node-4)")

    examples = mesh.folder / "train.jsonl"
    examples.write_text("".join(f'{{"text": "word{i}", "answer": "{i}drow"}}\n' for i in range(8)))
    mesh.meshnode("demos", "select", "reverse", str(examples), "-k", "1", "--node", "node-2")
    decided = page.locator("#rounds .round", has_text="reverse")
    expect(decided.locator(".pill")).to_have_text("decided by the mesh", timeout=PATIENCE_MS)
    expect(decided.locator(".certificate")).to_contain_text("of 4 signed in iteration", timeout=PATIENCE_MS)
    expect(decided.locator(".validators .signed")).not_to_have_count(0)

    with meshnode.connect(mesh.nodes[0].seed) as client, client.session(ttl_s=60) as session:
        session.variables.register("attempt", int, 1)
        expect(page.locator("#sessions li")).to_contain_text("has attempt", timeout=PATIENCE_MS)
    expect(page.locator("#sessions li")).to_have_count(0, timeout=PATIENCE_MS)

    assert page.evaluate("window.loaded")

    # The newest node does not vote, so it is not the one that leads: its page outlives the leader.
    look(page, mesh.nodes[-1])
    page.evaluate("window.loaded = true")
    leader = page.locator("#raft-figures dd").first
    expect(leader).to_have_text(re.compile("^node-[123]$"), timeout=PATIENCE_MS)
    expect(page.locator("#raft-state")).to_have_text("3 of 3 vote", timeout=PATIENCE_MS)
    old = leader.inner_text()
    next(node for node in mesh.nodes if node.ready["name"] == old).kill()
    expect(row(page, old)).to_contain_text("dead", timeout=PATIENCE_MS)
    expect(page.locator("#lately")).to_contain_text(f"{old} is dead")
    expect(leader).to_have_text(re.compile(f"^(?!{old})node-[123]$"), timeout=PATIENCE_MS)
    expect(page.locator("#lately")).to_contain_text(f"{leader.inner_text()} leads", timeout=PATIENCE_MS)
    expect(page.locator("#mesh .node.leader")).to_have_count(1, timeout=PATIENCE_MS)
    assert page.evaluate("window.loaded")
    assert complaints == []
