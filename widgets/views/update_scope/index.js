// UpdateScope: Δθ while a document is read. Norms are on the page; pictures are asked for as they are wanted.

import { linear, surface } from "../../core/js/charts.js";
import { button, choice, h, notice } from "../../core/js/elements.js";
import { brief, clamp, fixed, many, printable, whole } from "../../core/js/format.js";
import { frame } from "../../core/js/frame.js";
import { asker, connect } from "../../core/js/kernel.js";
import { unpack } from "../../core/js/packing.js";
import { onTheme, still } from "../../core/js/theme.js";
import { PATIENCE, SLOW } from "../../core/js/timing.js";
import { Pictures } from "./asking.js";
import { CHART, drawNorms } from "./drawing.js";
import { Norms, normTable, readingLine } from "./panels.js";
import { deltaFigures } from "./picture.js";

const FRAME_MS = 125; // between two pictures while playing
const SLOWLY = 4; // times as long between pictures that are updates apart
const SPEEDS = [["8", "8 tokens/s"], ["32", "32 tokens/s"], ["128", "128 tokens/s"], ["update", "by update"]];
const FEW_DOCUMENTS = 3; // up to so many, norms of all documents are shown at first

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const head = model.get("head");
  const norms = new Norms(head, unpack(head.columns, model.get("data")));
  const adapting = Object.keys(head.moved), stylesOf = (name) => head.readers[name] ?? { label: name };
  const state = { signs: true, fixedScale: true, order: "length", log: false, all: head.starts.length <= FEW_DOCUMENTS, asTable: false, zoom: null, ahead: null };
  let playing = null, speed = "32", resume = null, since = 0, slow = null, labels = [];
  const where = () => pictures.where();
  const bounds = () => norms.bounds(norms.document(place.get("token")));
  const range = () => (state.all ? [0, head.tokens] : bounds());

  // -- the frame ------------------------------------------------------------------------------------------------------
  const view = frame(el, {
    name: "update_scope", label: "UpdateScope", signal,
    keys: [
      { key: " ", shown: "Space", does: "play, pause", run: () => (playing ? pause() : play()) },
      { key: "ArrowLeft", shown: "← →", does: "token by token; zoomed in, cell by cell", run: () => move(0, -1) },
      { key: "ArrowRight", run: () => move(0, 1) },
      { key: "ArrowUp", shown: "↑ ↓", does: "parameter; zoomed in, cell by cell", run: () => move(-1, 0) },
      { key: "ArrowDown", run: () => move(1, 0) },
      { key: ",", shown: ", .", does: "update by update", run: () => byUpdate(-1) },
      { key: ".", run: () => byUpdate(1) },
      { key: "Home", shown: "Home End", does: "start and end of the document", run: () => go(bounds()[0]) },
      { key: "End", run: () => go(bounds()[1] - 1) },
      { key: "Enter", does: "zoom in to exact values", run: () => figures.zoomIn() },
      { key: "Escape", does: "zoom out", run: () => (state.zoom ? figures.zoomOut() : view.root.focus()) },
      { key: "x", does: "pin this token: Δθ is shown less that of the pinned one", run: () => pin() },
      { key: "a", does: "signed, absolute", run: () => set({ signs: !state.signs }) },
      { key: "s", does: "one scale over the document, or of each token", run: () => set({ fixedScale: !state.fixedScale }) },
      { key: "o", does: "longest rows and columns first, or as stored", run: () => set({ order: state.order === "length" ? "stored" : "length", zoom: null }) },
      { key: "l", does: "norms by logarithm", run: () => set({ log: !state.log }) },
      { key: "d", does: "norms of all documents, or of this one", run: () => set({ all: !state.all }) },
      { key: "v", does: "view as table", run: () => set({ asTable: !state.asTable }) },
    ],
  });
  const pictures = new Pictures({ ask: asker(model, signal), place, norms, state, signal, arrived: () => { resume?.(); draw(); } });
  const figures = deltaFigures({ pictures, norms, state, view, changed: () => changed(), signal });
  const title = h("b", {}), about = h("small", {});
  view.heading.append(title, h("br"), about);

  const readers = choice("reader", Object.entries(head.readers).map(([name, style]) => [name, style.label]), place.get("reader"), (reader) => {
    const names = norms.parameters(reader).map((entry) => entry.name);
    place.set(names.length && !names.includes(place.get("parameter")) ? { reader, parameter: names.includes("W2") ? "W2" : names[0] } : { reader });
  });
  const parameters = choice("parameter", [], "", (parameter) => place.set({ parameter }));
  const two = (label, name, [yes, no]) => {
    const made = choice(label, [["yes", yes], ["no", no]], "yes", (value) => set(name(value === "yes")));
    return { made, update: (is) => { made.querySelector("select").value = is ? "yes" : "no"; } };
  };
  const switches = {
    signs: two("colours", (yes) => ({ signs: yes }), ["signed", "absolute"]),
    fixedScale: two("scale", (yes) => ({ fixedScale: yes }), ["of the document", "of this token"]),
    order: two("order", (yes) => ({ order: yes ? "length" : "stored", zoom: null }), ["longest first", "as stored"]),
    log: two("norms", (yes) => ({ log: !yes }), ["linear", "by logarithm"]),
    all: two("over", (yes) => ({ all: yes }), ["all documents", "this document"]),
  };
  switches.all.made.hidden = head.starts.length < 2;
  const tableButton = button("table", () => set({ asTable: !state.asTable }), { title: "norms at updates (v)" });
  const badButton = button("first norm that is not finite", () => go(head.moved[where().reader].bad + 1));
  const { signs, fixedScale, order, log, all } = switches;
  view.tools.append(readers, parameters, signs.made, fixedScale.made, order.made, tableButton, badButton);

  const chart = h("div", { class: "fwl-chart" }), cursor = h("div", { class: "fwl-cursor" });
  const pinMark = h("div", { class: "fwl-cursor fwl-pin", hidden: true });
  const playButton = button("▶ play", () => (playing ? pause() : play()), { class: "fwl-play", title: "play, pause (Space)" });
  const slider = h("input", { type: "range", tabindex: "-1", "aria-label": "token", min: "0", step: "1", oninput: (event) => { pause(); go(Number(event.target.value)); } });
  const pinButton = button("pin", () => pin(), { title: "show Δθ less that at this token (x)", "aria-pressed": "false" });
  const step = (text, label, run) => button(text, run, { "aria-label": label, title: label });
  const transport = h("div", { class: "fwl-transport" },
    step("◂◂", "one update back (,)", () => byUpdate(-1)), step("◂", "one token back (←)", () => go(place.get("token") - 1)), playButton,
    step("▸", "one token on (→)", () => go(place.get("token") + 1)), step("▸▸", "one update on (.)", () => byUpdate(1)), slider,
    choice("speed", SPEEDS, speed, (value) => { speed = value; }), pinButton, log.made, all.made);
  const reading = h("div", { class: "fwl-reading", "aria-hidden": "true", hidden: !head.texts });
  const note = h("div", { class: "fwl-note", hidden: true }), missing = h("div"), tablePlace = h("div");
  view.body.append(chart, transport, reading, note, missing, figures.element, tablePlace);

  // -- drawing --------------------------------------------------------------------------------------------------------
  const lines = surface(chart, 200, (context, width, height) => {
    const { reader, parameter } = where(), relative = norms.relative(reader), drawn = norms.lines(reader, range(), relative);
    const most = drawn.reduce((a, line) => Math.max(a, line.most), 0) * 1.05 || 1;
    const label = `${relative ? "‖Δθ‖ / ‖θ₀‖" : "‖Δθ‖"} of each parameter${state.log ? ", by logarithm" : ""}`;
    const boundaries = head.starts.filter((at) => at > range()[0] && at < range()[1]);
    labels = drawNorms(context, width, height, { lines: drawn, range: range(), most, least: most / 1e4, log: state.log, boundaries, selected: parameter, label });
    moveCursor();
  }, signal);
  chart.append(cursor, pinMark);
  const across = () => linear(range(), [CHART.left, lines.canvas.clientWidth - CHART.right]);
  function moveCursor() {
    const x = across(), pinned = place.get("pinned");
    cursor.style.transform = `translateX(${x(place.get("token"))}px)`;
    pinMark.hidden = pinned === null || pinned < range()[0] || pinned >= range()[1];
    if (!pinMark.hidden) pinMark.style.transform = `translateX(${x(pinned)}px)`;
  }

  /** Draw what follows the selection: at once what the page knows, the picture when it has arrived. */
  function draw() {
    if (signal.aborted) return;
    const problem = whyNot();
    say();
    const there = figures.show();
    missing.replaceChildren(...(problem ? [problem] : []));
    figures.element.hidden = problem !== null || state.asTable || !there;
    tableButton.setAttribute("aria-pressed", String(state.asTable));
    tablePlace.replaceChildren(...(state.asTable && adapting.includes(where().reader) ? [normTable(norms, where().reader, where().parameter, range(), go)] : []));
    const lost = pictures.why(pictures.piece());
    note.hidden = figures.element.hidden || (pictures.saved === null && lost === undefined);
    const nearest = figures.shownToken() === place.get("token") ? "" : `; this is of token ${whole(figures.shownToken() ?? 0)}, the nearest`;
    note.textContent = lost ?? `saved view: pictures of some tokens are kept${nearest}. Other orders, pins and exact values need a kernel.`;
    switches.order.update(state.order === "length");
  }

  /** Return the notice that stands in place of a picture, or null where there is one or will be. */
  function whyNot() {
    const { reader, parameter } = where(), style = stylesOf(reader), question = pictures.tile(), found = pictures.get(question);
    const choose = (text, changes) => h("button", { type: "button", tabindex: "-1", onclick: () => place.set(changes) }, text);
    const withButtons = (shown, buttons) => { shown.append(...buttons); return shown; };
    const first = (name) => norms.parameters(name)[0].name;
    if (!adapting.length && head.recorded) return notice("empty", "No update was made", "No reader here adapts, or no document is as long as a segment or an inner batch.");
    if (!adapting.length) return notice("absent", "Updates were not recorded: Recorder()", "How far weights move is kept while reading.", "Score again with score(…, record=Recorder(factors=True)).");
    if (!adapting.includes(reader)) {
      const others = adapting.map((name) => choose(`show ${stylesOf(name).label}`, { reader: name, parameter: first(name) }));
      return withButtons(notice("empty", `${style.label} does not adapt`, "Its weights stay as they are: Δθ is 0 at every token."), others);
    }
    if (!pictures.moves()) {
      const other = choose(`show ${norms.parameters(reader)[0].label}`, { parameter: first(reader) });
      return withButtons(notice("empty", `${style.label} does not adapt ${parameter}`, `It adapts ${whole(norms.parameters(reader).length)} others.`), [other]);
    }
    if (found?.absent) {
      const what = found.nearest === null ? `Δθ was not recorded: ${head.record[reader]}` : `Δθ at token ${whole(found.at)} was not kept`;
      const near = found.nearest === null ? [] : [choose(`go to token ${whole(found.nearest)}, the nearest with Δθ`, found.at === place.get("pinned") ? { pinned: found.nearest } : { token: found.nearest })];
      return withButtons(notice("absent", what, found.absent), near);
    }
    if (question === null) return notice("kernel", "saved view: browsing works, this needs a kernel", "No picture of this parameter in this document was saved with the page.");
    if (pictures.saved === null && pictures.why(question) !== undefined) return notice("error", pictures.why(question));
    if (found !== undefined) return null;
    if (Date.now() - since > PATIENCE) return notice("kernel", "The kernel has not answered yet", "It is busy, or gone. Norms can be browsed all the same.");
    return figures.shownToken() === null && Date.now() - since > SLOW ? notice("loading", "Working …") : null;
  }

  /** Write the status line and the heading, and move cursor, slider and text to the selected token. */
  function say() {
    const { reader, parameter } = where(), at = place.get("token"), document = norms.document(at), [from, end] = norms.bounds(document);
    const entry = norms.parameters(reader).find((one) => one.name === parameter), pinned = place.get("pinned");
    moveCursor();
    [slider.min, slider.max] = [range()[0], range()[1] - 1].map(String);
    slider.value = String(at);
    const updates = norms.updatesBefore(at) - (head.carry ? 0 : norms.updatesBefore(from));
    title.textContent = `What ${stylesOf(reader).label} has learned${entry ? `: Δ${entry.label}` : ""}`;
    about.textContent = `${printable(head.documents[document])} · token ${whole(at - from)} of ${whole(end - from)} · ${many(updates, "update")} made`;
    if (head.texts) reading.replaceChildren(...readingLine(norms, at));
    pinButton.setAttribute("aria-pressed", String(pinned !== null));
    pinButton.textContent = pinned === null ? "pin" : `unpin ${whole(pinned)}`;
    const norm = norms.at(reader, parameter, at), share = entry?.slow ? `, ${fixed((100 * norm) / entry.slow)} % of ‖θ₀‖` : "";
    view.status.textContent = `token ${whole(at)}${head.texts ? ` ${printable(norms.texts[at])}` : ""}; after update ${whole(updates)}: ${entry ? `‖Δθ‖ of ${entry.label} ${brief(norm)}${share}` : "no Δθ"}`;
  }

  // -- moving and playing ---------------------------------------------------------------------------------------------
  const go = (to) => place.set({ token: clamp(to, 0, head.tokens - 1) });
  const pin = () => place.set({ pinned: place.get("pinned") === null ? place.get("token") : null });
  const byUpdate = (direction) => go(norms.updateFrom(place.get("token"), direction));
  function move(down, right) {
    if (figures.moveCell(down, right)) return;
    if (right) { go(place.get("token") + right); return; }
    const names = norms.parameters(where().reader).map((entry) => entry.name);
    if (names.length) place.set({ parameter: names[clamp(names.indexOf(where().parameter) + down, 0, names.length - 1)] });
  }
  const wholeUpdates = () => speed === "update" || still();
  function nextFrame(at) {
    const later = pictures.saved === null ? [] : pictures.savedHere(at).map((q) => q.token).filter((other) => other > at);
    if (pictures.saved !== null) return Math.min(...later, bounds()[1] - 1);
    return Math.min(wholeUpdates() ? norms.updateFrom(at, 1) : at + Math.max(1, Math.round((Number(speed) * FRAME_MS) / 1000)), bounds()[1] - 1);
  }
  /** Play to the document's end: ask for the next picture, and go there when it has arrived and it is time. */
  async function play() {
    if (!pictures.moves()) return;
    if (place.get("token") >= bounds()[1] - 1) go(bounds()[0]);
    const mine = playing = Symbol("playing");
    view.status.setAttribute("aria-live", "off"); // a screen reader would read every token
    playButton.textContent = "❚❚ pause";
    while (playing === mine && !signal.aborted && place.get("token") < bounds()[1] - 1) {
      state.ahead = nextFrame(place.get("token"));
      const pace = new Promise((done) => { setTimeout(done, FRAME_MS * (wholeUpdates() || pictures.saved !== null ? SLOWLY : 1)); });
      pictures.pump();
      while (playing === mine && pictures.tile(state.ahead) && !pictures.has(pictures.tile(state.ahead))) await new Promise((done) => { resume = done; });
      await pace;
      if (playing === mine && !signal.aborted) go(state.ahead);
    }
    if (playing === mine) pause();
  }
  function pause() {
    playing = null;
    state.ahead = null;
    resume?.();
    playButton.textContent = "▶ play";
    view.status.setAttribute("aria-live", "polite");
  }

  const left = (event) => event.clientX - lines.canvas.getBoundingClientRect().left;
  const scrub = (event) => go(Math.round(across().back(left(event))));
  lines.canvas.addEventListener("pointerdown", (event) => {
    view.root.focus({ preventScroll: true });
    if (left(event) > lines.canvas.clientWidth - CHART.right + 4) {
      const y = event.clientY - lines.canvas.getBoundingClientRect().top;
      const near = [...labels].sort((a, b) => Math.abs(a.at - y) - Math.abs(b.at - y))[0];
      if (near) place.set({ parameter: near.name });
      return;
    }
    pause();
    lines.canvas.setPointerCapture(event.pointerId);
    scrub(event);
  });
  lines.canvas.addEventListener("pointermove", (event) => { if (event.buttons && lines.canvas.hasPointerCapture(event.pointerId)) scrub(event); });

  // -- changes of the selection and the controls ----------------------------------------------------------------------
  function set(changes) {
    Object.assign(state, changes);
    if (changes.zoom === null) figures.leave();
    for (const [name, one] of Object.entries(switches)) one.update(name === "order" ? state.order === "length" : name === "log" ? !state.log : state[name]);
    lines.redraw();
    changed();
  }
  function changed() {
    pictures.failed.clear();
    since = Date.now();
    clearTimeout(slow);
    slow = setTimeout(() => { draw(); slow = setTimeout(draw, PATIENCE - SLOW); }, SLOW + 10);
    draw();
    pictures.pump();
  }
  function offer() {
    const { reader, parameter } = where();
    readers.querySelector("select").value = reader;
    parameters.querySelector("select").replaceChildren(...norms.parameters(reader).map((entry) => h("option", { value: entry.name, selected: entry.name === parameter }, entry.label)));
    parameters.hidden = chart.hidden = transport.hidden = !adapting.includes(reader);
    badButton.hidden = (head.moved[reader]?.bad ?? null) === null;
    set({ zoom: null });
  }
  let document_ = norms.document(place.get("token"));
  place.on(["reader", "parameter"], offer);
  place.on(["token", "pinned"], () => {
    const now = norms.document(place.get("token"));
    if (now !== document_ && !state.all) lines.redraw();
    document_ = now;
    changed();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); }, { signal });
  const seen = new IntersectionObserver((entries) => { if (playing && !entries[entries.length - 1].isIntersecting) pause(); });
  seen.observe(view.root);
  onTheme(() => draw(), signal);
  signal.addEventListener("abort", () => { pause(); clearTimeout(slow); seen.disconnect(); });
  offer();
}

export default { render };
