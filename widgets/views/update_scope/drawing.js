// UpdateScope's pictures of Δθ on canvas: cells, norms over the document, values, singular values. They keep no state.

import { axes, linear, ticks } from "../../core/js/charts.js";
import { brief, clamp, whole } from "../../core/js/format.js";
import { blend, channels, css, isDark, magnitude, palette } from "../../core/js/theme.js";

const SCALES = { // from −1 to 1, with the ground in the middle, so that weights that have not moved are not seen
  light: ["#7a3f00", "#c8690a", "#f2a54a", "#fde3c2", "#ffffff", "#cfe6f8", "#5cabe6", "#1c6fbf", "#083b70"],
  dark: ["#ffe2b8", "#f7a845", "#b8640f", "#54320f", "#14171c", "#12365a", "#1f6fbe", "#57b1f5", "#c9e8ff"],
};
const BAD_CELL = [214, 39, 140]; // a value that is not finite: a colour of neither scale
const CODES = 127;

/** Return the colour of a share of the limit as [r, g, b]: signed of −1..1, else of its size. */
export function deltaColour(share, signs, dark = isDark()) {
  if (!signs) return magnitude(Math.abs(share), dark);
  const stops = SCALES[dark ? "dark" : "light"];
  const at = ((clamp(share, -1, 1) + 1) / 2) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  return blend(channels(stops[low]), channels(stops[low + 1]), at - low);
}

/** Return the value of each code of `widgets/views/update_scope/tiles.py::squeeze`, at index code + 128. */
export const codeValues = (size) => Float32Array.from({ length: 256 }, (_, i) => (i === 0 ? NaN : Math.sign(i - 128) * ((i - 128) / CODES) ** 2 * size));

/** Draw cells as a picture of one pixel each into `canvas`; `colourAt(index)` is a pixel. */
function cellPicture(canvas, [rows, columns], colourAt) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const picture = context.createImageData(columns, rows);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i += 1) pixels[i] = colourAt(i);
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Return [r, g, b] as a pixel of a canvas: bytes r, g, b, a from the lowest on. */
const pixel = ([r, g, b]) => ((255 << 24) | (Math.round(b) << 16) | (Math.round(g) << 8) | Math.round(r)) >>> 0;
export const valuePixel = (value, limit, signs, dark) => pixel(Number.isFinite(value) ? deltaColour(limit ? value / limit : 0, signs, dark) : BAD_CELL);

/** Draw a tile of codes, or a piece of exact values, into `canvas`. */
export function paintCells(canvas, cells, limit, signs) {
  const dark = isDark();
  if (cells.codes === undefined) return cellPicture(canvas, cells.cells, (i) => valuePixel(cells.values[i], limit, signs, dark));
  const colours = Uint32Array.from(codeValues(cells.size), (value) => valuePixel(value, limit, signs, dark));
  return cellPicture(canvas, cells.cells, (i) => colours[cells.codes[i] + 128]);
}

/** Return where a picture of cells lies: square cells where they fit, room for norms above and at the right. */
export function matrixBox(width, height, [rows, columns], zoomed) {
  const room = { left: 48, top: zoomed ? 8 : 44, right: zoomed ? 8 : 44, bottom: 36 };
  const cell = Math.min((width - room.left - room.right) / columns, (height - room.top - room.bottom) / rows);
  // A side of few cells is stretched to 160 px.
  const wide = Math.max(cell * columns, Math.min(160, width - room.left - room.right));
  const high = Math.max(cell * rows, Math.min(160, height - room.top - room.bottom));
  return { x: room.left, y: room.top, wide, high, rows, columns };
}

/** Draw a matrix with its axes and its norms in the margins. `spans` are [first, last + 1] of rows and of columns. */
export function drawMatrix(context, box, picture, { norms, spans, labels, limitNorms }) {
  const colours = palette();
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, box.x, box.y, box.wide, box.high);
  context.strokeStyle = colours.line;
  context.strokeRect(box.x - 0.5, box.y - 0.5, box.wide + 1, box.high + 1);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = colours.muted;
  const rows = linear(spans[0], [box.y, box.y + box.high]), columns = linear(spans[1], [box.x, box.x + box.wide]);
  context.textAlign = "right";
  context.textBaseline = "middle";
  for (const value of ticks(spans[0], box.high / 60)) context.fillText(whole(value), box.x - 6, clamp(rows(value), box.y + 5, box.y + box.high - 4));
  context.textAlign = "center";
  context.textBaseline = "top";
  for (const value of ticks(spans[1], box.wide / 90)) context.fillText(whole(value), columns(value), box.y + box.high + 5);
  context.textAlign = "left";
  context.fillText(labels[1], box.x, box.y + box.high + 20);
  context.save();
  context.translate(10, box.y + box.high / 2);
  context.rotate(-Math.PI / 2);
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.fillText(labels[0], 0, 0);
  context.restore();
  if (!norms) return;
  context.fillStyle = colours.accent;
  context.globalAlpha = 0.55;
  const most = norms.map((values, axis) => Math.max(limitNorms?.[axis] ?? 0, values.reduce((a, b) => Math.max(a, b), 0)) || 1);
  const [down, across] = [box.high / norms[0].length, box.wide / norms[1].length];
  context.beginPath(); // one fill for all bars
  norms[0].forEach((value, i) => context.rect(box.x + box.wide + 5, box.y + i * down, (36 * value) / most[0], Math.max(down, 0.6)));
  norms[1].forEach((value, i) => context.rect(box.x + i * across, box.y - 5, Math.max(across, 0.6), (-36 * value) / most[1]));
  context.fill();
  context.globalAlpha = 1;
}

/** Draw a vector: an upright bar for each entry, in the colours of the picture. */
export function drawVector(context, width, height, { values, limit, signs, label }) {
  const x = linear([0, values.length], [64, width - 12]), y = linear([-limit * 1.06 || -1, limit * 1.06 || 1], [height - 40, 22]);
  axes(context, { scale: x, label }, { scale: y, label: "Δθ" });
  const wide = Math.max(x(1) - x(0) - (values.length < 300 ? 1 : 0), 0.8), dark = isDark();
  values.forEach((value, i) => {
    // Colours start part of the way up the scale, so that a short bar is still seen.
    const share = limit ? value / limit : 0;
    context.fillStyle = css(Number.isFinite(value) ? deltaColour(signs ? Math.sign(share) * (0.45 + 0.55 * Math.abs(share)) : share, signs, dark) : BAD_CELL);
    const to = y(Number.isFinite(value) ? clamp(value, -limit * 1.06, limit * 1.06) : limit);
    context.fillRect(x(i), Math.min(to, y(0)), wide, Math.max(Math.abs(to - y(0)), 0.5));
  });
}

export const CHART = { left: 64, right: 118, top: 30, bottom: 38 }; // room around the lines
const CROWD = 8; // lines; of more, only the selected one has a colour
const lineColour = (line, selected, crowded) => (!crowded ? line.colour : line.name === selected ? palette().accent : palette().muted);

/** Return the points of a line as runs, cut where a norm is not finite. */
export function finiteRuns({ x, y }) {
  const runs = [[]];
  x.forEach((at, i) => { if (Number.isFinite(y[i])) runs[runs.length - 1].push([at, y[i]]); else runs.push([]); });
  return runs.filter((run) => run.length);
}

/** Draw lines of norms over the document. Returns {name, at}, the heights of their labels. */
export function drawNorms(context, width, height, { lines, range, most, least, log, boundaries, selected, label }) {
  const colours = palette();
  const x = linear(range, [CHART.left, width - CHART.right]);
  const flat = linear(log ? [Math.log10(least), Math.log10(most)] : [0, most], [height - CHART.bottom, CHART.top]);
  const y = (value) => (log ? flat(Math.log10(Math.max(value, least))) : flat(value));
  axes(context, { scale: x, label: "token" }, { scale: flat, label, format: log ? (power) => brief(10 ** power) : brief });
  context.save();
  context.beginPath();
  context.rect(CHART.left, 8, width - CHART.left - CHART.right + 2, height - CHART.bottom - 7);
  context.clip();
  context.setLineDash([3, 3]);
  context.strokeStyle = colours.muted;
  for (const at of boundaries) {
    context.beginPath();
    context.moveTo(x(at), CHART.top - 6);
    context.lineTo(x(at), height - CHART.bottom);
    context.stroke();
  }
  context.setLineDash([]);
  context.lineJoin = "round";
  const order = [...lines].sort((a, b) => (a.name === selected) - (b.name === selected));
  for (const line of order) {
    const strong = line.name === selected;
    const colour = lineColour(line, selected, lines.length > CROWD);
    context.strokeStyle = colour;
    context.globalAlpha = strong ? 1 : lines.length > CROWD ? 0.35 : 0.65;
    context.lineWidth = strong ? 3 : 1.25;
    for (const run of line.pieces.flatMap(finiteRuns)) {
      context.beginPath();
      for (const [at, norm] of run) context.lineTo(x(at), y(norm));
      context.stroke();
      if (strong && !log) { // fill the area under the selected line
        context.lineTo(x(run[run.length - 1][0]), y(0));
        context.lineTo(x(run[0][0]), y(0));
        context.globalAlpha = 0.1;
        context.fillStyle = colour;
        context.fill();
        context.globalAlpha = 1;
      }
    }
  }
  context.restore();
  return nameLines(context, width, height, order.reverse(), selected, y, lines.length > CROWD);
}

/** Draw names at the ends of lines, moved apart where they would touch. */
function nameLines(context, width, height, lines, selected, y, crowded) {
  const shown = lines.filter((line) => line.last !== null && (!crowded || line.name === selected));
  const places = shown.map((line) => ({ line, at: clamp(y(line.last), 16, height - 44) })).sort((a, b) => a.at - b.at);
  places.forEach((place, i) => { if (i) place.at = Math.max(place.at, places[i - 1].at + 14); });
  const over = places.length ? places[places.length - 1].at - (height - 36) : 0;
  if (over > 0) places.forEach((place) => { place.at -= over; });
  context.textAlign = "left";
  context.textBaseline = "middle";
  for (const { line, at } of places) {
    const strong = line.name === selected;
    context.fillStyle = lineColour(line, selected, crowded);
    context.fillRect(width - 112, at - (strong ? 2 : 1), 10, strong ? 4 : 2);
    context.font = `${strong ? "600 " : ""}12px system-ui, sans-serif`;
    context.fillStyle = strong ? palette().ink : palette().muted;
    context.fillText(line.label, width - 98, at, 96);
  }
  return places.map(({ line, at }) => ({ name: line.name, at }));
}

/** Draw a histogram of values; counts are logarithmic, so that the few large values are seen. */
export function drawHistogram(context, width, height, { bars, size, reach, limit, signs }) {
  const most = bars.reduce((a, b) => Math.max(a, b), 1), least = -0.2; // so that a bar of one entry has a height
  const x = linear([-reach || -1, reach || 1], [64, width - 12]);
  const y = linear([least, Math.ceil(Math.log10(most) + 0.05)], [height - 36, 24]);
  const power = (p) => (Number.isInteger(p) ? whole(10 ** p) : "");
  axes(context, { scale: x, label: "value of Δθ", format: brief }, { scale: y, label: "entries", format: power });
  const wide = (2 * size) / bars.length, dark = isDark();
  bars.forEach((count, i) => {
    if (!count) return;
    const from = -size + i * wide, middle = limit ? (from + wide / 2) / limit : 0;
    context.fillStyle = css(deltaColour(signs ? Math.sign(middle) * Math.max(Math.abs(middle), 0.35) : Math.max(Math.abs(middle), 0.15), signs, dark));
    if (i === (bars.length - 1) / 2) context.fillStyle = palette().muted;
    const up = y(Math.log10(count)), left = x(from);
    context.fillRect(left, up, Math.max(x(from + wide) - left - 0.5, 1), y(least) - up);
  });
}

/** Draw the leading singular values. */
export function drawSpectrum(context, width, height, { values, most }) {
  const colours = palette();
  const x = linear([0.4, values.length + 0.6], [64, width - 12]), y = linear([0, most * 1.05 || 1], [height - 36, 24]);
  axes(context, { scale: x, label: "direction", format: (i) => (Number.isInteger(i) && i > 0 ? whole(i) : "") }, { scale: y, label: "singular value σ", format: brief });
  const wide = Math.min(16, (x(2) - x(1)) * 0.62);
  values.forEach((value, i) => {
    context.fillStyle = colours.accent;
    context.globalAlpha = i === 0 ? 1 : 0.6;
    context.fillRect(x(i + 1) - wide / 2, y(value), wide, y(0) - y(value));
  });
  context.globalAlpha = 1;
}

/** Draw the legend of the colours, with the limit at its ends, beyond which all values have the last colour. */
export function drawLegend(context, width, height, { limit, size, signs }) {
  const from = 2, to = width - 2, dark = isDark();
  for (let i = from; i < to; i += 1) {
    const share = (i - from) / (to - from - 1);
    context.fillStyle = css(deltaColour(signs ? 2 * share - 1 : share, signs, dark));
    context.fillRect(i, 2, 1.5, 12);
  }
  context.strokeStyle = palette().line;
  context.strokeRect(from - 0.5, 1.5, to - from + 1, 13);
  context.font = "11px system-ui, sans-serif";
  context.fillStyle = palette().muted;
  context.textBaseline = "top";
  const beyond = size > limit ? "beyond " : "";
  const marks = signs ? [[from, "left", `${beyond}${brief(-limit)}`], [width / 2, "center", "0"], [to, "right", `${beyond}${brief(limit)}`]]
    : [[from, "left", "0"], [to, "right", `${beyond}${brief(limit)}`]];
  for (const [at, align, text] of marks) {
    context.textAlign = align;
    context.fillText(text, at, 19);
  }
}
