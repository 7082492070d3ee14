// UpdateScope's norms, texts and tables: what it shows without asking the kernel.

import { h, table, token } from "../../core/js/elements.js";
import { brief, fixed, whole } from "../../core/js/format.js";
import { unpackTexts } from "../../core/js/packing.js";

/** Norms of Δθ after updates, by reader and parameter, and the documents they belong to. */
export class Norms {
  constructor(head, data) {
    this.head = head;
    this.data = data;
    this.texts = head.texts ? unpackTexts(data.text, data.text_bytes) : null;
    this.after = Int32Array.from(data.drawn, (i) => data.updates[i] + 1); // first token that each norm holds for
  }

  parameters(reader) { return this.head.moved[reader]?.parameters ?? []; }

  /** Tell whether all parameters of a reader have a norm of θ₀, so that norms can be shown relative to it. */
  relative(reader) { return this.parameters(reader).every((entry) => entry.slow !== null); }

  /** Return the document of a token. */
  document(at) { return below(this.head.starts, at + 1) - 1; }

  /** Return the first token of a document, and one past its last. */
  bounds(document) { return [this.head.starts[document], this.head.starts[document + 1] ?? this.head.tokens]; }

  /** Return how many updates were made before a token. */
  updatesBefore(at) { return below(this.data.updates, at); }

  /** Return the token after the next update (`direction` > 0), or after the one before. */
  updateFrom(at, direction) {
    const { updates } = this.data, count = this.updatesBefore(at), last = this.head.tokens - 1;
    if (direction > 0) return count < updates.length ? Math.min(updates[count] + 1, last) : last;
    const index = updates[count - 1] + 1 === at ? count - 2 : count - 1;
    return index >= 0 ? updates[index] + 1 : 0;
  }

  /** Return the norms of a parameter after the updates that are drawn, or null where the reader does not adapt it. */
  row(reader, name) {
    const index = this.parameters(reader).findIndex((entry) => entry.name === name);
    const count = this.after.length;
    return index < 0 ? null : this.data[this.head.moved[reader].norms].subarray(index * count, (index + 1) * count);
  }

  /** Return ‖Δθ‖ at a token, of the last update that is drawn; 0 at a document's start, NaN where it is not known. */
  at(reader, name, token) {
    const row = this.row(reader, name);
    if (row === null) return NaN;
    let i = below(this.after, token + 1) - 1;
    const from = this.head.carry ? 0 : this.bounds(this.document(token))[0];
    while (i >= 0 && this.after[i] > from && Number.isNaN(row[i])) i -= 1;
    return i < 0 || this.after[i] <= from ? 0 : row[i];
  }

  /** Return a line for each parameter, in pieces that begin at 0 with each document; divided by ‖θ₀‖ where `relative`. */
  lines(reader, [from, to], relative) {
    return this.parameters(reader).map((entry) => {
      const row = this.row(reader, entry.name), unit = relative ? entry.slow : 1, pieces = [];
      for (let document = this.document(from); document < this.head.starts.length && this.head.starts[document] < to; document += 1) {
        const [first, end] = this.bounds(document);
        const start = below(this.after, first + 1), stop = below(this.after, end + 1);
        const piece = { x: [first], y: [this.head.carry && document > 0 && start > 0 ? row[start - 1] / unit : 0] };
        for (let i = start; i < stop; i += 1) {
          if (Number.isNaN(row[i])) continue;
          piece.x.push(this.after[i]);
          piece.y.push(row[i] / unit);
        }
        piece.x.push(Math.min(end, this.head.tokens - 1)); // Δθ stays the same after the last update
        piece.y.push(piece.y[piece.y.length - 1]);
        pieces.push(piece);
      }
      const known = pieces.flatMap((piece) => piece.y.filter(Number.isFinite));
      const last = [...pieces].reverse().flatMap((piece) => piece.y.slice(1).filter(Number.isFinite).slice(-1))[0] ?? null;
      return { ...entry, pieces, most: known.reduce((a, b) => Math.max(a, b), 0), last };
    });
  }
}

/** Return how many of rising numbers are below a value. */
export function below(numbers, value) {
  let low = 0, high = numbers.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Make the text around a token: what was read, the token itself, what follows. */
export function readingLine(norms, at) {
  const [first, end] = norms.bounds(norms.document(at));
  // Long runs of spaces are shortened, so that words stay in view.
  const one = (text) => {
    const shown = token(text);
    shown.textContent = shown.textContent.replace(/␣{4,}/g, (blanks) => `␣×${blanks.length} `);
    return shown;
  };
  const part = (from, to) => h("span", {}, norms.texts.slice(Math.max(from, first), Math.min(to, end)).map(one));
  return [
    h("div", { class: "fwl-read" }, part(at - 40, at)),
    token(norms.texts[at], { class: "fwl-token fwl-now" }),
    h("div", { class: "fwl-coming" }, part(at + 1, at + 25)),
  ];
}

/** Make a table of norms after updates between two tokens; the selected parameter comes first. */
export function normTable(norms, reader, selected, [from, to], choose) {
  const entries = [...norms.parameters(reader)].sort((a, b) => (b.name === selected) - (a.name === selected)).slice(0, 8);
  const places = [...norms.after.keys()].filter((i) => norms.after[i] > from && norms.after[i] <= to);
  const step = Math.ceil(places.length / 600) || 1;
  const rows = places.filter((_, i) => i % step === 0 || i === places.length - 1).map((i) => [
    h("button", { type: "button", tabindex: "-1", onclick: () => choose(Math.min(norms.after[i], norms.head.tokens - 1)) }, whole(norms.after[i])),
    whole(norms.data.drawn[i] + 1), ...entries.map((entry) => brief(norms.row(reader, entry.name)[i])),
  ]);
  const left = norms.parameters(reader).length - entries.length;
  return table(
    `‖Δθ‖ after updates${step > 1 ? `, every ${step}th` : ""}${left ? `; ${left} more parameters can be chosen above` : ""}`,
    ["token", "updates made", ...entries.map((entry) => entry.label)], rows,
  );
}

/** Describe Δθ in figures, as [name, text] pairs. */
export function deltaWords(tile, spectrum, slow, pinned) {
  const what = pinned === null ? "‖Δθ‖" : "‖difference‖";
  const share = slow && tile.norm !== null && pinned === null ? `, ${fixed((100 * tile.norm) / slow, tile.norm / slow < 0.01 ? 3 : 1)} % of ‖θ₀‖` : "";
  const words = [[what, `${tile.norm === null ? "not finite" : brief(tile.norm)}${share}`], ["largest entry", `±${brief(tile.size)}`]];
  if (tile.codes === undefined) return [...words, ["concentration", concentration(tile.values)]];
  if (spectrum?.rank) {
    words.push(["effective rank", `${fixed(spectrum.rank, 1)} of ${whole(spectrum.of)}: spread as if over ${whole(Math.round(spectrum.rank))} equal directions`]);
    words.push(["first direction", `${fixed(100 * spectrum.share, 0)} % of the squared norm`]);
  }
  if (tile.left_out) words.push(["low rank", `kept without ${fixed(100 * tile.left_out, 1)} % of the norm`]);
  return words;
}

/** Describe how few entries of a vector hold half of its squared norm. */
export function concentration(values) {
  const squares = Float64Array.from(values, (value) => value * value).sort().reverse();
  const half = squares.reduce((a, b) => a + b, 0) / 2;
  let sum = 0, count = 0;
  while (count < squares.length && sum < half) { sum += squares[count]; count += 1; }
  return half > 0 ? `half of the squared norm is in ${whole(count)} of ${whole(values.length)} entries` : "all entries are 0";
}

/** Return the rows (or columns) behind a cell, by the model's own numbers. */
export function behind(order, cells, at) {
  const first = Math.floor((at * order.length) / cells), end = Math.floor(((at + 1) * order.length) / cells);
  return Array.from(order.subarray(first, Math.max(end, first + 1)));
}

/** Write "row 7" or "rows 7, 9, 2, 4, …". */
export function places(one, many, numbers) {
  const shown = numbers.slice(0, 4).map(whole).join(", ");
  return `${numbers.length > 1 ? many : one} ${shown}${numbers.length > 4 ? ", …" : ""}`;
}
