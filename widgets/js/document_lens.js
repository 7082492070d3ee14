// DocumentLens: all documents as text in one long scroll, coloured by gain, NLL or rank. Only what is seen is in the page.

const ROW = 23; // px from line to line
const TALLEST = 12e6; // px; browsers give up on taller elements, so beyond it a pixel of the bar is several of the text
const LARGEST = 2000; // gains and harms that n and p go through

const MEASURE_NAMES = [["gain", "gain"], ["nll", "NLL"], ["rank", "rank"]];

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const ask = asker(model, signal);
  const head = model.get("head");
  const { starts, documents, readers, tokens } = head;
  const pages = new Pages(head);
  if (tokens) pages.add(head, model.get("data"));
  const ranks = new Map(); // by reader: Int32Array, or "asked", or why not
  const searching = { query: "", found: [], mask: null, cache: {} };
  let lines = null, measure = null, table256 = [], sources = new Map(), largest = null, asTable = false, column = null;
  let version = 0, marked = 0; // of the colours and of the marks that rows should show

  const move = (token) => { column = null; if (Number.isFinite(token)) place.set({ token: clamp(token, 0, pages.loaded - 1) }); };
  const here = () => place.get("token");
  const view = frame(el, {
    name: "document_lens", label: "Document lens: the text, coloured by what readers made of it", signal,
    keys: [
      { key: "ArrowRight", shown: "← →", does: "token by token", run: () => move(here() + 1) },
      { key: "ArrowLeft", run: () => move(here() - 1) },
      { key: "ArrowDown", shown: "↑ ↓", does: "line by line; Page Up, Page Down by what is seen", run: () => byLine(1) },
      { key: "ArrowUp", run: () => byLine(-1) },
      { key: "PageDown", run: () => byLine(head.lines - 2) },
      { key: "PageUp", run: () => byLine(2 - head.lines) },
      { key: "Home", shown: "Home End", does: "first, last token of the line", run: () => move(lines.pieces(lines.lineOf(here()))[0]?.[0]) },
      { key: "End", run: () => move(lines.pieces(lines.lineOf(here())).at(-1)?.[0]) },
      { key: "Enter", does: "what was expected, before and after", run: () => { drill(); side.focus(); side.scrollIntoView({ block: "nearest" }); } },
      { key: "n", shown: "n p", does: "biggest gain or harm, the next biggest; back", run: () => byGain(1) },
      { key: "p", run: () => byGain(-1) },
      { key: "N", shown: "N P", does: `next, previous of the ${LARGEST} biggest as they read`, run: () => byReading(1) },
      { key: "P", run: () => byReading(-1) },
      { key: "[", shown: "[ ]", does: "document by document", run: () => byDocument(-1) },
      { key: "]", run: () => byDocument(1) },
      { key: "/", does: "search; Enter and Shift+Enter go on and back", run: () => { search.focus(); search.select(); } },
      { key: "m", does: "colour by gain, NLL, rank", run: () => colourBy(MEASURE_NAMES[(MEASURE_NAMES.findIndex(([key]) => key === model.get("measure")) + 1) % 3][0]) },
      { key: "r", does: "the next reader", run: () => place.set({ reader: names[(names.indexOf(place.get("reader")) + 1) % names.length] }) },
      { key: "v", does: "as a table", run: () => showTable(!asTable) },
    ],
  });
  const names = Object.keys(readers);
  const labelled = names.map((name) => [name, readers[name].label]);
  if (!tokens) {
    view.heading.append(h("b", {}, "Document"));
    view.body.append(notice("empty", "No token was read", null, "Score at least one document: score(model, documents, readers)"));
    return;
  }

  // -- what it is made of ---------------------------------------------------------------------------------------------
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
  const long = h("div", { class: "fwl-long" });
  const height = head.lines * ROW;
  const scroll = h("div", { class: "fwl-scroll", role: "group", "aria-label": "text", style: `height: ${height}px` }, long);
  const tip = h("div", { class: "fwl-tip", "aria-hidden": "true", hidden: true });
  const progress = h("div", { class: "fwl-progress", hidden: true });
  const grid = h("div", { class: "fwl-cells", role: "group", "aria-label": "table of tokens", hidden: true, style: `height: ${height}px; overflow: auto` });
  const text = h("div", { class: "fwl-text" },
    h("div", { class: "fwl-title" }, h("span", {}, titleName, " ", titleMore), legend), scroll, grid, progress, tip);
  const mapTitle = h("small", {}), map = h("div", { class: "fwl-map" }, mapTitle);
  const side = h("div", { class: "fwl-side", role: "region", "aria-label": "the selected token", style: `height: ${height + 31}px` });
  view.body.append(h("div", { class: "fwl-columns" }, text, map, side));
  const ruler = h("div", { class: "fwl-row", style: "visibility: hidden", "aria-hidden": "true" }, "0".repeat(100));
  scroll.append(ruler);

  // -- the text -------------------------------------------------------------------------------------------------------
  const total = () => lines.count * ROW + ROW;
  const stretch = () => Math.max(1, (total() - height) / Math.max(Math.min(total(), TALLEST) - height, 1));
  const top = () => scroll.scrollTop * stretch();
  const rows = new Map(); // by line, what is in the page
  let spare = [];

  function layOut() {
    const wide = Math.max(16, Math.floor((scroll.clientWidth - 28) / (ruler.getBoundingClientRect().width / 100 || 8)));
    if (lines?.columns === wide && lines.placed === pages.loaded) return;
    const kept = lines ? lines.tokenAt(lines.away(Math.floor(top() / ROW), 1), 0) : null;
    if (lines?.columns !== wide) lines = new Lines(pages.parsed, pages.codes, starts, wide);
    lines.extend(pages.loaded);
    long.style.height = `${Math.min(total(), TALLEST)}px`;
    if (kept !== null && lines.placed === pages.loaded) scroll.scrollTop = ((lines.lineOf(kept) - 1) * ROW) / stretch();
    repaint();
  }

  /** Draw again all that is seen; `remark`: only what is selected, found or paid for has changed. */
  function repaint() { version += 1; remark(); }
  function remark() { marked += 1; paint(); }

  function paint() {
    if (!lines) return;
    const from = top(), first = Math.max(0, Math.floor(from / ROW) - 2), last = Math.min(lines.count, first + head.lines + 5);
    for (const [line, row] of rows) if (line < first || line >= last) { rows.delete(line); spare.push(row); }
    const shift = scroll.scrollTop - from;
    for (let line = first; line < last; line += 1) {
      let row = rows.get(line);
      if (row === undefined) {
        row = spare.pop() ?? long.appendChild(h("div", { class: "fwl-row" }));
        rows.set(line, row);
        row.version = -1;
      }
      if (row.version !== version) fill(row, line);
      if (row.version !== version || row.marked !== marked) mark(row);
      row.version = version;
      row.marked = marked;
      row.style.top = `${line * ROW + shift + 6}px`;
    }
    for (const row of spare) row.style.top = "-100px";
    showTitle(first + 2);
    minimap.redraw();
  }

  function fill(row, line) {
    if (lines.offset[line] === TITLE) {
      row.replaceChildren(h("bdi", { class: "fwl-name" }, printable(documents[documentOf(lines.token[line])])));
      return;
    }
    row.replaceChildren(...lines.pieces(line).map((piece) => {
      const node = tokenSpan(pages, piece), x = measure === null ? null : measure.value(piece[0]);
      if (Number.isFinite(x) && x !== null) {
        const [ground, ink] = paintOf(measure, table256, x);
        node.style.background = ground;
        node.style.color = ink;
      } else if (x !== null) node.classList.add("fwl-odd");
      node.plain = node.className;
      return node;
    }));
  }

  /** Mark tokens that are selected, pinned, brushed, found, or sources of the selected one's gain. */
  function mark(row) {
    const selected = here(), pinned = place.get("pinned"), span = place.get("span");
    for (const node of row.children) {
      const t = node.token;
      if (t === undefined) continue;
      const share = sources.get(t);
      const marks = [node.plain, t === selected ? "selected" : share !== undefined ? (share >= 0 ? "pays" : "costs") : t === pinned ? "pinned" : "",
        searching.mask?.[t] ? "found" : span && t >= span[0] && t < span[1] ? "brushed" : ""].filter(Boolean).join(" ");
      if (node.className !== marks) node.className = marks;
      if (share !== undefined) node.style.setProperty("--width", `${1.2 + 2 * Math.min(1, Math.abs(share) / sources.most)}px`);
    }
  }

  function showTitle(line) {
    const token = lines.token[clamp(line, 0, lines.count - 1)], at = documentOf(token), end = starts[at + 1] ?? tokens;
    if (titleName.at === at && titleName.version === version) return;
    Object.assign(titleName, { at, version }).textContent = printable(documents[at]);
    titleMore.textContent = ` ${documents.length > 1 ? `${whole(at + 1)} of ${whole(documents.length)} · ` : ""}${whole(end - starts[at])} tokens`
      + (measure && measure.name !== "rank" && end <= pages.loaded ? ` · mean ${measure.name === "gain" ? "gain" : "NLL"} ${measure.show(meanOf(starts[at], end))} nat` : "");
    picker.querySelector("select").value = String(at);
  }

  const means = new Map();
  function meanOf(from, to) {
    const key = `${measure.title} ${from}`;
    if (!means.has(key)) {
      let sum = 0;
      for (let t = from; t < to; t += 1) sum += measure.value(t);
      means.set(key, sum / (to - from));
    }
    return means.get(key);
  }

  /** Bring a token into sight: `above` at the top, else only as far as needed. */
  function reveal(token, above = false) {
    if (!lines || token >= lines.placed) return;
    const at = lines.lineOf(token) * ROW, from = top();
    const to = above ? at - ROW : at < from + ROW ? at - height / 3 : at > from + height - 2 * ROW ? at - (2 * height) / 3 : from;
    if (to !== from) scroll.scrollTop = to / stretch();
  }

  function go(token, above = false) { move(token); reveal(token, above); }

  // -- the map --------------------------------------------------------------------------------------------------------
  let bins = { means: [], height: 2, tokens: 1 }, ground = {};
  const minimap = surface(map, height, (context, width, tall) => {
    if (!lines) return;
    const first = lines.token[clamp(Math.floor(top() / ROW), 0, lines.count - 1)];
    const last = lines.token[clamp(Math.floor((top() + height) / ROW), 0, lines.count - 1)];
    const about = { bins, measure, table: table256, tokens, loaded: pages.loaded, starts, found: searching.found };
    const key = [version, pages.loaded, searching.query, width, palette().dark].join();
    if (ground.key !== key) ground = { key, picture: drawApart(width, tall, (apart) => drawGround(apart, width, tall, about)) };
    context.drawImage(ground.picture, 0, 0, width, tall);
    drawMarks(context, width, tall, { tokens, view: [first, last], selected: here(), pinned: place.get("pinned"), span: place.get("span"), sources });
  }, signal, { role: "img", "aria-label": "map of the whole trace" });
  let held = null; // where a drag began, and whether it brushes
  const pointed = (event) => clamp(Math.floor(((event.clientY - minimap.canvas.getBoundingClientRect().top) / height) * tokens), 0, tokens - 1);
  const dragged = (event) => {
    if (held === null) return;
    const at = pointed(event);
    if (held.brush) place.set({ span: [Math.min(held.token, at), Math.max(held.token, at) + 1] });
    else if (at < pages.loaded) scroll.scrollTop = (lines.lineOf(at) * ROW - height / 2) / stretch();
  };
  minimap.canvas.addEventListener("pointerdown", (event) => {
    held = { token: pointed(event), brush: event.shiftKey };
    minimap.canvas.setPointerCapture(event.pointerId);
    if (!held.brush && place.get("span")) place.set({ span: null });
    dragged(event);
  });
  minimap.canvas.addEventListener("pointermove", dragged);
  minimap.canvas.addEventListener("pointerup", () => { held = null; });

  // -- moving about ---------------------------------------------------------------------------------------------------
  function byLine(by) {
    let line = lines.lineOf(here());
    const piece = lines.pieces(line).find(([t]) => t === here());
    const at = column ?? (piece ? piece[3] + Math.min(piece[4], 2) / 2 : 0);
    let next = here();
    // A token may fill several lines.
    for (let tries = 0; next === here() && tries < 4096; tries += 1) {
      const further = lines.away(line, by);
      if (further === line) break;
      line = further;
      next = lines.tokenAt(line, at) ?? next;
    }
    move(next);
    column = at;
  }

  function byDocument(by) {
    const at = documentOf(here());
    go(starts[by < 0 && here() > starts[at] ? at : clamp(at + by, 0, starts.length - 1)], true);
  }

  const gainOf = (t) => pages.nll[place.get("baseline")][t] - pages.nll[place.get("reader")][t];

  /** Tokens of the largest |gain|, largest first. */
  function extremes() {
    const key = `${place.get("reader")} ${place.get("baseline")} ${pages.loaded}`;
    if (largest?.key === key) return largest;
    const sizes = Float32Array.from({ length: pages.loaded }, (_, t) => { const x = Math.abs(gainOf(t)); return Number.isFinite(x) ? x : -1; });
    const least = Math.max(sizes.slice().sort()[Math.max(0, sizes.length - LARGEST)], 1e-6);
    const order = [];
    sizes.forEach((size, t) => { if (size >= least) order.push(t); });
    order.sort((a, b) => sizes[b] - sizes[a] || a - b);
    largest = { key, order: order.slice(0, LARGEST), read: order.slice(0, LARGEST).sort((a, b) => a - b), at: -1 };
    return largest;
  }

  function noGain() {
    view.status.textContent = names.length < 2 || place.get("reader") === place.get("baseline")
      ? "There is no gain here: a reader is compared with itself; choose another one" : "No gain and no harm in what is loaded";
  }

  function byGain(by) {
    const found = extremes();
    if (!found.order.length) { noGain(); return; }
    found.at = clamp(found.at + by, 0, found.order.length - 1); // wherever one went in between
    go(found.order[found.at]);
    tell(`${found.at ? `number ${whole(found.at + 1)}` : "the biggest"} by |gain|: `);
  }

  function byReading(by) {
    const { read } = extremes();
    if (!read.length) { noGain(); return; }
    const next = by > 0 ? read.find((t) => t > here()) : read.findLast((t) => t < here());
    if (next !== undefined) go(next);
  }

  function find(query) {
    searching.query = query;
    searching.found = query ? findAll(pages, starts, query, searching.cache) : [];
    searching.mask = searching.found.length ? new Uint8Array(pages.loaded) : null;
    for (const [from, to] of searching.found) searching.mask.fill(1, from, to);
    searching.at = searching.found.length ? indexBelow(searching.found.map(([t]) => t), here()) : 0;
    showCount();
    remark();
  }

  function showCount() {
    const { query, found, at } = searching, some = found.length;
    count.textContent = !query ? "" : !some ? "nothing found" : `${whole(at + 1)} of ${whole(some)}${some === 100000 ? "+" : ""}${pages.loaded < tokens ? " so far" : ""}`;
  }

  function step(by) {
    if (searching.query !== search.value) find(search.value);
    const { found } = searching, some = found.length, now = here();
    if (!some) return;
    searching.at = found[searching.at]?.[0] === now ? (searching.at + by + some) % some
      : by > 0 ? Math.max(found.findIndex(([t]) => t > now), 0) : (found.findLastIndex(([t]) => t < now) + some) % some;
    go(found[searching.at][0]);
    showCount();
  }

  // -- the selected token ---------------------------------------------------------------------------------------------
  const tipBox = new Tip(tip, head);
  const about = { pages, ranks, place, head, starts };
  let answer = null;

  function tell(before = "") {
    const t = here();
    if (t >= pages.loaded) { view.status.textContent = `Token ${whole(t)} is not loaded yet`; return; }
    const figures = names.map((name) => `${readers[name].label} ${fixed(pages.nll[name][t])}`).join(", ");
    const rank = ranks.get(place.get("reader"))?.[t];
    view.status.replaceChildren(`${before}`, h("bdi", {}, printable(pages.text(t))),
      ` at ${whole(t - starts[documentOf(t)])} · NLL [nat]: ${figures} · gain ${signed(gainOf(t))}`
      + (Number.isInteger(rank) && rank >= 0 ? ` · rank ${whole(rank + 1)}` : ""));
  }

  /** Ask what the selected token is about; `drill` at once, arrows only when they rest. */
  let wanted = -1;
  const more = head.alternatives || head.receipts;
  function drill() {
    const t = here();
    if (t === wanted) return;
    wanted = t;
    const show = (content, why = null) => {
      if (t !== here()) return;
      answer = { ...content, why };
      showToken();
    };
    if (!more) { show(pages.known(t)); return; }
    // What was not taken along, or fails, leaves what is on the page.
    await_(side, ask({ kind: "token", token: t }).catch((error) => ({ content: { ...pages.known(t), why: error.message } })), ({ content }) => show(content, content.why));
  }
  const drillSoon = settled(drill, 90);

  function showToken() {
    const t = here();
    sources = new Map();
    sources.most = 1e-9;
    if (answer?.token === t) {
      const own = answer.readers[place.get("reader")], [before, after] = [place.get("baseline"), place.get("reader")];
      own.sources?.forEach((source, i) => sources.set(source, own.shares[i]));
      sources.most = Math.max(1e-9, ...(own.shares ?? []).map(Math.abs));
      const at = documentOf(t), text_ = pages.text(t);
      side.replaceChildren(
        h("div", { class: "fwl-which" }, token(text_), h("small", {}, `${printable(documents[at])}, position ${whole(t - starts[at])}`)),
        readersTable(answer, place, readers), ...(answer.why ? [notice(answer.why.startsWith("saved view") ? "kernel" : "error", answer.why)] : [
          h("h4", {}, "What was expected here"), ...alternatives(answer, text_, before, after, readers),
          h("div", {}, ...paidBy(own, (source) => pages.text(source), (source) => go(source), t))]));
    }
    remark();
  }

  function selectionMoved() {
    sources = new Map();
    if (!asTable) reveal(here());
    remark();
    tell();
    if (asTable) showTable(true);
    drillSoon();
  }

  function showTable(on) {
    asTable = on;
    tableButton.setAttribute("aria-pressed", String(on));
    scroll.hidden = on;
    grid.hidden = !on;
    if (!on) { reveal(here()); repaint(); return; }
    grid.replaceChildren(tableAround(about, 40));
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
    measure = measureOf(name, { pages, ranks, reader, baseline, head });
    if (measure === null) askRanks(reader);
    table256 = measure === null ? [] : paints(measure);
    legend.replaceChildren(...(measure === null ? [rankNote(reader)] : legendOf(measure, table256, head.not_finite.count > 0)));
    legend.title = measure?.title ?? "";
    bins = measure === null ? { means: [], height: 2, tokens: 1 } : binned(measure, tokens, pages.loaded, height);
    mapTitle.replaceChildren(h("span", {}, measure ? `mean ${measure.name === "nll" ? "NLL" : measure.name === "rank" ? "log rank" : "gain"}` : "map"),
      h("span", {}, measure ? `of ${whole(Math.max(1, Math.round(bins.tokens)))} tokens` : ""));
    view.heading.replaceChildren(h("b", {}, documents.length > 1 ? `${whole(documents.length)} documents` : printable(documents[0])), " ",
      h("small", {}, `${whole(tokens)} tokens · ${measure?.title ?? `rank for ${readers[reader].label}`}`));
    repaint();
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

  /** The pages after the first, one after the other, while the text can already be read. */
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
      layOut();
      restyle();
      if (here() < pages.loaded && here() >= pages.loaded - pages.codes.length / head.pages) selectionMoved();
    }
    progress.hidden = true;
    if (searching.query) find(searching.query);
  }

  // -- what is done to it ---------------------------------------------------------------------------------------------
  scroll.addEventListener("scroll", settled(paint), { passive: true });
  long.addEventListener("click", (event) => {
    const { token: t } = event.target.closest("span") ?? {};
    if (t === undefined) return;
    view.root.focus({ preventScroll: true });
    move(t);
    drill();
  });
  let pointedAt = null;
  long.addEventListener("pointermove", (event) => {
    const span = event.target.closest("span"), t = span?.token;
    if (t === pointedAt) return;
    pointedAt = t;
    if (t === undefined) tipBox.hide();
    else tipBox.show(about, t, text.getBoundingClientRect(), span.getBoundingClientRect());
  });
  const leave = () => { pointedAt = null; tipBox.hide(); };
  scroll.addEventListener("pointerleave", leave);
  scroll.addEventListener("scroll", leave, { passive: true });
  grid.addEventListener("click", (event) => move(event.target.closest("tr")?.token));
  oneStop(view.root, side, [scroll, grid], signal);
  const watcher = new ResizeObserver(settled(layOut));
  watcher.observe(scroll);
  signal.addEventListener("abort", () => watcher.disconnect());
  onTheme(() => { restyle(); showToken(); }, signal);
  model.on("change:measure", restyle);
  signal.addEventListener("abort", () => model.off("change:measure", restyle));
  place.on(["token"], selectionMoved);
  place.on(["reader", "baseline"], () => { restyle(); tell(); showToken(); if (asTable) showTable(true); });
  place.on(["pinned", "span"], remark);

  layOut();
  restyle();
  if (here() > 0) reveal(here());
  tell();
  drill();
  load();
}

export default { render };
