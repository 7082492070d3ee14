// DocumentLens's text: one tall scroll, of which only the lines in view are in the page; and its map.

import { surface } from "../../core/js/charts.js";
import { h } from "../../core/js/elements.js";
import { clamp, printable } from "../../core/js/format.js";
import { palette } from "../../core/js/theme.js";
import { drawApart, drawGround, drawMarks, paintOf, tokenSpan } from "./drawing.js";
import { Lines, TITLE, indexBelow } from "./layout.js";

export const ROW = 23; // px from line to line
const TALLEST = 12e6; // px; browsers limit the height of elements, so that beyond it a pixel of scrolling is several of text

/** Lines of text in `scroll`, drawn by `lens`: {pages, head, place, measure, paints, sources, searching}. */
export class TextPane {
  constructor(lens, scroll, painted) {
    Object.assign(this, { lens, scroll, painted, lines: null, rows: new Map(), spare: [], version: 0, marked: 0, kept: 0 });
    this.height = lens.head.lines * ROW;
    this.long = scroll.appendChild(h("div", { class: "fwl-long" }));
    this.ruler = scroll.appendChild(h("div", { class: "fwl-row", style: "visibility: hidden", "aria-hidden": "true" }, "0".repeat(100)));
  }

  get total() { return (this.lines.count + 1) * ROW; }
  get stretch() { return Math.max(1, (this.total - this.height) / Math.max(Math.min(this.total, TALLEST) - this.height, 1)); }
  /** Position of the scroll [px]; the last one while it is hidden, as JupyterLab hides it when it changes its theme. */
  get scrolled() { return this.scroll.clientWidth ? this.scroll.scrollTop : this.kept; }
  get top() { return this.scrolled * this.stretch; }
  set top(y) {
    this.scroll.scrollTop = y / this.stretch;
    this.kept = this.scroll.scrollTop;
    this.paint(); // the scroll event comes later, or never before the element is on the page
  }

  /** First and last token in view. */
  get seen() {
    const { token, count, placed } = this.lines, at = (y) => clamp(Math.floor(y / ROW), 0, count - 1);
    const [first, after] = [token[at(this.top)], at(this.top + this.height) + 1];
    return [first, Math.max(first, (after < count ? token[after] : placed) - 1)];
  }

  /** Break the loaded tokens into lines of the present width; the token at the top stays there. */
  layOut() {
    const { pages, head } = this.lens, { scroll } = this;
    if (!scroll.clientWidth) return; // hidden
    // JupyterLab takes hidden cells off the page; put back, a scroll is at the top again without an event.
    if (scroll.scrollTop !== this.kept) scroll.scrollTop = this.kept;
    const columns = Math.max(16, Math.floor((scroll.clientWidth - 28) / (this.ruler.getBoundingClientRect().width / 100 || 8)));
    if (this.lines?.columns === columns && this.lines.placed === pages.loaded) {
      this.paint();
      return;
    }
    const kept = this.lines && this.lines.columns !== columns ? this.lines.tokenAt(this.lines.away(Math.floor(this.top / ROW), 1), 0) : null;
    if (this.lines?.columns !== columns) this.lines = new Lines(pages.parsed, pages.codes, head.starts, columns);
    this.lines.extend(pages.loaded);
    this.long.style.height = `${Math.min(this.total, TALLEST)}px`;
    if (kept !== null) this.top = (this.lines.lineOf(kept) - 1) * ROW;
    this.repaint();
  }

  /** Draw all lines in view anew. */
  repaint() {
    this.version += 1;
    this.remark();
  }

  /** Draw the marks anew, where only what is selected, found or paid for has changed. */
  remark() {
    this.marked += 1;
    this.paint();
  }

  /** Put the lines in view on the page; those that are there and up to date only move. */
  paint() {
    const { lines, rows, spare, top } = this;
    if (lines === null) return;
    const first = Math.max(0, Math.floor(top / ROW) - 2), last = Math.min(lines.count, first + this.lens.head.lines + 5);
    for (const [line, row] of rows) if (line < first || line >= last) { rows.delete(line); spare.push(row); }
    const shift = this.scrolled - top;
    for (let line = first; line < last; line += 1) {
      let row = rows.get(line);
      if (row === undefined) {
        row = spare.pop() ?? this.long.appendChild(h("div", { class: "fwl-row" }));
        rows.set(line, row);
        row.version = -1;
      }
      if (row.version !== this.version) this.fill(row, line);
      if (row.version !== this.version || row.marked !== this.marked) this.mark(row);
      Object.assign(row, { version: this.version, marked: this.marked });
      row.style.top = `${line * ROW + shift + 6}px`;
    }
    for (const row of spare) row.style.top = "-100px";
    this.painted(lines.token[clamp(first + 2, 0, lines.count - 1)]);
  }

  /** Fill a row with the tokens of a line, or with a document's name. */
  fill(row, line) {
    const { pages, head, measure, paints: table } = this.lens, { lines } = this;
    if (lines.offset[line] === TITLE) {
      row.replaceChildren(h("bdi", { class: "fwl-name" }, printable(head.documents[indexBelow(head.starts, lines.token[line])])));
      return;
    }
    row.replaceChildren(...lines.pieces(line).map((piece) => {
      const node = tokenSpan(pages, piece), x = measure === null ? null : measure.value(piece[0]);
      if (Number.isFinite(x)) [node.style.background, node.style.color] = paintOf(measure, table, x);
      else if (x !== null) node.classList.add("fwl-odd");
      node.plain = node.className;
      return node;
    }));
  }

  /** Mark tokens that are selected, pinned, brushed, found, or sources of the selected one's gain. */
  mark(row) {
    const { place, sources, searching } = this.lens;
    const [selected, pinned, span] = ["token", "pinned", "span"].map(place.get);
    for (const node of row.children) {
      const t = node.token;
      if (t === undefined) continue;
      const share = sources.get(t);
      const one = t === selected ? "selected" : share !== undefined ? (share >= 0 ? "pays" : "costs") : t === pinned ? "pinned" : "";
      const two = searching.mask?.[t] ? "found" : span && t >= span[0] && t < span[1] ? "brushed" : "";
      const marks = [node.plain, one, two].filter(Boolean).join(" ");
      if (node.className !== marks) node.className = marks;
      if (share !== undefined) node.style.setProperty("--width", `${1.2 + 2 * Math.min(1, Math.abs(share) / sources.most)}px`);
    }
  }

  /** Scroll to a token: with `above` to the top, else only as far as needed. */
  reveal(token, above = false) {
    const { lines, top, height } = this;
    if (lines === null || token >= lines.placed) return;
    const at = lines.lineOf(token) * ROW;
    if (above) this.top = at - ROW;
    else if (at < top + ROW) this.top = at - height / 3;
    else if (at > top + height - 2 * ROW) this.top = at - (2 * height) / 3;
  }
}

/** Make the map of the whole trace beside the text: it shows what is in view; a drag scrolls, with Shift it brushes. */
export function mapOf(place_, lens, pane, signal) {
  const { head, pages, place } = lens, { height } = pane;
  let ground = {}, held = null;
  const surface_ = surface(place_, height, (context, width, tall) => {
    if (pane.lines === null) return;
    const key = [pane.version, pages.loaded, lens.searching.query, width, palette().dark].join();
    const about = { bins: lens.bins, measure: lens.measure, table: lens.paints, tokens: head.tokens, loaded: pages.loaded, starts: head.starts, found: lens.searching.found };
    if (ground.key !== key) ground = { key, picture: drawApart(width, tall, (apart) => drawGround(apart, width, tall, about)) };
    context.drawImage(ground.picture, 0, 0, width, tall);
    const [selected, pinned, span] = ["token", "pinned", "span"].map(place.get);
    drawMarks(context, width, tall, { tokens: head.tokens, view: pane.seen, selected, pinned, span, sources: lens.sources });
  }, signal, { role: "img", "aria-label": "map of the whole trace" });
  const { canvas } = surface_;
  const pointed = (event) => clamp(Math.floor(((event.clientY - canvas.getBoundingClientRect().top) / height) * head.tokens), 0, head.tokens - 1);
  const dragged = (event) => {
    if (held === null) return;
    const at = pointed(event);
    if (held.brush) place.set({ span: [Math.min(held.token, at), Math.max(held.token, at) + 1] });
    else if (at < pages.loaded) pane.top = pane.lines.lineOf(at) * ROW - height / 2;
  };
  canvas.addEventListener("pointerdown", (event) => {
    held = { token: pointed(event), brush: event.shiftKey };
    canvas.setPointerCapture(event.pointerId);
    if (!held.brush && place.get("span")) place.set({ span: null });
    dragged(event);
  });
  canvas.addEventListener("pointermove", dragged);
  canvas.addEventListener("lostpointercapture", () => { held = null; });
  return surface_;
}
