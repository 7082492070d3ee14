// Receipts: the selected token's gain as a sum of shares of earlier tokens. Sources by rank and by distance, sums of all receipts.

import { axes, linear, surface } from "../../core/js/charts.js";
import { button, h, notice, table, token } from "../../core/js/elements.js";
import { brief, clamp, fixed, printable, signed, whole } from "../../core/js/format.js";
import { frame } from "../../core/js/frame.js";
import { asker, connect, showAnswer } from "../../core/js/kernel.js";
import { palette } from "../../core/js/theme.js";
import { settled } from "../../core/js/timing.js";

const RECEIPT_TABS = [["sources", "Sources"], ["distance", "By distance"], ["document", "All receipts"]];

/** Describe a receipt for the status line. */
export function receiptWords(receipt, styles, reader) {
  const [first] = receipt.sources;
  const strongest = first ? `; strongest source ${printable(first.text)}, ${whole(first.distance)} earlier, ${signed(first.share)}` : "";
  return `${printable(receipt.text)} at ${whole(receipt.position)}: ${styles[reader].label} gained ${signed(receipt.gain)} nat over θ₀, `
    + `gross ${fixed(receipt.gross)}${strongest}`;
}

/** Make bars of positive shares (paid), negative shares (cost) and their sum (gain). */
function balance(receipt) {
  const most = Math.max(receipt.paid, -receipt.cost, 1e-9);
  const bar = (label, value, kind) => h(
    "div", { class: "fwl-balance-row" }, h("span", {}, label),
    h("span", { class: "fwl-balance-track" }, h("i", { class: kind, style: `width: ${(100 * Math.abs(value)) / most}%` })),
    h("b", {}, signed(value)),
  );
  return h("div", { class: "fwl-balance", role: "img",
    "aria-label": `paid ${signed(receipt.paid)}, cost ${signed(receipt.cost)}, gain ${signed(receipt.gain)} nat` },
  bar("paid", receipt.paid, "better"), bar("cost", receipt.cost, "worse"),
  bar("gain", receipt.gain, receipt.gain >= 0 ? "better" : "worse"));
}

/** Make the row of a source: its text in context, its distance, its share as a bar, and marks of both leave-one-outs. */
function sourceRow(row, most, kinds, jump) {
  const at = (value) => `${50 + (50 * clamp(value / most, -1, 1))}%`;
  const [left, right] = [Math.min(0, row.share), Math.max(0, row.share)];
  const mark = (value, kind) => (value === null ? null : h("u", { class: kind, style: `left: ${at(value)}` }));
  return h(
    "li", { role: "option", "aria-selected": "false", onclick: () => jump(row.token),
      title: `token ${whole(row.token)}; click to go there` },
    h("span", { class: "fwl-context" }, h("bdi", {}, printable(row.before)), token(row.text, { class: "fwl-token fwl-here" }),
      h("bdi", {}, printable(row.after))),
    h("span", { class: "fwl-far" }, `${whole(row.distance)} earlier`),
    h("span", { class: "fwl-kind" }, kinds[row.kind]),
    h("span", { class: "fwl-share", "aria-hidden": "true" },
      h("i", { class: row.share >= 0 ? "better" : "worse",
        style: `left: ${at(left)}; width: ${(50 * (right - left)) / most}%` }),
      mark(row.held, "held"), mark(row.replay, "replay")),
    h("b", { "aria-label": `share ${signed(row.share, 3)} nat` }, signed(row.share, 3)),
  );
}

/** Draw sums of shares by distance, filled net and outlined gross, in bins that double; return the rows of a table. */
function distanceChart(place, data, signal) {
  const label = (i) => (data.bins[i] === 1 ? "1" : `${whole(data.bins[i])}–${whole(2 * data.bins[i] - 1)}`);
  const draw = (context, width, height) => {
    const colours = palette();
    const top = Math.max(...data.bin_gross, 1e-9), low = Math.min(...data.bin_net, 0);
    const x = linear([0, data.bins.length], [64, width - 14]), y = linear([low, top * 1.05], [height - 44, 26]);
    axes(context, { scale: x, label: "distance from source to token [tokens]", format: () => "" },
      { scale: y, label: "sum of shares [nat]: filled net, outlined gross" });
    context.textBaseline = "top";
    context.textAlign = "center";
    data.bins.forEach((_, i) => {
      const [left, wide] = [x(i) + 4, x(1) - x(0) - 8];
      context.strokeStyle = colours.muted;
      context.strokeRect(left, y(data.bin_gross[i]), wide, y(0) - y(data.bin_gross[i]));
      context.fillStyle = data.bin_net[i] >= 0 ? colours.better : colours.worse;
      context.fillRect(left, Math.min(y(0), y(data.bin_net[i])), wide, Math.abs(y(0) - y(data.bin_net[i])));
      context.fillStyle = colours.muted;
      if (wide > 34 || i % 2 === 0) context.fillText(label(i), left + wide / 2, height - 40);
    });
  };
  surface(place, 230, draw, signal, { role: "img", "aria-label": "shares by distance" });
  return data.bins.map((_, i) => [label(i), signed(data.bin_net[i], 3), fixed(data.bin_gross[i], 3)]);
}

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const ask = asker(model, signal);
  const head = model.get("head");
  let tab = "sources", asTable = false, active = 0, current = null, shown = 0;
  const past = [], computing = new Map(); // tokens to go back to; answers under way by token and reader

  const view = frame(el, {
    name: "receipts", label: "Receipts", signal,
    keys: [
      { key: "ArrowDown", does: "next source", shown: "↓", run: () => activate(active + 1) },
      { key: "ArrowUp", does: "previous source", shown: "↑", run: () => activate(active - 1) },
      { key: "Enter", does: "go to the source; where there is no receipt, compute one", run: () => drill() },
      { key: "Backspace", does: "back to where you came from", run: () => back() },
      { key: "n", does: "next token with a receipt", run: () => step(1) },
      { key: "p", does: "previous token with a receipt", run: () => step(-1) },
      { key: "1", does: "sources, distance, all: 1 2 3", shown: "1–3", run: () => show("sources") },
      { key: "2", run: () => show("distance") },
      { key: "3", run: () => show("document") },
      { key: "v", does: "view as table", run: () => asRows() },
    ],
  });
  const tabs = RECEIPT_TABS.map(([name, text]) => button(text, () => show(name), { "aria-pressed": String(name === tab) }));
  const goBack = button("← back", () => back(), { disabled: true });
  const tableButton = button("table", () => asRows(), { "aria-pressed": "false", title: "the same as a table (v)" });
  view.tools.append(goBack, ...tabs, tableButton);
  function asRows() {
    asTable = !asTable;
    tableButton.setAttribute("aria-pressed", String(asTable));
    draw();
  }

  const rows = () => [...view.body.querySelectorAll("[role=option]")];
  function activate(index) {
    const all = rows();
    if (!all.length) return;
    active = clamp(index, 0, all.length - 1);
    all.forEach((row, i) => row.setAttribute("aria-selected", String(i === active)));
    all[active].scrollIntoView({ block: "nearest" });
    const row = current.sources[active];
    const held = row.held === null ? "" : `; without it ${signed(row.held, 3)} is lost (held)`;
    const replay = row.replay === null ? "" : `, ${signed(row.replay, 3)} on replay`;
    view.status.textContent = `source ${active + 1} of ${all.length}: ${printable(row.text)}, ${whole(row.distance)} earlier, `
      + `share ${signed(row.share, 3)} nat${held}${replay}`;
  }
  function jump(to) {
    past.push(place.get("token"));
    goBack.disabled = false;
    place.set({ token: to });
  }
  function back() {
    if (past.length) place.set({ token: past.pop() });
    goBack.disabled = past.length === 0;
  }
  function step(direction) {
    const known = head.recorded[place.get("reader")] ?? [], at = place.get("token");
    const next = direction > 0 ? known.find((t) => t > at) : known.findLast((t) => t < at);
    if (next === undefined) view.status.textContent = `no ${direction > 0 ? "later" : "earlier"} token has a receipt`;
    else place.set({ token: next });
  }
  function drill() {
    if (current?.sources?.length && tab === "sources") jump(current.sources[active].token);
    else if (current?.absent && head.model) compute();
  }
  function show(name) {
    tab = name;
    tabs.forEach((node, i) => node.setAttribute("aria-pressed", String(RECEIPT_TABS[i][0] === name)));
    load();
  }
  /** Ask for a receipt that takes seconds to minutes, and share it with the other views. */
  function compute() {
    const question = { kind: "compute", reader: place.get("reader"), token: place.get("token") }, { reader, token: at } = question;
    const key = `${at} ${reader}`;
    if (!computing.has(key)) {
      computing.set(key, ask(question).then((answer) => {
        head.recorded[reader] = [...new Set([...head.recorded[reader], at])].sort((a, b) => a - b);
        const { sources, gain, gross } = answer.content;
        const [named, shares] = ["token", "share"].map((what) => sources.map((row) => row[what]));
        place.set({ receipt: { reader, token: at, gain, gross, sources: named, shares } });
        return answer;
      }).finally(() => computing.delete(key)));
    }
    load();
  }
  function load() {
    const reader = place.get("reader"), at = place.get("token");
    const underWay = tab === "document" ? undefined : computing.get(`${at} ${reader}`);
    const question = tab === "document" ? { kind: "summary", reader } : { kind: "receipt", reader, token: at };
    const mine = shown += 1;
    active = 0;
    showAnswer(view.body, underWay ?? ask(question), ({ content }) => { current = content; draw(); }, {
      current: () => mine === shown,
      working: underWay && "Splitting the gain: seconds for Fast Weight Layers, minutes for dynamic evaluation. Go on browsing meanwhile.",
    });
  }

  function absent() {
    const near = [["previous", "← nearest before"], ["next", "nearest after →"]].filter(([name]) => current[name] !== null)
      .map(([name, text]) => button(`${text}: token ${whole(current[name])}`, () => place.set({ token: current[name] }), { tabindex: null }));
    const todo = head.model ? h("p", {}, button("Compute it", compute, { tabindex: null }))
      : h("p", {}, "Record some: ", h("code", {}, "add_receipts(trace, model, tokens)"), "; with a model at hand, ",
        h("code", {}, "Receipts(trace, model=model)"), " computes them when asked.");
    view.status.textContent = `${printable(current.text)}: no receipt`;
    view.body.replaceChildren(notice("absent", "No receipt of this token is recorded"),
      h("div", { class: "fwl-absent-more" }, todo, h("p", {}, near)));
  }

  function drawReceipt() {
    const complete = current.sources.length ? current.sources.reduce((sum, row) => sum + row.share, 0) : 0;
    const rest = current.net - complete;
    const title = h("div", { class: "fwl-question" },
      h("div", {}, "Who paid for ", h("bdi", { class: "fwl-before" }, printable(current.before)), token(current.text, { class: "fwl-token fwl-here" }), "?"),
      h("small", {}, `position ${whole(current.position)} · gain over θ₀, before adapting · gross ${fixed(current.gross)} nat behind a net of ${signed(current.net)}, residual `
        + `${brief(current.residual)} · the ${current.sources.length} listed hold ${signed(complete)}, all others ${signed(rest)}`));
    const top = h("div", { class: "fwl-top" }, title, balance(current));
    if (!current.sources.length) {
      view.body.replaceChildren(top, notice("empty", "Nothing was learned before this token"));
    } else if (tab === "distance") {
      const chart = h("div", {});
      view.body.replaceChildren(top, chart);
      const cells = distanceChart(chart, current, signal);
      if (asTable) chart.replaceChildren(table("Shares by distance", ["tokens earlier", "net [nat]", "gross [nat]"], cells));
    } else if (asTable) {
      const known = (value) => (value === null ? "" : signed(value, 3));
      view.body.replaceChildren(top, table("Sources, largest share first [nat]",
        ["source", "token", "earlier", "kind", "share", "held", "replay"],
        current.sources.map((row) => [token(row.text), whole(row.token), whole(row.distance), head.kinds[row.kind],
          signed(row.share, 3), known(row.held), known(row.replay)])));
    } else {
      const most = Math.max(...current.sources.flatMap((row) => [row.share, row.held ?? 0, row.replay ?? 0]).map(Math.abs), 1e-9);
      const list = h("ol", { class: "fwl-sources", role: "listbox", "aria-label": "sources" },
        current.sources.map((row) => sourceRow(row, most, head.kinds, jump)));
      const legend = h("p", { class: "fwl-legend" }, h("i", { class: "better" }), "paid", h("i", { class: "worse" }), "cost",
        h("u", { class: "held" }), "lost without it, others held", h("u", { class: "replay" }), "lost without it, the rest re-read");
      view.body.replaceChildren(top, list, legend);
    }
    view.status.textContent = receiptWords(current, head.readers, place.get("reader"));
    if (tab === "sources" && !asTable && current.sources.length) rows()[0].setAttribute("aria-selected", "true");
  }

  function drawSummary() {
    const net = current.kind_net.reduce((sum, value) => sum + value, 0);
    const percent = (value) => (net ? `${fixed((100 * value) / net, 0)} %` : "–");
    const kinds = table("Who teaches whom: shares of the listed sources", ["source is", "net [nat]", "of net", "gross [nat]"],
      head.kinds.map((kind, i) => [kind, signed(current.kind_net[i]), percent(current.kind_net[i]), fixed(current.kind_gross[i])]));
    const chart = h("div", {});
    view.body.replaceChildren(
      h("div", { class: "fwl-question" }, h("div", {}, `${whole(current.receipts)} receipts of ${head.readers[place.get("reader")].label}`),
        h("small", {}, `gains sum to ${signed(current.gain)} nat; the listed sources hold ${signed(current.listed)}`)),
      kinds, chart);
    const cells = distanceChart(chart, current, signal);
    if (asTable) chart.replaceChildren(table("Shares by distance", ["tokens earlier", "net [nat]", "gross [nat]"], cells));
    view.status.textContent = `${whole(current.receipts)} receipts: ${head.kinds.map((k, i) => `${k} ${signed(current.kind_net[i])}`).join(", ")} nat`;
  }

  function draw() {
    view.heading.replaceChildren(h("b", {}, "Receipts"), " ", h("small", {}, head.readers[place.get("reader")].label));
    if (current === null) return;
    if (tab === "document") drawSummary();
    else if (current.absent) absent();
    else drawReceipt();
  }

  place.on(["token", "reader"], settled(load, 30));
  draw();
  load();
}

export default { render };
