// Small charts: a canvas that keeps its resolution, scales, ticks, axes, the line of a reader.

import { h, svg } from "./elements.js";
import { brief, whole } from "./format.js";
import { onTheme, palette } from "./theme.js";
import { settled } from "./timing.js";

/** Make a canvas as wide as its place; `draw(context, width, height)` is called when its size or the theme changes. */
export function surface(place, height, draw, signal, attributes = {}) {
  const canvas = h("canvas", { "aria-hidden": "true", ...attributes });
  canvas.style.height = `${height}px`;
  place.append(canvas);
  const redraw = () => {
    const width = canvas.clientWidth;
    if (!width) return;
    const scale = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
      canvas.width = Math.round(width * scale);
      canvas.height = Math.round(height * scale);
    }
    const context = canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, width, height);
    draw(context, width, height);
  };
  const soon = settled(redraw);
  const watcher = new ResizeObserver(soon);
  watcher.observe(canvas);
  onTheme(soon, signal);
  signal.addEventListener("abort", () => watcher.disconnect());
  return { canvas, redraw: soon, now: redraw };
}

/** Return the linear scale from `domain` to `range`; its `back` is the inverse. */
export function linear([d0, d1], [r0, r1]) {
  const slope = (r1 - r0) / (d1 - d0 || 1);
  const scale = (x) => r0 + (x - d0) * slope;
  scale.back = (y) => d0 + (y - r0) / (slope || 1);
  scale.domain = [d0, d1];
  scale.range = [r0, r1];
  return scale;
}

/** Return about `count` round numbers from `low` to `high`. */
export function ticks([low, high], count = 5) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}

export const LINE_DASHES = {
  solid: [], dot: [2, 4], dash: [7, 5], longdash: [13, 5], dashdot: [8, 4, 2, 4], longdashdot: [14, 4, 2, 4],
};

/** Make a small picture of a reader's line. */
export function swatch(style) {
  const dashes = LINE_DASHES[style.dash].map((d) => d / 1.6).join(" ");
  const node = svg("svg", { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true", class: "fwl-swatch" });
  node.append(svg("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: style.colour, "stroke-width": 2.5, "stroke-dasharray": dashes }));
  return node;
}

/** Draw axes with units: `x` and `y` are {scale, label, format?}; y has grid lines. */
export function axes(context, x, y) {
  const colours = palette();
  const [left, right] = x.scale.range, [bottom, top] = y.scale.range;
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colours.muted;
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.textBaseline = "middle";
  context.textAlign = "right";
  for (const value of ticks(y.scale.domain, (bottom - top) / 34)) {
    const at = Math.round(y.scale(value)) + 0.5;
    context.globalAlpha = value === 0 ? 1 : 0.55;
    context.beginPath();
    context.moveTo(left, at);
    context.lineTo(right, at);
    context.stroke();
    context.globalAlpha = 1;
    context.fillText((y.format ?? brief)(value), left - 6, at);
  }
  context.textBaseline = "top";
  context.textAlign = "center";
  for (const value of ticks(x.scale.domain, (right - left) / 90)) context.fillText((x.format ?? whole)(value), x.scale(value), bottom + 5);
  context.textAlign = "right";
  if (x.label) context.fillText(x.label, right, bottom + 18);
  context.textAlign = "left";
  context.textBaseline = "bottom";
  if (y.label) context.fillText(y.label, left, top - 5);
}
