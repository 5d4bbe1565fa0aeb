// Figures over plans rather than steps: response surface, Pareto front, shares of compute; and the page's start.

// How far above the best a value is, as a share of the scale: the square root spreads the good plans apart.
function heatShare(value, best, worst) {
  return Math.sqrt(Math.max(0, value - best) / (worst - best || 1));
}

const heatColour = (share) => `color-mix(in oklab, var(--heat-worst) ${(100 * share).toFixed(1)}%, var(--heat-best))`;

// Edges halfway between the grid values, on the scale of the axis.
function edges(values, log) {
  const f = log ? Math.log : (v) => v, back = log ? Math.exp : (v) => v, v = values.map(f);
  const inner = v.slice(1).map((value, i) => (value + v[i]) / 2);
  return [2 * v[0] - inner[0], ...inner, 2 * v[v.length - 1] - inner[inner.length - 1]].map(back);
}

// Line pieces where the surface crosses a level (marching squares), in pixels.
function contour(values, xs, ys, level) {
  const pieces = [];
  const cross = (a, b, va, vb) => { const t = (level - va) / (vb - va); return [a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1])]; };
  for (let i = 0; i + 1 < xs.length; i++)
    for (let j = 0; j + 1 < ys.length; j++) {
      const corners = [[i, j], [i + 1, j], [i + 1, j + 1], [i, j + 1]], v = corners.map(([a, b]) => values[a][b]);
      if (v.some((value) => value === null)) continue;
      const hits = [];
      for (let k = 0; k < 4; k++) {
        const n = (k + 1) % 4;
        if (v[k] < level !== v[n] < level)
          hits.push(cross([xs[corners[k][0]], ys[corners[k][1]]], [xs[corners[n][0]], ys[corners[n][1]]], v[k], v[n]));
      }
      for (let k = 0; k + 1 < hits.length; k += 2) pieces.push([hits[k], hits[k + 1]]);
    }
  return pieces;
}

// One level line, with its label at the highest place that has room.
function drawLevel(parent, pieces, label, box) {
  const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
  for (const piece of pieces) path(parent, piece, "contour");
  const places = pieces.map(middle).filter(([px, py]) => py > box.top + 14 && py < box.bottom - 8 && px > box.left + 20 && px < box.right - 20);
  if (!places.length) return;
  const [px, py] = places.reduce((top, place) => (place[1] < top[1] ? place : top));
  svg("text", { x: px, y: py + 4, "text-anchor": "middle", class: "heat-level" }, parent, label);
}

function surfaceFigure(host, data) {
  const surface = data.surface, cells = surface.objective.flat().filter((v) => v !== null);
  const best = Math.min(...cells), worst = Math.max(...cells), span = worst - best;
  const levels = [0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2].filter((step) => step < span * 0.9).slice(-5);
  const marks = { pilot: { shape: "triangle", mark: "heat-mark small" }, rule: { shape: "square", mark: "heat-mark" }, chosen: { shape: "star", mark: "heat-mark" } };
  legend(host, [
    ...(surface.chosen ? [{ ...marks.chosen, label: "Chosen plan" }] : []),
    ...(surface.rule_of_thumb ? [{ ...marks.rule, label: "Rule of thumb" }] : []),
    ...(surface.pilots.length ? [{ ...marks.pilot, label: "Pilots" }] : []),
    ...(surface.supported ? [{ cls: "base", line: true, dashed: true, thin: true, label: "What the pilots span" }] : []),
  ]);
  const ex = edges(surface.peak_lrs, true), ey = edges(surface.replay_ratios, false), m = surface.peak_lrs.length;
  const stops = surface.replay_ratios.flatMap((y) => surface.peak_lrs.map((x) => ({ x, y })));
  const valueAt = (i) => surface.objective[i % m][Math.floor(i / m)];
  const all = [surface.chosen, surface.rule_of_thumb, ...surface.pilots].filter(Boolean);
  plot(html("div", { class: "panel" }, host), {
    label: "Predicted objective over peak learning rate and replay ratio", height: (w) => Math.min(460, Math.max(280, w * 0.5)),
    x: [Math.min(ex[0], ...all.map((p) => p.peak_lr / 1.04)), Math.max(ex[m], ...all.map((p) => p.peak_lr * 1.04))],
    y: [Math.min(ey[0], ...all.map((p) => p.replay_ratio)), Math.max(ey[ey.length - 1], ...all.map((p) => p.replay_ratio))],
    logX: true, xText: say.lr, yText: say.percent, xLabel: "peak learning rate (log scale)", yLabel: "replay ratio", right: 14, stops, jump: m,
    draw(root, x, y, box) {
      const g = svg("g", { "aria-hidden": "true" }, root);
      surface.peak_lrs.forEach((_, i) => surface.replay_ratios.forEach((_, j) => {
        const value = surface.objective[i][j];
        if (value === null) return;
        const cell = svg("rect", { class: "cell", x: x(ex[i]), y: y(ey[j + 1]), width: x(ex[i + 1]) - x(ex[i]) + 0.6, height: y(ey[j]) - y(ey[j + 1]) + 0.6 }, g);
        cell.style.fill = heatColour(heatShare(value, best, worst));
      }));
      const xs = surface.peak_lrs.map(x), ys = surface.replay_ratios.map(y);
      for (const step of levels) drawLevel(g, contour(surface.objective, xs, ys, best + step), `+${step}`, box);
      if (surface.supported) {
        const [left, right, low, high] = surface.supported;
        svg("rect", { x: x(left), y: y(high), width: x(right) - x(left), height: y(low) - y(high), class: "supported" }, root);
      }
      for (const p of surface.pilots) marker(root, "triangle", x(p.peak_lr), y(p.replay_ratio), 4.5, "heat-mark small");
      if (surface.rule_of_thumb) marker(root, "square", x(surface.rule_of_thumb.peak_lr), y(surface.rule_of_thumb.replay_ratio), 6, "heat-mark");
      if (surface.chosen) marker(root, "star", x(surface.chosen.peak_lr), y(surface.chosen.replay_ratio), 9, "heat-mark");
      for (const p of [surface.rule_of_thumb, surface.chosen].filter(Boolean)) {
        const late = x(p.peak_lr) > box.left + 0.7 * (box.right - box.left);
        svg("text", { x: x(p.peak_lr) + (late ? -15 : 15), y: y(p.replay_ratio) + 4, "text-anchor": late ? "end" : "start", class: "heat-label" }, root, p.label);
      }
    },
    read(i) {
      const value = valueAt(i), { x, y } = stops[i];
      const rows = [{ label: "peak learning rate", value: say.lr(x) }, { label: "replay", value: say.percent(y) }];
      const near = all.filter((p) => Math.abs(Math.log(p.peak_lr / x)) < Math.log(ex[1] / ex[0]) && Math.abs(p.replay_ratio - y) <= ey[2] - ey[1]);
      if (value !== null) rows.push({ label: "above the best", value: say.signed(value - best) });
      return { title: value === null ? "No plan allowed here" : `Objective ${say.loss(value)}`, dots: [[x, y]],
        rows: [...rows, ...near.map((p) => ({ label: `near ${p.label}`, value: `${say.lr(p.peak_lr)}, ${say.percent(p.replay_ratio)}` }))] };
    },
  });
  heatKey(host, best, worst, levels);
}

function heatKey(host, best, worst, levels) {
  const box = html("div", { class: "heat-key" }, host), bar = svg("svg", { viewBox: "0 0 400 44", "aria-hidden": "true" }, box);
  for (let i = 0; i < 80; i++) svg("rect", { x: 10 + i * 4.75, y: 4, width: 5.2, height: 14 }, bar).style.fill = heatColour(i / 79);
  const place = (step) => 10 + 380 * heatShare(best + step, best, worst);
  for (const step of levels) svg("line", { x1: place(step), x2: place(step), y1: 4, y2: 22, class: "frame" }, bar);
  for (const step of thinned([0, ...levels], place, 46))
    svg("text", { x: place(step), y: 37, "text-anchor": step ? "middle" : "start" }, bar, step ? `+${step}` : "best");
  html("span", {}, box, `nats above the best objective, ${say.loss(best)}`);
}

// The plans of the front, cheapest line first, each with its line's colour: the darker, the dearer.
function frontLines(front) {
  const last = Math.max(front.lines.length - 1, 1);
  return front.lines.map((line, i) => {
    const share = front.lines.length > 1 ? 30 + (70 * i) / last : 100;
    const points = [...line.points].sort((a, b) => a.general - b.general);
    return { label: line.label, points, colour: `color-mix(in oklab, var(--base) ${share.toFixed(0)}%, var(--paper))` };
  });
}

function paretoFigure(host, data) {
  const front = data.pareto, lines = frontLines(front), found = lines.flatMap((line) => line.points), label = { chosen: "chosen plan", rule_of_thumb: "rule of thumb" };
  const named = [["rule_of_thumb", front.rule_of_thumb], ["chosen", front.chosen]].filter(([, p]) => p);
  const final = (role, quantity) => { const run = data.runs.find((r) => r.role === role); const row = run && data.outcomes.find((o) => o.run === run.name && o.quantity === quantity); return row ? row.measured : null; };
  const measured = named.map(([role]) => [role, final(role, "loss_general"), final(role, "loss_domain")]).filter(([, g, d]) => g !== null && d !== null);
  const all = [...found, ...named.map(([, p]) => p)], shape = (role) => (role === "chosen" ? "star" : "square");
  const dearest = lines.length ? lines[lines.length - 1].points : [], crossed = [...dearest, ...named.map(([, p]) => p)];
  legend(host, [
    ...lines.map((line) => ({ cls: "base", colour: line.colour, line: true, shape: "circle", open: true, label: line.label })),
    ...named.map(([role]) => ({ ...STYLES[role], line: false, shape: shape(role), label: `${titled(label[role])}, predicted` })),
    ...measured.map(([role]) => ({ cls: STYLES[role].cls, shape: "diamond", label: `${titled(label[role])}, measured` })),
  ]);
  plot(html("div", { class: "panel" }, host), {
    label: "Predicted general loss against domain loss", height: (w) => Math.min(460, Math.max(300, w * 0.5)),
    x: extent([...found.map((p) => p.general), ...crossed.flatMap((p) => [p.general_low, p.general_high]), ...measured.map((p) => p[1])]),
    y: extent([...found.map((p) => p.domain), ...crossed.flatMap((p) => [p.domain_low, p.domain_high]), ...measured.map((p) => p[2])]),
    xLabel: "general loss, nats per token", yLabel: "domain loss, nats per token", stops: all.map((p) => ({ x: p.general, y: p.domain })),
    draw(root, x, y) {
      const cross = (p, cls, faint) => {
        const g = svg("g", { class: cls }, root), c = faint ? "error faint" : "error";
        svg("line", { x1: x(p.general_low), x2: x(p.general_high), y1: y(p.domain), y2: y(p.domain), class: c }, g);
        svg("line", { x1: x(p.general), x2: x(p.general), y1: y(p.domain_low), y2: y(p.domain_high), class: c }, g);
      };
      for (const p of dearest) cross(p, "pilot", true);
      for (const line of lines) {
        const g = svg("g", { class: "base" }, root);
        g.style.setProperty("--c", line.colour);
        path(g, line.points.map((p) => [x(p.general), y(p.domain)]), "line front");
        for (const p of line.points) marker(g, "circle", x(p.general), y(p.domain), 3, "marker open");
      }
      for (const [role, p] of named) {
        cross(p, STYLES[role].cls, false);
        marker(svg("g", { class: STYLES[role].cls }, root), shape(role), x(p.general), y(p.domain), role === "chosen" ? 8 : 5.5, markClass(STYLES[role]));
      }
      for (const [role, g, d] of measured) marker(svg("g", { class: STYLES[role].cls }, root), "diamond", x(g), y(d), 4, "marker");
    },
    read(i) {
      const p = all[i], role = i >= found.length ? named[i - found.length][0] : null, came = measured.find(([r]) => r === role);
      return { title: role ? titled(label[role]) : "Plan on the front", dots: [[p.general, p.domain]], rows: [
        { label: "peak learning rate", value: say.lr(p.peak_lr) }, { label: "replay", value: p.replay_ratio }, { label: "steps", value: say.steps(p.total_steps) },
        ...[["decay", p.decay], ["start", p.start], ["cost", p.cost]].filter(([, value]) => value).map(([name, value]) => ({ label: name, value })),
        { label: "general", value: `${say.loss(p.general)} (${say.loss(p.general_low)} to ${say.loss(p.general_high)})` },
        { label: "domain", value: `${say.loss(p.domain)} (${say.loss(p.domain_low)} to ${say.loss(p.domain_high)})` },
        ...(came ? [{ label: "measured", value: `${say.loss(came[1])}, ${say.loss(came[2])}` }] : [])] };
    },
  });
}

function computeFigure(host, data) {
  const total = data.compute.reduce((sum, share) => sum + share.flops, 0);
  const classes = ["base", "domain", "chosen", "rule_of_thumb", "pilot", "general"];
  let done = 0;
  const parts = data.compute.map((share, i) => { const from = done / total; done += share.flops; return { ...share, from, to: done / total, cls: classes[i % classes.length] }; });
  plot(html("div", { class: "panel" }, host), {
    label: "Share of compute by stage", height: () => 84, x: [0, 1], y: [0, 1], left: 2, right: 2, yTicks: [], xTicks: [0, 0.25, 0.5, 0.75, 1], xText: say.percent,
    stops: parts.map((p) => ({ x: (p.from + p.to) / 2, y: 0.5 })),
    draw(root, x, y, box) {
      for (const p of parts) {
        const g = svg("g", { class: p.cls }, root), wide = x(p.to) - x(p.from);
        svg("rect", { x: x(p.from), y: box.top, width: wide, height: box.bottom - box.top - 6, class: "segment" }, g);
        const share = `${Math.round(100 * (p.to - p.from))}%`;
        if (wide > 40) svg("text", { x: x(p.from) + 9, y: (box.top + box.bottom) / 2 + 2, class: "in-segment" }, g, share);
      }
    },
    read(i) {
      const p = parts[i];
      return { title: titled(p.stage), rows: [{ label: "share of compute", value: say.percent(p.to - p.from) }, { label: "time", value: `${say.steps(p.seconds)} s` },
        { label: "tokens", value: say.steps(p.tokens) }, { label: "FLOP", value: say.lr(p.flops) }] };
    },
  });
  legend(host, parts.map((p) => ({ cls: p.cls, bar: true, label: titled(p.stage) })));
}

// The numbers of the curves as a table, made when someone opens it.
function curveTable(details, runs) {
  details.addEventListener("toggle", () => {
    if (!details.open || details.querySelector("table")) return;
    const table = html("table", {}, html("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Numbers" }, details));
    const head = html("tr", {}, html("thead", {}, table));
    for (const name of ["Run", "Set", "Step", "Measured", "Predicted", "Low", "High"]) html("th", { scope: "col" }, head, name);
    const body = html("tbody", {}, table);
    for (const run of runs) for (const curve of run.curves) for (const { x } of curveStops([curve])) {
      const found = readCurve(curve, x), row = html("tr", {}, body);
      for (const text of [run.label, curve.set_name]) html("td", {}, row, text);
      html("td", { class: "number" }, row, say.steps(x));
      for (const value of [found.measured, found.mean, found.low, found.high]) html("td", { class: "number" }, row, value === null ? "–" : value.toFixed(4));
    }
  });
}

function themeButton(button) {
  const root = document.documentElement, system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; button.setAttribute("aria-label", `Switch to ${dark() ? "light" : "dark"} colours`); };
  button.addEventListener("click", () => { root.dataset.theme = dark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  button.hidden = false;
  name();
}

function start() {
  const { data, words } = JSON.parse(document.getElementById("report-data").textContent);
  const draw = { curves: curvesFigure, parity: parityFigure, surface: surfaceFigure, pareto: paretoFigure, schedules: schedulesFigure, pilots: pilotsFigure, compute: computeFigure };
  for (const host of document.querySelectorAll("[data-figure]")) draw[host.dataset.figure](host, data, words);
  for (const details of document.querySelectorAll("details[data-roles]")) curveTable(details, byRole(data, ...details.dataset.roles.split(" ")));
  themeButton(document.getElementById("theme"));
}

start();
