// DocumentLens's layout: columns of each text, line breaks, wrapping, search. Arithmetic only, nothing is drawn here.

import { ACTING, PART, clamp, symbol } from "../../core/js/format.js";
import { dequantise, unpack, unpackTexts } from "../../core/js/packing.js";

const TAB = 4;
// Offsets of lines that hold no text: the space before a document, and its name.
export const GAP = 65534;
export const TITLE = 65535;
const WIDE = /^(?:[\u1100-\u115f\u2e80-\u303e\u3041-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]|\p{Emoji_Presentation}|\p{Emoji}\u{fe0f}|[\u{20000}-\u{3fffd}])/u;
const PLAIN = /^[\x20-\x7e]*$/;
const segmenter = typeof Intl.Segmenter === "function" ? new Intl.Segmenter(undefined, { granularity: "grapheme" }) : null;

/** Split a text into what is seen as one character, {shown, columns, kind}: kind is "", "break", "tab" or "symbol". */
function cellsOf(text) {
  const pieces = PLAIN.test(text) || !segmenter ? [...text] : Array.from(segmenter.segment(text), (part) => part.segment);
  if (text === "") return [{ shown: PART, columns: 1, kind: "symbol" }];
  const blank = /^ +$/.test(text);
  return pieces.flatMap((piece) => {
    if (piece === "\n") return { shown: "↵", columns: 1, kind: "break" };
    if (piece === "\t") return { shown: "⇥", columns: TAB, kind: "tab" };
    if (blank) return { shown: "·", columns: 1, kind: "symbol" };
    if (!ACTING.test(piece)) return { shown: piece, columns: WIDE.test(piece) ? 2 : 1, kind: "" };
    return [...piece].map((character) => {
      if (character === "\n") return { shown: "↵", columns: 1, kind: "break" };
      if (!ACTING.test(character)) return { shown: character, columns: WIDE.test(character) ? 2 : 1, kind: "" };
      const shown = symbol(character);
      return { shown, columns: shown.length === 1 ? 2 : shown.length, kind: "symbol" };
    });
  });
}

/** Return a token's text with what wrapping needs: columns, cells (null for plain text), where a line may break. */
export function parse(text) {
  const plain = PLAIN.test(text) && !/^ *$/.test(text);
  const cells = plain ? null : cellsOf(text);
  return {
    text, plain, cells,
    columns: plain ? text.length : cells.reduce((sum, cell) => sum + cell.columns, 0),
    simple: plain || cells.every((cell) => cell.kind !== "break" && cell.kind !== "tab"),
    opens: /^\s/.test(text) || WIDE.test(text), // a line may break before it
    closes: /\s$/.test(text) || (!plain && cells.length > 0 && cells.at(-1).columns === 2), // or after it
  };
}

/** Lines of `columns` columns: line i starts at cell `offset[i]` of token `token[i]`. More tokens may be added later. */
export class Lines {
  constructor(parsed, codes, starts, columns) {
    Object.assign(this, { parsed, codes, starts, columns, count: 0, placed: 0, document: 0, column: 0 });
    this.token = new Int32Array(1024);
    this.offset = new Uint16Array(1024);
  }

  /** Begin a line at a cell of a token. */
  push(token, offset) {
    if (this.count === this.token.length) {
      const [token_, offset_] = [this.token, this.offset];
      (this.token = new Int32Array(2 * this.count)).set(token_);
      (this.offset = new Uint16Array(2 * this.count)).set(offset_);
    }
    this.token[this.count] = token;
    this.offset[this.count] = offset;
    this.count += 1;
    this.column = 0;
    this.chance = -1; // the last token of this line that may open the next, and the column where it stands
    this.chanceAt = 0;
  }

  /** Place all tokens before `until`. */
  extend(until) {
    const { parsed, codes, starts, columns } = this;
    for (let t = this.placed; t < until; t += 1) {
      const piece = parsed[codes[t]];
      if (starts[this.document] === t) {
        while (starts[this.document] === t) this.document += 1; // a document may be empty
        if (t > 0) { this.push(t, GAP); this.push(t, TITLE); }
        this.push(t, 0);
        this.closed = true;
        this.open = false;
      }
      if (this.open) this.push(t, 0);
      this.open = false;
      if (piece.simple && piece.columns <= columns) {
        if ((this.closed || piece.opens) && this.column > 0) { this.chance = t; this.chanceAt = this.column; }
        if (this.column + piece.columns > columns) {
          const rest = this.chance > 0 ? this.column - this.chanceAt : 0;
          const fits = this.chance > 0 && rest + piece.columns <= columns;
          this.push(fits ? this.chance : t, 0);
          this.column = fits ? rest : 0;
        }
        this.column += piece.columns;
      } else this.pieceByPiece(t, piece);
      this.closed = piece.closes;
    }
    this.placed = Math.max(this.placed, until);
    return this;
  }

  /** Place a token with breaks or tabs in it, or one that is wider than a line. */
  pieceByPiece(t, { cells, text }) {
    (cells ?? [...text]).forEach((cell, i, all) => {
      const width = () => (cell.kind === "tab" ? TAB - (this.column % TAB) : cell.columns ?? 1);
      // The mark of a break may stand beyond the last column.
      if (this.column + width() > this.columns && this.column > 0 && cell.kind !== "break") this.push(t, i);
      this.column += width();
      if (cell.kind !== "break") return;
      if (i + 1 < all.length) this.push(t, i + 1);
      else this.open = true; // the next token of the document begins a line
    });
  }

  /** Return the pieces of a line: [token, first cell, one past the last cell (Infinity: all), column, columns]. */
  pieces(line) {
    const found = [];
    if (line < 0 || line >= this.count || this.offset[line] >= GAP) return found;
    const last = line + 1 < this.count ? this.token[line + 1] : this.placed;
    const end = line + 1 < this.count && this.offset[line + 1] < GAP ? this.offset[line + 1] : 0;
    let column = 0;
    for (let t = this.token[line]; t < last || (t === last && end > 0); t += 1) {
      const from = t === this.token[line] ? this.offset[line] : 0, to = t === last ? end : Infinity;
      const width = this.width(t, from, to, column);
      found.push([t, from, to, column, width]);
      column += width;
    }
    return found;
  }

  /** Return the columns of a piece of a token that begins at a column. */
  width(t, from, to, column) {
    const piece = this.parsed[this.codes[t]];
    if (piece.plain) return Math.min(to, piece.text.length) - from;
    let at = column;
    for (const cell of piece.cells.slice(from, to)) at += cell.kind === "tab" ? TAB - (at % TAB) : cell.columns;
    return at - column;
  }

  /** Return the line where a token begins. */
  lineOf(token) {
    let low = 0, high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1, offset = this.offset[middle];
      if (this.token[middle] < token || (this.token[middle] === token && (offset === 0 || offset >= GAP))) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Return the token at a column of a line, or the line's last one; null where it has none. */
  tokenAt(line, column) {
    const pieces = this.pieces(line);
    return (pieces.find(([, , , at, width]) => column < at + width) ?? pieces.at(-1))?.[0] ?? null;
  }

  /** Return the line of text `step` lines away, over gaps and titles. */
  away(line, step) {
    let at = clamp(line + step, 0, this.count - 1);
    while (at > 0 && at < this.count - 1 && this.offset[at] >= GAP) at += Math.sign(step);
    return at;
  }
}

/** Texts and scores of all tokens, filled page by page from bytes. */
export class Pages {
  constructor({ tokens, readers }) {
    this.loaded = 0;
    this.parsed = [];
    this.codes = new Uint32Array(tokens);
    this.nll = Object.fromEntries(Object.keys(readers).map((name) => [name, new Float32Array(tokens).fill(NaN)]));
  }

  /** Add the page whose first token is `first`. */
  add({ columns, scales, first }, bytes) {
    const data = unpack(columns, bytes);
    for (const text of unpackTexts(data.text, data.text_bytes)) this.parsed.push(parse(text));
    this.codes.set(data.code, first);
    Object.values(this.nll).forEach((values, row) => {
      const codes = data[`nll_${row}`];
      values.set(scales[row] === null ? codes : dequantise(codes, ...scales[row]), first);
    });
    this.loaded = first + data.code.length;
  }

  text(token) { return token < this.loaded ? this.parsed[this.codes[token]].text : "…"; }

  /** Return what the page knows of a token, in the form of the kernel's answer. */
  known(token) {
    const finite = (x) => (Number.isFinite(x) ? x : null);
    return { token, texts: {}, readers: Object.fromEntries(Object.entries(this.nll).map(([name, values]) => [name, { nll: finite(values[token]) }])) };
  }
}

/** Return the loaded text as one string and where each token starts in it; documents are separated by U+FFFF. */
function searchable(pages, starts, folded) {
  const fold = (text) => { const low = text.toLowerCase(); return low.length === text.length ? low : text; };
  const texts = pages.parsed.map(({ text }) => (folded ? fold(text) : text));
  const at = new Int32Array(pages.loaded + 1), parts = [];
  let document = 0, size = 0;
  for (let t = 0; t < pages.loaded; t += 1) {
    if (starts[document] === t) { parts.push("\uffff"); size += 1; document += 1; }
    while (starts[document] === t) document += 1;
    at[t] = size;
    parts.push(texts[pages.codes[t]]);
    size += parts.at(-1).length;
  }
  at[pages.loaded] = size;
  return { text: parts.join(""), at };
}

/** Return the last index of rising numbers whose number is not above `value`, or 0. */
export function indexBelow(numbers, value, length = numbers.length) {
  let low = 0, high = length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (numbers[middle] <= value) low = middle;
    else high = middle - 1;
  }
  return low;
}

/** Return [first token, one past the last] of each match; a query in small letters finds capitals too. */
export function findAll(pages, starts, query, cache, most = 100000) {
  const folded = query === query.toLowerCase();
  const key = `${folded}-${pages.loaded}`;
  if (cache.key !== key) Object.assign(cache, { key, ...searchable(pages, starts, folded) });
  const found = [];
  for (let at = cache.text.indexOf(query); at >= 0 && found.length < most; at = cache.text.indexOf(query, at + query.length)) {
    found.push([indexBelow(cache.at, at, pages.loaded), indexBelow(cache.at, at + query.length - 1, pages.loaded) + 1]);
  }
  return found;
}
