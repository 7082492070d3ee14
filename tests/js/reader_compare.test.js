// ReaderCompare without a browser: gains between points, words of numbers, and where labels go.

import assert from "node:assert/strict";
import { test } from "node:test";

import { apart, intervalText, nats, reach, scaled } from "../../widgets/views/reader_compare/charts.js";
import { comparison } from "../../widgets/views/reader_compare/comparison.js";
import { COMPARE_COSTS } from "../../widgets/views/reader_compare/panels.js";
import { methodWords } from "../../widgets/views/reader_compare/tables.js";

const HEAD = {
  order: ["a", "b", "c"], readers: { a: { label: "A" }, b: { label: "B" }, c: { label: "C" } },
  documents: [["first", 0, 4], ["second", 4, 10]],
};
// Sums of NLL before the points: of a, then of b, then of c.
const DATA = { at: [0, 4, 6, 10], sums: [0, 8, 12, 20, 0, 6, 9, 18, 0, 8, NaN, NaN] };
const selected = (values) => ({ get: (name) => values[name] });

test("gains between points are means per token over the selected baseline", () => {
  const compared = comparison(HEAD, DATA, selected({ reader: "b", baseline: "a" }));
  assert.equal(compared.gainBetween("b", 0, 1), 0.5);
  assert.equal(compared.gainBetween("b", 1, 2), 0.5);
  assert.equal(compared.whole("b"), 0.2);
  assert.equal(compared.gainBetween("c", 0, 1), 0);
  assert.equal(compared.whole("c"), null); // not finite
  assert.equal(compared.gainBetween("b", 1, 1), null); // no token
  assert.deepEqual(compared.others(), ["b", "c"]);
  assert.equal(comparison(HEAD, DATA, selected({ baseline: "b" })).gainBetween("a", 0, 1), -0.5);
});

test("a reader that the view does not have is replaced: the last is compared with the first", () => {
  const compared = comparison(HEAD, DATA, selected({ reader: "x", baseline: null }));
  assert.deepEqual([compared.chosen(), compared.baseline(), compared.label("c")], ["c", "a", "C"]);
});

test("points and documents of tokens", () => {
  const compared = comparison(HEAD, DATA, selected({}));
  assert.deepEqual([0, 3, 4, 5, 9, 10].map(compared.pointOf), [0, 0, 1, 1, 2, 3]);
  assert.deepEqual([1, 2, 3, 5, 8, 9].map(compared.nearest), [0, 0, 1, 1, 2, 3]); // halfway: the earlier one
  assert.deepEqual([0, 3, 4, 10].map((token) => compared.documentOf(token)[0]), ["first", "first", "second", "second"]);
});

test("numbers with units, intervals and sums in words", () => {
  assert.deepEqual([47e6, 1620, 0.5, null].map((x) => scaled(x, "B")), ["47 MB", "1.62 kB", "0.5 B", "–"]);
  assert.equal(intervalText([0.1234, -0.01, 0.25]), "+0.123 [−0.010, +0.250]");
  assert.equal(intervalText([0.1, null, null], 1), "+0.1 [no interval]");
  assert.equal(intervalText([null, null, null]), "not finite");
  assert.equal(intervalText(undefined), "not finite");
  assert.deepEqual([1.234, -1234.6, 1e6].map(nats), ["1.23", "−1,235", "1,000,000"]);
});

test("a cost is written in the unit that its size asks for", () => {
  const [, of, format] = COMPARE_COSTS.seconds_per_token;
  assert.equal(of({ seconds: 3 }, 1000), 0.003);
  assert.ok(!of({ seconds: null }, 1000));
  assert.deepEqual([2e-5, 0.03, 4].map(format), ["20 µs", "30 ms", "4 s"]);
});

test("a domain holds 0 and all that is finite, with air above, and below where something is negative", () => {
  assert.deepEqual(reach([1, 2, null, NaN]), [0, 2.12]);
  assert.deepEqual(reach([-1]), [-1.06, 0.06]);
  assert.deepEqual(reach([]), [0, 0.06]);
});

test("labels keep their order and their distance, inside of the chart", () => {
  const close = apart([50, 51, 10, 52], 15, 0, 100);
  assert.deepEqual(close, [50, 65, 10, 80]);
  assert.deepEqual(apart([99, 98], 15, 0, 100), [100, 85]);
  assert.deepEqual(apart([20, 80], 15, 0, 100), [20, 80]); // there is room
});

test("intervals say what they are of, and when they are too narrow", () => {
  assert.equal(methodWords({ resampled: "documents", level: 0.95 }, 40), "95 % intervals, paired bootstrap over documents");
  assert.match(methodWords({ resampled: "documents", level: 0.95 }, 3), /only 3: too narrow/);
  assert.match(methodWords({ resampled: "blocks", level: 0.9 }, 1), /^90 % .* over blocks: they speak of this document only$/);
});
