// UpdateScope without a browser: norms over a document, what is asked for and when, codes, colours and cells of Δθ.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { Pictures } from "../../widgets/views/update_scope/asking.js";
import { codeValues, deltaColour, finiteRuns, matrixBox, valuePixel } from "../../widgets/views/update_scope/drawing.js";
import { Norms, behind, below, concentration, deltaWords, places } from "../../widgets/views/update_scope/panels.js";

const wire = JSON.parse(readFileSync(new URL("./wire.json", import.meta.url), "utf8"));

// -- norms ------------------------------------------------------------------------------------------------------------

/** Two documents, of 6 and 4 tokens; updates after tokens 1, 3, 7 and 8, of which the one after 8 is not drawn. */
function normsOf({ carry = false } = {}) {
  const head = {
    starts: [0, 6], tokens: 10, carry, texts: false,
    moved: { own: { norms: "norms_0", parameters: [{ name: "W1", slow: 10 }, { name: "W2", slow: null }] } },
  };
  const data = {
    updates: Int32Array.of(1, 3, 7, 8), drawn: Int32Array.of(0, 1, 2), norms_0: Float32Array.of(1, 2, 3, 10, NaN, 30),
  };
  return new Norms(head, data);
}

test("how many numbers are below one", () => {
  const numbers = [1, 3, 3, 7];
  for (let value = 0; value < 9; value += 1) assert.equal(below(numbers, value), numbers.filter((n) => n < value).length);
});

test("documents, and the updates before a token", () => {
  const norms = normsOf();
  assert.deepEqual([0, 5, 6, 9].map((at) => norms.document(at)), [0, 0, 1, 1]);
  assert.deepEqual([0, 1].map((document) => norms.bounds(document)), [[0, 6], [6, 10]]);
  assert.deepEqual([0, 1, 2, 4, 9].map((at) => norms.updatesBefore(at)), [0, 0, 1, 2, 4]);
  assert.deepEqual([0, 2, 5, 9].map((at) => norms.updateFrom(at, 1)), [2, 4, 8, 9]);
  assert.deepEqual([9, 4, 3, 1].map((at) => norms.updateFrom(at, -1)), [8, 2, 2, 0]);
});

test("a norm holds from the token after its update, and is 0 where a document begins", () => {
  const norms = normsOf();
  assert.deepEqual([0, 1, 2, 3, 4, 5].map((at) => norms.at("own", "W1", at)), [0, 0, 1, 1, 2, 2]);
  assert.deepEqual([6, 7, 8, 9].map((at) => norms.at("own", "W1", at)), [0, 0, 3, 3]);
  assert.deepEqual([2, 5].map((at) => norms.at("own", "W2", at)), [10, 10]); // not finite: the one before
  assert.ok(Number.isNaN(norms.at("own", "W3", 5)));
  assert.equal(normsOf({ carry: true }).at("own", "W1", 6), 2); // what was learned is carried on
});

test("lines begin at 0 with each document, in units of θ₀ where they are asked for", () => {
  const [first, second] = normsOf().lines("own", [0, 10], false);
  assert.deepEqual(first.pieces, [{ x: [0, 2, 4, 6], y: [0, 1, 2, 2] }, { x: [6, 8, 9], y: [0, 3, 3] }]);
  assert.deepEqual(second.pieces[0], { x: [0, 2, 6], y: [0, 10, 10] }); // NaN is left out
  assert.deepEqual([first.most, first.last, second.most], [3, 3, 30]);
  assert.deepEqual(normsOf().lines("own", [6, 10], true)[0].pieces, [{ x: [6, 8, 9], y: [0, 0.3, 0.3] }]);
  assert.equal(normsOf().relative("own"), false);
});

// -- what is asked for ------------------------------------------------------------------------------------------------

/** Pictures with a kernel that answers by `reply(question)`; an error that it returns is thrown. */
function picturesOf(reply, token = 3) {
  const place = { token, pinned: null, reader: "own", parameter: "W1" }, asked = [], state = { order: "length", zoom: null, ahead: null };
  const ask = async (question) => {
    asked.push(question.kind + (question.token === undefined ? "" : ` ${question.token}`));
    const answer = reply(question);
    if (answer instanceof Error) throw answer;
    return { content: answer, buffers: [] };
  };
  const pictures = new Pictures({ ask, place: { get: (name) => place[name] }, norms: normsOf(), state, arrived: () => {}, signal: new AbortController().signal });
  return { pictures, asked, place, state };
}

test("the picture is asked for first, then what goes with it, then the next; nothing twice", async () => {
  const { pictures, asked, state } = picturesOf(({ kind }) => (kind === "tile" ? { codes: [], bad: null } : {}));
  state.ahead = 5;
  await pictures.pump();
  assert.deepEqual(asked, ["tile 3", "peak", "spectrum 3", "tile 5"]);
  await pictures.pump();
  assert.equal(asked.length, 4);
  state.zoom = { row: 0, column: 64 };
  await pictures.pump();
  assert.deepEqual(asked.slice(4), ["piece 3"]);
  assert.deepEqual(pictures.piece(), { kind: "piece", order: "length", reader: "own", parameter: "W1", token: 3, pinned: null, row: 0, column: 64 });
});

test("where there is no picture, nothing of it is asked for; what failed is not asked again", async () => {
  const { pictures, asked } = picturesOf(({ kind }) => (kind === "tile" ? { absent: "not recorded" } : {}));
  await pictures.pump();
  assert.deepEqual(asked, ["tile 3"]);
  const failing = picturesOf(() => new Error("out of memory"));
  await failing.pictures.pump();
  await failing.pictures.pump();
  assert.deepEqual(failing.asked, ["tile 3"]);
  assert.equal(failing.pictures.why(failing.pictures.tile()), "out of memory");
});

test("a parameter that the reader does not adapt is not asked for", async () => {
  const { pictures, asked, place } = picturesOf(() => ({}));
  place.parameter = "W3";
  await pictures.pump();
  assert.deepEqual(asked, []);
});

test("on a saved page the nearest picture of the same document stands for one that is missing", async () => {
  const tile = (token) => ({ kind: "tile", order: "stored", reader: "own", parameter: "W1", token, pinned: null });
  const { pictures, place, state } = picturesOf((question) => {
    if (question.kind === "saved") return { tiles: [tile(1), tile(5), tile(6)] };
    return question.kind === "tile" && question.order === "stored" ? { values: [1], bad: null } : new Error("saved view: this needs a kernel");
  });
  await pictures.pump();
  assert.equal(state.order, "stored");
  assert.equal(pictures.tile().token, 1); // as far as 5, and earlier
  place.token = 4;
  assert.equal(pictures.tile().token, 5);
  place.token = 7;
  assert.equal(pictures.tile().token, 6);
  assert.equal(pictures.piece(), null);
});

// -- codes, colours, cells --------------------------------------------------------------------------------------------

test("codes are decoded as Python squeezed them", () => {
  const { codes, size, values } = wire.squeezed, decoded = codeValues(size);
  codes.forEach((code, i) => {
    const x = decoded[code + 128];
    if (values[i] === null) assert.ok(Number.isNaN(x));
    // A code is off by half a step of the root: |x| = (c / 127)² · size.
    else assert.ok(Math.abs(Math.sqrt(Math.abs(x) / size) - Math.sqrt(Math.abs(values[i]) / size)) <= 0.5 / 127 + 1e-6 && x * values[i] >= 0);
  });
  assert.equal(decoded[128], 0);
  assert.equal(decoded[255], Math.fround(size));
  assert.equal(decoded[1], -Math.fround(size));
});

test("a value's colour: the ground at 0, ends beyond the limit, its own where it is not finite", () => {
  assert.deepEqual(deltaColour(0, true, false), [255, 255, 255]);
  assert.deepEqual(deltaColour(0, true, true), [0x14, 0x17, 0x1c]);
  assert.deepEqual(deltaColour(5, true, false), deltaColour(1, true, false));
  assert.deepEqual(deltaColour(-0.5, false, true), deltaColour(0.5, false, true)); // unsigned
  assert.notDeepEqual(deltaColour(-0.5, true, true), deltaColour(0.5, true, true));
  assert.equal(valuePixel(NaN, 1, true, false), 0xff8c27d6); // bytes r, g, b, a from the lowest on
  assert.equal(valuePixel(0, 0, true, false), 0xffffffff);
});

test("square cells where they fit, with room for norms unless zoomed in", () => {
  const box = matrixBox(600, 540, [100, 50], false);
  assert.deepEqual([box.x, box.y, box.wide, box.high].map(Math.round), [48, 44, 230, 460]);
  assert.deepEqual(Object.values(matrixBox(600, 540, [4, 400], true)).slice(0, 4), [48, 8, 544, 160]); // a long one is stretched
});

test("lines are cut where a norm is not finite", () => {
  assert.deepEqual(finiteRuns({ x: [0, 1, 2, 3, 4], y: [0, 1, NaN, Infinity, 2] }), [[[0, 0], [1, 1]], [[4, 2]]]);
  assert.deepEqual(finiteRuns({ x: [0], y: [NaN] }), []);
});

test("rows behind a cell share all rows out among the cells", () => {
  const order = Int32Array.from({ length: 10 }, (_, i) => 9 - i);
  const shared = [0, 1, 2, 3].flatMap((cell) => behind(order, 4, cell));
  assert.deepEqual(shared, [...order]);
  assert.deepEqual(behind(order, 10, 3), [6]);
  assert.equal(places("row", "rows", behind(order, 10, 3)), "row 6");
  assert.equal(places("row", "rows", behind(order, 2, 0)), "rows 9, 8, 7, 6, …");
});

test("how concentrated a vector is, and what is said of Δθ", () => {
  assert.equal(concentration([3, 1, 1, 1]), "half of the squared norm is in 1 of 4 entries");
  assert.equal(concentration([1, -1, 1, -1]), "half of the squared norm is in 2 of 4 entries");
  assert.equal(concentration([0, 0]), "all entries are 0");
  const tile = { norm: 0.05, size: 0.01, codes: [], left_out: 0.25 };
  const words = Object.fromEntries(deltaWords(tile, { rank: 2.4, of: 64, share: 0.75 }, 10, null));
  assert.equal(words["‖Δθ‖"], "0.05, 0.500 % of ‖θ₀‖");
  assert.match(words["effective rank"], /^2\.4 of 64: spread as if over 2 /);
  assert.equal(words["first direction"], "75 % of the squared norm");
  assert.equal(words["low rank"], "kept without 25.0 % of the norm");
  assert.equal(deltaWords({ ...tile, norm: null }, null, 10, 3)[0].join(), "‖difference‖,not finite");
});
