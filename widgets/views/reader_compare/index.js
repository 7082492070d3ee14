// ReaderCompare: readers side by side. Figures with intervals, settings that differ, charts of gains and costs.

import { button, choice, h } from "../../core/js/elements.js";
import { clamp, many } from "../../core/js/format.js";
import { frame } from "../../core/js/frame.js";
import { asker, connect } from "../../core/js/kernel.js";
import { unpack } from "../../core/js/packing.js";
import { settled } from "../../core/js/timing.js";
import { comparison } from "./comparison.js";
import { COMPARE_COSTS, compareCharts } from "./panels.js";
import { compareTables } from "./tables.js";
import { compareWords } from "./words.js";

const COMPARE_TABS = [
  ["tokens", "Over tokens"], ["position", "By position"], ["kinds", "By kind of token"], ["cost", "Cost"],
];

async function render({ model, el, signal }) {
  const place = await connect(model, signal), ask = asker(model, signal);
  const head = model.get("head");
  const compared = comparison(head, unpack(head.columns, model.get("data")), place);
  const { at, points, readers, chosen, baseline, label } = compared;
  const state = { tab: "tokens", by: "class", cost: null, asTable: false, badge: null, equal: false, more: false,
    active: 0, cursor: 0, anchor: null, drag: null };
  const answers = new Map();
  /** Return the entry of a question that is asked once: {promise, content, error}; its answer draws all again. */
  function known(question) {
    const key = JSON.stringify(question);
    if (!answers.has(key)) {
      const entry = { promise: ask(question), content: undefined, error: null };
      answers.set(key, entry);
      entry.promise.then(({ content }) => { entry.content = content; }, (error) => { entry.error = error; })
        .finally(() => { if (!signal.aborted) drawAll(); });
    }
    return answers.get(key);
  }
  const intervals = () => known({ kind: "intervals", baseline: baseline() });

  const view = frame(el, { name: "reader_compare", label: "Readers compared", signal, keys: [
    { key: "ArrowDown", does: "next reader", shown: "↓", run: () => turn(1) },
    { key: "ArrowUp", does: "previous reader", shown: "↑", run: () => turn(-1) },
    { key: "Enter", does: "the reader's certificate", run: () => tables.openBadge(chosen()) },
    { key: "b", does: "measure gains against this reader", run: () => place.set({ baseline: chosen() }) },
    { key: "ArrowRight", does: "along the chart; Shift: a stretch", shown: "← →", run: (event) => move(1, event) },
    { key: "ArrowLeft", run: (event) => move(-1, event) },
    { key: "g", does: "biggest gain in the stretch", run: () => biggest() },
    { key: "x", does: "no stretch", run: () => clear() },
    { key: "1", does: "tokens, position, kinds, cost", shown: "1–4", run: () => show("tokens") },
    ...COMPARE_TABS.slice(1).map(([name], i) => ({ key: String(i + 2), run: () => show(name) })),
    { key: "k", does: "next way to split tokens, next cost", run: () => nextKind() },
    { key: "e", does: "equal settings", run: () => { state.equal = !state.equal; tables.drawSettings(); } },
    { key: "v", does: "view as table", run: () => flip() },
  ] });
  const counts = [...(head.runs.length > 1 ? [many(head.runs.length, "run")] : []), many(readers.length, "reader"),
    many(head.documents.length, "document"), many(head.tokens, "token")];
  view.heading.append(h("b", {}, "Readers compared"), " ", h("small", {}, counts.join(" · ")));
  const names = readers.map((name) => [name, label(name)]);
  const against = choice("gain over", names, baseline(), (name) => place.set({ baseline: name }));
  const tableButton = button("table", () => flip(), { title: "view as table (v)" });
  view.tools.append(against, tableButton);
  const [strangePlace, readersPlace, settingsPlace, wordsPlace] = ["strange", "readers", "differs", "words"]
    .map((name) => h("div", { class: `fwl-${name}` }));
  const tabs = COMPARE_TABS.map(([name, text], i) => h("button", { type: "button", role: "tab", tabindex: "-1",
    title: `key ${i + 1}`, onclick: () => show(name) }, text));
  const kindPlace = h("span", { class: "fwl-kinds" });
  const chartPlace = h("div", { class: "fwl-chart", role: "tabpanel", "aria-label": "chart" });
  const tabList = h("div", { role: "tablist", class: "fwl-tabs", "aria-label": "charts" }, tabs);
  const bar = h("div", { class: "fwl-bar" }, tabList, kindPlace);
  view.body.append(strangePlace, readersPlace, settingsPlace, bar, chartPlace, wordsPlace);

  const shared = { head, state, view, place, signal, compared, known, intervals,
    readersPlace, settingsPlace, wordsPlace, chartPlace };
  const tables = compareTables(shared);
  const charts = compareCharts({ ...shared, brush, speak: () => words.speak() });
  const words = compareWords({ ...shared, charts, biggest, clear });

  // -- actions ------------------------------------------------------------------------------------------------------

  function flip() {
    state.asTable = !state.asTable;
    drawAll();
  }
  function turn(by) {
    place.set({ reader: readers[clamp(readers.indexOf(chosen()) + by, 0, readers.length - 1)] });
  }
  function show(name) {
    Object.assign(state, { tab: name, active: 0 });
    drawChart();
    words.speak();
  }
  function nextKind() {
    const costs = state.tab === "cost", field = costs ? "cost" : "by";
    const all = costs ? charts.costs() : charts.kinds().map(([by]) => by);
    state[field] = all[(all.indexOf(costs ? charts.cost() : state.by) + 1) % all.length];
    show(costs ? "cost" : "kinds");
  }
  function move(by, event) {
    if (state.tab === "cost") turn(by);
    else if (state.tab === "tokens") travel(by * Math.max(1, Math.round(points / 120)), event.shiftKey);
    else {
      state.active = clamp(state.active + by, 0, (charts.breakdown().content?.buckets.length ?? 1) - 1);
      charts.redraw();
      words.speak();
    }
  }
  function travel(by, extend) {
    const to = clamp(state.cursor + by, 0, points - 1);
    if (extend) brush((state.anchor ??= state.cursor), to);
    else {
      state.anchor = null;
      place.set({ token: Math.min(at[to], head.tokens - 1) });
    }
    state.cursor = to;
    words.speak();
  }
  /** Select the stretch between two points, in all views; the selected token becomes its first. */
  function brush(i, j) {
    const [first, last] = [at[Math.min(i, j)], at[Math.max(i, j)]];
    place.set(first === last ? { span: null } : { span: [first, last], token: first });
  }
  function clear() {
    state.anchor = null;
    place.set({ span: null });
  }
  function biggest() {
    const span = place.get("span");
    const say = (text) => { view.status.textContent = text; };
    if (!span) say("no stretch: drag over the chart, or Shift + arrows");
    else if (chosen() === baseline()) say("the baseline gains nothing over itself");
    else {
      ask({ kind: "stretch", start: span[0], stop: span[1], baseline: baseline() })
        .then(({ content }) => place.set({ token: content.best[chosen()] }), (error) => say(error.message));
    }
  }

  // -- drawing ------------------------------------------------------------------------------------------------------

  function drawChart() {
    const costs = charts.costs().map((name) => [name, COMPARE_COSTS[name][0]]);
    const pick = (field) => (value) => { state[field] = value; show(state.tab); };
    const kind = state.tab === "kinds" ? choice("by", charts.kinds(), state.by, pick("by"))
      : state.tab === "cost" && costs.length ? choice("against", costs, charts.cost(), pick("cost")) : "";
    if (!kindPlace.contains(document.activeElement)) kindPlace.replaceChildren(kind);
    tabs.forEach((node, i) => node.setAttribute("aria-selected", String(COMPARE_TABS[i][0] === state.tab)));
    charts.draw();
    words.draw();
  }
  function drawAll() {
    view.root.classList.toggle("fwl-tabled", state.asTable);
    tableButton.setAttribute("aria-pressed", String(state.asTable));
    against.querySelector("select").value = baseline();
    tables.drawReaders();
    drawChart();
    words.speak();
  }
  place.on(["reader", "baseline"], settled(drawAll));
  place.on(["token", "span"], settled(() => {
    const span = place.get("span");
    if (state.anchor === null || !span) state.cursor = compared.pointOf(place.get("token"));
    if (!span) state.anchor = null;
    charts.redraw();
    words.draw();
    words.speak();
  }));
  state.cursor = compared.pointOf(place.get("token"));
  strangePlace.replaceChildren(...words.strange());
  tables.drawSettings();
  drawAll();
}

export default { render };
