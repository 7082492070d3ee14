// LivePad: a text to type, scored by each reader as it grows, with what each expects next.

import { surface } from "../../core/js/charts.js";
import { button, choice, h, notice, table, token } from "../../core/js/elements.js";
import { clamp, fixed, many, printable, whole } from "../../core/js/format.js";
import { frame } from "../../core/js/frame.js";
import { asker } from "../../core/js/kernel.js";
import { css, diverging, magnitude, onTheme } from "../../core/js/theme.js";
import { PATIENCE, SLOW, settled } from "../../core/js/timing.js";
import { gainChart, liveRows, nextList, slider } from "./panels.js";
import { FULL_GAIN, FULL_NLL, liveColour, liveText } from "./text.js";

const PAUSE = 150; // ms without a key before a text is read
const LATE = 64; // texts remembered until the kernel sends them back
const NAMES = ["readers", "step_scale", "inner_batch", "segment"]; // of settings, for JSON in one order

async function render({ model, el, signal }) {
  const ask = asker(model, signal);
  const head = model.get("head"), styles = head.readers;
  let settings = model.get("settings"), kind = "gain", watched = null, asTable = false, at = null, kernel = true;
  // Texts and settings that were sent from here: the kernel sends them back, which must not overwrite newer ones.
  const sent = new Set([model.get("text")]), asked = new Set();

  const view = frame(el, {
    name: "live_pad", label: "LivePad", signal,
    keys: [
      { key: "Enter", does: "type", run: () => text.field.focus() },
      { key: "Escape", does: "stop reading; else back to the view", run: () => (busy() ? cancel() : view.root.focus()) },
      { key: "ArrowRight", shown: "← →", does: "token by token", run: () => go((at ?? -1) + 1) },
      { key: "ArrowLeft", run: () => go((at ?? text.count()) - 1) },
      { key: "n", does: "next gain of a nat or more", run: () => leap(1) },
      { key: "p", does: "previous gain of a nat or more", run: () => leap(-1) },
      { key: "v", does: "view as table", run: () => asRows() },
    ],
  });
  view.heading.append(h("b", {}, "LivePad"), " ", h("small", {}, head.model));

  // -- sending and waiting -------------------------------------------------------------------------------------------

  const send = () => {
    for (const [kept, one] of [[sent, text.field.value], [asked, JSON.stringify(settings, NAMES)]]) {
      kept.delete(one);
      kept.add(one);
      if (kept.size > LATE) kept.delete(kept.values().next().value);
    }
    ask({ kind: "read", text: text.field.value, settings }).catch(refuse);
  };
  const soon = settled(() => { if (kernel) send(); }, PAUSE);
  const busy = () => model.get("reading").phase === "reading" || waiting.hidden === false;
  const change = (changes) => { settings = { ...settings, ...changes }; draw(); wait(); soon(); };
  function refuse(error) {
    if (error.message.startsWith("saved view")) {
      kernel = false;
      text.field.readOnly = true;
      view.root.querySelectorAll(".fwl-settings input").forEach((node) => { node.disabled = true; });
      draw();
    } else said.replaceChildren(notice("error", error.message));
    waiting.hidden = true;
  }
  function cancel() {
    ask({ kind: "cancel" }).catch(refuse);
    waiting.hidden = true;
  }
  let patience = null, slow = null;
  /** Show after `SLOW` ms that reading is under way, and after `PATIENCE` ms that the kernel is silent. */
  function wait() {
    if (!kernel) return;
    clearTimeout(patience);
    clearTimeout(slow);
    slow = setTimeout(() => { waiting.hidden = false; }, SLOW);
    patience = setTimeout(() => said.replaceChildren(notice(
      "kernel", "The kernel has not answered yet", "It is busy, or gone. What you type is kept and read when it answers.",
    )), PATIENCE);
  }
  function heard() {
    clearTimeout(patience);
    clearTimeout(slow);
    waiting.hidden = model.get("reading").phase !== "reading" || model.get("progress") === 0;
  }
  signal.addEventListener("abort", () => { clearTimeout(patience); clearTimeout(slow); });

  const checks = Object.entries(styles).map(([name, style]) => {
    const box = h("input", {
      type: "checkbox", tabindex: "-1", value: name, checked: settings.readers.includes(name),
      onchange: () => change({ readers: checks.map((node) => node.querySelector("input")).filter((node) => node.checked).map((node) => node.value) }),
    });
    return h("label", { class: "fwl-reader" }, box, h("i", { style: `background: ${style.colour}` }), style.label);
  });
  const steps = Array.from({ length: Math.round(head.largest_step * 10) + 1 }, (_, i) => i / 10);
  const sliders = {
    step_scale: slider("step size ×", steps, settings.step_scale, (x) => x.toFixed(1), (x) => change({ step_scale: x })),
    inner_batch: slider("inner batch M", head.inner_batches, settings.inner_batch, (m) => (m === null ? "∞" : String(m)),
      (m) => change({ inner_batch: m })),
    segment: slider("segment", head.segments, settings.segment, String, (s) => change({ segment: s })),
  };
  const stop = button("Stop", cancel);
  const tableButton = button("table", () => asRows(), { "aria-pressed": "false", title: "the same as tables (v)" });
  function asRows() {
    asTable = !asTable;
    tableButton.setAttribute("aria-pressed", String(asTable));
    draw();
  }
  const bar = h("progress", { max: "1", "aria-label": "read so far" });
  const waiting = h("div", { class: "fwl-waiting", hidden: true }, bar, stop);
  const whose = h("select", { tabindex: "-1", "aria-label": "whose", onchange: (event) => { watched = event.target.value; draw(); } });
  view.tools.append(
    h("span", { class: "fwl-colour" }, choice("colour", [["gain", "gain"], ["nll", "NLL"]], kind, (value) => { kind = value; draw(); }),
      h("label", { class: "fwl-choice" }, h("span", {}, "of"), whose), tableButton),
    h("div", { class: "fwl-settings" }, h("div", { class: "fwl-readers", role: "group", "aria-label": "readers" }, checks),
      Object.values(sliders).map((one) => one.node)),
  );

  // -- results -------------------------------------------------------------------------------------------------------

  const text = liveText({
    label: "text to read", value: model.get("text"),
    typed: () => { at = null; wait(); soon(); },
    moved: (index) => { if (index !== at) { at = index; say(); chart.redraw(); } },
  });
  const said = h("div", {}), legend = h("p", { class: "fwl-legend" });
  const summary = h("div", {}), picture = h("div", {});
  const next = h("div", { class: "fwl-nexts" }), tables = h("div", { class: "fwl-tables" });
  view.body.append(
    h("div", { class: "fwl-columns" }, h("div", { class: "fwl-left" }, text.place, waiting, legend, said),
      h("div", {}, summary, picture)),
    next, tables,
  );

  const reading = () => model.get("reading");
  const baseline = () => reading().baseline; // undefined before a reader that does not adapt has read
  const scored = () => Object.entries(reading().readers ?? {}).filter(([, reader]) => reader.nll !== undefined).map(([name]) => name);
  const chart = surface(picture, 190, (context, width, height) => {
    if (scored().length) gainChart(context, width, height, reading(), styles, baseline(), at);
  }, signal, { role: "img", "aria-label": "gain since the beginning, by reader" });

  function go(index) {
    if (!text.count()) return;
    at = clamp(index, 0, text.count() - 1);
    say();
    chart.redraw();
  }
  function leap(direction) {
    const own = reading().readers?.[watched]?.nll, base = reading().readers?.[baseline()]?.nll;
    if (own === undefined || base === undefined) return;
    for (let i = (at ?? (direction > 0 ? -1 : text.count())) + direction; i >= 0 && i < text.count(); i += direction) {
      if (base[i] - own[i] >= 1) { go(i); return; }
    }
    view.status.textContent = `no ${direction > 0 ? "later" : "earlier"} token gained a nat`;
  }

  /** Write the status line: of the token at hand, else of the whole text. */
  function say() {
    const { phase, texts = [], readers = {}, words } = reading();
    if (phase === "failed") view.status.textContent = words;
    else if (phase === "empty") view.status.textContent = "no text yet";
    else if (phase === "unread") view.status.textContent = "no reader is chosen";
    else if (at !== null && at < texts.length) {
      const each = scored().map((name) => `${styles[name].label} ${fixed(readers[name].nll[at])}`);
      view.status.textContent = `${phase === "stopped" ? "stopped; " : ""}token ${whole(at)} ${printable(texts[at])}: ${each.join(", ")} nat`;
    } else {
      const rows = liveRows(reading(), styles, baseline()).map(([label, nll, gain]) => `${label} ${nll}${/^[+−]/.test(gain) ? ` (${gain})` : ""}`);
      view.status.textContent = `${many(texts.length, "token")}: ${rows.join(", ")} nat a token${phase === "stopped" ? "; stopped" : ""}`;
    }
  }

  function draw() {
    const { phase, texts = [], readers = {}, left_out: leftOut = 0, words } = reading();
    const names = scored(), base = baseline();
    const candidates = names.filter((name) => kind === "nll" || name !== base);
    if (!candidates.includes(watched)) watched = candidates.find((name) => styles[name].adapts) ?? candidates[0] ?? null;
    whose.replaceChildren(...candidates.map((name) => h("option", { value: name, selected: name === watched }, styles[name].label)));
    const own = readers[watched]?.nll ?? [], before = readers[base]?.nll ?? [];
    text.paint(texts, texts.map((_, i) => liveColour(kind, own[i], before[i])));
    for (const [name, one] of Object.entries(sliders)) {
      one.node.hidden = name !== "step_scale" && !settings.readers.some((reader) => styles[reader].takes.includes(name));
    }
    const scale = (low, high, colours, what) => [low, h("i", { style: `background: linear-gradient(90deg, ${colours.map(css).join(", ")})` }), h("span", {}, `${high} nat`), h("span", {}, what)];
    if (watched === null) legend.replaceChildren();
    else if (kind === "gain") {
      legend.replaceChildren(...scale(`−${FULL_GAIN}`, `+${FULL_GAIN}`, [-1, 0, 1].map((x) => diverging(x)), `gain of ${styles[watched].label} over ${styles[base]?.label ?? ""}`));
    } else legend.replaceChildren(...scale("0", String(FULL_NLL), [0, 0.25, 0.5, 0.75, 1].map((x) => magnitude(x)), `NLL of ${styles[watched].label}`));
    const notices = kernel ? [] : [notice("kernel", "Saved view: browsing works, reading what is typed needs a kernel")];
    if (phase === "failed") notices.push(notice("error", words, ...Object.values(readers).filter((one) => one.error).map((one) => one.error).slice(0, 1)));
    if (phase === "unread") notices.push(notice("empty", "No reader is chosen", "Tick one above; with base, gains are measured."));
    if (phase === "stopped") notices.push(notice("empty", "Stopped", "What was read stays; type on, and the rest is read."));
    if (leftOut) notices.push(notice("empty", `The first ${whole(head.limit)} tokens are read`, `${whole(leftOut)} more are on the page only; score() reads documents of any length.`));
    if (names.length && base === undefined) notices.push(notice("absent", "No gains without a baseline", "Tick base above."));
    said.replaceChildren(...notices);
    const by = styles[base]?.label ?? "the baseline";
    summary.replaceChildren(names.length ? table("On this text", ["reader", "nat / token", "gain", "read anew"], liveRows(reading(), styles, base))
      : notice(phase === "reading" ? "loading" : "empty", phase === "reading" ? "Reading …" : "What each reader makes of it is shown here"));
    next.hidden = asTable || !names.length;
    picture.hidden = asTable || base === undefined || names.length < 2;
    tables.hidden = !asTable;
    next.replaceChildren(
      h("h3", {}, "Expected next", base === undefined ? "" : h("small", {}, ` the mark is what ${by} expects; arrows count places moved in its ranking`)),
      h("div", {}, names.map((name) => nextList(name, readers[name], styles, base))),
    );
    tables.replaceChildren(...(asTable && names.length ? [
      ...names.map((name) => table(`${styles[name].label} expects next`, ["token", "probability", `by ${by}`, "rank there"],
        readers[name].next.map(([piece, p, q, rank]) => [token(piece), fixed(p, 3), q === null ? "" : fixed(q, 3), rank === null ? "" : whole(rank)]))),
      table("Tokens [nat]", ["token", ...names.map((name) => styles[name].label)],
        texts.map((piece, i) => [button(printable(piece), () => go(i), { class: "fwl-token" }), ...names.map((name) => fixed(readers[name].nll[i]))])),
    ] : []));
    view.root.dataset.phase = phase;
    chart.redraw();
    say();
  }

  model.on("change:reading", () => { heard(); draw(); });
  model.on("change:progress", () => { const part = model.get("progress"); if (part > 0) { bar.value = part; waiting.hidden = false; } });
  /** Take over a text from elsewhere: set in the kernel, or typed in a second display of the same pad. */
  function adopt() {
    sent.clear();
    text.field.value = model.get("text");
    draw();
  }
  function adoptSettings() {
    asked.clear();
    settings = model.get("settings");
    for (const [name, one] of Object.entries(sliders)) one.put(settings[name]);
    checks.forEach((node) => { const box = node.querySelector("input"); box.checked = settings.readers.includes(box.value); });
    draw();
  }
  model.on("change:text", () => { if (!sent.has(model.get("text"))) adopt(); });
  model.on("change:settings", () => { if (!asked.has(JSON.stringify(model.get("settings"), NAMES))) adoptSettings(); });
  model.on("change:given", () => { adopt(); adoptSettings(); });
  onTheme(draw, signal);
  draw();
  if (model.get("reading").phase === "empty" && model.get("text") !== "") wait();
  ask({ kind: "hello" }).catch(refuse);
}

export default { render };
