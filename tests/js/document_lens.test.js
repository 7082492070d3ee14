// DocumentLens without a browser: how text becomes lines, ways through it, what is found, means of a measure.

import assert from "node:assert/strict";
import { test } from "node:test";

import { binned, meanOf, quantile } from "../../widgets/views/document_lens/drawing.js";
import { GAP, Lines, Pages, TITLE, findAll, indexBelow, parse } from "../../widgets/views/document_lens/layout.js";
import { expected } from "../../widgets/views/document_lens/panel.js";
import { Search, Walk } from "../../widgets/views/document_lens/walk.js";

/** Numbers from 0 to below 1 that are the same in each run. */
function random(seed) {
  let state = seed;
  return () => (state = (state * 48271) % 2147483647) / 2147483647;
}

/** Pages of given tokens, with scores of two readers. */
function pagesOf(tokens, nll = {}) {
  const pages = new Pages({ tokens: tokens.length, readers: nll });
  const distinct = [...new Set(tokens)];
  pages.parsed = distinct.map(parse);
  pages.codes.set(tokens.map((text) => distinct.indexOf(text)));
  for (const [name, values] of Object.entries(nll)) pages.nll[name].set(values);
  pages.loaded = tokens.length;
  return pages;
}
const linesOf = (tokens, columns, starts = [0]) => {
  const pages = pagesOf(tokens);
  return new Lines(pages.parsed, pages.codes, starts, columns).extend(tokens.length);
};
/** Text of each line; "gap" and "title" for lines without any. */
const shown = (lines, tokens) => Array.from({ length: lines.count }, (_, line) => {
  if (lines.offset[line] >= GAP) return lines.offset[line] === TITLE ? "title" : "gap";
  return lines.pieces(line).map(([t, from, to]) => [...tokens[t]].slice(from, to).join("")).join("");
});

// -- lines ------------------------------------------------------------------------------------------------------------

test("columns of a text: wide characters take two, tabs four, a control as many as its code has", () => {
  const columns = { abc: 3, " ": 1, "日本": 4, "\t": 4, "\n": 1, "\u202e": 6, "👩‍🚀": 2, "": 1, "e\u0301": 1, "\x01": 2 };
  for (const [text, width] of Object.entries(columns)) assert.equal(parse(text).columns, width, JSON.stringify(text));
  assert.deepEqual(parse("a\nb").cells.map(({ kind }) => kind), ["", "break", ""]);
  assert.equal(parse("abc").cells, null); // plain text needs none
});

test("lines break before words, and a word that is continued stays whole", () => {
  const tokens = ["The", " quick", " bro", "wn", " fox", "es"];
  assert.deepEqual(shown(linesOf(tokens, 10), tokens), ["The quick", " brown", " foxes"]);
  assert.deepEqual(shown(linesOf(tokens, 12), tokens), ["The quick", " brown foxes"]);
  assert.deepEqual(shown(linesOf(["abc", " de", "fgh"], 6), ["abc", " de", "fgh"]), ["abc", " defgh"]); // it just fits
});

test("a line break ends its line, also inside of a token; a document begins with a gap and its title", () => {
  const tokens = ["a\n", "b\nc", "\n\n", "d", "e"];
  assert.deepEqual(shown(linesOf(tokens, 10, [0, 4]), tokens), ["a\n", "b\n", "c\n", "\n", "d", "gap", "title", "e"]);
});

test("a token that is wider than a line is cut", () => {
  const tokens = ["ab", "cdefghijkl"];
  assert.deepEqual(shown(linesOf(tokens, 4), tokens), ["abcd", "efgh", "ijkl"]);
});

test("every token is shown once and whole, no line is too wide, and parts placed later give the same lines", () => {
  const next = random(7), words = ["a", "bcd", " ef", " ghijk", "\n", "\t", "日本", " ", "x\ny", "longerthanaline", "", "\u202e"];
  for (let round = 0; round < 40; round += 1) {
    const tokens = Array.from({ length: 60 }, () => words[Math.floor(next() * words.length)]);
    const starts = [0, 20, 20, 45], columns = 8 + Math.floor(next() * 20), pages = pagesOf(tokens);
    const whole = linesOf(tokens, columns, starts), parts = new Lines(pages.parsed, pages.codes, starts, columns);
    for (const until of [13, 20, 21, 60]) parts.extend(until);
    assert.deepEqual(shown(parts, tokens), shown(whole, tokens));
    const cells = tokens.map(() => []);
    for (let line = 0; line < whole.count; line += 1) {
      let end = 0;
      for (const [t, from, to, column, width] of whole.pieces(line)) {
        const all = [...Array(pages.parsed[pages.codes[t]].cells?.length ?? tokens[t].length).keys()];
        cells[t].push(...all.slice(from, to));
        assert.equal(column, end);
        end += width;
        if (from === 0) assert.equal(whole.lineOf(t), line);
        if (width > 0) assert.equal(whole.tokenAt(line, column), t);
      }
      assert.ok(end <= columns + 1, `${end} of ${columns}`); // the mark of a break may hang out
    }
    tokens.forEach((text, t) => {
      const count = pages.parsed[pages.codes[t]].cells?.length ?? text.length;
      assert.deepEqual(cells[t], [...Array(count).keys()], JSON.stringify(text));
    });
  }
});

test("up and down step over gaps and titles", () => {
  const lines = linesOf(["a\n", "b", "c"], 10, [0, 2]); // a, b, gap, title, c
  assert.equal(lines.away(1, 1), 4);
  assert.equal(lines.away(4, -1), 1);
  assert.equal(lines.away(4, 1), 4);
});

// -- pages ------------------------------------------------------------------------------------------------------------

test("pages follow one another; what is not loaded is NaN", () => {
  const pages = new Pages({ tokens: 4, readers: { one: {}, two: {} } });
  const bytes = new Uint8Array(64), columns = {
    text: ["uint8", 0, [3]], text_bytes: ["uint16", 8, [2]], code: ["uint16", 16, [2]], nll_0: ["uint16", 24, [2]], nll_1: ["float32", 32, [2]],
  };
  bytes.set(Buffer.from("abc"));
  new Uint16Array(bytes.buffer, 8, 2).set([1, 2]);
  new Uint16Array(bytes.buffer, 16, 2).set([1, 0]);
  new Uint16Array(bytes.buffer, 24, 2).set([4, 65535]);
  new Float32Array(bytes.buffer, 32, 2).set([0.5, 1.5]);
  pages.add({ columns, scales: [[1, 0.25], null], first: 1 }, bytes.buffer);
  assert.equal(pages.loaded, 3);
  assert.deepEqual([1, 2, 3].map((t) => pages.text(t)), ["bc", "a", "…"]);
  assert.deepEqual([...pages.nll.one], [NaN, 2, NaN, NaN]);
  assert.deepEqual([...pages.nll.two], [NaN, 0.5, 1.5, NaN]);
  assert.deepEqual(pages.known(2), { token: 2, texts: {}, readers: { one: { nll: null }, two: { nll: 1.5 } } });
});

// -- search and ways --------------------------------------------------------------------------------------------------

test("the last index that is not above a value", () => {
  const numbers = [0, 3, 3, 7];
  for (let value = -1; value < 9; value += 1) {
    const last = numbers.findLastIndex((number) => number <= value);
    assert.equal(indexBelow(numbers, value), Math.max(last, 0), String(value));
  }
});

test("a text is found across tokens and never across documents; small letters find capitals", () => {
  const tokens = ["An", "na", " and ", "AN", "NA", "an", "na"], pages = pagesOf(tokens), cache = {};
  assert.deepEqual(findAll(pages, [0, 5], "anna", cache), [[0, 2], [3, 5], [5, 7]]);
  assert.deepEqual(findAll(pages, [0, 5], "Anna", cache), [[0, 2]]);
  assert.deepEqual(findAll(pages, [0, 6], "anna", {}), [[0, 2], [3, 5]]);
  assert.deepEqual(findAll(pages, [0], "nna a", cache), [[0, 3]]);
  assert.deepEqual(findAll(pages, [0, 5], "an", cache, 2), [[0, 1], [2, 3]]);
});

/** What the parts of a lens share, around a token that moves. */
function lensOf(tokens, nll, starts = [0]) {
  const selected = { token: 0, reader: "own", baseline: "base" };
  const place = { get: (name) => selected[name] };
  return { selected, lens: { pages: pagesOf(tokens, nll), place, head: { starts, tokens: tokens.length } } };
}

test("n goes through the biggest gains and harms in order of size, N as they read", () => {
  const base = [1, 2, 3, NaN, 5], own = [1, 1.5, 0, 1, 7]; // gains 0, 0.5, 3, NaN, −2
  const { selected, lens } = lensOf(["a", "b", "c", "d", "e"], { base, own });
  const walk = new Walk(lens, {});
  assert.deepEqual(walk.extremes().order, [2, 4, 1]);
  const steps = [1, 1, 1, 1, -1].map((by) => (selected.token = walk.byGain(by)));
  assert.deepEqual(steps, [2, 4, 1, 1, 4]);
  selected.token = 2;
  assert.equal(walk.byReading(1), 4);
  assert.equal(walk.byReading(-1), 1);
  selected.token = 4;
  assert.equal(walk.byReading(1), undefined);
});

test("by document: back to its beginning first, then to the one before", () => {
  const { selected, lens } = lensOf(["a", "b", "c", "d"], {}, [0, 1, 3]);
  const walk = new Walk(lens, {}), from = (token, by) => { selected.token = token; return walk.byDocument(by); };
  assert.deepEqual([from(2, -1), from(1, -1), from(0, -1), from(2, 1), from(3, 1)], [1, 0, 0, 3, 3]);
});

test("a search goes on from the selected token, around both ends", () => {
  const { selected, lens } = lensOf(["x", "a", "x", "a", "x"], {});
  const search = new Search(lens);
  selected.token = 2;
  search.find("a");
  assert.deepEqual([...search.mask], [0, 1, 0, 1, 0]);
  const steps = [1, 1, -1, -1].map((by) => (selected.token = search.step(by)));
  assert.deepEqual(steps, [3, 1, 3, 1]);
  assert.equal(search.count, "1 of 2");
  search.find("zz");
  assert.equal(search.step(1), undefined);
  assert.equal(search.count, "nothing found");
});

// -- measures ---------------------------------------------------------------------------------------------------------

test("means of stretches and of bins leave out what is not finite", () => {
  const values = [1, 3, NaN, 5, 7, 9], measure = { name: "gain", value: (t) => values[t] };
  assert.equal(meanOf(measure, 3, 6), 7);
  const { means, tokens, height } = binned(measure, 6, 5, 6); // three bins; the last token is not loaded
  assert.deepEqual(means, [2, 5, 7]);
  assert.deepEqual([tokens, height], [2, 2]);
  assert.equal(quantile(6, (t) => values[t], 0.5), 5);
  assert.equal(quantile(0, () => 1, 0.5), 0);
});

test("the token that came is listed, also where it was not among the likeliest", () => {
  const said = { ids: [4, 9], log_probs: [-0.5, -1], nll: 3, rank: 17 };
  assert.deepEqual(expected(said, 9).map(({ id, place }) => [id, place]), [[4, 0], [9, 1]]);
  assert.deepEqual(expected(said, 5).at(-1), { id: 5, place: 17, logProb: -3 });
  assert.equal(expected({ nll: 3 }, 5), null);
});
