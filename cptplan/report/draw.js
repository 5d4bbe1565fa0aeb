// Small drawing kit: SVG elements, scales, axes, markers, and one plot with a read-out for mouse, touch and keys.
"use strict";

const SVG = "http://www.w3.org/2000/svg";

function svg(tag, attributes, parent, text) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function html(tag, attributes, parent, text) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes || {})) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

const say = {
  loss: (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(3),
  signed: (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3),
  steps: (value) => Math.round(value).toLocaleString("en-US"),
  percent: (value) => (100 * value).toFixed(Math.abs(value * 100 - Math.round(value * 100)) < 0.05 ? 0 : 1) + "%",
  lr(value) {
    if (value === 0) return "0";
    const [mantissa, exponent] = value.toExponential(2).split("e");
    return String(Number(mantissa)) + "e" + Number(exponent);
  },
};

// Round numbers between low and high, about as many as asked.
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.6);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step + 0); // + 0 turns -0 into 0
  return found;
}

function logTicks(low, high) {
  const found = [];
  for (let p = Math.floor(Math.log10(low)); p <= Math.log10(high); p++)
    for (const m of [1, 2, 5]) if (m * 10 ** p >= low * 0.999 && m * 10 ** p <= high * 1.001) found.push(m * 10 ** p);
  return found;
}

// Digits that tell neighbouring ticks apart.
function tickText(values) {
  const step = values.length > 1 ? Math.abs(values[1] - values[0]) : 1;
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return (value) => (value < 0 ? "−" : "") + Math.abs(value).toFixed(digits);
}

function scale(domain, range, log) {
  const f = log ? Math.log : (v) => v;
  const [a, b] = domain.map(f);
  return (value) => range[0] + ((f(value) - a) / (b - a || 1)) * (range[1] - range[0]);
}

// Smallest range that holds the values, with a margin.
function extent(values, margin = 0.05) {
  const low = Math.min(...values), high = Math.max(...values);
  const room = (high - low || Math.abs(high) * 0.1 || 1) * margin;
  return [low - room, high + room];
}

const SHAPES = {
  circle: (r) => `M${-r},0a${r},${r} 0 1,0 ${2 * r},0a${r},${r} 0 1,0 ${-2 * r},0Z`,
  square: (r) => `M${-r},${-r}H${r}V${r}H${-r}Z`,
  diamond: (r) => `M0,${-1.35 * r}L${1.35 * r},0L0,${1.35 * r}L${-1.35 * r},0Z`,
  triangle: (r) => `M0,${-1.25 * r}L${1.2 * r},${0.95 * r}H${-1.2 * r}Z`,
  star: (r) => Array.from({ length: 10 }, (_, i) => {
    const radius = (i % 2 ? 0.62 : 1.5) * r, angle = (Math.PI * i) / 5;
    return `${i ? "L" : "M"}${(radius * Math.sin(angle)).toFixed(2)},${(-radius * Math.cos(angle)).toFixed(2)}`;
  }).join("") + "Z",
};

function marker(parent, shape, x, y, radius, cls) {
  return svg("path", { d: SHAPES[shape](radius), transform: `translate(${x.toFixed(2)},${y.toFixed(2)})`, class: cls }, parent);
}

function path(parent, points, cls) {
  const d = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(2)},${y.toFixed(2)}`).join("");
  return svg("path", { d, class: cls }, parent);
}

// One look for a series everywhere: line, dash, marker. style = {cls, colour, shape, open, dashed, line, band, thin}
function swatch(parent, style, width = 34, height = 14) {
  const icon = svg("svg", { viewBox: `0 0 ${width} ${height}`, "aria-hidden": "true", class: style.cls }, parent);
  if (style.colour) icon.style.setProperty("--c", style.colour);
  const middle = height / 2;
  if (style.bar) svg("rect", { x: 0, y: 1, width, height: height - 2, class: "bar" }, icon);
  if (style.band) svg("rect", { x: 0, y: 1, width, height: height - 2, class: "band" }, icon);
  if (style.line) path(icon, [[0, middle], [width, middle]], lineClass(style));
  if (style.shape) marker(icon, style.shape, width / 2, middle, 4, style.mark || markClass(style));
  return icon;
}

const lineClass = (style) => "line" + (style.dashed ? " dashed" : "") + (style.thin ? " thin" : "");
const markClass = (style) => "marker" + (style.open ? " open" : "");

function legend(parent, entries) {
  const list = html("ul", { class: "legend" }, parent);
  for (const entry of entries) {
    const item = html("li", {}, list);
    swatch(item, entry);
    html("span", {}, item, entry.label);
  }
}

// Thin axis labels so that they do not touch.
function thinned(values, x, room) {
  let last = -Infinity;
  return values.filter((value) => {
    const fits = Math.abs(x(value) - last) >= room;
    if (fits) last = x(value);
    return fits;
  });
}

function axes(root, spec, x, y, box) {
  const grid = svg("g", { class: "grid", "aria-hidden": "true" }, root);
  const yTicks = spec.yTicks || ticks(...spec.y, Math.max(3, (box.bottom - box.top) / 50));
  const yText = spec.yText || tickText(yTicks);
  for (const value of yTicks) {
    svg("line", { x1: box.left, x2: box.right, y1: y(value), y2: y(value) }, grid);
    svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, grid, yText(value));
  }
  const xTicks = spec.xTicks || (spec.logX ? logTicks(...spec.x) : ticks(...spec.x, Math.max(2, (box.right - box.left) / 90)));
  const xText = spec.xText || tickText(xTicks);
  for (const value of xTicks) svg("line", { x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4 }, grid);
  if (!spec.hideX)
    for (const value of thinned(xTicks, x, spec.logX ? 38 : 44))
      svg("text", { x: x(value), y: box.bottom + 18, "text-anchor": "middle" }, grid, xText(value));
  svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "frame" }, root);
  if (spec.xLabel && !spec.hideX)
    svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 38, "text-anchor": "middle", class: "axis-label" }, root, spec.xLabel);
  if (spec.yLabel) svg("text", { x: 0, y: box.top - 11, class: "axis-label" }, root, spec.yLabel);
}

// A plot that redraws itself at the width it is given.
// spec: {label, height(width), x, y (domains), logX, xLabel, yLabel, xTicks, yTicks, xText, yText, hideX,
//        draw(root, x, y, box), stops: [{x, y?}], read(i) -> {title, rows: [{style, label, value}], dots: [[x, y]]},
//        jump: rows of stops that ArrowUp and ArrowDown pass over, below: read-out below the plot}
function plot(parent, spec) {
  const host = html("div", { class: "plot" }, parent);
  let current = null, drawn = 0, picture = null;
  const readout = html("div", { class: "readout", hidden: "" }, host);
  const spoken = html("div", { class: "sr", role: "status" }, host);

  function draw() {
    const width = Math.max(200, Math.round(host.clientWidth || 400));
    if (width === drawn) return;
    drawn = width;
    const height = Math.round(spec.height(width));
    const box = { left: spec.left || 48, right: width - (spec.right || 8), top: spec.yLabel ? 26 : 8,
      bottom: height - (spec.hideX ? 8 : spec.xLabel ? 46 : 26) };
    const x = scale(spec.x, [box.left, box.right], spec.logX), y = scale(spec.y, [box.bottom, box.top], false);
    const root = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": spec.label });
    axes(root, spec, x, y, box);
    spec.draw(root, x, y, box);
    const cursor = svg("g", { "aria-hidden": "true" }, root);
    if (picture) picture.root.replaceWith(root); else host.prepend(root);
    picture = { root, cursor, x, y, box, width };
    if (current !== null) show(current);
  }

  function show(index) {
    current = index;
    const { x, y, box, cursor, width } = picture, stop = spec.stops[index], says = spec.read(index);
    cursor.replaceChildren();
    if (stop.y === undefined) svg("line", { x1: x(stop.x), x2: x(stop.x), y1: box.top, y2: box.bottom, class: "hair" }, cursor);
    for (const [dx, dy] of says.dots || []) marker(cursor, "circle", x(dx), y(dy), 6, "cursor");
    readout.replaceChildren();
    html("b", {}, readout, says.title);
    for (const row of says.rows) {
      const line = html("div", {}, readout);
      if (row.style) swatch(line, row.style, 26, 12); else html("span", {}, line);
      html("span", {}, line, row.label);
      html("span", { class: "says" }, line, row.value);
    }
    readout.hidden = false;
    const px = x(stop.x), wide = readout.offsetWidth;
    const left = px + 14 + wide <= width ? px + 14 : Math.max(0, px - 14 - wide);
    readout.style.left = `${Math.min(left, Math.max(0, width - wide))}px`;
    // Over a curve the read-out stays outside the plot, so that it hides no data: above it if the window has room there.
    const tall = readout.offsetHeight, above = box.top - tall - 2, room = host.getBoundingClientRect().top + above >= 0;
    const outside = room && !spec.below ? above : box.bottom + 4;
    readout.style.top = `${stop.y === undefined ? outside : Math.max(0, y(stop.y) - tall - 12)}px`;
  }

  function hide() {
    current = null;
    readout.hidden = true;
    spoken.textContent = "";
    if (picture) picture.cursor.replaceChildren();
  }

  function nearest(event) {
    const bounds = picture.root.getBoundingClientRect(), ratio = picture.width / bounds.width;
    const mx = (event.clientX - bounds.left) * ratio, my = (event.clientY - bounds.top) * ratio;
    let best = 0, least = Infinity;
    spec.stops.forEach((stop, i) => {
      const dx = picture.x(stop.x) - mx, dy = stop.y === undefined ? 0 : picture.y(stop.y) - my;
      if (dx * dx + dy * dy < least) [best, least] = [i, dx * dx + dy * dy];
    });
    return best;
  }

  function key(event) {
    const last = spec.stops.length - 1, rows = spec.jump || 1, from = current;
    const moves = { ArrowRight: 1, ArrowLeft: -1, ArrowUp: spec.jump ? rows : 1, ArrowDown: spec.jump ? -rows : -1 };
    let to = null;
    if (event.key in moves) to = from === null ? 0 : Math.min(last, Math.max(0, from + moves[event.key]));
    else if (event.key === "Home") to = 0;
    else if (event.key === "End") to = last;
    else if (event.key === "Escape") return hide();
    if (to === null) return;
    event.preventDefault();
    show(to);
    const says = spec.read(to);
    spoken.textContent = [says.title, ...says.rows.map((row) => `${row.label} ${row.value}`)].join("; ");
  }

  if (spec.stops && spec.stops.length) {
    host.tabIndex = 0;
    host.setAttribute("role", "group");
    host.setAttribute("aria-label", `${spec.label}. Arrow keys read the values out.`);
    host.addEventListener("pointermove", (event) => show(nearest(event)));
    host.addEventListener("pointerdown", (event) => show(nearest(event)));
    host.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
    host.addEventListener("keydown", key);
    host.addEventListener("blur", hide);
  }
  draw();
  new ResizeObserver(draw).observe(host);
  return host;
}
