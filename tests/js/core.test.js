// What views share: numbers and texts, packing, colours, scales, questions to the kernel. No browser.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import vm from "node:vm";

import { linear, ticks } from "../../widgets/core/js/charts.js";
import { brief, clamp, fixed, many, printable, signed, symbol, whole } from "../../widgets/core/js/format.js";
import { asker } from "../../widgets/core/js/kernel.js";
import { dequantise, unpack, unpackTexts } from "../../widgets/core/js/packing.js";
import { blend, channels, css, diverging, inkOn, magnitude } from "../../widgets/core/js/theme.js";
import { settled } from "../../widgets/core/js/timing.js";

const here = (name) => readFileSync(new URL(name, import.meta.url), "utf8");
// Written by tests/widgets/core/test_wire_fixture.py.
const wire = JSON.parse(here("./wire.json"));
const bytesOf = (text) => Uint8Array.from(Buffer.from(text, "base64"));

// -- numbers and texts ------------------------------------------------------------------------------------------------

test("numbers have a true minus, and say so where they are not finite", () => {
  assert.equal(whole(1234567), "1,234,567");
  assert.equal(fixed(-0.125, 2), "−0.13");
  assert.equal(fixed(NaN), "not finite");
  assert.deepEqual([1, 0, -1, -Infinity].map((x) => signed(x, 1)), ["+1.0", "+0.0", "−1.0", "not finite"]);
  assert.deepEqual([-2, 0.5, 9].map((x) => clamp(x, 0, 1)), [0, 0.5, 1]);
  assert.deepEqual([many(1, "token"), many(0, "token"), many(2000, "token")], ["1 token", "0 tokens", "2,000 tokens"]);
});

test("three digits, and a power of ten where that is shorter", () => {
  const told = { 0: "0", 0.001: "0.001", "-1.23456": "−1.23", 99999: "100000", 123456: "1.2 × 10⁵", "-0.00012": "−1.2 × 10⁻⁴" };
  for (const [x, text] of Object.entries(told)) assert.equal(brief(Number(x)), text);
  assert.equal(brief(Infinity), "not finite");
});

test("characters that act are shown instead", () => {
  assert.equal(symbol("\0"), "␀");
  assert.equal(symbol("\x7f"), "␡");
  assert.equal(symbol("\u202e"), "⟨202E⟩");
  assert.equal(printable("  a b\n\t "), "␣␣a b↵⇥␣");
  assert.equal(printable(""), "‧");
  assert.equal(printable("👩‍🚀"), "👩‍🚀"); // its joiner stays
  assert.equal(printable("a\u202eb"), "a⟨202E⟩b");
});

// -- what Python wrote ------------------------------------------------------------------------------------------------

test("arrays come back as Python packed them, wherever their bytes begin", () => {
  const { layout, data, values } = wire.packed, bytes = bytesOf(data);
  const shifted = new Uint8Array(bytes.length + 3);
  shifted.set(bytes, 3);
  for (const view of [bytes.buffer, new DataView(bytes.buffer), new DataView(shifted.buffer, 3)]) {
    const arrays = unpack(layout, view);
    assert.deepEqual(Object.keys(arrays), Object.keys(values));
    for (const [name, expected] of Object.entries(values)) {
      const numbers = expected.map((x) => (x === "inf" ? Infinity : x));
      assert.deepEqual(Array.from(arrays[name]), numbers, name);
    }
  }
  const shared = unpack(layout, bytes.buffer);
  assert.equal(shared.matrix.buffer, bytes.buffer); // no copy where it can be helped
  assert.ok(shared.single instanceof Float32Array && shared.bytes instanceof Int8Array);
});

test("texts keep every character, a byte order mark too", () => {
  const { layout, data, values } = wire.texts, arrays = unpack(layout, bytesOf(data).buffer);
  assert.deepEqual(unpackTexts(arrays.text, arrays.text_bytes), values);
});

test("quantised values are off by half a step at most", () => {
  const { codes, low, step, values } = wire.quantised;
  dequantise(Uint16Array.from(codes), low, step).forEach((x, i) => {
    if (values[i] === null) assert.ok(Number.isNaN(x));
    else assert.ok(Math.abs(x - values[i]) <= step / 2 + 1e-6);
  });
});

// -- a saved page -----------------------------------------------------------------------------------------------------

/** Run js/page.js with a state; returns its context, in which its names can be read. */
function savedPage(state) {
  const document = { getElementById: () => ({ textContent: JSON.stringify(state) }), querySelectorAll: () => [], body: { dataset: {} } };
  const context = vm.createContext({ document, viewModules: {}, queueMicrotask, atob });
  vm.runInContext(here("../../widgets/core/js/page.js"), context);
  return (expression) => vm.runInContext(expression, context);
}

test("a saved page finds answers by the keys that Python writes", () => {
  const page = savedPage({});
  for (const [question, key] of wire.questions) {
    const turned = Object.fromEntries(Object.entries({ id: "a-1", ...question }).reverse());
    assert.equal(page(`questionKey(${JSON.stringify(turned)})`), key);
  }
});

test("a saved page answers what it has, and says what needs a kernel", async () => {
  const [[question, key]] = wire.questions;
  const page = savedPage({ one: { state: { token: 1 }, answers: { [key]: [{ size: 2 }, [{ base64: "AP8=" }]] } } });
  const model = page("models.get('one')");
  const ask = asker(model, new AbortController().signal);
  const { content, buffers } = await ask(question);
  assert.equal(content.size, 2);
  assert.deepEqual([buffers[0].getUint8(0), buffers[0].getUint8(1)], [0, 255]);
  await assert.rejects(ask({ kind: "other" }), { message: "saved view: browsing works, this needs a kernel" });
});

test("a saved model tells of changes, once, and of none where nothing changed", () => {
  const model = savedPage({ one: { state: { token: 1 }, answers: {} } })("models.get('one')"), heard = [];
  const listen = () => heard.push(model.get("token"));
  model.on("change:token change:span", listen);
  model.set("token", 2);
  model.set("token", 2);
  model.set("span", [1, 2]);
  model.off("change:token", listen);
  model.set("token", 3);
  assert.deepEqual(heard, [2, 2]);
});

// -- questions to a kernel --------------------------------------------------------------------------------------------

test("answers find their questions in any order; an error rejects; a kernel that is gone rejects at once", async () => {
  const listeners = new Set(), sent = [];
  let alive = true;
  const model = {
    on: (_, callback) => listeners.add(callback),
    off: (_, callback) => listeners.delete(callback),
    send: (message) => { if (!alive) throw new Error("closed"); sent.push(message); },
  };
  const hear = (...given) => listeners.forEach((callback) => callback(...given));
  const ending = new AbortController(), ask = asker(model, ending.signal);
  const first = ask({ kind: "a" }), second = ask({ kind: "b" });
  assert.deepEqual(sent.map(({ kind }) => kind), ["a", "b"]);
  assert.notEqual(sent[0].id, sent[1].id);
  hear({ id: "of another view", value: 0 }, []);
  hear({ id: sent[1].id, error: "no such token" }, []);
  hear({ id: sent[0].id, value: 3 }, ["bytes"]);
  assert.deepEqual(await first, { content: { id: sent[0].id, value: 3 }, buffers: ["bytes"] });
  await assert.rejects(second, { message: "no such token" });
  alive = false;
  await assert.rejects(ask({ kind: "c" }), /^Error: saved view/);
  ending.abort();
  assert.equal(listeners.size, 0);
});

test("of many calls the last one counts", async () => {
  const calls = [];
  await new Promise((done) => {
    const soon = settled((x) => { calls.push(x); done(); }, 5);
    [1, 2, 3].forEach(soon);
  });
  assert.deepEqual(calls, [3]);
});

// -- colours and scales -----------------------------------------------------------------------------------------------

test("cividis ends at its ends, between them in equal steps, and is reversed in a light theme", () => {
  assert.deepEqual(magnitude(0, true), [0, 34, 78]);
  assert.deepEqual(magnitude(1, true), [254, 232, 56]);
  assert.deepEqual(magnitude(7, true), magnitude(1, true)); // beyond the scale: its end
  assert.deepEqual(magnitude(0.25, false), magnitude(0.75, true));
  assert.deepEqual(magnitude(0.5 / 9, true), blend(channels("#00224e"), channels("#123570"), 0.5));
  assert.equal(css([0.4, 254.6, 10]), "rgb(0, 255, 10)");
});

test("better is blue, worse is orange, nothing is the ground", () => {
  const colours = { ground: "#ffffff", better: "#0000ff", worse: "#ff8000" };
  assert.deepEqual(diverging(0, colours), [255, 255, 255]);
  assert.deepEqual(diverging(2, colours), [0, 0, 255]);
  assert.deepEqual(diverging(-1, colours), [255, 128, 0]);
  assert.deepEqual(diverging(0.5, colours), [127.5, 127.5, 255]);
});

test("ink is the one of black and white with more contrast", () => {
  const light = (value) => (value / 255 <= 0.04045 ? value / 255 / 12.92 : ((value / 255 + 0.055) / 1.055) ** 2.4);
  for (let grey = 0; grey < 256; grey += 1) {
    const own = light(grey), black = (own + 0.05) / 0.05, white = 1.05 / (own + 0.05);
    if (Math.abs(black - white) < 0.1) continue; // either reads
    assert.equal(inkOn([grey, grey, grey]), black > white ? "#000000" : "#ffffff");
  }
});

test("a scale and its inverse", () => {
  const scale = linear([10, 20], [100, 0]);
  assert.deepEqual([10, 15, 20, 25].map(scale), [100, 50, 0, -50]);
  assert.deepEqual([100, 50, 0].map(scale.back), [10, 15, 20]);
  assert.equal(linear([3, 3], [0, 8])(3), 0); // no extent: no division by zero
});

test("ticks are round numbers inside of the domain, about as many as asked for", () => {
  assert.deepEqual(ticks([0, 10], 5), [0, 2, 4, 6, 8, 10]);
  assert.deepEqual(ticks([-0.9, 1.1], 4), [-0.5, 0, 0.5, 1]);
  assert.deepEqual(ticks([0, 0.3], 3).map((x) => x.toFixed(1)), ["0.0", "0.1", "0.2", "0.3"]);
  for (const high of [0.037, 1, 8.4, 99, 12345]) {
    const found = ticks([0, high], 5);
    assert.ok(found.length >= 2 && found.length <= 6 && found.at(-1) <= high * (1 + 1e-9), String(high));
  }
});
