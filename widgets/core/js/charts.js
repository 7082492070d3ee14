// Colours and small charts: a canvas that keeps its resolution, scales, ticks, axes. Colours follow the page's theme.

// Ground, ink, muted ink, and the ends of the diverging scale; ink reads at 4.5:1 or more on all of it.
const LIGHT = { dark: false, ground: "#ffffff", ink: "#1b1f24", muted: "#5b6470", line: "#d5d9e0", better: "#5aa9e8",
  worse: "#f5a04e", accent: "#1c65b0", focus: "#1c65b0" };
const DARK = { dark: true, ground: "#14171c", ink: "#eceff4", muted: "#9aa3b0", line: "#353b45", better: "#1c65b0",
  worse: "#9c530c", accent: "#5aa9e8", focus: "#5aa9e8" };

/** Whether the page is dark: JupyterLab says so, elsewhere the system does. */
function isDark() {
  const lab = document.body.dataset.jpThemeLight;
  if (lab !== undefined) return lab === "false";
  const scheme = document.documentElement.style.colorScheme;
  return scheme ? scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}
const palette = () => { const own = isDark() ? DARK : LIGHT; return { ...own, ground: themeGround(own.ground) }; };
const grounds = new Map(), mixer = document.createElement("canvas").getContext("2d");
/** The ground of JupyterLab's theme as "#rrggbb"; `otherwise` where there is none. */
function themeGround(otherwise) {
  const told = getComputedStyle(document.body).getPropertyValue("--jp-layout-color0").trim();
  if (!grounds.has(told)) {
    mixer.fillStyle = otherwise;
    mixer.fillStyle = told; // what is no colour changes nothing
    grounds.set(told, told !== "" && mixer.fillStyle.length === 7 ? mixer.fillStyle : null);
  }
  return grounds.get(told) ?? otherwise;
}

/** Call when the theme has changed. */
function onTheme(callback, signal) {
  const watcher = new MutationObserver(callback);
  watcher.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  watcher.observe(document.documentElement, { attributes: true, attributeFilter: ["style"] });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", callback, { signal });
  signal.addEventListener("abort", () => watcher.disconnect());
}

const channels = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));
const CIVIDIS = [
  "#00224e", "#123570", "#3b496c", "#575d6d", "#707173", "#8a8678", "#a59c74", "#c3b369", "#e1cc55", "#fee838",
].map(channels);
const css = ([r, g, b]) => `rgb(${Math.round(r)}, ${Math.round(g)}, ${Math.round(b)})`;
const blend = (from, to, share) => from.map((value, i) => value + (to[i] - value) * share);

/** cividis at 0..1, [r, g, b]; in a light theme it is turned round, so that little is always near the ground. */
function magnitude(share, dark = isDark()) {
  const at = clamp(dark ? share : 1 - share, 0, 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  return blend(CIVIDIS[low], CIVIDIS[low + 1], at - low);
}

/** Blue better, orange worse: −1..1, [r, g, b]. */
function diverging(share) {
  const colours = palette();
  return blend(channels(colours.ground), channels(share > 0 ? colours.better : colours.worse), Math.min(Math.abs(share), 1));
}

/** Black or white, whichever reads better on a colour. */
function inkOn(rgb) {
  const [r, g, b] = rgb.map((value) => ((value / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff";
}

/** Of 0..1 colours, a table of 256 for pixels. */
const lookUp = (colour) => Array.from({ length: 256 }, (_, i) => colour(i / 255));

/** A reader has the colour, and the dashes, that it has in every picture of the project: from `head.readers`. */
const readerStyle = (head, name) => head.readers[name] ?? { label: name, colour: palette().muted, dash: "solid" };

/** A canvas as wide as its place; `draw(context, width, height)` is called when that, or the theme, changes. */
function surface(place, height, draw, signal, attributes = {}) {
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

/** A linear scale from `domain` to `range`, and back. */
function linear([d0, d1], [r0, r1]) {
  const slope = (r1 - r0) / (d1 - d0 || 1);
  const scale = (x) => r0 + (x - d0) * slope;
  scale.back = (y) => d0 + (y - r0) / (slope || 1);
  scale.domain = [d0, d1];
  scale.range = [r0, r1];
  return scale;
}

/** About `count` round numbers between two. */
function ticks([low, high], count = 5) {
  const rough = (high - low) / Math.max(count, 1) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.max(0, Math.floor(high / step + 1e-9) - first + 1) }, (_, i) => (first + i) * step);
}

const LINE_DASHES = {
  solid: [], dot: [2, 4], dash: [7, 5], longdash: [13, 5], dashdot: [8, 4, 2, 4], longdashdot: [14, 4, 2, 4],
};

/** A reader's line, as a small picture. */
function swatch(style) {
  const [node, line] = ["svg", "line"].map((tag) => document.createElementNS(SVG, tag));
  const set = (element, attributes) => {
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  };
  set(node, { width: 26, height: 10, viewBox: "0 0 26 10", "aria-hidden": "true", class: "fwl-swatch" });
  const dashes = LINE_DASHES[style.dash].map((d) => d / 1.6).join(" ");
  set(line, { x1: 0, x2: 26, y1: 5, y2: 5, stroke: style.colour, "stroke-width": 2.5, "stroke-dasharray": dashes });
  node.append(line);
  return node;
}

/** Axes with units on a canvas: `x` and `y` are {scale, label, format?}; y has grid lines. */
function axes(context, x, y) {
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
