// The picture of nodes and links, and the details of the one that is picked.
"use strict";

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
  // One round trip for each neighbour, that of the busiest channel; the table below has them all.
  const trips = new Map();
  for (const link of picked ? all.filter((one) => near(one) && one.rtt > 0) : []) {
    const peer = link.a === picked ? link.b : link.a;
    if (!trips.has(peer)) trips.set(peer, link);
  }
  const named = [...trips.values()].slice(0, 12);
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
