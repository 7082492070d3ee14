// RunConsole and Receipts without a browser: durations, the time that is left, words of a receipt.

import assert from "node:assert/strict";
import { test } from "node:test";

import { receiptWords } from "../../widgets/views/receipts/index.js";
import { duration, freshId, speedText, timeLeft } from "../../widgets/views/run_console/parts.js";

test("seconds as a person says them", () => {
  const told = [[0.4, "under 1 s"], [1.2, "2 s"], [59.5, "60 s"], [61, "1 min 1 s"], [3725, "1 h 2 min"], [3.6e6, "1,000 h 0 min"], [NaN, "unknown"]];
  for (const [seconds, text] of told) assert.equal(duration(seconds), text);
  assert.equal(speedText(1234.5), "1,235 tokens/s");
});

test("the time left is that of all readers in turn, and unknown before each has read something", () => {
  assert.equal(timeLeft({ total: 100, done: { a: 50, b: 100 }, seconds: { a: 5, b: 40 } }), 5);
  assert.equal(timeLeft({ total: 100, done: { a: 50, b: 10 }, seconds: { a: 5, b: 4 } }), 41);
  assert.ok(Number.isNaN(timeLeft({ total: 100, done: { a: 50, b: 0 }, seconds: { a: 5, b: 0 } })));
});

test("ids are never given twice", () => {
  const [first, second] = [freshId("field"), freshId("field")];
  assert.match(first, /^fwl-field-\d+$/);
  assert.notEqual(first, second);
});

test("a receipt in words, with its strongest source and without any", () => {
  const styles = { own: { label: "FWL" } }, receipt = { text: " Smith", position: 1234, gain: 1.5, gross: 2, sources: [] };
  assert.equal(receiptWords(receipt, styles, "own"), "␣Smith at 1,234: FWL gained +1.50 nat over θ₀, gross 2.00");
  const source = { text: " Smith", distance: 1000, share: -0.25 };
  assert.match(receiptWords({ ...receipt, sources: [source] }, styles, "own"), /; strongest source ␣Smith, 1,000 earlier, −0\.25$/);
});
