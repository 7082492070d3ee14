// DocumentLens's details of one token: figures of all readers, expected tokens, sources of its gain.

import { OWN_KEYS, button, h, notice, table, token } from "../../core/js/elements.js";
import { clamp, fixed, printable, signed, whole } from "../../core/js/format.js";
import { palette } from "../../core/js/theme.js";
import { indexBelow } from "./layout.js";

const percent = (logProb) => { const p = 100 * Math.exp(logProb); return p >= 0.05 ? `${p.toFixed(p < 9.95 ? 1 : 0)} %` : "<0.1 %"; };

/** Return what a reader expected: [{id, place, logProb}], with the label last where it was not among the likeliest. */
export function expected({ ids, log_probs: logProbs, nll, rank }, label) {
  if (ids === undefined) return null;
  const rows = ids.map((id, place) => ({ id, place, logProb: logProbs[place] }));
  if (!ids.includes(label)) rows.push({ id: label, place: rank ?? null, logProb: nll === null ? NaN : -nll });
  return rows;
}

const PITCH = 25; // px from one alternative to the next

/** Make the likeliest tokens of two readers side by side, with lines from place to place; the label is marked. */
function alternatives(answer, text, before, after, styles) {
  const [old, young] = [before, after].map((name) => expected(answer.readers[name], answer.label));
  if (old === null && young === null) return [notice("absent", "Alternatives were not recorded", null, "score(..., record=Recorder(top=10)) records them")];
  const name = (id) => (id === answer.label ? text : answer.texts[id]);
  const side = (rows, reader, others) => h(
    "ol", { class: others ? "after" : "before", "aria-label": `expected by ${styles[reader].label}` },
    h("li", { class: "head" }, h("b", {}, styles[reader].label), h("small", {}, others ? "after" : "before")),
    rows === null ? h("li", {}, "not recorded") : rows.map((row) => {
      const was = others?.find(({ id }) => id === row.id);
      const by = was && was.place !== null && row.place !== null ? was.place - row.place : null;
      const move = !others ? null : by === null ? "new" : by === 0 ? "" : by > 0 ? `▲${whole(by)}` : `▼${whole(-by)}`;
      return h(
        "li", { class: row.id === answer.label ? "label" : null },
        h("u", { style: `width: ${Number.isFinite(row.logProb) ? 100 * Math.exp(row.logProb) : 0}%` }),
        h("small", {}, row.place === null ? "–" : whole(row.place + 1)),
        token(name(row.id)), row.id === answer.label ? h("em", { title: "the token that came" }, "✓") : null,
        h("span", {}, Number.isFinite(row.logProb) ? percent(row.logProb) : "not finite"),
        move === null ? null : h("strong", { class: by > 0 ? "up" : by < 0 ? "down" : "" }, move),
      );
    }),
  );
  const height = PITCH * (1 + Math.max(old?.length ?? 1, young?.length ?? 1));
  const lines = (old ?? []).map(({ id }, i) => [i, (young ?? []).findIndex((row) => row.id === id), id === answer.label]);
  return [h("div", { class: "fwl-slopes" }, side(old, before, null), slopes(lines.filter(([, j]) => j >= 0), height), side(young, after, old ?? []))];
}

/** Draw lines from places before to places after: blue rises, orange falls, the label is in ink. */
function slopes(lines, height) {
  const scale = devicePixelRatio || 1, colours = palette();
  const canvas = h("canvas", { width: 36 * scale, height: height * scale, style: `width: 36px; height: ${height}px`, "aria-hidden": "true" });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  for (const [i, j, isLabel] of lines) {
    const [y1, y2] = [i, j].map((place) => PITCH * (place + 1.5));
    context.strokeStyle = isLabel ? colours.ink : j < i ? colours.better : j > i ? colours.worse : colours.line;
    context.lineWidth = isLabel ? 2.5 : 1.5;
    context.beginPath();
    context.moveTo(2, y1);
    context.bezierCurveTo(18, y1, 18, y2, 34, y2);
    context.stroke();
  }
  return canvas;
}

/** Make the table of each reader's figures of a token. */
function readersTable(answer, place, styles) {
  const base = answer.readers[place.get("baseline")].nll, ranked = Object.values(answer.readers).some(({ rank }) => rank !== undefined);
  const rows = Object.entries(answer.readers).map(([name, { nll, rank }]) => [
    h("span", {}, h("i", { class: "fwl-dot", style: `background: ${styles[name].colour}` }), styles[name].label,
      name === place.get("reader") ? h("small", {}, " selected") : name === place.get("baseline") ? h("small", {}, " baseline") : null),
    fixed(nll ?? NaN, 3), nll === null || base === null ? "not finite" : signed(base - nll, 3),
    ...(ranked ? [rank === undefined ? "–" : whole(rank + 1)] : []),
  ]);
  return table("figures of each reader", ["reader", "NLL [nat]", "gain [nat]", ...(ranked ? ["rank"] : [])], rows);
}

/** Make the sources of the gain as buttons, or how to record them. A receipt's gain is over θ₀, whatever the baseline. */
function paidBy({ sources, shares, gain, gross }, texts, jump, token_) {
  if (sources === undefined) return [h("h4", {}, "Who paid"), h("p", {}, "No receipt is recorded for this token: add_receipts(trace, model, tokens)")];
  const rows = sources.map((source, i) => button(
    [token(texts(source)), ` ${signed(shares[i])}`], () => jump(source),
    { class: shares[i] < 0 ? "costs" : null, title: `token ${whole(source)}, ${whole(token_ - source)} earlier; click to go there` },
  ));
  return [h("h4", {}, `Who paid for ${signed(gain)} nat`),
    h("p", {}, `Gained over θ₀, the same reader before it adapts; gross ${fixed(gross)}. Outlined in the text and in the map: solid paid, dashed cost.`), h("div", { class: "fwl-sources" }, rows)];
}

/**
 * Make the panel of the selected token: where it stands, figures of all readers, what was expected, and sources of its
 * gain. `answer` is the kernel's, or {..., why} with what the page knows; `own` are the selected reader's figures.
 */
export function tokenPanel({ pages, place, head, starts }, answer, own, jump) {
  const { token: at, why } = answer, document = indexBelow(starts, at), text = pages.text(at);
  const where = `${printable(head.documents[document])}, position ${whole(at - starts[document])}`;
  const details = why ? [notice(why.startsWith("saved view") ? "kernel" : "error", why)] : [
    h("h4", {}, "What was expected here"),
    ...alternatives(answer, text, place.get("baseline"), place.get("reader"), head.readers),
    h("div", {}, ...paidBy(own, (source) => pages.text(source), (source) => jump(source), at)),
  ];
  return [h("div", { class: "fwl-which" }, token(text), h("small", {}, where)), readersTable(answer, place, head.readers), ...details];
}

/** Make a table of the tokens around the selected one, with figures. */
export function tableAround({ pages, ranks, place, head, starts }, around) {
  const names = Object.keys(head.readers), [selected, reader, baseline] = ["token", "reader", "baseline"].map(place.get);
  const first = clamp(selected - around, 0, Math.max(pages.loaded - 1, 0)), last = Math.min(selected + around + 1, pages.loaded);
  const known = ranks.get(reader) instanceof Int32Array ? ranks.get(reader) : null;
  const rows = Array.from({ length: last - first }, (_, i) => {
    const t = first + i;
    return [whole(t), whole(t - starts[indexBelow(starts, t)]), token(pages.text(t)), ...names.map((name) => fixed(pages.nll[name][t])),
      signed(pages.nll[baseline][t] - pages.nll[reader][t]), ...(known ? [known[t] < 0 ? "–" : whole(known[t] + 1)] : [])];
  });
  const made = table(
    `Tokens around the selected one: NLL of each reader, gain of ${head.readers[reader].label} over ${head.readers[baseline].label}, nat`,
    ["token", "position", "text", ...names.map((name) => head.readers[name].label), "gain", ...(known ? ["rank"] : [])], rows);
  made.querySelectorAll("tbody tr").forEach((row, i) => {
    row.token = first + i;
    row.setAttribute("aria-selected", String(first + i === selected));
  });
  return made;
}

/** A box of figures that follows the pointer; it is made once, then only its texts change. */
export class Tip {
  constructor(node, { readers }) {
    this.node = node;
    this.what = h("b", { class: "fwl-token" });
    this.where = h("small", {});
    this.gain = h("span", {});
    this.values = Object.fromEntries(Object.keys(readers).map((name) => [name, h("span", {})]));
    const line = (label, value) => h("div", {}, h("span", {}, label), value);
    node.append(h("div", {}, h("span", {}, this.what), this.where),
      ...Object.entries(readers).map(([name, { label, colour }]) => line([h("i", { class: "fwl-dot", style: `background: ${colour}` }), label], this.values[name])),
      line("gain", this.gain));
  }

  /** Show figures of token `t` beside the rectangle `span`, inside of the rectangle `around`. */
  show({ pages, ranks, place, starts }, t, around, span) {
    const reader = place.get("reader"), at = starts[indexBelow(starts, t)];
    this.what.textContent = printable(pages.text(t));
    this.where.textContent = `position ${whole(t - at)}`;
    for (const [name, node] of Object.entries(this.values)) {
      const rank = ranks.get(name) instanceof Int32Array && ranks.get(name)[t] >= 0 ? `  rank ${whole(ranks.get(name)[t] + 1)}` : "";
      node.textContent = `${fixed(pages.nll[name][t])} nat${rank}`;
    }
    this.gain.textContent = `${signed(pages.nll[place.get("baseline")][t] - pages.nll[reader][t])} nat`;
    this.node.hidden = false;
    const left = clamp(span.left - around.left, 4, Math.max(4, around.width - this.node.offsetWidth - 18));
    const below = span.bottom - around.top + 8, above = span.top - around.top - this.node.offsetHeight - 8;
    this.node.style.transform = `translate(${left}px, ${below + this.node.offsetHeight < around.height || above < 0 ? below : above}px)`;
  }

  hide() {
    this.at = undefined;
    this.node.hidden = true;
  }

  /** Show figures of the token under the pointer in the text `pane`, inside of the element `around`. */
  follow(lens, { long, scroll }, around) {
    long.addEventListener("pointermove", (event) => {
      const span = event.target.closest("span"), at = span?.token;
      if (at === this.at) return;
      if (at === undefined) this.hide();
      else this.show(lens, at, around.getBoundingClientRect(), span.getBoundingClientRect());
      this.at = at;
    });
    scroll.addEventListener("pointerleave", () => this.hide());
    scroll.addEventListener("scroll", () => this.hide(), { passive: true });
  }
}

/**
 * Keep the view one tab stop: scrolling regions can have the focus, but Tab steps over them, and the view's keys scroll
 * them. Inside `panel`, which Enter leads to, Tab goes from button to button before it leaves.
 */
export function oneStop(root, panel, regions, signal) {
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Tab") return;
    const stops = [panel, ...panel.querySelectorAll("button")], at = stops.indexOf(document.activeElement);
    const next = at < 0 ? undefined : stops[at + (event.shiftKey ? -1 : 1)];
    if (next) {
      next.focus();
      event.preventDefault();
      return;
    }
    for (const region of [panel, ...regions]) region.tabIndex = -1;
    setTimeout(() => { for (const region of [panel, ...regions]) region.tabIndex = 0; });
  }, { signal });
  for (const region of [panel, ...regions]) {
    region.tabIndex = 0;
    region.setAttribute(OWN_KEYS, "true");
    region.addEventListener("focus", ({ relatedTarget }) => { if (!root.contains(relatedTarget)) root.focus({ preventScroll: true }); }, { signal });
  }
}
