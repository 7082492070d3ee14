// ReaderCompare's charts: one canvas for all tabs, reading values with a pointer, the brush, and tables in their place.

import { surface, swatch } from "../../core/js/charts.js";
import { h, notice, table } from "../../core/js/elements.js";
import { brief, clamp, many, printable, signed, whole } from "../../core/js/format.js";
import { showAnswer } from "../../core/js/kernel.js";
import { drawCumulative, drawDots, drawFrontier, edgesOf, intervalText, nats, scaled } from "./charts.js";

/** Costs: title, cost per token from a reader's figures and the number of tokens, and format. */
export const COMPARE_COSTS = {
  seconds_per_token: ["time per token", (f, n) => f.seconds && f.seconds / n,
    (v) => (v < 1e-3 ? `${brief(v * 1e6)} µs` : v < 1 ? `${brief(v * 1e3)} ms` : `${brief(v)} s`)],
  flops_per_token: ["operations per token", (f) => f.flops_per_token, (v) => scaled(v, "FLOP")],
  peak_bytes: ["memory beyond the model", (f) => f.peak_bytes, (v) => scaled(v, "B")],
};

/** Return what draws the selected chart or its table into `chartPlace`, and what it shows in words. */
export function compareCharts(shared) {
  const { head, state, view, place, signal, chartPlace, compared, known, intervals, speak, brush } = shared;
  const { at, points, sum, readers, others, label, style, chosen, baseline, nearest, documentOf } = compared;
  const [crosshair, brushed, here, readout] = ["fwl-crosshair", "fwl-brush", "fwl-crosshair fwl-place", "fwl-readout"]
    .map((name) => h("div", { class: name, hidden: true }));
  const stage = h("div", { class: "fwl-stage" }), instead = h("div");
  chartPlace.append(stage, instead);
  const paint = surface(stage, 310, draw, signal, { class: "fwl-plot" });
  stage.append(brushed, here, crosshair, readout);
  let x = null, under = null, waiting = null, gains = { of: null, rows: [] };

  const by = () => (state.tab === "position" ? "position" : state.by);
  const breakdown = () => known({ kind: "breakdown", by: by(), baseline: baseline() });
  const costOf = (reader, name) => COMPARE_COSTS[name][1](head.figures[reader], head.tokens);
  const kinds = () => head.breakdowns.filter(([by]) => by !== "position");
  const costs = () => Object.keys(COMPARE_COSTS).filter((name) => readers.some((r) => costOf(r, name)));
  const cost = () => (costs().includes(state.cost) ? state.cost : costs()[0]);

  /** Return the cumulative gains of all readers over the selected baseline, at the points. */
  function lines() {
    if (gains.of !== baseline()) {
      const row = (name) => Float64Array.from({ length: points }, (_, i) => sum(baseline(), i) - sum(name, i));
      gains = { of: baseline(), rows: readers.map((name) => [name, row(name)]) };
    }
    return gains.rows;
  }
  function frontier() {
    const answer = intervals().content, name = cost();
    const bits = (r) => answer.gain[r].map((v) => (v === null ? null : v / Math.LN2));
    const best = (r) => answer.optimal[name].includes(r);
    return readers.map((r) => ({ name: r, style: style(r), cost: costOf(r, name), bits: bits(r), best: best(r) }))
      .filter((p) => p.cost && p.bits[0] !== null);
  }

  function draw(context, width, height) {
    const over = label(baseline());
    if (state.tab === "tokens") {
      x = drawCumulative(context, width, height, { at, tokens: head.tokens, documents: head.documents, baseline: over,
        lines: lines().map(([name, values]) => ({ style: style(name), values, strong: name === chosen() })) });
      placeMarks();
    } else if (state.tab === "cost") {
      const [text, , format] = COMPARE_COSTS[cost()];
      under = drawFrontier(context, width, height, {
        points: frontier(), title: text, format, baseline: over, selected: chosen() });
    } else {
      const { buckets, title } = breakdown().content;
      under = drawDots(context, width, height, { buckets, title, names: others(), styles: head.readers, baseline: over,
        selected: chosen(), active: clamp(state.active, 0, buckets.length - 1) });
    }
  }
  /** Place the marks of the selected token and stretch on the chart over tokens. */
  function placeMarks() {
    const span = state.drag ?? place.get("span"), tokens = state.tab === "tokens" && x !== null;
    here.hidden = !tokens;
    brushed.hidden = !tokens || !span;
    if (!tokens) return;
    here.style.left = `${x(place.get("token"))}px`;
    if (span) {
      const [left, right] = [x(Math.min(...span)), x(Math.max(...span))];
      brushed.style.left = `${left}px`;
      brushed.style.width = `${Math.max(right - left, 1)}px`;
    }
  }

  /** Show the chart, or in its place a table, a wait, or the reason why there is none. */
  function show() {
    const lacking = readers.length < 2 ? notice("absent", "There is nothing to compare this reader with",
      "Read with two or more: score(model, documents, make_readers(model)).",
      "Or give runs: ReaderCompare({\"a\": trace, \"b\": other}).")
      : state.tab !== "cost" || costs().length ? null
        : notice("absent", "No cost was recorded", "score() records time, memory and operations.");
    const entry = state.tab === "tokens" ? null : state.tab === "cost" ? intervals() : breakdown();
    const ready = lacking === null && (entry === null || entry.content !== undefined);
    stage.hidden = !ready || state.asTable;
    crosshair.hidden = readout.hidden = true;
    if (lacking) instead.replaceChildren(lacking);
    else if (!ready) {
      if (waiting !== entry) {
        waiting = entry;
        instead.replaceChildren();
        showAnswer(instead, entry.promise, () => { waiting = null; });
      }
    } else if (state.asTable) instead.replaceChildren(asTable());
    else instead.replaceChildren();
    if (lacking || ready) waiting = null;
    if (ready && !state.asTable) paint.redraw();
    if (state.tab !== "tokens") placeMarks();
  }

  function asTable() {
    const over = label(baseline());
    if (state.tab === "cost") {
      const [text, , format] = COMPARE_COSTS[cost()];
      return table(`Bits saved over ${over}, and ${text}`,
        ["reader", "saved [bit/token]", text, "on the frontier"],
        frontier().map((p) => [label(p.name), intervalText(p.bits), format(p.cost), p.best ? "yes" : "no"]));
    }
    if (state.tab === "tokens") {
      const ends = head.documents.flatMap(([, start, stop]) => [nearest(start), nearest(stop)]).slice(0, 60);
      const even = Array.from({ length: 21 }, (_, i) => Math.round((i * (points - 1)) / 20));
      const rows = [...new Set([...ends, ...even])].sort((a, b) => a - b);
      return table(`Cumulative gain over ${over} [nat]`, ["tokens read", "document", ...others().map(label)],
        rows.map((i) => [whole(at[i]), printable(documentOf(at[i])[0]),
          ...others().map((name) => signed(sum(baseline(), i) - sum(name, i)))]));
    }
    const { buckets, title } = breakdown().content;
    return table(`Gain over ${over} by ${title} [nat/token]`, [title, "tokens", "documents", ...others().map(label)],
      buckets.map((b) => [b.label, whole(b.tokens), whole(b.documents),
        ...others().map((name) => intervalText(edgesOf(b, name)))]));
  }

  // -- the pointer --------------------------------------------------------------------------------------------------

  function tell(px, py, title, rows) {
    const strong = (r) => (r === chosen() ? "fwl-strong" : null);
    const name = (r) => h("dt", { class: strong(r) }, swatch(style(r)), ` ${printable(label(r))}`);
    readout.replaceChildren(h("b", {}, title), h("dl", {}, rows.flatMap(([r, text]) => [name(r), h("dd", {}, text)])));
    readout.hidden = false;
    // The box stands left of the pointer where there is room: rising lines leave the upper left free.
    const size = readout.offsetWidth;
    readout.style.left = `${px - size - 14 > 62 ? px - size - 14 : px + 14}px`;
    readout.style.top = `${clamp(py, 4, Math.max(4, 290 - readout.offsetHeight))}px`;
  }
  function pointAt(px) {
    return nearest(clamp(x.back(px), 0, head.tokens));
  }
  function hover(event) {
    const box = paint.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    if (state.tab === "tokens") {
      if (x === null) return;
      const i = pointAt(px), [name, start] = documentOf(Math.min(at[i], head.tokens - 1));
      crosshair.hidden = false;
      crosshair.style.left = `${x(at[i])}px`;
      const rows = lines().filter(([r]) => r !== baseline()).map(([r, values]) => [r, values[i]])
        .sort((a, b) => b[1] - a[1]);
      tell(x(at[i]), 30, `after ${many(at[i], "token")} · ${printable(name)} + ${whole(at[i] - start)}`,
        rows.map(([r, value]) => [r, Number.isFinite(value) ? `${nats(value)} nat` : "not finite"]));
      if (state.drag) { state.drag[1] = at[i]; placeMarks(); }
    } else if (state.tab === "cost") {
      const near = under?.(px, py);
      readout.hidden = !near || near.far > 60;
      if (!near || near.far > 60) return;
      const p = frontier().find(({ name }) => name === near.name);
      tell(near.px, near.py, `${p.best ? "no other" : "another"} reader saves as much for less`,
        [[p.name, `${intervalText(p.bits)} bit/token at ${COMPARE_COSTS[cost()][2](p.cost)}`]]);
    } else if (under) {
      const bucket = breakdown().content.buckets[under(px)];
      const where = many(bucket.documents, "document");
      tell(px, py, `${bucket.label} · ${many(bucket.tokens, "token")} in ${where}`,
        others().map((name) => [name, intervalText(edgesOf(bucket, name))]));
    }
  }
  const on = (name, run) => paint.canvas.addEventListener(name, run, { signal });
  on("pointermove", hover);
  on("pointerleave", () => { crosshair.hidden = readout.hidden = true; });
  on("pointerdown", (event) => {
    view.root.focus({ preventScroll: true });
    const box = paint.canvas.getBoundingClientRect(), px = event.clientX - box.left, py = event.clientY - box.top;
    if (state.tab === "tokens") {
      const i = pointAt(px);
      paint.canvas.setPointerCapture(event.pointerId);
      state.drag = [at[i], at[i]];
      state.from = px;
    } else if (state.tab === "cost") {
      const near = under?.(px, py);
      if (near && near.far < 60) place.set(event.shiftKey ? { baseline: near.name } : { reader: near.name });
    } else if (under) {
      state.active = under(px);
      paint.redraw();
      speak();
    }
  });
  on("pointerup", (event) => {
    if (!state.drag) return;
    const [from, to] = state.drag, px = event.clientX - paint.canvas.getBoundingClientRect().left;
    state.drag = null;
    state.anchor = null;
    if (Math.abs(px - state.from) >= 4 && from !== to) brush(nearest(from), nearest(to));
    else place.set({ span: null, token: Math.min(at[pointAt(px)], head.tokens - 1) });
  });
  on("pointercancel", () => { state.drag = null; placeMarks(); });
  on("dblclick", (event) => {
    if (state.tab !== "tokens") return;
    const i = pointAt(event.clientX - paint.canvas.getBoundingClientRect().left);
    const [, start, stop] = documentOf(Math.min(at[i], head.tokens - 1));
    brush(nearest(start), nearest(stop));
  });

  /** Describe the chart where the arrow keys are. */
  function words() {
    if (state.tab === "tokens") {
      const i = state.cursor, value = sum(baseline(), i) - sum(chosen(), i);
      return `after ${many(at[i], "token")} ${Number.isFinite(value) ? `${signed(value, 1)} nat` : "not finite"} in all`;
    }
    if (state.tab === "cost") {
      const f = cost() && costOf(chosen(), cost());
      return f ? `${COMPARE_COSTS[cost()][0]} ${COMPARE_COSTS[cost()][2](f)}` : "its cost was not recorded";
    }
    const bucket = breakdown().content?.buckets[state.active];
    const said = (name) => `${label(name)} ${intervalText(edgesOf(bucket, name))}`;
    return bucket ? `${bucket.label}: ${others().map(said).join(", ")}` : "";
  }
  function redraw() {
    if (stage.hidden) return;
    placeMarks();
    paint.redraw();
  }
  return { draw: show, redraw, breakdown, kinds, costs, cost, words };
}
