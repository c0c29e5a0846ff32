// The live picture of a mesh. GET /events sends sections as JSON (see observe/picture.py): first all, then those that
// changed. `state` holds the newest of each; one animation frame later the page is brought in line with it.
// Names and values come from other nodes and users: they only ever become text, never markup.
"use strict";

const CHANNELS = ["inference", "coordination", "telemetry", "real_time"];
const KEPT_S = 180;
const narrow = matchMedia("(max-width: 640px)");
const LABELLED = 24; // with more nodes only some names are drawn
const FLOWING = 60; // with more busy links nothing moves along them
const DRAWN_LINKS = 400;

const state = { hello: null, members: [], variables: [], changes: [], nodes: new Map(), rates: new Map() };
const history = Object.fromEntries(CHANNELS.map((name) => [name, []])); // {at, rate, rtt}, one a second
const lately = []; // {at, text, tone}, newest first
const shown = new Set(CHANNELS);
let picked = null; // a node's id
let token = "";
let before = null; // what `notice` saw last

// --- small tools ------------------------------------------------------------------------------------------------

const $ = (id) => document.getElementById(id);

function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "circle", "text", "title", "line"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) set(element, name, value);
  element.append(...children);
  return element;
}

function set(element, name, value) {
  if (value === null || value === undefined || value === false) element.removeAttribute(name);
  else if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// One child of `parent` for each item, kept by key, so that focus, selection and transitions live through updates.
function sync(parent, items, key, create, update) {
  const old = parent.kept ?? (parent.kept = new Map());
  const kept = new Map();
  let at = parent.firstChild;
  for (const item of items) {
    const id = key(item);
    const element = old.get(id) ?? create(item);
    kept.set(id, element);
    update(element, item);
    if (element === at) at = at.nextSibling;
    else parent.insertBefore(element, at);
  }
  for (const [id, element] of old) if (!kept.has(id)) element.remove();
  parent.kept = kept;
}

function figures(list, pairs) {
  sync(list, pairs, ([name]) => name,
    ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    (element, [, value]) => say(element.lastChild, value));
}

const natural = new Intl.Collator(undefined, { numeric: true }).compare;
const nameOf = (id) => state.members.find((one) => one.node_id === id)?.name ?? (id ? id.slice(0, 8) : "nobody");
// A node's own glance is newer than what gossip told of its load.
const loadOf = (member) => (isHere(member) && state.nodes.get(member.node_id)) || member;
const isHere = (member) => member.state === "alive" || member.state === "suspect";

function seconds(value) {
  if (value === null || value === undefined || !(value > 0)) return "–";
  if (value < 0.001) return `${Math.round(value * 1e6)} µs`;
  return value < 1 ? `${(value * 1e3).toPrecision(value < 0.01 ? 2 : 3)} ms` : `${value.toFixed(1)} s`;
}

function count(value) {
  if (value === null || value === undefined) return "–";
  if (value >= 1e6) return `${(value / 1e6).toPrecision(3)} M`;
  if (value >= 1e4) return `${(value / 1e3).toPrecision(3)} k`;
  return value >= 10 || Number.isInteger(value) ? String(Math.round(value)) : value.toFixed(1);
}

function bytes(value) {
  if (value === null || value === undefined) return "–";
  for (const unit of ["B", "kB", "MB"]) {
    if (value < 1000) return `${value >= 10 || unit === "B" ? Math.round(value) : value.toFixed(1)} ${unit}`;
    value /= 1000;
  }
  return `${value.toFixed(1)} GB`;
}

function plain(value) {
  return typeof value === "string" ? value : JSON.stringify(value);
}

function ago(ms) {
  const past = Math.max(0, (Date.now() - ms) / 1000);
  if (past < 60) return `${Math.round(past)} s ago`;
  if (past < 3600) return `${Math.round(past / 60)} min ago`;
  return past < 86400 ? `${Math.round(past / 3600)} h ago` : new Date(ms).toLocaleDateString();
}

// --- what arrives -----------------------------------------------------------------------------------------------

function take(sections) {
  for (const [name, value] of Object.entries(sections)) {
    if (!name.startsWith("node:")) state[name] = value;
    else if (value === null) forget(name.slice(5));
    else takeGlance(value);
  }
  if (sections.members) state.members.sort((a, b) => natural(a.name, b.name));
  notice();
  draw();
}

function forget(id) {
  state.nodes.delete(id);
  state.rates.delete(id);
}

// Counters become rates: the difference to the glance before, by the node's own clock.
function takeGlance(glance) {
  const old = state.nodes.get(glance.node_id);
  state.nodes.set(glance.node_id, glance);
  const passed = old ? glance.at_s - old.at_s : 0;
  if (passed <= 0) return;
  const per = (now, then) => Math.max(0, (now - then) / passed);
  const channels = {};
  for (const name of CHANNELS) {
    const now = glance.channels[name], then = old.channels[name];
    if (now && then) channels[name] = { sent: per(now.sent, then.sent), bytes: per(now.bytes_sent, then.bytes_sent), dropped: per(now.dropped, then.dropped) };
  }
  const known = new Map(old.links.map((link) => [link[0] + link[1], link]));
  const links = glance.links.map(([peer, channel, messages, size, rtt]) => {
    const then = known.get(peer + channel);
    return { peer, channel, rtt, messages: then ? per(messages, then[2]) : 0, bytes: then ? per(size, then[3]) : 0 };
  });
  state.rates.set(glance.node_id, { channels, links, cpu: per(glance.cpu_s, old.cpu_s) });
}

// The mesh's leader: what most of the nodes that answer name, in the highest term.
function agreement() {
  const glances = [...state.nodes.values()].filter((one) => {
    const member = state.members.find((each) => each.node_id === one.node_id);
    return member && isHere(member) && one.term;
  });
  const term = Math.max(0, ...glances.map((one) => one.term));
  const votes = new Map();
  for (const one of glances) if (one.term === term && one.leader) votes.set(one.leader, (votes.get(one.leader) ?? 0) + 1);
  const leader = [...votes].sort((a, b) => b[1] - a[1])[0]?.[0] ?? null;
  const newest = glances.sort((a, b) => (b.commit_index ?? 0) - (a.commit_index ?? 0))[0];
  const said = (leader && state.nodes.get(leader)) || newest;
  return { term, leader, commit: newest?.commit_index ?? null, voters: said?.voters ?? [], learners: said?.learners ?? [] };
}

// What a person would want to be told; also read out by screen readers.
function notice() {
  const now = {
    states: new Map(state.members.map((one) => [one.node_id, one.state])),
    leader: agreement().leader,
    version: Math.max(0, ...state.changes.map((one) => one.version)),
  };
  if (!before) {
    for (const change of state.changes) tellChange(change);
    if (state.changes.length || now.states.size) before = now;
    return;
  }
  for (const [id, is] of now.states) {
    const was = before.states.get(id);
    const tones = { alive: "good", dead: "bad", suspect: "warn" };
    if (was !== is && !(was === undefined && is !== "alive")) {
      tell(`${nameOf(id)} ${is === "alive" ? (was ? "is back" : "joined") : { dead: "is dead", left: "left", suspect: "is suspected" }[is]}`, tones[is]);
    }
  }
  if (now.leader !== before.leader && now.leader) tell(`${nameOf(now.leader)} leads`, "good");
  if (!now.leader) now.leader = before.leader;
  for (const change of state.changes) if (change.version > before.version) tellChange(change, true);
  before = now;
}

function tellChange(change, aloud = false) {
  const what = { registered: `${change.name} is ${plain(change.value)}, new`, removed: `${change.name} was removed` }[change.what] ?? `${change.name} is ${plain(change.value)}`;
  // A registration carries no time: one from before this page was opened was just "before".
  tell(`${what} (${change.writer})`, "", change.wall_ms || (aloud ? Date.now() : 0), aloud);
}

function tell(text, tone = "", at = Date.now(), aloud = true) {
  lately.unshift({ at, text, tone, id: `${at}-${lately.length}-${text}` });
  lately.sort((a, b) => b.at - a.at);
  lately.length = Math.min(lately.length, 60);
  if (aloud) say($("said"), text);
}

// --- the picture ------------------------------------------------------------------------------------------------

const room = () => (narrow.matches ? { width: 400, height: 400 } : { width: 720, height: 450 });

function places(members) {
  const place = new Map();
  const { width, height } = room(), centre = { x: width / 2, y: height / 2 };
  if (members.length === 1) place.set(members[0].node_id, centre);
  else {
    // As many rings as it takes to leave every node room for itself; the inner ones are turned by half a step.
    const rings = Math.ceil(members.length / 44);
    let from = 0;
    for (let ring = 0; ring < rings; ring++) {
      const share = (rings - ring) / (rings * (rings + 1) / 2);
      const here = ring === rings - 1 ? members.length - from : Math.round(members.length * share);
      const scale = 1 - ring / (rings + 0.6);
      for (let i = 0; i < here && from + i < members.length; i++) {
        const angle = ((i + ring / 2) / here) * 2 * Math.PI - Math.PI / 2;
        place.set(members[from + i].node_id, { x: centre.x + Math.cos(angle) * (width / 2 - (narrow.matches ? 46 : 76)) * scale, y: centre.y + Math.sin(angle) * (height / 2 - 58) * scale });
      }
      from += here;
    }
  }
  return place;
}

// One entry for each pair of nodes and channel; both ends tell of a link, the busier report counts.
function links(place) {
  const found = new Map();
  for (const [id, glance] of state.nodes) {
    if (!place.has(id)) continue;
    const rates = state.rates.get(id)?.links ?? glance.links.map(([peer, channel, , , rtt]) => ({ peer, channel, rtt, messages: 0, bytes: 0 }));
    for (const link of rates) {
      if (!place.has(link.peer) || link.peer === id || !shown.has(link.channel)) continue;
      const [a, b] = id < link.peer ? [id, link.peer] : [link.peer, id];
      const key = `${a} ${b} ${link.channel}`;
      const other = found.get(key);
      if (!other || link.messages > other.messages) found.set(key, { ...link, key, a, b, rtt: link.rtt || other?.rtt || 0 });
      else if (!other.rtt) other.rtt = link.rtt;
    }
  }
  return [...found.values()].sort((a, b) => b.messages - a.messages).slice(0, DRAWN_LINKS);
}

function curve(link, place) {
  const { width, height } = room();
  const a = place.get(link.a), b = place.get(link.b);
  // Each channel bends a little differently, so that all four between two nodes can be told apart.
  const bend = (CHANNELS.indexOf(link.channel) - 1.5) * 0.075;
  const x = (a.x + b.x) / 2 + (b.y - a.y) * bend + (width / 2 - (a.x + b.x) / 2) * 0.12;
  const y = (a.y + b.y) / 2 - (b.x - a.x) * bend + (height / 2 - (a.y + b.y) / 2) * 0.12;
  // The label's place on the curve, another one for each channel.
  const t = 0.35 + CHANNELS.indexOf(link.channel) * 0.1, on = (from, by, to) => (1 - t) ** 2 * from + 2 * t * (1 - t) * by + t ** 2 * to;
  return { path: `M${a.x.toFixed(1)} ${a.y.toFixed(1)}Q${x.toFixed(1)} ${y.toFixed(1)} ${b.x.toFixed(1)} ${b.y.toFixed(1)}`, label: { x: on(a.x, x, b.x), y: on(a.y, y, b.y) } };
}

function drawMesh(raft) {
  const svg = $("mesh");
  if (!svg.firstChild) svg.append(make("g", { "aria-hidden": "true" }), make("g", { "aria-hidden": "true" }), make("g", { "aria-hidden": "true" }), make("g"));
  const [lines, flows, labels, nodes] = svg.children;
  set(svg, "viewBox", `0 0 ${room().width} ${room().height}`);
  const members = state.members.filter((one) => one.state !== "left" || state.members.length < LABELLED);
  const place = places(members);
  const all = links(place);
  const near = (link) => (picked && (link.a === picked || link.b === picked) ? " near" : "");
  svg.classList.toggle("picked", Boolean(picked && place.has(picked)));
  svg.classList.toggle("many", members.length > LABELLED);

  sync(lines, all, (link) => link.key, () => make("path", {}, make("title")), (element, link) => {
    const busy = link.messages >= 0.5;
    set(element, "class", `link ${link.channel}${busy ? " busy" : ""}${near(link)}`);
    set(element, "d", curve(link, place).path);
    element.style.strokeWidth = (1 + Math.log2(1 + link.messages) * 0.35).toFixed(2);
    say(element.firstChild, `${nameOf(link.a)} – ${nameOf(link.b)}, ${link.channel}: ${seconds(link.rtt)}, ${count(link.messages)}/s`);
  });
  const busy = all.filter((link) => link.messages >= 0.5);
  sync(flows, busy.length <= FLOWING ? busy : [], (link) => link.key, (link) => make("path", { class: "flow" }), (element, link) => {
    set(element, "class", `flow ${link.channel}${near(link)}`);
    set(element, "d", curve(link, place).path);
    const pace = `${(2.6 / (1 + Math.log10(1 + link.messages))).toFixed(1)}s`;
    if (element.style.animationDuration !== pace) element.style.animationDuration = pace;
  });
  const named = picked ? all.filter((link) => near(link) && link.rtt > 0).slice(0, 12) : [];
  sync(labels, named, (link) => link.key, () => make("text", { class: "rtt" }), (element, link) => {
    const at = curve(link, place).label;
    set(element, "x", at.x.toFixed(1));
    set(element, "y", at.y.toFixed(1));
    say(element, seconds(link.rtt));
  });

  const radius = members.length > 60 ? 7 : members.length > LABELLED ? 10 : 15;
  const tabbed = members.some((one) => one.node_id === picked) ? picked : members[0]?.node_id;
  sync(nodes, members, (one) => one.node_id, createNode, (element, one) => {
    const at = place.get(one.node_id), leads = one.node_id === raft.leader;
    set(element, "class", `node ${one.state}${leads ? " leader" : ""}`);
    set(element, "aria-pressed", String(one.node_id === picked));
    set(element, "tabindex", one.node_id === tabbed ? 0 : -1);
    set(element, "aria-label", `${one.name}, ${one.state}, ${roleOf(one, raft)}`);
    element.style.transform = `translate(${at.x.toFixed(1)}px, ${at.y.toFixed(1)}px)`;
    const [halo, body, work, name, sub] = element.children;
    set(halo, "r", radius * 2);
    set(body, "r", radius);
    const around = 2 * Math.PI * (radius + 5), load = loadOf(one), share = load.slots ? Math.min(1, load.busy / load.slots) : 0;
    set(work, "r", radius + 5);
    work.style.strokeDasharray = `${(around * share).toFixed(1)} ${around.toFixed(1)}`;
    work.style.opacity = share ? 1 : 0;
    // On the outer side, where no links pass.
    const above = at.y < room().height / 2 - 1;
    set(name, "y", above ? -radius - 25 : radius + 21);
    say(name, one.name);
    set(sub, "y", above ? -radius - 11 : radius + 35);
    say(sub, one.state === "alive" ? (members.length <= LABELLED ? roleOf(one, raft) : "") : one.state);
  });
}

function createNode(one) {
  const element = make("g", { role: "button" }, make("circle", { class: "halo" }), make("circle", { class: "body" }), make("circle", { class: "work", transform: "rotate(-90)" }), make("text"), make("text", { class: "sub" }));
  element.addEventListener("click", () => pick(picked === one.node_id ? null : one.node_id));
  element.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (event.key === "Enter" || event.key === " ") pick(picked === one.node_id ? null : one.node_id);
    else if (event.key === "Escape") pick(null);
    else if (step) {
      const siblings = [...element.parentNode.children];
      siblings[(siblings.indexOf(element) + step + siblings.length) % siblings.length].focus();
    } else return;
    event.preventDefault();
  });
  return element;
}

function pick(id) {
  picked = id;
  draw();
}

function roleOf(member, raft) {
  if (member.node_id === raft.leader) return "leader";
  if (raft.voters.includes(member.node_id)) return "voter";
  if (raft.learners.includes(member.node_id)) return "learner";
  return member.role === "client" ? "client" : "follows";
}

function drawDetails(raft) {
  const member = state.members.find((one) => one.node_id === picked);
  $("details").hidden = !member;
  if (!member) return;
  const glance = state.nodes.get(picked), rates = state.rates.get(picked);
  say($("details-title"), `${member.name}, ${roleOf(member, raft)}`);
  const ill = Object.entries(glance?.health ?? {}).filter(([, is]) => is !== "ok" && is !== "off").map(([part, is]) => `${part} ${is}`);
  figures($("details-figures"), [
    ["state", member.state], ["health", glance ? ill.join(", ") || "ok" : "–"], ["applied", count(glance?.applied_index)],
    ["tasks", `${loadOf(member).busy} of ${loadOf(member).slots}`], ["memory", bytes(glance?.memory_bytes)], ["cpu", rates ? `${(rates.cpu * 100).toFixed(1)} %` : "–"],
  ]);
  const rows = (rates?.links ?? []).filter((link) => shown.has(link.channel)).sort((a, b) => natural(nameOf(a.peer), nameOf(b.peer)) || CHANNELS.indexOf(a.channel) - CHANNELS.indexOf(b.channel)).slice(0, 200);
  sync($("details-links"), rows, (link) => link.peer + link.channel,
    () => make("tr", {}, make("td", { class: "name" }), make("td", { class: "nowrap" }), make("td", { class: "n" }), make("td", { class: "n" }), make("td", { class: "n" })),
    (row, link) => [nameOf(link.peer), link.channel.replace("_", " "), seconds(link.rtt), count(link.messages), bytes(link.bytes)].forEach((text, i) => say(row.children[i], text)));
}

function drawTotals() {
  let messages = 0, size = 0, busy = 0, slots = 0;
  for (const member of state.members.filter(isHere)) {
    for (const one of Object.values(state.rates.get(member.node_id)?.channels ?? {})) {
      messages += one.sent;
      size += one.bytes;
    }
    const load = loadOf(member);
    busy += load.busy;
    slots += load.slots;
  }
  const alive = state.members.filter((one) => one.state === "alive").length;
  figures($("totals"), [["nodes alive", `${alive}`], ["messages", `${count(messages)}/s`], ["traffic", `${bytes(size)}/s`], ["tasks running", `${busy} of ${slots}`]]);
}

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
