// Given to the page in place of a real mesh: `count` nodes, a new picture every 30 frames; gives the frames' times in ms.
(count) => {
  const id = (i) => `id${i}`;
  const indices = [...Array(count).keys()];
  const traffic = (sent) => ({
    sent, received: 1, bytes_sent: 1, bytes_received: 1, dropped: 0, queued: 0, in_flight: 0, rtt_s: 0.001, rtt_max_s: 0.002,
  });
  const glance = (i, at) => ({
    name: `n${i}`, node_id: id(i), at_s: at, serving: true, leader: id(0), term: 3, commit_index: 9, applied_index: 9,
    voters: [0, 1, 2].map(id), learners: [], health: {}, slots: 8, busy: i % 9, memory_bytes: 6e7, cpu_s: at / 100,
    evaluations: [],
    channels: { inference: traffic(at * 50), coordination: traffic(1), telemetry: traffic(1), real_time: traffic(1) },
    links: [1, 2, 3].map((n) => [id((i + n) % count), "inference", at * 20 * n, at * 900, 0.001]),
  });
  const members = indices.map((i) => ({
    name: `n${i}`, node_id: id(i), state: "alive", address: "h:1", role: "node", tags: {}, programs: [], slots: 8, busy: i % 9,
  }));
  const feed = (at) => take({
    members: [...members], ...Object.fromEntries(indices.map((i) => [`node:${id(i)}`, glance(i, at)])),
  });
  return new Promise((done) => {
    const frames = [];
    let at = 1, last = 0;
    const step = (now) => {
      if (last) frames.push(now - last);
      last = now;
      if (frames.length % 30 === 0) feed(at++);
      if (frames.length < 120) requestAnimationFrame(step);
      else done(frames);
    };
    requestAnimationFrame(step);
  });
}
