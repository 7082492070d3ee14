// ReaderCompare: figures with intervals, settings that differ, and charts of where a gain comes from and what it costs.

const COMPARE_TABS = [
  ["tokens", "Over tokens"], ["position", "By position"], ["kinds", "By kind of token"], ["cost", "Cost"],
];

/** What the sums at the points say, for the readers and the baseline that are selected now. */
function comparison(head, { at, sums }, place) {
  const readers = head.order, points = at.length;
  const known = (name, otherwise) => (readers.includes(name) ? name : otherwise);
  const chosen = () => known(place.get("reader"), readers.at(-1));
  const baseline = () => known(place.get("baseline"), readers[0]);
  const style = (name) => readerStyle(head, name);
  const sum = (name, i) => sums[readers.indexOf(name) * points + i];
  /** The last point that is not after a token. */
  function pointOf(token) {
    let low = 0, high = points - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (at[middle] <= token) low = middle;
      else high = middle - 1;
    }
    return low;
  }
  function nearest(token) {
    const i = pointOf(token);
    return i + 1 < points && at[i + 1] - token < token - at[i] ? i + 1 : i;
  }
  /** Mean gain from one point to another; null where it is not finite. */
  function gainBetween(name, i, j) {
    const mean = (sum(baseline(), j) - sum(baseline(), i) - sum(name, j) + sum(name, i)) / (at[j] - at[i]);
    return Number.isFinite(mean) ? mean : null;
  }
  const inside = (token) => ([, start, stop]) => start <= token && token < stop;
  return {
    at, points, readers, chosen, baseline, style, sum, pointOf, nearest, gainBetween,
    label: (name) => style(name).label,
    others: () => readers.filter((name) => name !== baseline()),
    whole: (name) => gainBetween(name, 0, points - 1),
    documentOf: (token) => head.documents.find(inside(token)) ?? head.documents.at(-1),
  };
}

/** What is said of the selection: of the stretch that is brushed, of the reader, of scores that are not finite. */
function compareWords({ head, state, view, place, compared, known, intervals, charts, biggest, clear, wordsPlace }) {
  const { at, points, readers, others, nearest, gainBetween, baseline, chosen, label, style, documentOf } = compared;

  /** Mean gains over the stretch; where it does not end at points, what the kernel says. */
  function stretch() {
    const span = place.get("span");
    if (!span || state.tab !== "tokens") return null;
    const [i, j] = [nearest(span[0]), nearest(span[1])], exact = at[i] === span[0] && at[j] === span[1];
    const enough = exact && others().every((name) => gainBetween(name, i, j) !== null);
    const question = { kind: "stretch", start: span[0], stop: span[1], baseline: baseline() };
    const answer = enough ? undefined : known(question).content;
    const mean = (name) => (answer ? answer.mean[name] : i === j ? null : gainBetween(name, i, j));
    const [document, start] = documentOf(span[0]), about = exact || answer ? "" : "about ";
    const length = whole(span[1] - span[0]), from = `from ${whole(span[0] - start)} in ${printable(document)}`;
    const gains = others().map((name) => [name, mean(name)]).sort((a, b) => (b[1] ?? -Infinity) - (a[1] ?? -Infinity));
    return {
      where: `tokens ${whole(span[0])}–${whole(span[1] - 1)} (${length}; ${from})`,
      gains: gains.map(([name, gain]) => [name, gain === null ? "not finite" : `${about}${signed(gain, 3)}`]),
    };
  }
  const named = (name) => [swatch(style(name)), ` ${printable(label(name))} `];
  function below() {
    const said = stretch();
    if (said !== null) {
      const gains = said.gains.flatMap(([name, text], i) => [i ? ", " : "", ...named(name), h("b", {}, text)]);
      return [h("b", {}, "Stretch "), said.where, ": ", ...gains, " nat/token ",
        button("to its biggest gain", biggest, { class: "fwl-quiet", title: "key g" }),
        button("clear", clear, { class: "fwl-quiet", title: "key x" })];
    }
    const apart = brief(head.tokens / (points - 1));
    const every = head.exact ? ""
      : ` Lines are exact at ${whole(points)} points, ${apart} tokens apart, and straight between.`;
    const told = `Drag over the chart, or Shift + arrows: the mean gains of a stretch, shown in all views.${every}`;
    if (readers.length < 2 || state.asTable) return [];
    if (state.tab === "tokens") return [h("span", { class: "fwl-none" }, told)];
    const [legend, hollow] = state.tab === "cost" ? [readers, "another reader saves as much for less"]
      : [others(), "no interval, one document only"];
    return [...legend.flatMap((name) => [marked(style(name)), ` ${printable(label(name))} `]), h("span", { class: "fwl-none" }, ` hollow: ${hollow}`)];
  }
  function speak() {
    const name = chosen(), gain = intervals().content?.gain[name], said = stretch();
    const much = gain ? intervalText(gain) : signed(compared.whole(name) ?? NaN, 3);
    const own = name === baseline() ? "is the baseline" : `gains ${much} nat/token over ${label(baseline())}`;
    const gains = said?.gains.map(([other, text]) => `${label(other)} ${text}`).join(", ");
    const more = said ? `stretch ${said.where}: ${gains} nat/token` : charts.words();
    view.status.textContent = `${printable(label(name))} ${own}; NLL ${fixed(head.figures[name].nll ?? NaN, 3)}; `
      + `${head.badges[name].text} · token ${whole(place.get("token"))} · ${more}`;
  }
  function strange() {
    const go = (reader, token) => button(`go to the first, token ${whole(token)}`, () => place.set({ reader, token }),
      { class: "fwl-quiet" });
    const rows = Object.entries(head.strange).map(([name, [count, first]]) => h("p", {},
      `${label(name)}: ${whole(count)} score${count > 1 ? "s are" : " is"} not finite; `,
      "its averages are not, either, and its line ends there. ", go(name, first)));
    const heading = h("b", {}, "✗ Scores that are not finite");
    return rows.length ? [h("div", { class: "fwl-notice fwl-error", role: "alert" }, heading, rows)] : [];
  }
  return { speak, strange, draw: () => wordsPlace.replaceChildren(...below()) };
}

async function render({ model, el, signal }) {
  const place = await connect(model, signal), ask = asker(model, signal);
  const head = model.get("head");
  const compared = comparison(head, unpack(head.columns, model.get("data")), place);
  const { at, points, readers, chosen, baseline, label } = compared;
  const state = { tab: "tokens", by: "class", cost: null, asTable: false, badge: null, equal: false, more: false,
    active: 0, cursor: 0, anchor: null, drag: null };
  const answers = new Map();
  /** An answer, asked for once; all is drawn again when it is there. */
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

  // -- what keys do -------------------------------------------------------------------------------------------------

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
  /** A stretch between two points becomes everyone's; the token is its first. */
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
