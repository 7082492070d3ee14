// What every view is made of: elements, a frame with keys and a spoken line, the selection, questions to the kernel.
// A view's module is this file, charts.js and its own, one after the other. Token texts are text here, never markup.

const SLOW = 300; // ms before a wait is shown
const PATIENCE = 4000; // ms before a kernel counts as busy or gone

// JupyterLab runs its shortcuts (x cuts a cell) unless the element that has the focus says that it wants the keys.
const OWN_KEYS = "data-lm-suppress-shortcuts";
const FOCUSABLE = ["button", "select", "input", "textarea", "summary"];

/** An element. Attributes that are functions listen ("onclick"); children are nodes or texts; null is left out. */
function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (FOCUSABLE.includes(tag) || (attributes.tabindex ?? null) !== null) node.setAttribute(OWN_KEYS, "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** The name space of drawings, asked of the browser: a saved page holds no address, not even of a name. */
const SVG = new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;

// -- numbers and texts ----------------------------------------------------------------------------------------------

const whole = (n) => n.toLocaleString("en-US");
const fixed = (x, digits = 2) => (Number.isFinite(x) ? x.toFixed(digits).replace("-", "−") : "not finite");
const signed = (x, digits = 2) => (Number.isFinite(x) && x >= 0 ? "+" : "") + fixed(x, digits);
const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** Three significant digits, with a power of ten where that is shorter. */
function brief(x) {
  if (!Number.isFinite(x)) return "not finite";
  if (x === 0) return "0";
  const size = Math.abs(x);
  if (size >= 1e-3 && size < 1e5) return String(Number(x.toPrecision(3))).replace("-", "−");
  const [digits, power] = x.toExponential(1).split("e");
  const raised = [...power].map((c) => ({ "-": "⁻", "+": "" })[c] ?? "⁰¹²³⁴⁵⁶⁷⁸⁹"[c]).join("");
  return `${digits.replace("-", "−")} × 10${raised}`;
}

/** A number of things: 1 token, 2,000 tokens. */
const many = (count, what) => `${whole(count)} ${what}${count === 1 ? "" : "s"}`;

// What would act on the page, or look like nothing, instead of being seen; joiners inside emoji may stay.
const ACTING = /(?![\u200d ])[\p{Cc}\p{Cf}\p{Z}\p{Cn}\p{Cs}\u115f\u1160\u2800\u3164\uffa0]/u;
const PART = "‧"; // a token whose text is with an earlier one: a later byte of a character

/** A visible stand-in for a character that acts: Unicode's control pictures where there are any, else its code. */
function symbol(character) {
  const code = character.codePointAt(0);
  if (code < 0x20) return String.fromCodePoint(0x2400 + code);
  return code === 0x7f ? "␡" : `⟨${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

/** Token text for one line: breaks, tabs, controls and the spaces at its ends can be seen. */
function printable(text) {
  const inner = [...text].map((c) => (c === "\n" ? "↵" : c === "\t" ? "⇥" : ACTING.test(c) ? symbol(c) : c)).join("");
  const marked = inner.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length));
  return marked === "" ? PART : marked;
}

/** Token text as an element of its own direction, for one line. */
const token = (text, attributes = {}) => h("bdi", { class: "fwl-token", ...attributes }, printable(text));

// -- data -----------------------------------------------------------------------------------------------------------

const ARRAYS = {
  int8: Int8Array, uint8: Uint8Array, int16: Int16Array, uint16: Uint16Array, int32: Int32Array, uint32: Uint32Array,
  float32: Float32Array, float64: Float64Array,
};
const MISSING = 65535;

/** Typed arrays by name, of what `widgets.packing.pack` laid end to end; they share the bytes. */
function unpack(layout, data) {
  const bytes = data instanceof DataView ? data : new DataView(data);
  const aligned = bytes.byteOffset % 8 === 0 ? bytes.buffer : bytes.buffer.slice(bytes.byteOffset);
  const start = bytes.byteOffset % 8 === 0 ? bytes.byteOffset : 0;
  return Object.fromEntries(Object.entries(layout).map(([name, [type, offset, shape]]) => {
    const length = shape.reduce((product, side) => product * side, 1);
    return [name, new ARRAYS[type](aligned, start + offset, length)];
  }));
}

/** Values of `widgets.packing.quantise`. */
function dequantise(codes, low, step) {
  return Float32Array.from(codes, (code) => (code === MISSING ? NaN : low + step * code));
}

/** Texts of `widgets.packing.pack_texts`. */
function unpackTexts(bytes, lengths) {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // a byte order mark is a token like any other
  let at = 0;
  return Array.from(lengths, (length) => decoder.decode(bytes.subarray(at, (at += length))));
}

// -- the selection and the kernel -----------------------------------------------------------------------------------

/** What the views of a trace share: `get`, `set({token: 7})`, `on(["token"], callback)`. */
async function connect(model, signal) {
  const shared = await model.widget_manager.get_model(model.get("selection").replace("IPY_MODEL_", ""));
  return {
    get: (name) => shared.get(name),
    set(changes) {
      for (const [name, value] of Object.entries(changes)) shared.set(name, value);
      try {
        shared.save_changes();
      } catch { /* no kernel: the views still follow each other */ }
    },
    on(names, callback) {
      const events = names.map((name) => `change:${name}`).join(" ");
      shared.on(events, callback);
      signal.addEventListener("abort", () => shared.off(events, callback));
    },
  };
}

/** `ask({kind: ...})` promises {content, buffers}; it rejects with what the kernel said was wrong. */
function asker(model, signal) {
  const mine = Math.random().toString(36).slice(2);
  const waiting = new Map();
  let count = 0;
  const heard = (content, buffers) => {
    const asked = waiting.get(content.id);
    if (asked === undefined) return;
    waiting.delete(content.id);
    if (content.error !== undefined) asked.reject(new Error(content.error));
    else asked.resolve({ content, buffers });
  };
  model.on("msg:custom", heard);
  signal.addEventListener("abort", () => model.off("msg:custom", heard));
  return (question) => new Promise((resolve, reject) => {
    const id = `${mine}-${count += 1}`;
    waiting.set(id, { resolve, reject });
    try {
      model.send({ ...question, id });
    } catch {
      waiting.delete(id);
      reject(new Error("saved view: browsing works, this needs a kernel"));
    }
  });
}

/** Only the last call counts, `delay` ms after it; 0: once a frame. */
function settled(callback, delay = 0) {
  let timer = null;
  return (...given) => {
    if (delay) {
      clearTimeout(timer);
      timer = setTimeout(() => callback(...given), delay);
    } else {
      if (timer !== null) cancelAnimationFrame(timer);
      timer = requestAnimationFrame(() => { timer = null; callback(...given); });
    }
  };
}

// -- the frame of a view --------------------------------------------------------------------------------------------

/**
 * A view's frame: `header` with `tools`, `body`, and a line that is read out. One tab stop; keys move inside it.
 * `keys` lists what each key does: {key: "n", does: "next gain", run: (event) => ...}; without `does` it is not told.
 */
function frame(el, { name, label, keys = [], signal }) {
  const tools = h("div", { class: "fwl-tools", role: "toolbar", "aria-label": `${label}: controls` });
  const heading = h("div", { class: "fwl-heading" });
  const body = h("div", { class: "fwl-body" });
  const status = h("div", { class: "fwl-status", role: "status", "aria-live": "polite" });
  const help = h("dl", { class: "fwl-help", hidden: true });
  const explain = () => { help.hidden = !help.hidden; };
  const root = h(
    "section",
    { class: `fwl fwl-${name}`, tabindex: "0", role: "application", "aria-label": label },
    h("header", {}, heading, tools, button("?", explain, { class: "fwl-ask", title: "the keys of this view (?)", "aria-label": "keys" })), body, status, help,
  );
  const shown = { root, heading, tools, body, status };
  const all = [
    ...keys,
    { key: "c", does: "to the controls; arrows move among them", run: () => tools.querySelector("[tabindex]")?.focus() },
    { key: "Escape", does: "back to the view", run: () => root.focus() },
    { key: "?", does: "these keys", run: explain },
  ];
  help.append(...all.filter((entry) => entry.does).flatMap((entry) => [h("dt", {}, h("kbd", {}, entry.shown ?? entry.key)), h("dd", {}, entry.does)]));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && !help.hidden) { explain(); event.preventDefault(); event.stopPropagation(); return; }
    const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), textarea");
    if (typing && event.key !== "Escape") return;
    if (tools.contains(event.target) && moveAmong(tools, event)) return;
    if (event.target.matches("select") && event.key !== "Escape") return;
    if (event.target.matches("button, input, summary") && [" ", "Enter", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const entry = all.find((candidate) => candidate.key === event.key);
    if (entry === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    entry.run(event);
  });
  signal.addEventListener("abort", () => root.remove());
  el.replaceChildren(root);
  return shown;
}

/** Left and right move among controls, each of which leaves the tab order to its view; up and down change a choice or a slider. */
function moveAmong(tools, event) {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return false;
  const controls = [...tools.querySelectorAll("[tabindex]:not([disabled])")].filter((node) => node.checkVisibility());
  const next = controls.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1);
  controls[clamp(next, 0, controls.length - 1)].focus();
  event.preventDefault();
  return true;
}

/** A button of a view's controls. */
const button = (text, run, attributes = {}) => h("button", { type: "button", tabindex: "-1", onclick: run, ...attributes }, text);

/** A choice among [value, text] pairs; `run` gets the value. */
function choice(label, pairs, value, run) {
  const select = h(
    "select", { tabindex: "-1", "aria-label": label, onchange: (event) => run(event.target.value) },
    pairs.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "fwl-choice" }, h("span", {}, label), select);
}

/** What a person reads where there is nothing to see: what is so, why, and what to do. */
function notice(state, what, why = null, todo = null) {
  const symbols = { empty: "○", loading: "…", error: "✗", absent: "○", kernel: "○" };
  return h(
    "div", { class: `fwl-notice fwl-${state}`, role: state === "error" ? "alert" : null },
    h("b", {}, `${symbols[state]} ${what}`), why === null ? null : h("p", {}, why), todo === null ? null : h("p", {}, todo),
  );
}

/**
 * Show in `place` that something is under way, what becomes of it, or what went wrong; nothing once it is not `current`.
 * `working` says what takes long, where that is no sign of a kernel that is gone.
 */
async function await_(place, promise, show, { current = () => true, working = null } = {}) {
  const put = (...nodes) => { if (current()) place.replaceChildren(...nodes); };
  const slow = setTimeout(() => put(
    notice("loading", working ?? "Working …"), h("progress", { "aria-label": "working" }),
  ), SLOW);
  const gone = working !== null ? null : setTimeout(() => put(notice(
    "kernel", "The kernel has not answered yet", "It is busy, or gone. What is on the page can be browsed all the same.",
    "What was asked for is shown when the kernel answers; a saved view needs a kernel for it.",
  )), PATIENCE);
  try {
    const answer = await promise;
    clearTimeout(slow);
    clearTimeout(gone);
    if (current()) show(answer);
  } catch (error) {
    clearTimeout(slow);
    clearTimeout(gone);
    const saved = error.message.startsWith("saved view");
    put(notice(saved ? "kernel" : "error", error.message));
  }
}

/** A table of texts and nodes; numbers are set to the right. */
function table(caption, columns, rows) {
  const numeric = columns.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "string" && /^[+−]?[\d.,]+/.test(row[i])));
  return h(
    "div", { class: "fwl-table", tabindex: "-1" },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: numeric[i] ? "fwl-number" : null }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: numeric[i] ? "fwl-number" : null }, cell)))))),
  );
}

const still = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
