// LivePad without a browser: colours of tokens and means of the text.

import assert from "node:assert/strict";
import { test } from "node:test";

import { diverging, magnitude } from "../../widgets/core/js/theme.js";
import { liveRows } from "../../widgets/views/live_pad/panels.js";
import { FULL_NLL, liveColour } from "../../widgets/views/live_pad/text.js";

const STYLES = { a: { label: "A" }, b: { label: "B" }, c: { label: "C" } };

/** As much of a page as the theme asks for: a dark one. */
function withPage(run) {
  globalThis.document = { body: { dataset: { jpThemeLight: "false" } }, createElement: () => ({ getContext: () => ({ fillStyle: "" }) }) };
  globalThis.getComputedStyle = () => ({ getPropertyValue: () => "" });
  try {
    return run();
  } finally {
    delete globalThis.document;
    delete globalThis.getComputedStyle;
  }
}

test("a token is coloured by its gain or its NLL, full at the ends of the scale; none where it is not known", () => {
  withPage(() => {
    assert.deepEqual(liveColour("gain", 1, 2.5), diverging(0.5));
    assert.deepEqual(liveColour("gain", 9, 1), diverging(-1));
    assert.deepEqual(liveColour("nll", FULL_NLL / 4, undefined), magnitude(0.25, true));
    assert.deepEqual(liveColour("nll", 99, undefined), magnitude(1, true));
    assert.equal(liveColour("gain", 1, undefined), null);
    assert.equal(liveColour("nll", undefined, 1), null);
  });
});

test("means, gains over the baseline, and what was read anew", () => {
  const readers = {
    a: { nll: [1, 3], tokens: 1234, seconds: 0.25 }, b: { nll: [1, 1], tokens: 2, seconds: 0.001 }, c: { error: "diverged" },
  };
  assert.deepEqual(liveRows({ readers }, STYLES, "a"), [
    ["A", "2.000", "0.000", "1,234 in 250 ms"], ["B", "1.000", "+1.000", "2 in 1 ms"], ["C", "not finite", "", ""],
  ]);
  assert.equal(liveRows({ readers }, STYLES, undefined)[1][2], "–");
});
