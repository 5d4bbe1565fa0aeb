// The figures of the report, each from the same data as its PNG.

const STYLES = {
  chosen: { cls: "chosen", shape: "circle", line: true },
  rule_of_thumb: { cls: "rule_of_thumb", shape: "square", open: true, dashed: true, line: true },
  pilot: { cls: "pilot", shape: "triangle", open: true, thin: true, line: true },
  base: { cls: "base", shape: "diamond", line: true },
};
const SET_STYLES = [
  { cls: "general", shape: "circle", line: true },
  { cls: "domain", shape: "square", open: true, dashed: true, line: true },
  { cls: "pilot", shape: "triangle", open: true, line: true },
  { cls: "base", shape: "diamond", line: true },
];

const titled = (text) => text.charAt(0).toUpperCase() + text.slice(1).replaceAll("_", " ");
const byRole = (data, ...roles) => roles.flatMap((role) => data.runs.filter((run) => run.role === role));
const curveOf = (run, name) => run.curves.find((curve) => curve.set_name === name);
const setNames = (data) => [...new Set(data.runs.flatMap((run) => run.curves.map((curve) => curve.set_name)))];
const zip = (a, b) => a.map((value, i) => [value, b[i]]);

// Value at a step by straight lines between the kept points; null outside them.
function at(steps, values, step) {
  if (!steps.length || step < steps[0] || step > steps[steps.length - 1]) return null;
  let i = steps.findIndex((s) => s >= step);
  if (steps[i] === step || i === 0) return values[i];
  const share = (step - steps[i - 1]) / (steps[i] - steps[i - 1]);
  return values[i - 1] + share * (values[i] - values[i - 1]);
}

function nearestIndex(steps, step) {
  let best = 0;
  steps.forEach((s, i) => { if (Math.abs(s - step) < Math.abs(steps[best] - step)) best = i; });
  return best;
}

// Steps the cursor stops at: where anything was measured, else where it is predicted.
function curveStops(curves) {
  const measured = curves.flatMap((curve) => curve.measured_steps);
  const all = measured.length ? measured : curves.flatMap((curve) => curve.predicted_steps);
  return [...new Set(all)].sort((a, b) => a - b).map((x) => ({ x }));
}

// The same curve less a number that may depend on the step; measured losses where that number is unknown are left out.
function shifted(curve, by) {
  const moved = (column) => curve[column].map((value, i) => value - by(curve.predicted_steps[i]));
  const known = zip(curve.measured_steps, curve.measured_losses).filter(([step]) => by(step) !== null);
  return { ...curve, predicted_mean: moved("predicted_mean"), predicted_low: moved("predicted_low"), predicted_high: moved("predicted_high"),
    measured_steps: known.map(([step]) => step), measured_losses: known.map(([step, loss]) => loss - by(step)) };
}

const residual = (curve) => shifted(curve, (step) => at(curve.predicted_steps, curve.predicted_mean, step));
const allValues = (curve) => [...curve.measured_losses, ...curve.predicted_low, ...curve.predicted_high];

function drawCurve(root, curve, style, x, y) {
  const g = svg("g", { class: style.cls, "data-curve": curve.set_name }, root);
  const band = (column) => zip(curve.predicted_steps, curve[column]).map(([step, value]) => [x(step), y(value)]);
  if (curve.predicted_steps.length) {
    path(g, [...band("predicted_low"), ...band("predicted_high").reverse()], "band");
    path(g, band("predicted_mean"), lineClass(style));
  }
  for (const [step, loss] of zip(curve.measured_steps, curve.measured_losses)) marker(g, style.shape, x(step), y(loss), 2.8, markClass(style));
}

// What a curve says at a step: measured at the nearest evaluated step, predicted by interpolation.
function readCurve(curve, step) {
  const i = curve.measured_steps.length ? nearestIndex(curve.measured_steps, step) : -1;
  const near = i >= 0 && Math.abs(curve.measured_steps[i] - step) <= 0.5;
  const mean = at(curve.predicted_steps, curve.predicted_mean, step);
  return { measured: near ? curve.measured_losses[i] : null, mean,
    low: at(curve.predicted_steps, curve.predicted_low, step), high: at(curve.predicted_steps, curve.predicted_high, step) };
}

function lossRows(run, curve, style, step) {
  const found = readCurve(curve, step), rows = [];
  if (found.measured !== null) rows.push({ style: { ...style, line: false }, label: `${run.label}, measured`, value: say.loss(found.measured) });
  if (found.mean !== null)
    rows.push({ style: { ...style, shape: null, band: true }, label: `${run.label}, predicted`,
      value: `${say.loss(found.mean)} (${say.loss(found.low)} to ${say.loss(found.high)})` });
  const shown = found.measured ?? found.mean;
  return { rows, dots: shown === null ? [] : [[step, shown]] };
}

// Steps of the longest pilot: what lies after it, no pilot showed.
const longestPilot = (data) => Math.max(...byRole(data, "pilot").map((run) => run.total_steps));

function curvesFigure(host, data) {
  const runs = byRole(data, "chosen", "rule_of_thumb").filter((run) => run.curves.length);
  const measured = (run) => run.curves.some((curve) => curve.measured_steps.length);
  legend(host, runs.flatMap((run) => [
    { ...STYLES[run.role], shape: null, band: true, label: `${titled(run.label)}, predicted` },
    ...(measured(run) ? [{ ...STYLES[run.role], line: false, label: `${titled(run.label)}, measured` }] : []),
  ]));
  const panels = html("div", { class: "panels" }, host);
  for (const name of setNames(data)) {
    const shown = runs.map((run) => [run, curveOf(run, name)]).filter(([, curve]) => curve);
    if (shown.length) lossPanel(html("div", { class: "panel" }, panels), name, shown, longestPilot(data));
  }
}

function lossPanel(panel, name, shown, longest) {
  const curves = shown.map(([, curve]) => curve), stops = curveStops(curves);
  const last = Math.max(...curves.flatMap((c) => [...c.measured_steps, ...c.predicted_steps]));
  const compared = curves.filter((c) => c.predicted_steps.length && c.measured_steps.length);
  html("h4", {}, panel, `${titled(name)} text`);
  plot(panel, {
    label: `Loss on ${name} text over the run`, height: (w) => Math.min(300, Math.max(220, w * 0.6)),
    x: [0, last], y: extent(curves.flatMap(allValues)), yLabel: "validation loss, nats per token",
    xLabel: "optimiser step", hideX: compared.length > 0, xText: say.steps, stops,
    draw(root, x, y, box) {
      if (longest < last) path(root, [[x(longest), box.top], [x(longest), box.bottom]], "reference");
      for (const [run, curve] of [...shown].reverse()) drawCurve(root, curve, STYLES[run.role], x, y);
    },
    read(i) {
      const parts = shown.map(([run, curve]) => lossRows(run, curve, STYLES[run.role], stops[i].x));
      return { title: `Step ${say.steps(stops[i].x)}`, rows: parts.flatMap((p) => p.rows), dots: parts.flatMap((p) => p.dots) };
    },
  });
  if (compared.length) residualPanel(panel, name, shown.filter(([, curve]) => compared.includes(curve)), last);
}

function residualPanel(panel, name, shown, last) {
  const left = shown.map(([run, curve]) => [run, residual(curve)]), stops = curveStops(left.map(([, curve]) => curve));
  plot(panel, {
    label: `Measured minus predicted loss on ${name} text`, height: () => 142, below: true,
    x: [0, last], y: extent(left.flatMap(([, curve]) => allValues(curve)), 0.08), stops,
    yLabel: "measured − predicted, nats", xLabel: "optimiser step", xText: say.steps,
    draw(root, x, y) { for (const [run, curve] of [...left].reverse()) drawCurve(root, curve, STYLES[run.role], x, y); },
    read(i) {
      const step = stops[i].x, rows = [], dots = [];
      for (const [run, curve] of left) {
        const { measured, low, high } = readCurve(curve, step);
        if (measured === null || low === null) continue;
        const outside = measured < low || measured > high ? ", outside the band" : "";
        rows.push({ style: { ...STYLES[run.role], line: false }, label: run.label, value: say.signed(measured) + outside });
        dots.push([step, measured]);
      }
      return { title: `Step ${say.steps(step)}`, rows, dots };
    },
  });
}

function parityFigure(host, data, words) {
  const roles = ["chosen", "rule_of_thumb", "pilot", "base"], runs = Object.fromEntries(data.runs.map((run) => [run.name, run]));
  const rows = data.outcomes.filter((row) => row.measured !== null && row.quantity.startsWith("loss_"));
  const order = (row) => roles.indexOf(runs[row.run].role);
  const met = roles.filter((role) => rows.some((row) => runs[row.run].role === role));
  legend(host, met.map((role) => ({ ...STYLES[role], line: false, label: titled(words.roles[role]) + (role === "pilot" ? " (fitted)" : "") })));
  const panels = html("div", { class: "panels" }, host);
  for (const quantity of [...new Set(rows.map((row) => row.quantity))]) {
    const shown = rows.filter((row) => row.quantity === quantity).sort((a, b) => a.predicted - b.predicted);
    const panel = html("div", { class: "panel" }, panels), domain = extent(shown.flatMap((r) => [r.low, r.high, r.measured]), 0.06);
    html("h4", {}, panel, words.quantities[quantity] || titled(quantity));
    plot(panel, {
      label: `Predicted against measured, ${quantity}`, height: (w) => Math.min(380, w * 0.85), x: domain, y: domain,
      xLabel: "predicted, nats per token", yLabel: "measured, nats per token", stops: shown.map((r) => ({ x: r.predicted, y: r.measured })),
      draw(root, x, y) {
        path(root, domain.map((v) => [x(v), y(v)]), "reference");
        for (const row of [...shown].sort((a, b) => order(b) - order(a))) {
          const style = STYLES[runs[row.run].role], g = svg("g", { class: style.cls }, root);
          svg("line", { x1: x(row.low), x2: x(row.high), y1: y(row.measured), y2: y(row.measured), class: "error" }, g);
          marker(g, style.shape, x(row.predicted), y(row.measured), order(row) < 2 ? 5 : 3.5, markClass(style));
        }
      },
      read(i) {
        const row = shown[i], run = runs[row.run], inside = row.measured >= row.low && row.measured <= row.high;
        return { title: `${titled(run.label)}: ${inside ? "inside" : "outside"} the interval`, dots: [[row.predicted, row.measured]], rows: [
          { label: "measured", value: say.loss(row.measured) },
          { label: "predicted", value: `${say.loss(row.predicted)} (${say.loss(row.low)} to ${say.loss(row.high)})` },
          { label: "peak learning rate", value: say.lr(run.peak_lr) }, { label: "replay", value: run.replay_ratio }] };
      },
    });
  }
}

function pilotsFigure(host, data) {
  const runs = byRole(data, "pilot").filter((run) => run.curves.length), names = setNames(data);
  const style = (name) => SET_STYLES[Math.min(names.indexOf(name), SET_STYLES.length - 1)];
  legend(host, names.map((name) => ({ ...style(name), label: `${titled(name)} text` })));
  const start = (curve) => curve.measured_losses[0] ?? curve.predicted_mean[0] ?? 0;
  const change = (curve) => shifted(curve, () => start(curve));
  const domain = extent(runs.flatMap((run) => run.curves.flatMap((curve) => allValues(change(curve)))));
  const panels = html("div", { class: "panels small" }, host);
  for (const run of runs) {
    const panel = html("div", { class: "panel" }, panels), stops = curveStops(run.curves);
    const heading = html("h4", {}, panel, `Peak ${say.lr(run.peak_lr)} `);
    html("span", {}, heading, `${run.replay_ratio} replay`);
    plot(panel, {
      label: `${titled(run.label)}: change of loss`, height: (w) => Math.min(190, Math.max(164, w)), left: 40, x: [0, run.total_steps], y: domain,
      yLabel: "change, nats", xLabel: "optimiser step", xText: say.steps, stops,
      draw(root, x, y, box) {
        path(root, [[box.left, y(0)], [box.right, y(0)]], "reference");
        for (const curve of run.curves) drawCurve(root, change(curve), style(curve.set_name), x, y);
      },
      read(i) {
        const rows = [], dots = [];
        for (const curve of run.curves) {
          const found = readCurve(curve, stops[i].x), value = found.measured ?? found.mean;
          if (value === null) continue;
          rows.push({ style: style(curve.set_name), label: curve.set_name, value: say.loss(value) + (found.measured !== null && found.mean !== null ? `, fit ${say.loss(found.mean)}` : "") });
          dots.push([stops[i].x, value - start(curve)]);
        }
        return { title: `${titled(run.label)}, step ${say.steps(stops[i].x)}`, rows, dots };
      },
    });
  }
}

function schedulesFigure(host, data) {
  const runs = byRole(data, "pilot", "rule_of_thumb", "chosen").filter((run) => run.lr.length);
  const roles = ["chosen", "rule_of_thumb", "pilot"].filter((role) => runs.some((run) => run.role === role));
  legend(host, roles.map((role) => ({ ...STYLES[role], shape: null, label: role === "pilot" ? "Pilots" : titled(runs.find((r) => r.role === role).label) })));
  const last = Math.max(...runs.map((run) => run.total_steps)), stops = Array.from({ length: 101 }, (_, i) => ({ x: Math.max(1, Math.round((last * i) / 100)) }));
  const main = runs.filter((run) => run.role !== "pilot").reverse(), read = main.length ? main : runs;
  const high = Math.max(...runs.flatMap((run) => run.lr)) * 1.06 || 1;
  plot(html("div", { class: "panel" }, host), {
    label: "Learning rate of every step", height: (w) => Math.min(300, Math.max(220, w * 0.6)), left: 54,
    x: [0, last], y: [0, high], yLabel: "learning rate", yText: say.lr, xLabel: "optimiser step", xText: say.steps, stops,
    draw(root, x, y) {
      for (const run of runs) path(svg("g", { class: STYLES[run.role].cls }, root), zip(run.lr_steps, run.lr).map(([s, v]) => [x(s), y(v)]), lineClass(STYLES[run.role]));
    },
    read(i) {
      const step = stops[i].x, rows = [], dots = [];
      for (const run of read) {
        const value = at(run.lr_steps, run.lr, step);
        if (value === null) continue;
        rows.push({ style: { ...STYLES[run.role], shape: null }, label: run.label, value: say.lr(value) });
        dots.push([step, value]);
      }
      return { title: `Step ${say.steps(step)}`, rows, dots };
    },
  });
}
