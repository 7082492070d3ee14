// ReaderCompare's pictures: cumulative gains, means with intervals, gains against costs. They draw and keep no state.

import { LINE_DASHES, axes, linear, swatch } from "../../core/js/charts.js";
import { svg } from "../../core/js/elements.js";
import { brief, clamp, printable, signed, whole } from "../../core/js/format.js";
import { palette } from "../../core/js/theme.js";

const PREFIXES = [[1e15, "P"], [1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"], [1, ""]];
const MARKS = ["circle", "square", "diamond", "triangle"]; // by run

/** Write a number with a unit and its prefix: 47 MB, 1.62 kB; – where it is null. */
export function scaled(x, unit) {
  if (x === null) return "–";
  const [size, prefix] = PREFIXES.find(([s]) => Math.abs(x) >= s) ?? [1, ""];
  return `${Number((x / size).toPrecision(3))} ${prefix}${unit}`.trim();
}

/** Write [mean, low, high], or that there is no interval. */
export function intervalText(estimate, digits = 3) {
  if (!estimate || estimate[0] === null) return "not finite";
  const [mean, low, high] = estimate;
  const edges = low === null ? "no interval" : `${signed(low, digits)}, ${signed(high, digits)}`;
  return `${signed(mean, digits)} [${edges}]`;
}

/** Write a sum of nats, as a whole number from 100 on. */
export const nats = (x) => (Math.abs(x) < 100 ? brief(x) : whole(Math.round(x)).replace("-", "−"));

/** Make a small picture of a reader's line and the mark of its run. */
export function marked(style) {
  const node = swatch(style), shape = MARKS[style.run % MARKS.length];
  const [tag, attributes] = {
    circle: ["circle", { cx: 13, cy: 5, r: 4 }],
    square: ["rect", { x: 9, y: 1, width: 8, height: 8 }],
    diamond: ["polygon", { points: "13,0 18,5 13,10 8,5" }],
    triangle: ["polygon", { points: "13,0 18,9 8,9" }],
  }[shape];
  node.append(svg(tag, { ...attributes, fill: style.colour }));
  return node;
}

/** Draw the mark of a run; hollow where `filled` is false. */
function mark(context, style, x, y, size, filled = true) {
  context.beginPath();
  const shape = MARKS[style.run % MARKS.length];
  const polygon = (...corners) => corners.forEach(([dx, dy]) => context.lineTo(x + dx * size, y + dy * size));
  if (shape === "circle") context.arc(x, y, size, 0, 2 * Math.PI);
  else if (shape === "square") context.rect(x - size, y - size, 2 * size, 2 * size);
  else if (shape === "diamond") polygon([0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]);
  else polygon([0, -1.3], [1.2, 1], [-1.2, 1]);
  context.closePath();
  context.setLineDash([]);
  context.lineWidth = 2;
  context.strokeStyle = style.colour;
  context.fillStyle = filled ? style.colour : palette().ground;
  context.fill();
  context.stroke();
}

/** Draw text with a halo of the ground, so that it stays legible on lines. */
function haloed(context, text, x, y, colour = palette().ink) {
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.setLineDash([]);
  context.strokeStyle = palette().ground;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

/** Return as much of a text as fits into `width` pixels, with … where it is cut. */
function fitting(context, text, width) {
  if (context.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 0 && context.measureText(`${text.slice(0, end)}…`).width > width) end -= 1;
  return end > 1 ? `${text.slice(0, end)}…` : "";
}

/** Return the domain of some numbers and 0, with 6 % of room beyond; what is not finite is left out. */
export function reach(values) {
  const finite = values.filter((v) => v !== null && Number.isFinite(v));
  const low = Math.min(0, ...finite), high = Math.max(0, ...finite), air = (high - low || 1) * 0.06;
  return [low < 0 ? low - air : low, high + air];
}

/** Move wanted heights apart until none are closer than `gap`, within `low` and `high`; their order stays. */
export function apart(wanted, gap, low, high) {
  const order = wanted.map((at, i) => [at, i]).sort((a, b) => a[0] - b[0]);
  const places = [];
  let last = low - gap;
  for (const [at, i] of order) places[i] = last = Math.max(at, last + gap);
  let next = high + gap;
  for (const [, i] of order.reverse()) places[i] = next = Math.min(places[i], next - gap);
  return places;
}

/** Draw cumulative gains: `lines` are {style, values, strong}; `at` the tokens before each point. Returns the x scale. */
export function drawCumulative(context, width, height, { at, lines, baseline, documents, tokens }) {
  const colours = palette(), right = width - clamp(width * 0.2, 110, 170), bottom = height - 40;
  const x = linear([0, tokens], [62, right]);
  let low = 0, high = 0;
  for (const { values } of lines) {
    for (const v of values) {
      if (Number.isFinite(v)) [low, high] = [Math.min(low, v), Math.max(high, v)];
    }
  }
  const y = linear(reach([low, high]), [bottom, 26]);
  axes(context, { scale: x, label: "token of the trace" },
    { scale: y, format: nats, label: `cumulative gain over ${baseline} [nat]; its slope is the gain per token` });
  drawDocuments(context, x, bottom, documents);
  for (const { style, values, strong } of [...lines].sort((a, b) => a.strong - b.strong)) {
    context.beginPath();
    const end = values.findIndex((v) => !Number.isFinite(v));
    for (let i = 0; i < (end < 0 ? values.length : end); i += 1) context.lineTo(x(at[i]), y(values[i]));
    context.strokeStyle = style.colour;
    context.lineWidth = strong ? 2.75 : 1.6;
    context.lineJoin = "round";
    context.setLineDash(LINE_DASHES[style.dash]);
    context.stroke();
    if (end > 0) haloed(context, "×", x(at[end - 1]), y(values[end - 1]));
  }
  context.setLineDash([]);
  context.textBaseline = "middle";
  context.textAlign = "left";
  const shown = lines.filter(({ values }) => Number.isFinite(values.at(-1)));
  const places = apart(shown.map(({ values }) => y(values.at(-1))), 15, 26, bottom);
  shown.forEach(({ style, values, strong }, i) => {
    context.font = `${strong ? "600 " : ""}11px system-ui, sans-serif`;
    context.strokeStyle = style.colour;
    context.lineWidth = 1.5;
    context.beginPath();
    context.moveTo(right + 2, y(values.at(-1)));
    context.lineTo(right + 12, places[i]);
    context.stroke();
    context.fillStyle = colours.ink;
    const text = fitting(context, `${style.label} ${nats(values.at(-1))}`, width - right - 18);
    context.fillText(text, right + 16, places[i]);
  });
  return x;
}

/** Draw where documents begin, and their names where they fit. */
function drawDocuments(context, x, bottom, documents) {
  const colours = palette();
  context.font = "10px system-ui, sans-serif";
  context.textBaseline = "bottom";
  context.textAlign = "left";
  if (documents.length > 400) return;
  for (const [name, start, stop] of documents) {
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.setLineDash([3, 3]);
    if (start > 0) {
      context.beginPath();
      context.moveTo(Math.round(x(start)) + 0.5, 26);
      context.lineTo(Math.round(x(start)) + 0.5, bottom);
      context.stroke();
    }
    const room = x(stop) - x(start) - 8;
    if (room > 34) haloed(context, fitting(context, printable(name), room), x(start) + 4, bottom - 3, colours.muted);
  }
  context.setLineDash([]);
}

/** Return [mean, low, high] of a reader in a bucket. */
export const edgesOf = ({ gain }, name) => [gain[name].mean, gain[name].low, gain[name].high];

/** Draw means with intervals, one band a bucket. Returns a function from an x to the bucket there. */
export function drawDots(context, width, height, { buckets, title, names, styles, baseline, selected, active }) {
  const colours = palette(), bottom = height - 56;
  const x = linear([0, buckets.length], [62, width - 14]), wide = x(1) - x(0);
  const y = linear(reach(buckets.flatMap((bucket) => names.flatMap((name) => edgesOf(bucket, name)))), [bottom, 26]);
  if (active !== null) {
    context.fillStyle = colours.line;
    context.globalAlpha = 0.35;
    context.fillRect(x(active), 26, wide, bottom - 26);
    context.globalAlpha = 1;
  }
  axes(context, { scale: x, label: "", format: () => "" }, { scale: y, label: `gain over ${baseline} [nat/token]` });
  const step = Math.min(wide * 0.8 / Math.max(names.length, 1), 26);
  buckets.forEach(({ gain }, bucket) => names.forEach((name, i) => {
    if (!gain[name] || gain[name].mean === null) return;
    const { mean, low, high } = gain[name], style = styles[name];
    const at = x(bucket + 0.5) + (i - (names.length - 1) / 2) * step;
    whisker(context, style.colour, at, y, low, high, name === selected ? 2.5 : 1.5);
    mark(context, style, at, y(mean), name === selected ? 5 : 4, low !== null);
  }));
  context.textAlign = "center";
  context.textBaseline = "top";
  context.font = "11px system-ui, sans-serif";
  const widest = Math.max(...buckets.map(({ label }) => context.measureText(label).width)) + 10;
  const every = Math.max(1, Math.ceil(widest / wide));
  buckets.forEach(({ label, tokens }, i) => {
    if (i % every) return;
    context.fillStyle = colours.ink;
    context.fillText(label, x(i + 0.5), bottom + 6);
    context.fillStyle = colours.muted;
    context.fillText(scaled(tokens, ""), x(i + 0.5), bottom + 21);
  });
  context.textAlign = "right";
  context.fillText(`${title}; below: tokens`, width - 14, bottom + 38);
  return (px) => clamp(Math.floor(x.back(px)), 0, buckets.length - 1);
}

/** Draw an interval as a whisker, or nothing where there is none. */
function whisker(context, colour, at, y, low, high, thick) {
  if (low === null || high === null) return;
  context.strokeStyle = colour;
  context.lineWidth = thick;
  context.setLineDash([]);
  context.beginPath();
  for (const value of [low, high]) {
    context.moveTo(at - 3.5, y(value));
    context.lineTo(at + 3.5, y(value));
  }
  context.moveTo(at, y(low));
  context.lineTo(at, y(high));
  context.stroke();
}

/**
 * Draw bits saved against their cost. `points` are {name, style, cost, bits: [mean, low, high], best}. Returns a function
 * from a place to the nearest point.
 */
export function drawFrontier(context, width, height, { points, title, format, baseline, selected }) {
  const colours = palette(), bottom = height - 44;
  const costs = points.map(({ cost }) => Math.log10(cost));
  const x = linear([Math.min(...costs) - 0.12, Math.max(...costs) + 0.3], [62, width - 14]);
  const y = linear(reach(points.flatMap(({ bits }) => bits)), [bottom, 26]);
  axes(context, { scale: x, label: `${title}, logarithmic; up and to the left is better`, format: () => "" },
    { scale: y, label: `saved over ${baseline} [bit/token]` });
  context.textAlign = "center";
  context.textBaseline = "top";
  for (let power = Math.floor(x.domain[0]); power <= x.domain[1]; power += 1) for (const m of [1, 2, 5]) {
    const at = power + Math.log10(m);
    if (at < x.domain[0] || at > x.domain[1]) continue;
    context.strokeStyle = colours.line;
    context.lineWidth = 1;
    context.strokeRect(Math.round(x(at)) + 0.5, 26, 0, bottom - 26);
    context.fillStyle = colours.muted;
    context.fillText(format(m * 10 ** power), x(at), bottom + 5);
  }
  const best = points.filter((point) => point.best).sort((a, b) => a.cost - b.cost);
  context.strokeStyle = colours.muted;
  context.lineWidth = 1.5;
  context.setLineDash([2, 4]);
  context.beginPath();
  best.forEach(({ cost, bits }, i) => {
    if (i) context.lineTo(x(Math.log10(cost)), y(best[i - 1].bits[0]));
    context.lineTo(x(Math.log10(cost)), y(bits[0]));
  });
  context.stroke();
  context.textAlign = "left";
  context.textBaseline = "bottom";
  const places = points.map((point) => ({ ...point, px: x(Math.log10(point.cost)), py: y(point.bits[0]) }));
  for (const { style, bits, px } of places) whisker(context, style.colour, px, y, bits[1], bits[2], 1.5);
  for (const { name, style, px, py, best: full } of places) {
    mark(context, style, px, py, name === selected ? 8 : 6, full);
  }
  const taken = places.map(({ px, py }) => [px - 7, py - 7, px + 7, py + 7]);
  for (const { name, style, px, py } of places) {
    context.font = `${name === selected ? "600 " : ""}12px system-ui, sans-serif`;
    const long = context.measureText(style.label).width;
    // A name stands beside its mark, at the first place without another mark or name.
    const clear = ([left, low]) => left > 62 && left + long < width && low < bottom + 4 && low > 14
      && taken.every(([x0, y0, x1, y1]) => left > x1 || left + long < x0 || low < y0 || low - 14 > y1);
    const free = [[10, -4], [10, 16], [-10 - long, -4], [-10 - long, 16], [10, 32], [-10 - long, -20]]
      .map(([dx, dy]) => [px + dx, py + dy]).find(clear) ?? [px + 10, py - 4];
    taken.push([free[0], free[1] - 14, free[0] + long, free[1]]);
    haloed(context, style.label, ...free);
  }
  return (cx, cy) => places.reduce((near, p) => {
    const far = Math.hypot(p.px - cx, p.py - cy);
    return near === null || far < near.far ? { name: p.name, far, px: p.px, py: p.py } : near;
  }, null);
}
