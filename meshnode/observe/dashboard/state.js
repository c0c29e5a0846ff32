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

const state = { hello: null, members: [], variables: [], changes: [], sessions: [], rounds: [], nodes: new Map(), rates: new Map() };
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
  tell(change.writer ? `${what} (${change.writer})` : what, "", change.wall_ms || (aloud ? Date.now() : 0), aloud);
}

function tell(text, tone = "", at = Date.now(), aloud = true) {
  lately.unshift({ at, text, tone, id: `${at}-${lately.length}-${text}` });
  lately.sort((a, b) => b.at - a.at);
  lately.length = Math.min(lately.length, 60);
  if (aloud) say($("said"), text);
}
