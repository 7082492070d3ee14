// DocumentLens: all documents as text in one scroll, coloured by gain, NLL or rank, with details of the selected token.

import { button, choice, h } from "../../core/js/elements.js";
import { clamp, fixed, many, printable, signed, whole } from "../../core/js/format.js";
import { frame } from "../../core/js/frame.js";
import { asker, connect, showAnswer } from "../../core/js/kernel.js";
import { unpack } from "../../core/js/packing.js";
import { onTheme } from "../../core/js/theme.js";
import { settled } from "../../core/js/timing.js";
import { binned, legendOf, meanOf, measureOf, paints } from "./drawing.js";
import { Pages, indexBelow } from "./layout.js";
import { Tip, oneStop, tableAround, tokenPanel } from "./panel.js";
import { ROW, TextPane, mapOf } from "./text.js";
import { LARGEST, Search, Walk } from "./walk.js";

const MEASURE_NAMES = [["gain", "gain"], ["nll", "NLL"], ["rank", "rank"]];
const NO_BINS = { means: [], height: 2, tokens: 1 };

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const ask = asker(model, signal);
  const head = model.get("head");
  const { starts, documents, readers, tokens } = head;
  const pages = new Pages(head);
  if (tokens) pages.add(head, model.get("data"));
  const ranks = new Map(); // by reader: Int32Array, "asked", or an Error
  // State that the parts of the view share.
  const lens = { head, pages, ranks, place, starts, measure: null, paints: [], bins: NO_BINS, sources: new Map() };
  const searching = (lens.searching = new Search(lens));
  const names = Object.keys(readers);
  const here = () => place.get("token");
  let asTable = false, answer = null, wanted = -1;
  const computed = new Map(); // receipts that the trace does not hold, by token and reader

  const view = frame(el, {
    name: "document_lens", label: "Document lens: the text, coloured by what readers made of it", signal,
    keys: [
      { key: "ArrowRight", shown: "← →", does: "token by token", run: () => move(here() + 1) },
      { key: "ArrowLeft", run: () => move(here() - 1) },
      { key: "ArrowDown", shown: "↑ ↓", does: "line by line; Page Up, Page Down by what is seen", run: () => move(...walk.byLine(1)) },
      { key: "ArrowUp", run: () => move(...walk.byLine(-1)) },
      { key: "PageDown", run: () => move(...walk.byLine(head.lines - 2)) },
      { key: "PageUp", run: () => move(...walk.byLine(2 - head.lines)) },
      { key: "Home", shown: "Home End", does: "first, last token of the line", run: () => move(walk.edge(0)) },
      { key: "End", run: () => move(walk.edge(-1)) },
      { key: "Enter", does: "what was expected, before and after", run: () => { drill(); side.focus(); side.scrollIntoView({ block: "nearest" }); } },
      { key: "n", shown: "n p", does: "biggest gain or harm, the next biggest; back", run: () => byGain(1) },
      { key: "p", run: () => byGain(-1) },
      { key: "N", shown: "N P", does: `next, previous of the ${LARGEST} biggest as they read`, run: () => byGain(1, true) },
      { key: "P", run: () => byGain(-1, true) },
      { key: "[", shown: "[ ]", does: "document by document", run: () => go(walk.byDocument(-1), true) },
      { key: "]", run: () => go(walk.byDocument(1), true) },
      { key: "/", does: "search; Enter and Shift+Enter go on and back", run: () => { search.focus(); search.select(); } },
      { key: "m", does: "colour by gain, NLL, rank", run: () => colourBy(MEASURE_NAMES[(MEASURE_NAMES.findIndex(([key]) => key === model.get("measure")) + 1) % 3][0]) },
      { key: "r", does: "the next reader", run: () => place.set({ reader: names[(names.indexOf(place.get("reader")) + 1) % names.length] }) },
      { key: "v", does: "as a table", run: () => showTable(!asTable) },
    ],
  });
  const labelled = names.map((name) => [name, readers[name].label]);

  // -- elements -------------------------------------------------------------------------------------------------------
  const documentOf = (token) => indexBelow(starts, token);
  const picker = choice("document", documents.map((name, i) => [String(i), name]), "0", (i) => go(starts[i], true));
  const measures = choice("colour", MEASURE_NAMES, model.get("measure"), colourBy);
  const readerChoice = choice("reader", labelled, place.get("reader"), (reader) => place.set({ reader }));
  const baselineChoice = choice("against", labelled, place.get("baseline"), (baseline) => place.set({ baseline }));
  const search = h("input", { type: "search", class: "fwl-search", tabindex: "-1", placeholder: "search  /", "aria-label": "search the text",
    oninput: settled(() => find(search.value), 120), onkeydown: (event) => { if (event.key === "Enter") { event.preventDefault(); step(event.shiftKey ? -1 : 1); } } });
  const count = h("span", { class: "fwl-count", role: "status" });
  const tableButton = button("table", () => showTable(!asTable), { "aria-pressed": "false", title: "figures of the tokens around (v)" });
  view.tools.append(documents.length > 1 ? picker : "", measures, readerChoice, names.length > 1 ? baselineChoice : "", search, count,
    h("span", {}, button("◂", () => byGain(-1), { title: "back (p)", "aria-label": "previous biggest gain or harm" }), " biggest ",
      button("▸", () => byGain(1), { title: "next biggest gain or harm (n)", "aria-label": "next biggest gain or harm" })), tableButton);
  if (head.not_finite.count) {
    view.tools.append(button(`first of ${whole(head.not_finite.count)} scores that are not finite`, () => go(head.not_finite.first)));
  }
  const titleName = h("b", {}), titleMore = h("small", {}), legend = h("span", { class: "fwl-legend" });
  const height = head.lines * ROW;
  const scroll = h("div", { class: "fwl-scroll", role: "group", "aria-label": "text", style: `height: ${height}px` });
  const tip = h("div", { class: "fwl-tip", "aria-hidden": "true", hidden: true });
  const progress = h("div", { class: "fwl-progress", hidden: true });
  const grid = h("div", { class: "fwl-cells", role: "group", "aria-label": "table of tokens", hidden: true, style: `height: ${height}px; overflow: auto` });
  const text = h("div", { class: "fwl-text" },
    h("div", { class: "fwl-title" }, h("span", {}, titleName, " ", titleMore), legend), scroll, grid, progress, tip);
  const mapTitle = h("small", {}), map = h("div", { class: "fwl-map" }, mapTitle);
  const side = h("div", { class: "fwl-side", role: "region", "aria-label": "the selected token", style: `height: ${height + 31}px` });
  view.body.append(h("div", { class: "fwl-columns" }, text, map, side));

  // -- moving ---------------------------------------------------------------------------------------------------------
  const pane = new TextPane(lens, scroll, showTitle);
  const walk = new Walk(lens, pane);
  const minimap = mapOf(map, lens, pane, signal);

  function move(token_, column = null) {
    if (Number.isFinite(token_)) place.set({ token: clamp(token_, 0, pages.loaded - 1) });
    walk.column = column;
  }

  function go(token_, above = false) {
    move(token_);
    pane.reveal(here(), above);
  }

  function byGain(by, asTheyRead = false) {
    const { order } = walk.extremes();
    if (!order.length) {
      view.status.textContent = names.length < 2 || place.get("reader") === place.get("baseline")
        ? "There is no gain here: a reader is compared with itself; choose another one" : "No gain and no harm in what is loaded";
      return;
    }
    go(asTheyRead ? walk.byReading(by) : walk.byGain(by));
    const number = order.indexOf(here()) + 1;
    if (number) tell(`${number === 1 ? "the biggest" : `number ${whole(number)}`} by |gain|: `);
  }

  function find(query) {
    searching.find(query);
    count.textContent = searching.count;
    pane.remark();
  }

  function step(by) {
    if (searching.query !== search.value) find(search.value);
    go(searching.step(by));
    count.textContent = searching.count;
  }

  function showTitle(token_) {
    const at = documentOf(token_), end = starts[at + 1] ?? tokens, { measure } = lens;
    minimap.redraw();
    if (titleName.at === at && titleName.version === pane.version) return;
    Object.assign(titleName, { at, version: pane.version }).textContent = printable(documents[at]);
    const mean = measure && measure.name !== "rank" && end <= pages.loaded ? ` · mean ${measure.name === "gain" ? "gain" : "NLL"} ${measure.show(meanOf(measure, starts[at], end))} nat` : "";
    titleMore.textContent = ` ${documents.length > 1 ? `${whole(at + 1)} of ${whole(documents.length)} · ` : ""}${many(end - starts[at], "token")}${mean}`;
    picker.querySelector("select").value = String(at);
  }

  // -- the selected token ---------------------------------------------------------------------------------------------
  const tipBox = new Tip(tip, head);

  function tell(before = "") {
    const t = here();
    if (t >= pages.loaded) { view.status.textContent = `Token ${whole(t)} is not loaded yet`; return; }
    const figures = names.map((name) => `${readers[name].label} ${fixed(pages.nll[name][t])}`).join(", ");
    const rank = ranks.get(place.get("reader"))?.[t], ranked = Number.isInteger(rank) && rank >= 0 ? ` · rank ${whole(rank + 1)}` : "";
    view.status.replaceChildren(before, h("bdi", {}, printable(pages.text(t))),
      ` at ${whole(t - starts[documentOf(t)])} · NLL [nat]: ${figures} · gain ${signed(walk.gain(t))}${ranked}`);
  }

  /** Ask for details of the selected token. */
  function drill() {
    const t = here();
    if (t === wanted) { showToken(); return; }
    wanted = t;
    const show = ({ content }) => { answer = content; showToken(); };
    if (!head.alternatives && !head.receipts) { show({ content: pages.known(t) }); return; }
    // Where the answer fails, or was not saved, the page shows what it knows; an answer that comes too late is dropped.
    const asked = ask({ kind: "token", token: t }).catch((error) => ({ content: { ...pages.known(t), why: error.message } }));
    showAnswer(side, asked, show, { current: () => t === here() });
  }
  const drillSoon = settled(drill, 90);

  function showToken() {
    const t = here();
    const sources = (lens.sources = new Map());
    sources.most = 1e-9;
    if (answer?.token === t) {
      const own = { ...answer.readers[place.get("reader")], ...computed.get(`${t} ${place.get("reader")}`) };
      own.sources?.forEach((source, i) => sources.set(source, own.shares[i]));
      sources.most = Math.max(1e-9, ...(own.shares ?? []).map(Math.abs));
      side.replaceChildren(...tokenPanel(lens, answer, own, go));
    }
    pane.remark();
  }

  /** Take over the receipt that was computed last, by any view. */
  function learn() {
    const { reader, token: at, ...paid } = place.get("receipt");
    if (reader !== undefined) computed.set(`${at} ${reader}`, paid);
  }

  function selectionMoved() {
    walk.column = null;
    lens.sources = new Map();
    if (!asTable) pane.reveal(here());
    pane.remark();
    tell();
    if (asTable) showTable(true);
    drillSoon();
  }

  function showTable(on) {
    asTable = on;
    tableButton.setAttribute("aria-pressed", String(on));
    scroll.hidden = on;
    grid.hidden = !on;
    if (!on) { pane.reveal(here()); pane.repaint(); return; }
    grid.replaceChildren(tableAround(lens, 40));
    const row = grid.querySelector("tr[aria-selected=true]");
    if (row) grid.scrollTop = row.offsetTop - height / 2;
  }

  // -- measures -------------------------------------------------------------------------------------------------------
  function colourBy(name) {
    model.set("measure", name);
    try { model.save_changes(); } catch { /* no kernel: the colours change all the same */ }
  }

  function restyle() {
    const name = model.get("measure"), [reader, baseline] = [place.get("reader"), place.get("baseline")];
    for (const [control, value] of [[measures, name], [readerChoice, reader], [baselineChoice, baseline]]) control.querySelector("select").value = value;
    const measure = (lens.measure = measureOf(name, { pages, ranks, reader, baseline, head }));
    if (measure === null) askRanks(reader);
    lens.paints = measure === null ? [] : paints(measure);
    lens.bins = measure === null ? NO_BINS : binned(measure, tokens, pages.loaded, height);
    legend.replaceChildren(...(measure === null ? [rankNote(reader)] : legendOf(measure, lens.paints, head.not_finite.count > 0)));
    legend.title = measure?.title ?? "";
    mapTitle.replaceChildren(h("span", {}, measure ? `mean ${measure.name === "nll" ? "NLL" : measure.name === "rank" ? "log rank" : "gain"}` : "map"),
      h("span", {}, measure ? `of ${many(Math.max(1, Math.round(lens.bins.tokens)), "token")}` : ""));
    view.heading.replaceChildren(h("b", {}, documents.length > 1 ? `${whole(documents.length)} documents` : printable(documents[0])), " ",
      h("small", {}, `${many(tokens, "token")} · ${measure?.title ?? `rank for ${readers[reader].label}`}`));
    pane.repaint();
  }

  function rankNote(reader) {
    const state = ranks.get(reader);
    return !head.ranks ? "not recorded: Recorder(top=10)" : state instanceof Error ? state.message : "loading ranks …";
  }

  async function askRanks(reader) {
    if (!head.ranks || ranks.has(reader)) return;
    ranks.set(reader, "asked");
    try {
      const { content, buffers } = await ask({ kind: "ranks", reader });
      ranks.set(reader, unpack(content.columns, buffers[0]).rank);
    } catch (error) {
      ranks.set(reader, error);
    }
    if (!signal.aborted && model.get("measure") === "rank") restyle();
  }

  /** Load the pages after the first, one after the other; what is loaded can be read meanwhile. */
  async function load() {
    for (let page = 1; page < head.pages && !signal.aborted; page += 1) {
      progress.hidden = false;
      progress.textContent = `loading: ${whole(pages.loaded)} of ${whole(tokens)} tokens`;
      try {
        const { content, buffers } = await ask({ kind: "page", page });
        pages.add(content, buffers[0]);
      } catch (error) {
        progress.textContent = `${whole(pages.loaded)} of ${whole(tokens)} tokens are here. ${error.message}`;
        return;
      }
      pane.layOut();
      restyle();
      if (here() < pages.loaded && here() >= pages.loaded - pages.codes.length / head.pages) selectionMoved();
    }
    progress.hidden = true;
    if (searching.query) find(searching.query);
  }

  // -- events ---------------------------------------------------------------------------------------------------------
  scroll.addEventListener("scroll", () => { if (scroll.clientWidth) pane.kept = scroll.scrollTop; }, { passive: true });
  scroll.addEventListener("scroll", settled(() => pane.paint()), { passive: true });
  pane.long.addEventListener("click", (event) => {
    const { token: t } = event.target.closest("span") ?? {};
    if (t === undefined) return;
    view.root.focus({ preventScroll: true });
    move(t);
    drill();
  });
  tipBox.follow(lens, pane, text);
  grid.addEventListener("click", (event) => move(event.target.closest("tr")?.token));
  oneStop(view.root, side, [scroll, grid], signal);
  const watcher = new ResizeObserver(settled(() => pane.layOut()));
  watcher.observe(scroll);
  signal.addEventListener("abort", () => watcher.disconnect());
  onTheme(() => { restyle(); showToken(); }, signal);
  model.on("change:measure", restyle);
  signal.addEventListener("abort", () => model.off("change:measure", restyle));
  place.on(["token"], selectionMoved);
  place.on(["reader", "baseline"], () => { restyle(); tell(); showToken(); if (asTable) showTable(true); });
  place.on(["receipt"], () => { learn(); showToken(); });
  place.on(["pinned", "span"], () => pane.remark());

  learn();
  pane.layOut();
  restyle();
  if (here() > 0) pane.reveal(here());
  tell();
  drill();
  load();
}

export default { render };
