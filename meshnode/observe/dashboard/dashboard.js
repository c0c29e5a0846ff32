// What is shown beside the picture, the editor, and the beginning of it all.
"use strict";

// --- agreement --------------------------------------------------------------------------------------------------

function drawRaft(raft) {
  const alive = new Set(state.members.filter(isHere).map((one) => one.node_id));
  const voting = raft.voters.filter((id) => alive.has(id)).length, needed = Math.floor(raft.voters.length / 2) + 1;
  const lost = raft.voters.length > 0 && voting < needed;
  say($("raft-state"), !raft.voters.length ? "no voters known" : lost ? `quorum lost: ${voting} of ${raft.voters.length}` : `${voting} of ${raft.voters.length} vote`);
  set($("raft-state"), "data-state", lost || !raft.leader ? "bad" : "live");
  figures($("raft-figures"), [["leader", raft.leader ? nameOf(raft.leader) : "none"], ["term", count(raft.term)], ["committed", raft.commit === null ? "–" : String(raft.commit)]]);
  const shownIds = [...raft.voters, ...raft.learners].sort((a, b) => natural(nameOf(a), nameOf(b))).slice(0, 15);
  sync($("raft-logs"), shownIds, (id) => id,
    () => make("li", {}, make("span", { class: "name" }), make("span", { class: "what" }), make("span", { class: "cells", "aria-hidden": "true" }, make("i", { class: "committed" }), make("i")), make("span", { class: "behind" })),
    (row, id) => {
      const glance = state.nodes.get(id), top = raft.commit ?? 0;
      const what = id === raft.leader ? "leader" : raft.voters.includes(id) ? "voter" : "learner";
      row.className = `${what}${alive.has(id) ? "" : " gone"}`;
      say(row.children[0], nameOf(id));
      say(row.children[1], what);
      // The last cell is the newest entry of the mesh; sixteen cells are shown.
      const reach = (index) => `${Math.max(0, Math.min(1, 1 - (top - (index ?? 0)) / 16)) * 100}%`;
      row.children[2].children[0].style.width = reach(glance?.commit_index);
      row.children[2].children[1].style.width = reach(glance?.applied_index);
      const behind = glance ? Math.max(0, top - glance.applied_index) : null;
      say(row.children[3], behind === null ? "?" : behind ? `−${count(behind)}` : "level");
    });
}

// --- channels over time -----------------------------------------------------------------------------------------

function sample() {
  const here = state.members.filter(isHere).map((one) => one.node_id);
  for (const name of CHANNELS) {
    const rates = here.map((id) => state.rates.get(id)?.channels[name]).filter(Boolean);
    const trips = here.map((id) => state.nodes.get(id)?.channels[name]?.rtt_s).filter((one) => one > 0).sort((a, b) => a - b);
    history[name].push({ at: Date.now(), rate: rates.length ? rates.reduce((sum, one) => sum + one.sent, 0) : null, rtt: trips.length ? trips[trips.length >> 1] : null, dropped: rates.reduce((sum, one) => sum + one.dropped, 0) });
    while (history[name][0].at < Date.now() - KEPT_S * 1000) history[name].shift();
  }
  if (!document.hidden) drawCharts();
}

function drawCharts() {
  sync($("charts"), CHANNELS, (name) => name, (name) => {
    const plot = (kind) => make("figure", {}, make("figcaption", {}, make("span", {}, make("b"), ` ${kind}`), make("span", { class: "max" })), make("svg", { viewBox: "0 0 300 54", preserveAspectRatio: "none", role: "img" }, make("line", { class: "base", x1: 0, x2: 300, y1: 53.5, y2: 53.5 }), make("path", { class: "area" }), make("path", { class: "line" })));
    return make("div", { class: `chart ${name}` }, make("h3", {}, make("i", { "aria-hidden": "true" }), name.replace("_", " ")), plot("messages/s"), plot("round trip"));
  }, (element, name) => {
    const points = history[name];
    plotOne(element.children[1], points.map((one) => [one.at, one.rate]), (value) => count(value), `${name}, messages a second`);
    plotOne(element.children[2], points.map((one) => [one.at, one.rtt]), seconds, `${name}, round trip`);
  });
}

function plotOne(figure, points, text, label) {
  const known = points.filter(([, value]) => value !== null), last = points.at(-1)?.[1] ?? null;
  const most = Math.max(...known.map(([, value]) => value), 0) || 1, now = Date.now();
  const drawn = known.map(([at, value]) => [300 - ((now - at) / (KEPT_S * 1000)) * 300, 52 - (value / most) * 48]);
  const line = drawn.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  const [, area, stroke] = figure.lastChild.children;
  set(stroke, "d", line);
  set(area, "d", line && `${line}L${drawn.at(-1)[0].toFixed(1)} 53L${drawn[0][0].toFixed(1)} 53Z`);
  const value = last === null ? "–" : text(last);
  say(figure.firstChild.firstChild.firstChild, value);
  const top = Math.max(...known.map(([, value]) => value), 0);
  say(figure.firstChild.lastChild, top ? `most ${text(top)}` : "");
  set(figure.lastChild, "aria-label", `${label}: now ${value}, most ${top ? text(top) : "–"}`);
}

// --- lists ------------------------------------------------------------------------------------------------------

function drawVariables() {
  const edits = Boolean(state.hello?.edits), latest = new Map(state.changes.map((one) => [one.name, one]));
  say($("variables-count"), state.variables.length ? `${state.variables.length}` : "");
  $("variables-none").hidden = state.variables.length > 0;
  $("variables").closest(".scroll").hidden = !state.variables.length;
  $("edit-column").hidden = !edits;
  sync($("variables"), state.variables, (one) => one.name,
    (one) => {
      const button = make("button", { type: "button", class: "quiet", "aria-label": `Edit ${one.name}` }, "Edit");
      button.addEventListener("click", () => openEditor(one.name));
      return make("tr", {}, make("td"), make("td", { class: "value" }), make("td", { class: "soft optional" }), make("td", { class: "n soft optional" }), make("td", { class: "n soft" }), make("td", { class: "n" }, button));
    },
    (row, one) => {
      const [name, value, allowed, version, changed, edit] = row.children;
      set(row, "title", one.description || null);
      say(name, one.name);
      const text = plain(one.value);
      if (value.textContent && value.textContent !== text) {
        row.classList.remove("fresh");
        void row.offsetWidth; // so that the animation begins anew
        row.classList.add("fresh");
      }
      say(value, text);
      say(allowed, allowedOf(one));
      say(version, String(one.version));
      const change = latest.get(one.name);
      say(changed, change?.wall_ms ? ago(change.wall_ms) : "");
      edit.hidden = !edits;
    });
}

function allowedOf(one) {
  if (one.choices.length) return one.choices.join(", ");
  const range = [one.ge !== null ? `from ${one.ge}` : "", one.le !== null ? `to ${one.le}` : ""].filter(Boolean).join(" ");
  return `${one.type}${range ? ` ${range}` : ""}`;
}

function drawEvaluations() {
  const found = [];
  for (const [id, glance] of state.nodes) for (const one of glance.evaluations) found.push({ ...one, id, key: `${id} ${one.number}` });
  $("evaluations-none").hidden = found.length > 0;
  sync($("evaluations"), found, (one) => one.key,
    () => make("li", {}, make("div", { class: "row" }, make("b"), make("span")), make("progress", { max: 1 }), make("div", { class: "row aside" }, make("span"), make("span"))),
    (item, one) => {
      const [top, bar, under] = item.children;
      say(top.firstChild, one.program);
      say(top.lastChild, one.state === "running" ? (one.done === undefined ? "starting" : `score ${one.score}`) : `${one.state}${one.done === undefined ? "" : `, score ${one.score}`}`);
      if (one.total) bar.value = one.done / one.total;
      else if (one.state === "running") bar.removeAttribute("value");
      else bar.value = 1;
      set(bar, "aria-label", `Progress of ${one.program}`);
      say(under.firstChild, one.done === undefined ? "" : `${one.done}${one.total ? ` of ${one.total}` : ""} examples${one.failed ? `, ${one.failed} failed` : ""}, on ${Object.keys(one.nodes).length} nodes`);
      say(under.lastChild, one.state === "running" && one.rate ? `${count(one.rate)}/s${one.seconds_left ? `, ${Math.ceil(one.seconds_left)} s left` : ""}` : `from ${nameOf(one.id)}`);
    });
}

const STEPS = ["candidates", "commitments", "reveals", "vote", "decided"];

function drawRounds() {
  $("rounds-none").hidden = state.rounds.length > 0;
  say($("rounds-count"), state.rounds.length ? `${state.rounds.filter((one) => one.phase === "decided").length} of ${state.rounds.length} decided` : "");
  sync($("rounds"), state.rounds, (one) => one.id,
    () => make("li", {}, make("div", { class: "row" }, make("b"), make("code", { class: "soft" }), make("span", { class: "pill" })), make("ol", { class: "steps" }, ...STEPS.map((step) => make("li", {}, make("i", { "aria-hidden": "true" }), make("span", {}, step)))), make("ul", { class: "validators" }), make("p", { class: "aside" }), make("p", { class: "certificate" })),
    (item, one) => {
      const [top, steps, validators, about, certificate] = item.children;
      const over = one.phase === "local" || one.phase === "ended", at = STEPS.indexOf(one.phase);
      item.className = `round ${one.phase}`;
      say(top.children[0], one.program);
      say(top.children[1], one.id.slice(0, 8));
      say(top.children[2], { decided: "decided by the mesh", local: "chosen alone", ended: "ended undecided", invited: "inviting" }[one.phase] ?? `${one.phase}…`);
      set(top.children[2], "data-state", over ? "bad" : one.phase === "decided" ? "good" : null);
      STEPS.forEach((step, i) => {
        set(steps.children[i], "class", i < at || one.phase === "decided" ? "done" : i === at ? "now" : null);
        set(steps.children[i], "aria-current", i === at ? "step" : null);
      });
      sync(validators, [...one.validators].sort((a, b) => natural(nameOf(a.id), nameOf(b.id))), (each) => each.id, () => make("li", {}, make("i", { "aria-hidden": "true" }), make("span")), (chip, each) => {
        const said = each.said.length, signed = each.said.includes("decided");
        set(chip, "class", signed ? "signed" : each.said.includes(one.phase) || (one.phase === "vote" && each.votes !== null) ? "spoken" : null);
        say(chip.lastChild, nameOf(each.id));
        set(chip, "title", `${nameOf(each.id)}: ${each.said.filter((step) => step !== "decided").join(", ") || "silent so far"}${each.votes === null ? "" : `; has seen ${each.votes} votes`}${signed ? "; signed the certificate" : ""}`);
        set(chip, "data-said", said);
      });
      const facts = [one.candidates ? `${one.candidates} candidates` : "", one.best === null ? "" : `best score ${one.best.toFixed(3)}`, one.phase === "vote" ? `iteration ${Math.max(1, one.iteration)}: ${one.votes} of ${one.quorum} votes` : "", over ? one.reason : ""];
      say(about, facts.filter(Boolean).join(" · "));
      const proof = one.certificate;
      certificate.hidden = !proof;
      if (proof) say(certificate, `Certificate: ${proof.signers.length} of ${one.validators.length} signed in iteration ${proof.iteration} (${one.quorum} needed) · demos ${one.result.slice(0, 16)}`);
    });
}

function drawSessions() {
  $("sessions-none").hidden = state.sessions.length > 0;
  say($("sessions-count"), state.sessions.length ? String(state.sessions.length) : "");
  sync($("sessions"), state.sessions, (one) => one.key,
    () => make("li", {}, make("div", { class: "row" }, make("b"), make("span", { class: "soft" })), make("progress", { max: 1 }), make("div", { class: "aside" })),
    (item, one) => {
      const [top, bar, under] = item.children;
      say(top.firstChild, one.metadata.name ?? one.key);
      say(top.lastChild, `${Math.ceil(one.left_s)} s of ${Math.round(one.ttl_s)} s left`);
      bar.value = Math.min(1, one.left_s / one.ttl_s);
      set(bar, "aria-label", `Time left of session ${one.key}`);
      say(under, `from ${nameOf(one.owner)}${one.variables.length ? `, has ${one.variables.slice(0, 4).join(", ")}${one.variables.length > 4 ? ` and ${one.variables.length - 4} more` : ""}` : ""}`);
    });
}

function drawMembers(raft) {
  const wanted = $("filter").value.trim().toLowerCase();
  $("filter").hidden = state.members.length <= 12;
  const tally = {};
  for (const one of state.members) tally[one.state] = (tally[one.state] ?? 0) + 1;
  say($("members-count"), Object.entries(tally).map(([name, n]) => `${n} ${name}`).join(", "));
  const text = (one) => [one.name, one.state, one.address, roleOf(one, raft), ...Object.entries(one.tags).map(([k, v]) => `${k}=${v}`), ...one.programs].join(" ").toLowerCase();
  const rows = state.members.filter((one) => !wanted || text(one).includes(wanted)).slice(0, 300);
  sync($("member-rows"), rows, (one) => one.node_id,
    () => make("tr", {}, make("td", { class: "name" }), make("td", { class: "nowrap" }, make("span", { class: "dot", "aria-hidden": "true" }), make("span")), make("td"), ...[0, 0, 0].map(() => make("td", { class: "n" })), make("td", { class: "soft optional nowrap" }), make("td", { class: "optional" })),
    (row, one) => {
      const [name, is, role, tasks, memory, cpu, address, tags] = row.children;
      const glance = isHere(one) ? state.nodes.get(one.node_id) : null, rates = isHere(one) ? state.rates.get(one.node_id) : null;
      row.className = isHere(one) ? "" : "gone";
      say(name, one.name);
      set(is, "data-state", one.state);
      say(is.lastChild, one.state);
      say(role, roleOf(one, raft));
      role.className = one.node_id === raft.leader ? "badge" : "";
      say(tasks, loadOf(one).slots ? `${loadOf(one).busy}/${loadOf(one).slots}` : "–");
      say(memory, glance ? bytes(glance.memory_bytes) : "–");
      say(cpu, rates ? `${(rates.cpu * 100).toFixed(1)} %` : "–");
      say(address, one.address);
      sync(tags, [...Object.entries(one.tags).map(([k, v]) => `${k}=${v}`), ...one.programs], (tag) => tag, (tag) => make("span", { class: "tag" }, tag), () => {});
    });
}

function clock(ms) {
  return new Date(ms).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
}

function drawLately() {
  $("lately-none").hidden = lately.length > 0;
  sync($("lately"), lately, (one) => one.id, (one) => make("li", {}, one.at ? make("time", { datetime: new Date(one.at).toISOString() }, clock(one.at)) : make("time", {}, "before"), make("span", { class: one.tone }, one.text)), () => {});
}

let frame = 0;
function draw() {
  if (frame) return;
  frame = requestAnimationFrame(() => {
    frame = 0;
    const raft = agreement();
    say($("me"), state.hello?.name ?? "…");
    drawMesh(raft);
    drawTotals();
    drawDetails(raft);
    drawRaft(raft);
    drawVariables();
    drawEvaluations();
    drawRounds();
    drawSessions();
    drawMembers(raft);
    drawLately();
  });
}

// --- the editor -------------------------------------------------------------------------------------------------

function openEditor(name) {
  const one = state.variables.find((each) => each.name === name);
  if (!one) return;
  const choices = one.choices.length ? one.choices : one.type === "bool" ? ["true", "false"] : null;
  const field = choices ? make("select", { id: "editor-value" }, ...choices.map((each) => make("option", { value: each }, each))) : make("input", { id: "editor-value", required: "" });
  field.value = plain(one.value);
  $("editor-field").replaceChildren(field);
  say($("editor-title"), name);
  say($("editor-about"), [one.description, allowedOf(one)].filter(Boolean).join(" · "));
  say($("editor-error"), "");
  $("editor-token").value = token;
  $("editor-form").onsubmit = (event) => {
    event.preventDefault();
    void write(name, field.value, plain(one.value));
  };
  $("editor").showModal();
}

// Compare and set: what somebody else changed meanwhile is not overwritten unseen.
async function write(name, value, expected) {
  token = $("editor-token").value.trim();
  try {
    const answer = await fetch(`/variables/${encodeURIComponent(name)}`, { method: "POST", headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body: JSON.stringify({ op: "cas", expected, value }) });
    const said = await answer.json();
    if (!answer.ok) {
      if (answer.status === 401) token = "";
      say($("editor-error"), answer.status === 401 ? "That is not this node's token." : said.error.message);
    } else if (!said.swapped) say($("editor-error"), "It was changed meanwhile. Close, look, and try again.");
    else $("editor").close();
  } catch {
    say($("editor-error"), "The node does not answer.");
  }
}

// --- begin ------------------------------------------------------------------------------------------------------

function showLink(is, text) {
  set($("link"), "data-state", is);
  say($("link-text"), text);
}

function connect() {
  const source = new EventSource("/events");
  source.onopen = () => showLink("live", "live");
  source.onmessage = (event) => take(JSON.parse(event.data));
  source.onerror = () => {
    showLink(source.readyState === EventSource.CLOSED ? "lost" : "opening", "the node does not answer, trying on");
    // A refused stream (too many viewers, a proxy) ends for good unless we ask again.
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, 3000);
  };
}

function showTheme(theme) {
  set(document.documentElement, "data-theme", theme || null);
  set($("theme"), "aria-label", `Colours: ${theme || "as the system has them"}`);
  say($("theme"), { light: "☀", dark: "☾" }[theme] ?? "◐");
}

function start() {
  let theme = localStorage.getItem("theme") ?? "";
  showTheme(theme);
  $("theme").addEventListener("click", () => {
    theme = { "": "light", light: "dark", dark: "" }[theme];
    localStorage.setItem("theme", theme);
    showTheme(theme);
  });
  for (const name of CHANNELS) {
    const button = make("button", { type: "button", class: name, "aria-pressed": "true" }, make("i", { "aria-hidden": "true" }), name.replace("_", " "));
    button.addEventListener("click", () => {
      if (!shown.delete(name)) shown.add(name);
      set(button, "aria-pressed", String(shown.has(name)));
      draw();
    });
    $("legend").append(button);
  }
  $("filter").addEventListener("input", draw);
  $("details-close").addEventListener("click", () => pick(null));
  $("editor-cancel").addEventListener("click", () => $("editor").close());
  narrow.addEventListener("change", draw);
  document.addEventListener("visibilitychange", () => document.hidden || drawCharts());
  drawCharts();
  setInterval(sample, 1000);
  connect();
}

start();
