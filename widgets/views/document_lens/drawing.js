// DocumentLens's drawing: measures and their colours, the pieces of a line, the map of the whole trace.

import { h } from "../../core/js/elements.js";
import { clamp, fixed, signed, whole } from "../../core/js/format.js";
import { blend, channels, css, diverging, inkOn, magnitude, palette } from "../../core/js/theme.js";

/**
 * Return a measure (gain, nll or rank) of the selected reader: value by token, share of its colour scale, texts of its
 * legend; null where ranks have not arrived.
 */
export function measureOf(name, { pages, ranks, reader, baseline, head }) {
  const own = pages.nll[reader], other = pages.nll[baseline];
  const label = (key) => head.readers[key].label;
  if (name === "gain") {
    const value = (t) => other[t] - own[t];
    const limit = Math.max(0.5, Math.ceil(2 * quantile(pages.loaded, (t) => Math.abs(value(t)), 0.9)) / 2);
    return {
      name, value, limit, unit: "nat", share: (x) => x / limit, show: (x) => signed(x), colour: diverging, low: -1,
      title: `gain of ${label(reader)} over ${label(baseline)}`, ends: [`worse −${limit}`, `+${limit} nat better`],
    };
  }
  if (name === "nll") {
    const limit = Math.max(2, Math.ceil(quantile(pages.loaded, (t) => own[t], 0.95)));
    return {
      name, value: (t) => own[t], limit, unit: "nat", share: (x) => x / limit, show: (x) => fixed(x), low: 0,
      colour: fromGround, title: `NLL of ${label(reader)}`, ends: ["0", `${limit} nat or more`],
    };
  }
  const found = ranks.get(reader);
  if (!(found instanceof Int32Array)) return null;
  const most = Math.max(10, found.reduce((a, b) => Math.max(a, b), 0));
  return {
    name, value: (t) => (t < pages.loaded && found[t] >= 0 ? found[t] + 1 : NaN), limit: most + 1, low: 0, colour: fromGround, unit: "rank",
    share: (x) => Math.log(x) / Math.log(most + 1), show: (x) => (Number.isFinite(x) ? `rank ${whole(x)}` : "not recorded"),
    title: `rank of each token for ${label(reader)}, log scale`, ends: ["1st expected", `rank ${whole(most + 1)}`],
  };
}

/** Return the mean of a measure from one token to before another; kept, since every step of a scroll asks for it. */
export function meanOf(measure, from, to) {
  measure.means ??= new Map();
  if (!measure.means.has(from)) {
    let sum = 0;
    for (let t = from; t < to; t += 1) sum += measure.value(t);
    measure.means.set(from, sum / (to - from));
  }
  return measure.means.get(from);
}

/** Return cividis faded into the page's ground near 0, so that tokens that were expected do not stand out. */
const fromGround = (share) =>
  blend(channels(palette().ground), magnitude(clamp(share, 0, 1)), Math.min(1, 0.06 + 1.9 * clamp(share, 0, 1)));

/** Return a quantile of a function of the first `count` tokens, estimated from at most 40,000 of them. */
export function quantile(count, value, share) {
  const step = Math.max(1, Math.floor(count / 20000));
  const sample = Float64Array.from({ length: Math.floor(count / step) }, (_, i) => value(i * step)).filter(Number.isFinite).sort();
  return sample.length ? sample[Math.floor(share * (sample.length - 1))] : 0;
}

/** Return 256 [ground, ink] pairs along a measure's scale, in the colours of the theme. */
export function paints(measure) {
  return Array.from({ length: 256 }, (_, i) => {
    const rgb = measure.colour(measure.low + ((1 - measure.low) * i) / 255);
    return [css(rgb), measure.low < 0 ? palette().ink : inkOn(rgb)];
  });
}
/** Return the [ground, ink] of a value. */
export const paintOf = (measure, table, x) => table[Math.round((255 * (clamp(measure.share(x), measure.low, 1) - measure.low)) / (1 - measure.low))];

/** Make the legend of a measure: its colours with their ends. */
export function legendOf(measure, table, odd) {
  const stops = table.filter((_, i) => i % 15 === 0).map(([ground]) => ground);
  return [
    h("span", {}, measure.ends[0]),
    h("i", { style: `background: linear-gradient(to right, ${stops.join(", ")})`, role: "img", "aria-label": `colours: ${measure.title}` }),
    h("span", {}, measure.ends[1]),
    odd ? h("span", { class: "fwl-odd", title: "not a number, or infinite" }, "not finite") : null,
  ].filter(Boolean);
}

/** Make the element of a piece of a token on a line. */
export function tokenSpan(pages, [t, from, to, , columns]) {
  const piece = pages.parsed[pages.codes[t]];
  const span = document.createElement("span");
  span.token = t;
  if (piece.plain) span.textContent = piece.text.slice(from, to);
  else {
    let run = "";
    for (const { shown, kind } of piece.cells.slice(from, to)) {
      if (kind === "") { run += shown; continue; }
      if (run) span.append(run);
      run = "";
      const mark = document.createElement("i");
      mark.className = kind;
      mark.textContent = shown;
      span.append(mark);
    }
    if (run) span.append(run);
    span.style.width = `${columns}ch`; // columns are kept, whatever font a character comes from
    span.classList.add("fixed");
  }
  return span;
}

/** Return a canvas of its own with a picture that is drawn once and shown often. */
export function drawApart(width, height, draw) {
  const scale = devicePixelRatio || 1;
  const picture = h("canvas", { width: Math.round(width * scale), height: Math.round(height * scale) });
  const context = picture.getContext("2d");
  context.scale(scale, scale);
  draw(context);
  return picture;
}

/** Draw the whole trace from top to bottom: documents, means of a measure in bins, matches of the search. */
export function drawGround(context, width, height, { bins, measure, table, tokens, loaded, starts, found }) {
  const colours = palette();
  const y = (token) => (token / Math.max(tokens, 1)) * height;
  const [left, right] = [7, width - 7], middle = measure?.low < 0 ? (left + right) / 2 : left;
  context.fillStyle = colours.line;
  if (starts.length <= height / 4) for (const start of starts.slice(1)) context.fillRect(0, Math.round(y(start)), width, 1);
  const most = Math.max(...bins.means.filter(Number.isFinite).map(Math.abs), 1e-9);
  bins.means.forEach((mean, i) => {
    if (!Number.isFinite(mean)) return;
    const length = (Math.abs(mean) / most) * (right - middle);
    const shade = table[Math.round((255 * Math.abs(mean)) / most)][0];
    context.fillStyle = measure.low < 0 ? (mean >= 0 ? colours.better : colours.worse) : shade;
    context.fillRect(mean < 0 ? middle - length : middle, i * bins.height, Math.max(length, 0.5), bins.height);
  });
  context.fillStyle = colours.line;
  if (measure?.low < 0) context.fillRect(middle - 0.5, 0, 1, y(loaded));
  context.globalAlpha = 0.5;
  context.fillRect(0, y(loaded), width, height - y(loaded));
  context.globalAlpha = 1;
  context.fillStyle = colours.accent;
  for (const row of new Set(found.map(([t]) => Math.round(y(t))))) context.fillRect(width - 6, row, 6, 1.5);
}

/** Draw what is in view, brushed, selected and pinned, and the sources of the selected token's gain. */
export function drawMarks(context, width, height, { tokens, view, selected, pinned, span, sources }) {
  const colours = palette();
  const y = (token) => (token / Math.max(tokens, 1)) * height;
  const tall = (from, to, least) => Math.max(y(to) - y(from), least);
  if (span) {
    context.fillStyle = colours.accent;
    context.globalAlpha = 0.22;
    context.fillRect(0, y(span[0]), width, tall(...span, 2));
    context.globalAlpha = 1;
    context.fillRect(0, y(span[0]), 2, tall(...span, 2));
  }
  context.fillStyle = context.strokeStyle = colours.ink;
  context.globalAlpha = 0.1;
  context.fillRect(0, y(view[0]), width, tall(...view, 3));
  context.globalAlpha = 0.6;
  context.strokeRect(0.5, y(view[0]) + 0.5, width - 1, tall(...view, 3));
  context.globalAlpha = 1;
  for (const [token, share] of sources) {
    context.fillStyle = share >= 0 ? colours.accent : colours.dark ? "#f5a04e" : "#b35a00";
    context.fillRect(0, Math.round(y(token)) - 1, 7, 3);
  }
  context.fillStyle = colours.ink;
  if (pinned !== null) context.fillRect(width - 12, Math.round(y(pinned)) - 1, 12, 2);
  context.fillRect(0, Math.round(y(selected)) - 1, width, 2);
}

/** Return means of a measure over equal bins of the whole trace, of about two pixels each; NaN for empty ones. */
export function binned(measure, tokens, loaded, height) {
  const count = clamp(Math.floor(height / 2), 1, Math.max(tokens, 1));
  const means = Array.from({ length: count }, (_, i) => {
    let sum = 0, some = 0;
    for (let t = Math.floor((i * tokens) / count); t < Math.min(Math.floor(((i + 1) * tokens) / count), loaded); t += 1) {
      const x = measure.value(t);
      if (Number.isFinite(x)) { sum += measure.name === "rank" ? Math.log(x) : x; some += 1; }
    }
    return some ? sum / some : NaN;
  });
  return { means, height: height / count, tokens: tokens / count };
}
