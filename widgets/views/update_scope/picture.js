// UpdateScope's picture of Δθ at one token, exact values of a piece of it, and its figures.

import { surface } from "../../core/js/charts.js";
import { button, h } from "../../core/js/elements.js";
import { brief, clamp, whole } from "../../core/js/format.js";
import { isDark } from "../../core/js/theme.js";
import {
  codeValues, drawHistogram, drawLegend, drawMatrix, drawSpectrum, drawVector, matrixBox, paintCells,
} from "./drawing.js";
import { behind, deltaWords, places } from "./panels.js";

const PIECE_SIDE = 64;
const PICTURE_HEIGHT = 540;

/**
 * Make the figures of Δθ. `view` is the frame; `changed()` asks for what is wanted and draws again. What is shown stays
 * until the next picture has arrived.
 */
export function deltaFigures({ pictures, norms, state, view, changed, signal }) {
  const canvas = document.createElement("canvas");
  let shown = null, painted = null, cell = null, sought = null; // sought: {rows, columns} of the cell that is zoomed into
  const drawn = new Map(); // what each canvas was drawn from, so that none is drawn twice
  const pictureTitle = h("h4", {}), pictureBox = h("div", { class: "fwl-picture" }), readout = h("div", { class: "fwl-readout", "aria-hidden": "true" });
  const box = h("div", { class: "fwl-box", hidden: true }), zero = h("div", { class: "fwl-zero", hidden: true });
  const words = h("dl", { class: "fwl-words" }), legendBox = h("div"), histogramBox = h("div"), spectrumBox = h("div");
  const heading = (text, more) => h("h4", {}, text, " ", h("small", {}, more));
  const spectrumTitle = heading("Singular values", "the leading ones; all σ² add up to ‖Δθ‖²");
  const figures = h("div", {}, h("h4", {}, "In figures"), words,
    heading("Colours", "value of Δθ"), legendBox, heading("Values", "of all entries"), histogramBox, spectrumTitle, spectrumBox);
  const element = h("div", { class: "fwl-figures" }, h("div", {}, pictureTitle, pictureBox, readout), figures);

  const tile = () => { const found = pictures.get(shown); return found?.absent ? undefined : found; };
  const piece = () => pictures.get(pictures.piece());
  const spectrum = () => pictures.get(pictures.spectrum(shown));
  /** Return the limits of the colours: of the document where they are wanted and known, else of this picture. */
  function limits() {
    const now = tile(), peak = state.fixedScale ? pictures.get(pictures.peak()) : undefined;
    return peak?.limit ? peak : { limit: now.limit || now.size, size: now.size, first: 0 };
  }

  // -- drawing --------------------------------------------------------------------------------------------------------
  const picture = surface(pictureBox, PICTURE_HEIGHT, (context, width, height) => {
    const now = tile();
    painted = null;
    if (now === undefined) return;
    const { limit, size } = limits(), ranked = state.order === "length";
    if (now.codes === undefined) {
      const reach = Math.max(size, state.fixedScale ? 0 : now.size) || 1;
      drawVector(context, width, height, { values: now.values, limit: reach, signs: state.signs, label: `entry${ranked ? ", largest first" : ""}` });
      painted = { x: 64, y: 22, wide: width - 76, high: height - 62, rows: 1, columns: now.values.length };
    } else {
      const exact = piece(), shape = exact ? exact.columns.values[2] : now.cells;
      painted = { ...matrixBox(width, height, shape, Boolean(exact)), exact };
      paintCells(canvas, exact ? { values: exact.values, cells: shape } : now, limit, state.signs);
      const spans = exact ? [[exact.row, exact.row + shape[0]], [exact.column, exact.column + shape[1]]] : now.shape.map((side) => [0, side]);
      const labels = ["row", "column"].map((what) => (ranked ? `${what}, longest first` : what));
      drawMatrix(context, painted, canvas, { norms: exact ? null : [now.norms_0, now.norms_1], spans, labels });
    }
    showBox();
  }, signal, { role: "img" });
  pictureBox.append(box, zero);
  const legend = surface(legendBox, 36, (context, width, height) => { if (tile()) drawLegend(context, width, height, { ...limits(), signs: state.signs }); }, signal);
  const histogram = surface(histogramBox, 160, (context, width, height) => {
    const now = tile();
    if (now === undefined) return;
    const { limit, size } = limits();
    drawHistogram(context, width, height, { bars: now.bars, size: now.size, reach: Math.max(size, now.size), limit, signs: state.signs });
  }, signal);
  const spectra = surface(spectrumBox, 170, (context, width, height) => {
    const found = tile() && spectrum();
    if (found) drawSpectrum(context, width, height, { values: found.values, most: Math.max(limits().first, found.values[0]) });
  }, signal);

  function titles(now, exact) {
    const { reader, parameter } = pictures.where(), { pinned } = shown;
    const { label, slow } = norms.parameters(reader).find((entry) => entry.name === parameter);
    const size = now.codes ? now.shape.map(whole).join(" × ") : `${whole(now.shape[0])} entries`;
    const behindCell = Math.round(now.shape.reduce((a, b) => a * b) / now.cells.reduce((a, b) => a * b));
    const how = exact ? "exact values; Escape zooms out" : behindCell > 1 ? `each cell the largest of ${whole(behindCell)}` : "";
    const less = pinned === null ? "" : ` less Δ${label} at ${whole(pinned)}`;
    pictureTitle.replaceChildren(`Δ${label} at token ${whole(shown.token)}${less} `, h("small", {}, [size, how].filter(Boolean).join(" · ")));
    picture.canvas.setAttribute("aria-label", `picture of ${pictureTitle.textContent}`);
    words.replaceChildren(...deltaWords(now, now.codes ? spectrum() : null, slow, pinned).flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
    zero.hidden = now.size !== 0 || now.bad !== null;
    figures.style.visibility = zero.hidden ? "" : "hidden"; // figures of zeros are left out
    zero.textContent = pinned === null ? "Δθ = 0: nothing has been learned yet" : "no difference from the pinned token";
    if (now.bad) {
      const at = now.bad.first.map((index, axis) => `${now.codes ? ["row", "column"][axis] : "entry"} ${whole(index)}`).join(", ");
      words.append(h("dt", {}, "✗ not finite"), h("dd", {}, `${whole(now.bad.count)} values; the first at ${at} `,
        button("go there", () => zoomIn(cellOf(now.bad.first)), { hidden: !now.codes })));
    }
  }

  function repaint(one, what) {
    const before = drawn.get(one);
    if (before !== undefined && what.every((value, i) => value === before[i])) return;
    drawn.set(one, what);
    one.now();
  }

  /** Draw the selected picture, or the last one until that has arrived. Returns whether there is a picture. */
  function show() {
    const question = pictures.tile(), found = pictures.get(question), { reader, parameter } = pictures.where();
    if (found !== undefined && !found.absent) shown = question;
    else if (shown && (shown.reader !== reader || shown.parameter !== parameter)) shown = null;
    element.classList.toggle("fwl-waiting", found === undefined);
    const now = tile();
    if (now === undefined) return false;
    titles(now, piece());
    pictureBox.classList.toggle("fwl-zoomed", state.zoom !== null);
    spectrumTitle.hidden = spectrumBox.hidden = now.codes === undefined;
    const { limit, size } = limits(), colours = [isDark(), state.signs, limit, size], exact = piece();
    repaint(picture, [now, exact, ...colours, state.order]);
    repaint(legend, [now.size, ...colours]);
    repaint(histogram, [now, ...colours]);
    repaint(spectra, [spectrum(), limits().first, isDark()]);
    if (sought && piece()) settle();
    if (cell && (state.zoom === null || piece())) sayCell();
    element.dataset.token = String(shown.token); // tells tests what is drawn
    element.dataset.zoomed = String(Boolean(piece()));
    return true;
  }

  // -- one cell -------------------------------------------------------------------------------------------------------
  /** Return the cell under the pointer as {row, column} in the order shown, or null beside the picture. */
  function pointed(event) {
    if (painted === null) return null;
    const area = picture.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left - painted.x) / painted.wide) * painted.columns);
    const row = Math.floor(((event.clientY - area.top - painted.y) / painted.high) * painted.rows);
    return row >= 0 && row < painted.rows && column >= 0 && column < painted.columns ? { row, column } : null;
  }
  /** Return the cell that shows an entry, given by the model's own row and column. */
  const cellOf = (entry) => {
    const now = tile(), at = entry.map((index, axis) => Math.ceil(((now[`order_${axis}`].indexOf(index) + 1) * now.cells[axis]) / now.shape[axis]) - 1);
    return { row: at[0], column: at[1] };
  };
  const exactly = (value) => (Number.isFinite(value) ? value.toPrecision(7).replace("-", "−") : "not finite");
  function describe({ row, column }) {
    const now = tile();
    if (now.codes === undefined) return `${places("entry", "entries", behind(now.order_0, now.values.length, column))}: ${exactly(now.values[column])}`;
    if (painted.exact) {
      const value = painted.exact.values[row * painted.columns + column];
      return `row ${whole(now.order_0[painted.exact.row + row])}, column ${whole(now.order_1[painted.exact.column + column])}: ${exactly(value)}`;
    }
    const code = now.codes[row * now.cells[1] + column], value = codeValues(now.size)[code + 128];
    const about = Number.isFinite(value) ? `about ${brief(Number(value.toPrecision(2)))}; click for exact values` : "not finite";
    return `${places("row", "rows", behind(now.order_0, now.cells[0], row))}; ${places("column", "columns", behind(now.order_1, now.cells[1], column))}: ${about}`;
  }
  function showBox() {
    box.hidden = cell === null || painted === null || cell.row >= painted.rows || cell.column >= painted.columns;
    if (box.hidden) return;
    const wide = painted.wide / painted.columns, high = painted.high / painted.rows, [more, taller] = [wide, high].map((side) => Math.max(0, (8 - side) / 2));
    box.style.cssText = `left: ${painted.x + cell.column * wide - more}px; top: ${painted.y + cell.row * high - taller}px; width: ${wide + 2 * more}px; height: ${high + 2 * taller}px`;
  }
  function sayCell() {
    if (painted === null || cell.row >= painted.rows || cell.column >= painted.columns) return;
    readout.textContent = describe(cell);
    if (state.zoom) view.status.textContent = readout.textContent;
    showBox();
  }
  function leave() { cell = sought = null; box.hidden = true; readout.textContent = ""; }
  picture.canvas.addEventListener("pointermove", (event) => {
    if (tile() === undefined || (state.zoom && !piece())) return;
    const at = pointed(event);
    if (at) { cell = at; sayCell(); } else if (!state.zoom) leave();
  });
  picture.canvas.addEventListener("pointerleave", () => { if (!state.zoom) leave(); });
  picture.canvas.addEventListener("click", (event) => {
    view.root.focus({ preventScroll: true });
    if (!state.zoom && pointed(event)) zoomIn(pointed(event));
  });

  /** Zoom in to at most 64 × 64 exact values around a cell: the one pointed at, else the largest. */
  function zoomIn(to = cell) {
    const now = tile();
    if (state.zoom || !now?.codes) return;
    if (pictures.saved !== null) { view.status.textContent = "saved view: browsing works, exact values need a kernel"; return; }
    const largest = () => now.codes.reduce((best, code, i) => (Math.abs(code) > Math.abs(now.codes[best]) ? i : best), 0);
    const at = to ?? { row: Math.floor(largest() / now.cells[1]), column: largest() % now.cells[1] };
    const first = (index, axis) => Math.floor((index * now.shape[axis]) / now.cells[axis]);
    const [row, column] = [first(at.row, 0), first(at.column, 1)];
    const start = (index, axis) => clamp(index - PIECE_SIDE / 2, 0, Math.max(0, now.shape[axis] - PIECE_SIDE));
    state.zoom = { row: start(row, 0), column: start(column, 1) };
    leave();
    cell = { row: row - state.zoom.row, column: column - state.zoom.column };
    sought = { rows: first(at.row + 1, 0) - row, columns: first(at.column + 1, 1) - column };
    changed();
  }
  /** Move to the entry that the cell zoomed into showed: the largest of those behind it, or one that is not finite. */
  function settle() {
    const { values } = painted.exact, { row: top, column: left } = cell;
    const size = (row, column) => { const x = values[row * painted.columns + column]; return Number.isFinite(x) ? Math.abs(x) : Infinity; };
    for (let row = top; row < Math.min(top + sought.rows, painted.rows); row += 1) {
      for (let column = left; column < Math.min(left + sought.columns, painted.columns); column += 1) {
        if (size(row, column) > size(cell.row, cell.column)) cell = { row, column };
      }
    }
    sought = null;
  }
  function zoomOut() { state.zoom = null; leave(); changed(); }
  /** Move by cells; returns false where no piece is zoomed into. */
  function moveCell(down, right) {
    if (!state.zoom || !piece()) return false;
    const [rows, columns] = piece().columns.values[2];
    cell = { row: clamp((cell?.row ?? 0) + down, 0, rows - 1), column: clamp((cell?.column ?? 0) + right, 0, columns - 1) };
    sayCell();
    return true;
  }
  const shownToken = () => shown?.token ?? null;
  return { element, show, zoomIn, zoomOut, moveCell, leave, shownToken };
}
