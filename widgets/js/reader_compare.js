// ReaderCompare: figures with intervals, settings that differ, and charts of where a gain comes from and what it costs.

const COMPARE_TABS = [["tokens", "Over tokens"], ["position", "By position"], ["kinds", "By kind of token"], ["cost", "Cost"]];
const COMPARE_COSTS = {
  seconds_per_token: ["time per token", (f, n) => f.seconds && f.seconds / n, (v) => (v < 1e-3 ? `${brief(v * 1e6)} µs` : v < 1 ? `${brief(v * 1e3)} ms` : `${brief(v)} s`)],
  flops_per_token: ["operations per token", (f) => f.flops_per_token, (v) => scaled(v, "FLOP")],
  peak_bytes: ["memory beyond the model", (f) => f.peak_bytes, (v) => scaled(v, "B")],
};
const BADGE_MARKS = { passed: "✓", failed: "✗", absent: "○" };
const SETTINGS_SHOWN = 7;

/** What the intervals are of, and how far to trust them. */
function methodWords({ resampled, level }, documents) {
  const few = resampled === "documents" && documents < 10 ? ` (only ${documents}: too narrow)` : "";
  const own = resampled === "documents" ? "" : ": they speak of this document only";
  return `${Math.round(100 * level)} % intervals, paired bootstrap over ${resampled}${few}${own}`;
}

/** A mean with its interval on a scale that all rows share. */
function gainCell(estimate, plain, domain, colour) {
  const text = plain === null ? "not finite" : signed(plain, 3);
  const at = (v) => `${(100 * (v - domain[0])) / (domain[1] - domain[0] || 1)}%`;
  const bar = estimate && estimate[1] !== null
    ? h("u", { style: `left: ${at(estimate[1])}; right: calc(100% - ${at(estimate[2])}); background: ${colour}` }) : null;
  return [
    h("span", { class: "fwl-track", "aria-hidden": "true" }, h("s", { style: `left: ${at(0)}` }), bar,
      plain === null ? null : h("i", { style: `left: ${at(plain)}; background: ${colour}` })),
    h("b", {}, text),
    h("small", {}, estimate === undefined ? " […]" : estimate[1] === null ? " no interval" : ` [${fixed(estimate[1])}, ${fixed(estimate[2])}]`),
  ];
}

/** A setting, short; the whole of it as its title. */
function settingCell(value) {
  if (value === null) return h("td", { class: "fwl-none" }, "–");
  const number = value !== "" && Number.isFinite(Number(value)) && value.length > 8 ? brief(Number(value)) : null;
  const text = number ?? (value.length > 26 ? `${value.slice(0, 24)}…` : value);
  return h("td", { title: value }, h("bdi", {}, printable(text)));
}

/** How readers were set: a row a setting. */
function settingsTable(caption, rows, head) {
  const names = h("tr", {}, h("th", { scope: "col" }, "setting"), head.order.map((name) => h("th", { scope: "col" },
    swatch(head.readers[name]), " ", h("bdi", {}, printable(head.readers[name].label)))));
  return h("table", { class: "fwl-settings" }, h("caption", {}, caption), h("thead", {}, names),
    h("tbody", {}, rows.map(([name, ...values]) => h("tr", {}, h("th", { scope: "row" }, name), values.map(settingCell)))));
}

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const ask = asker(model, signal);
  const head = model.get("head");
  const { at, sums } = unpack(head.columns, model.get("data"));
  const readers = head.order, points = at.length;
  const state = { tab: "tokens", by: head.breakdowns.find(([by]) => by === "class")[0], cost: null, asTable: false, badge: null,
    equal: false, more: false, active: 0, cursor: 0, anchor: null, drag: null };
  const answers = new Map();
  const style = (name) => head.readers[name] ?? readerStyle(head, name);
  const label = (name) => style(name).label;
  const chosen = () => (readers.includes(place.get("reader")) ? place.get("reader") : readers.at(-1));
  const baseline = () => (readers.includes(place.get("baseline")) ? place.get("baseline") : readers[0]);
  const sum = (name, i) => sums[readers.indexOf(name) * points + i];
  const others = () => readers.filter((name) => name !== baseline());
  const pointOf = (token) => { // the last point that is not after a token
    let low = 0, high = points - 1;
    while (low < high) { const middle = (low + high + 1) >> 1; if (at[middle] <= token) low = middle; else high = middle - 1; }
    return low;
  };
  const nearest = (token) => { const i = pointOf(token); return i + 1 < points && at[i + 1] - token < token - at[i] ? i + 1 : i; };
  const gainBetween = (name, i, j) => {
    const mean = (sum(baseline(), j) - sum(baseline(), i) - sum(name, j) + sum(name, i)) / (at[j] - at[i]);
    return Number.isFinite(mean) ? mean : null;
  };
  const documentOf = (token) => head.documents.find(([, start, stop]) => start <= token && token < stop) ?? head.documents.at(-1);

  /** An answer, asked for once; draws again when it is there. */
  function known(question) {
    const key = JSON.stringify(question);
    if (!answers.has(key)) {
      answers.set(key, { promise: ask(question), content: undefined, error: null });
      const entry = answers.get(key);
      entry.promise.then(({ content }) => { entry.content = content; }, (error) => { entry.error = error; })
        .finally(() => { if (!signal.aborted) { drawReaders(); speak(); } });
    }
    return answers.get(key);
  }
  const intervals = () => known({ kind: "intervals", baseline: baseline() });

  const step = Math.max(1, Math.round(points / 120));
  const move = (by, event) => (state.tab === "tokens" ? travel(by * step, event.shiftKey) : activate(by));
  const view = frame(el, {
    name: "reader_compare", label: "Readers compared", signal,
    keys: [
      { key: "ArrowDown", does: "next reader", shown: "↓", run: () => turn(1) },
      { key: "ArrowUp", does: "previous reader", shown: "↑", run: () => turn(-1) },
      { key: "Enter", does: "the reader's certificate", run: () => openBadge(chosen()) },
      { key: "b", does: "measure gains against this reader", run: () => place.set({ baseline: chosen() }) },
      { key: "ArrowRight", does: "along the chart; with Shift: a stretch", shown: "← →", run: (event) => move(1, event) },
      { key: "ArrowLeft", run: (event) => move(-1, event) },
      { key: "g", does: "biggest gain in the stretch", run: () => biggest() },
      { key: "x", does: "no stretch", run: () => { state.anchor = null; place.set({ span: null }); } },
      { key: "1", does: "tokens, position, kinds, cost", shown: "1–4", run: () => show("tokens") },
      { key: "2", run: () => show("position") }, { key: "3", run: () => show("kinds") }, { key: "4", run: () => show("cost") },
      { key: "k", does: "next way to split tokens, next cost", run: () => nextKind() },
      { key: "e", does: "equal settings", run: () => { state.equal = !state.equal; drawSettings(); } },
      { key: "v", does: "view as table", run: () => { state.asTable = !state.asTable; drawAll(); } },
    ],
  });
  const runs = head.runs.length > 1 ? `${head.runs.length} runs · ` : "";
  view.heading.append(h("b", {}, "Readers compared"), " ", h("small", {},
    `${runs}${readers.length} readers · ${head.documents.length} document${head.documents.length > 1 ? "s" : ""} · ${whole(head.tokens)} tokens`));
  const against = choice("gain over", readers.map((name) => [name, label(name)]), baseline(), (name) => place.set({ baseline: name }));
  const tableButton = button("table", () => { state.asTable = !state.asTable; drawAll(); }, { title: "view as table (v)" });
  view.tools.append(against, tableButton);
  const noticePlace = h("div"), readersPlace = h("div", { class: "fwl-readers" }), settingsPlace = h("div", { class: "fwl-differs" });
  const tabs = COMPARE_TABS.map(([name, text], i) => h("button", { type: "button", role: "tab", tabindex: "-1", title: `key ${i + 1}`, onclick: () => show(name) }, text));
  const kindPlace = h("span", { class: "fwl-kinds" });
  const chartPlace = h("div", { class: "fwl-chart", role: "tabpanel", "aria-label": "chart" }), words = h("div", { class: "fwl-words" });
  view.body.append(noticePlace, readersPlace, settingsPlace,
    h("div", { class: "fwl-bar" }, h("div", { role: "tablist", class: "fwl-tabs", "aria-label": "charts" }, tabs), kindPlace), chartPlace, words);

  // -- the readers, and how they were set ---------------------------------------------------------------------------

  function turn(by) {
    place.set({ reader: readers[clamp(readers.indexOf(chosen()) + by, 0, readers.length - 1)] });
  }
  function openBadge(name) {
    state.badge = state.badge === name ? null : name;
    drawReaders();
  }
  function readerRow(name, domain, answer) {
    const f = head.figures[name], badge = head.badges[name], isBase = name === baseline();
    const gain = isBase ? h("span", { class: "fwl-none" }, "baseline") : h("span", { class: "fwl-gain" },
      gainCell(answer?.gain[name], gainBetween(name, 0, points - 1), domain, style(name).colour));
    const cell = (text, kind = null) => h("td", { class: `fwl-number ${kind ?? ""}` }, text);
    const pick = (event) => place.set(event.shiftKey ? { baseline: name } : { reader: name });
    return h("tr", { "aria-selected": String(name === chosen()), "data-reader": name, onclick: pick, title: "click: select; Shift+click: measure gains against it" },
      h("th", { scope: "row" }, swatch(style(name)), " ", h("bdi", {}, printable(label(name)))),
      cell(f.nll === null ? "not finite" : fixed(f.nll, 3)), cell(f.perplexity === null ? "not finite" : f.perplexity < 1e4 ? fixed(f.perplexity, 2) : brief(f.perplexity), "fwl-wide"),
      cell(f.bits_per_byte === null ? (f.nll === null ? "not finite" : "–") : fixed(f.bits_per_byte, 3)), h("td", {}, gain),
      cell(f.seconds ? brief(f.seconds) : "–", "fwl-wide"), cell(f.tokens_per_second === null ? "–" : whole(Math.round(f.tokens_per_second))),
      cell(scaled(f.peak_bytes, "B"), "fwl-slim"), cell(scaled(f.flops_per_token, ""), "fwl-slim"),
      h("td", {}, h("button", { type: "button", tabindex: "-1", class: `fwl-badge ${badge.state}`, "aria-expanded": String(state.badge === name),
        title: badge.text, onclick: (event) => { event.stopPropagation(); openBadge(name); } }, `${BADGE_MARKS[badge.state]} ${badge.text}`)));
  }
  function badgeRow(name) {
    const { rows, summary } = head.badges[name];
    const inner = rows.length ? table(`${label(name)}: ${summary}`, head.headings, rows)
      : h("p", {}, "Not certified: certify(make_reader, tokens) checks a reader, add_certificates(trace, {name: certificate}) keeps what it found.");
    return h("tr", { class: "fwl-open" }, h("td", { colspan: "10" }, inner));
  }
  function drawReaders() {
    const entry = readers.length > 1 ? intervals() : { error: null }, answer = entry.content;
    const domain = reach(others().flatMap((name) => [gainBetween(name, 0, points - 1), ...(answer?.gain[name] ?? [])]));
    const heads = [["reader"], ["NLL [nat/token]", 1], ["perplexity", 1, "fwl-wide"], ["bit/byte", 1], [`gain over ${label(baseline())} [nat/token]`],
      ["time [s]", 1, "fwl-wide"], ["tokens/s", 1], ["memory", 1, "fwl-slim"], ["FLOP/token", 1, "fwl-slim"], ["certificate"]];
    const rows = readers.flatMap((name) => [readerRow(name, domain, answer), state.badge === name ? badgeRow(name) : null].filter(Boolean));
    const method = entry.error ? `Intervals: ${entry.error.message}` : answer ? methodWords(answer, head.documents.length) : "Intervals are being drawn …";
    readersPlace.replaceChildren(h("table", { role: "grid", "aria-label": "readers" }, h("thead", {}, h("tr", {}, heads.map(([text, number, kind]) =>
      h("th", { scope: "col", class: `${number ? "fwl-number" : ""} ${kind ?? ""}` }, text)))), h("tbody", {}, rows)),
    h("p", { class: "fwl-method" }, readers.length > 1 ? method : "One reader only: record another one, or give runs, {name: trace}, to compare with."));
    if (state.tab !== "tokens") drawChart();
  }
  function drawSettings() {
    const { different, equal } = head.settings, shown = state.more ? different : different.slice(0, SETTINGS_SHOWN);
    const hidden = different.length - shown.length;
    const flip = (field, text) => button(text, () => { state[field] = !state[field]; drawSettings(); }, { "aria-expanded": String(state[field]), class: "fwl-quiet" });
    settingsPlace.replaceChildren(
      different.length ? settingsTable("Settings that differ", shown, head) : h("p", {}, "No setting differs."),
      h("div", { class: "fwl-more" }, different.length > SETTINGS_SHOWN ? flip("more", state.more ? "fewer" : `${hidden} more differ`) : null,
        equal.length ? flip("equal", `${equal.length} equal settings ${state.equal ? "shown" : "hidden"}`) : null),
      ...(state.equal ? [h("dl", { class: "fwl-equal" }, equal.flatMap(([name, value]) => [h("dt", {}, name), h("dd", { title: value }, h("bdi", {}, printable(String(value))))]))] : []),
    );
  }

  // -- charts -------------------------------------------------------------------------------------------------------

  const charts = compareCharts({ head, at, points, sum, state, view, place, signal, chartPlace, readers, others, label, style,
    chosen, baseline, nearest, documentOf, known, intervals, speak, brush });
  function drawChart() {
    const kinds = head.breakdowns.filter(([by]) => by !== "position");
    const costs = charts.costs().map((name) => [name, COMPARE_COSTS[name][0]]);
    const kind = state.tab === "kinds" ? choice("by", kinds, state.by, (by) => { state.by = by; drawChart(); })
      : state.tab === "cost" && costs.length ? choice("against", costs, charts.cost(), (cost) => { state.cost = cost; drawChart(); }) : "";
    if (!kindPlace.contains(document.activeElement)) kindPlace.replaceChildren(kind);
    tabs.forEach((node, i) => node.setAttribute("aria-selected", String(COMPARE_TABS[i][0] === state.tab)));
    charts.draw();
    drawWords();
  }
  function nextKind() {
    const all = state.tab === "cost" ? charts.costs() : head.breakdowns.map(([by]) => by).filter((by) => by !== "position");
    const field = state.tab === "cost" ? "cost" : "by", now = state.tab === "cost" ? charts.cost() : state.by;
    state[field] = all[(all.indexOf(now) + 1) % all.length];
    show(state.tab === "cost" ? "cost" : "kinds");
  }
  function show(name) {
    state.tab = name;
    state.active = 0;
    drawChart();
    speak();
  }
  function activate(by) {
    const entry = state.tab === "cost" ? null : charts.breakdown();
    if (entry === null) { turn(by); return; }
    state.active = clamp(state.active + by, 0, (entry.content?.buckets.length ?? 1) - 1);
    charts.redraw();
    speak();
  }
  function travel(by, extend) {
    const to = clamp(state.cursor + by, 0, points - 1);
    if (extend) {
      state.anchor ??= state.cursor;
      brush(state.anchor, to);
    } else {
      state.anchor = null;
      place.set({ token: Math.min(at[to], head.tokens - 1) });
    }
    state.cursor = to;
    speak();
  }
  /** A stretch between two points becomes everyone's; the token is its first. */
  function brush(i, j) {
    const [first, last] = [Math.min(i, j), Math.max(i, j)];
    if (first === last) place.set({ span: null });
    else place.set({ span: [at[first], at[last]], token: at[first] });
  }
  function biggest() {
    const span = place.get("span");
    if (!span || chosen() === baseline()) { view.status.textContent = span ? "the baseline gains nothing over itself" : "no stretch: drag over the chart, or Shift + arrows"; return; }
    ask({ kind: "stretch", start: span[0], stop: span[1], baseline: baseline() }).then(
      ({ content }) => place.set({ token: content.best[chosen()] }), (error) => { view.status.textContent = error.message; });
  }

  // -- words --------------------------------------------------------------------------------------------------------

  /** Mean gains over the stretch; where it does not end at points, what the kernel says. */
  function stretchWords() {
    const span = place.get("span");
    if (!span) return null;
    const [i, j] = [nearest(span[0]), nearest(span[1])], exact = at[i] === span[0] && at[j] === span[1];
    const entry = exact && others().every((name) => gainBetween(name, i, j) !== null) ? null
      : known({ kind: "stretch", start: span[0], stop: span[1], baseline: baseline() });
    const mean = (name) => (entry?.content ? entry.content.mean[name] : i === j ? null : gainBetween(name, i, j));
    const [name, start] = documentOf(span[0]), about = exact || entry?.content ? "" : "about ";
    const gains = others().map((other) => [other, mean(other)]).sort((a, b) => (b[1] ?? -Infinity) - (a[1] ?? -Infinity));
    return { where: `tokens ${whole(span[0])}–${whole(span[1] - 1)} (${whole(span[1] - span[0])}; from ${whole(span[0] - start)} in ${printable(name)})`,
      gains: gains.map(([other, gain]) => [other, gain === null ? "not finite" : `${about}${signed(gain, 3)}`]) };
  }
  function drawWords() {
    const said = state.tab === "tokens" ? stretchWords() : null;
    words.hidden = state.tab !== "tokens";
    const every = head.exact ? "" : ` Lines are exact at ${whole(points)} points, ${brief(head.tokens / (points - 1))} tokens apart, and straight between.`;
    words.replaceChildren(...(said === null ? [h("span", { class: "fwl-none" }, `Drag over the chart, or Shift + arrows: the mean gains of a stretch, shown in all views.${every}`)]
      : [h("b", {}, "Stretch "), said.where, ": ", ...said.gains.flatMap(([name, text], i) => [i ? ", " : "", swatch(style(name)), ` ${printable(label(name))} `, h("b", {}, text)]), " nat/token ",
        button("to its biggest gain", () => biggest(), { class: "fwl-quiet", title: "key g" }), button("clear", () => place.set({ span: null }), { class: "fwl-quiet", title: "key x" })]));
  }
  function speak() {
    const name = chosen(), gain = intervals().content?.gain[name], f = head.figures[name];
    const own = name === baseline() ? "is the baseline" : `gains ${gain ? intervalText(gain) : signed(gainBetween(name, 0, points - 1) ?? NaN, 3)} nat/token over ${label(baseline())}`;
    const said = state.tab === "tokens" ? stretchWords() : null;
    const more = said ? `stretch ${said.where}: ${said.gains.map(([other, text]) => `${label(other)} ${text}`).join(", ")} nat/token` : charts.words();
    view.status.textContent = `${printable(label(name))} ${own}; NLL ${fixed(f.nll ?? NaN, 3)}; ${head.badges[name].text}`
      + ` · token ${whole(place.get("token"))} · ${more}`;
  }
  function drawNotice() {
    const rows = Object.entries(head.strange).map(([name, [count, first]]) => h("p", {},
      `${label(name)}: ${whole(count)} score${count > 1 ? "s are" : " is"} not finite; its averages are not, either, and its line ends there. `,
      button(`go to the first, token ${whole(first)}`, () => place.set({ reader: name, token: first }), { class: "fwl-quiet" })));
    noticePlace.replaceChildren(...(rows.length ? [h("div", { class: "fwl-notice fwl-error", role: "alert" }, h("b", {}, "✗ Scores that are not finite"), ...rows)] : []));
  }
  function drawAll() {
    view.root.classList.toggle("fwl-tabled", state.asTable);
    tableButton.setAttribute("aria-pressed", String(state.asTable));
    against.querySelector("select").value = baseline();
    drawReaders();
    drawChart();
    speak();
  }
  place.on(["reader", "baseline"], settled(drawAll));
  place.on(["token", "span"], settled(() => {
    const token = place.get("token"), span = place.get("span");
    if (state.anchor === null || !span) state.cursor = pointOf(token);
    if (!span) state.anchor = null;
    if (state.tab === "tokens") { charts.redraw(); drawWords(); speak(); }
  }));
  state.cursor = pointOf(place.get("token"));
  drawNotice();
  drawSettings();
  drawAll();
}

export default { render };
