// DocumentLens's ways through the text: by line, by document, by size of the gain, by search.

import { clamp, whole } from "../../core/js/format.js";
import { findAll, indexBelow } from "./layout.js";

export const LARGEST = 2000; // gains and harms to go through
const MOST_FOUND = 100000;

/** Steps from the selected token; each returns a token, or undefined where there is none. */
export class Walk {
  constructor(lens, pane) {
    Object.assign(this, { lens, pane, column: null, largest: null });
  }

  get here() { return this.lens.place.get("token"); }

  /** Return a token's gain over the baseline [nat]. */
  gain(t) {
    const { pages, place } = this.lens;
    return pages.nll[place.get("baseline")][t] - pages.nll[place.get("reader")][t];
  }

  /** Return the token some lines away that is nearest to the column where the moves began, and that column. */
  byLine(by) {
    const { lines } = this.pane;
    let line = lines.lineOf(this.here), next = this.here;
    const piece = lines.pieces(line).find(([t]) => t === this.here);
    const column = this.column ?? (piece ? piece[3] + Math.min(piece[4], 2) / 2 : 0);
    while (next === this.here) { // a token may fill several lines
      const further = lines.away(line, by);
      if (further === line) break;
      line = further;
      next = lines.tokenAt(line, column) ?? next;
    }
    return [next, column];
  }

  /** Return the first (0) or last (−1) token of the line. */
  edge(at) {
    const { lines } = this.pane;
    return lines.pieces(lines.lineOf(this.here)).at(at)?.[0];
  }

  /** Return the first token of another document; one step back leads to the start of this one first. */
  byDocument(by) {
    const { starts } = this.lens.head, at = indexBelow(starts, this.here);
    return starts[by < 0 && this.here > starts[at] ? at : clamp(at + by, 0, starts.length - 1)];
  }

  /** Return the tokens of the largest |gain|: `order` from the largest on, `read` in the order of the text. */
  extremes() {
    const { pages, place } = this.lens, key = [place.get("reader"), place.get("baseline"), pages.loaded].join();
    if (this.largest?.key === key) return this.largest;
    const sizes = Float32Array.from({ length: pages.loaded }, (_, t) => { const x = Math.abs(this.gain(t)); return Number.isFinite(x) ? x : -1; });
    const least = Math.max(sizes.slice().sort()[Math.max(0, sizes.length - LARGEST)], 1e-6);
    const found = [];
    sizes.forEach((size, t) => { if (size >= least) found.push(t); });
    const order = found.sort((a, b) => sizes[b] - sizes[a] || a - b).slice(0, LARGEST);
    this.largest = { key, order, read: order.slice().sort((a, b) => a - b), at: -1 };
    return this.largest;
  }

  /** Return the next token in the order of size, from where the last such step led, whatever was selected since. */
  byGain(by) {
    const found = this.extremes(), last = Math.max(found.order.length - 1, 0);
    found.at = clamp(found.at + by, 0, last);
    // If that token is selected already, the step leads to the next one.
    if (found.order[found.at] === this.here) found.at = clamp(found.at + by, 0, last);
    return found.order[found.at];
  }

  /** Return the next token with a large |gain| in the order of the text. */
  byReading(by) {
    const { read } = this.extremes();
    return by > 0 ? read.find((t) => t > this.here) : read.findLast((t) => t < this.here);
  }
}

/** A search: the matches of a text, and the current one. */
export class Search {
  constructor(lens) {
    Object.assign(this, { lens, query: "", found: [], mask: null, at: 0, cache: {} });
  }

  /** Find a text; the match at or before the selected token becomes the current one. */
  find(query) {
    const { pages, head, place } = this.lens;
    this.query = query;
    this.found = query ? findAll(pages, head.starts, query, this.cache, MOST_FOUND) : [];
    this.mask = this.found.length ? new Uint8Array(pages.loaded) : null;
    for (const [from, to] of this.found) this.mask.fill(1, from, to);
    this.at = this.found.length ? indexBelow(this.found.map(([t]) => t), place.get("token")) : 0;
  }

  /** Return the first token of the next (or previous) match, around both ends. */
  step(by) {
    const { found } = this, some = found.length, now = this.lens.place.get("token");
    if (!some) return undefined;
    if (found[this.at]?.[0] === now) this.at = (this.at + by + some) % some;
    else if (by > 0) this.at = Math.max(found.findIndex(([t]) => t > now), 0);
    else this.at = (found.findLastIndex(([t]) => t < now) + some) % some;
    return found[this.at][0];
  }

  /** Number of the current match and of all, in words. */
  get count() {
    const { pages, head } = this.lens, some = this.found.length;
    if (!this.query) return "";
    if (!some) return "nothing found";
    return `${whole(this.at + 1)} of ${whole(some)}${some === MOST_FOUND ? "+" : ""}${pages.loaded < head.tokens ? " so far" : ""}`;
  }
}
