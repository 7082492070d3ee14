// UpdateScope: watches Δθ grow. What is drawn follows the selection; pictures are asked for one at a time, the latest first.

const KEPT_TILES = 64;
const FRAME_MS = 125; // between two pictures while playing
const SPEEDS = [["8", "8 tokens/s"], ["32", "32 tokens/s"], ["128", "128 tokens/s"], ["update", "by update"]];
const PIECE_SIDE = 64;
const tileKey = (question) => Object.entries(question).map(([name, value]) => `${name}=${value}`).join("|");

/** Answers by question: at most one asked at a time, the one most wanted at that moment. */
class Pictures {
  constructor(ask, wanted, arrived) {
    Object.assign(this, { ask, wanted, arrived, answers: new Map(), failed: new Map(), busy: false });
  }

  get(question) { return question === null ? undefined : this.answers.get(tileKey(question)); }

  why(question) { return question === null ? undefined : this.failed.get(tileKey(question)); }

  has(question) { return this.answers.has(tileKey(question)) || this.failed.has(tileKey(question)); }

  async pump() {
    if (this.busy) return;
    this.busy = true;
    for (let question = this.next(); question !== undefined; question = this.next()) {
      const key = tileKey(question);
      try {
        const { content, buffers } = await this.ask(question);
        this.answers.set(key, content.columns ? { ...content, ...unpack(content.columns, buffers[0]) } : content);
        if (this.answers.size > KEPT_TILES) this.answers.delete(this.answers.keys().next().value);
      } catch (error) {
        this.failed.set(key, error.message);
      }
      this.arrived(question);
    }
    this.busy = false;
  }

  next() { return this.wanted().find((question) => question !== null && !this.has(question)); }
}

async function render({ model, el, signal }) {
  const place = await connect(model, signal);
  const head = model.get("head");
  const norms = new Norms(head, unpack(head.columns, model.get("data")));
  const adapting = Object.keys(head.moved);
  let signs = true, fixedScale = true, order = "length", log = false, whole_ = head.starts.length <= 3;
  let playing = false, ahead = null, speed = "32", asTable = false, zoom = null, cell = null, saved = null, resume = null, since = 0;

  // -- what is asked for ----------------------------------------------------------------------------------------------
  const where = () => ({ reader: place.get("reader"), parameter: place.get("parameter") });
  const moves = () => norms.parameters(where().reader).some((entry) => entry.name === where().parameter);
  /** Where a saved page has a picture of the same document, the nearest of them. */
  function tileQuestion(at = place.get("token")) {
    const { reader, parameter } = where();
    if (saved === null) return { kind: "tile", reader, parameter, token: at, pinned: place.get("pinned"), order };
    const here = saved.filter((q) => q.reader === reader && q.parameter === parameter && norms.document(q.token) === norms.document(at));
    return here.reduce((best, q) => (best === null || Math.abs(q.token - at) < Math.abs(best.token - at) ? q : best), null);
  }
  const spectrumQuestion = (of = tileQuestion()) => of && { kind: "spectrum", reader: of.reader, parameter: of.parameter, token: of.token, pinned: of.pinned };
  const peakQuestion = () => ({ kind: "peak", ...where(), document: norms.document(place.get("token")) });
  const pieceQuestion = () => (zoom === null || saved ? null : { ...tileQuestion(), kind: "piece", row: zoom.row, column: zoom.column });
  const pictures = new Pictures(asker(model, signal), () => {
    if (!moves() || signal.aborted) return [];
    const tile = pictures.get(tileQuestion());
    const matrix = tile !== undefined && tile.codes !== undefined && tile.bad === null;
    return [tileQuestion(), pieceQuestion(), tile && !tile.absent ? peakQuestion() : null, matrix ? spectrumQuestion() : null, ahead === null ? null : tileQuestion(ahead)];
  }, async (question) => {
    if (pictures.why(question)?.startsWith("saved view") && saved === null) await becomeSaved();
    else if (saved && pictures.why(question)) saved = saved.filter((q) => tileKey(q) !== tileKey(question));
    resume?.();
    draw();
  });
  async function becomeSaved() {
    saved = [];
    try { saved = (await pictures.ask({ kind: "saved" })).content.tiles; } catch { /* nothing was saved */ }
    if (saved.length) order = saved[0].order;
    zoom = null;
  }

  // -- the frame ------------------------------------------------------------------------------------------------------
  const view = frame(el, {
    name: "update_scope", label: "UpdateScope", signal,
    keys: [
      { key: " ", shown: "Space", does: "play, pause", run: () => (playing ? pause() : play()) },
      { key: "ArrowLeft", shown: "← →", does: "token by token; zoomed, cell by cell", run: () => move(0, -1) },
      { key: "ArrowRight", run: () => move(0, 1) },
      { key: "ArrowUp", shown: "↑ ↓", does: "parameter; zoomed, cell by cell", run: () => move(-1, 0) },
      { key: "ArrowDown", run: () => move(1, 0) },
      { key: ",", shown: ", .", does: "update by update", run: () => byUpdate(-1) },
      { key: ".", run: () => byUpdate(1) },
      { key: "Home", shown: "Home End", does: "start and end of the document", run: () => go(bounds()[0]) },
      { key: "End", run: () => go(bounds()[1] - 1) },
      { key: "Enter", does: "zoom in to exact values", run: () => zoomIn() },
      { key: "Escape", does: "zoom out", run: () => (zoom ? zoomOut() : view.root.focus()) },
      { key: "x", does: "pin this token: Δθ is then shown less that of the pinned one", run: () => pin() },
      { key: "a", does: "signed, absolute", run: () => set(() => { signs = !signs; }) },
      { key: "s", does: "one scale over the document, or one a picture", run: () => set(() => { fixedScale = !fixedScale; }) },
      { key: "o", does: "longest rows and columns first, or as stored", run: () => set(() => { order = order === "length" ? "stored" : "length"; zoom = null; }) },
      { key: "l", does: "norms by logarithm", run: () => set(() => { log = !log; }) },
      { key: "v", does: "view as table", run: () => set(() => { asTable = !asTable; }) },
    ],
  });
  const title = h("b", {}), about = h("small", {});
  view.heading.append(title, h("br"), about);
  const readers = choice("reader", Object.entries(head.readers).map(([name, style]) => [name, style.label]), place.get("reader"), (reader) => {
    const names = norms.parameters(reader).map((entry) => entry.name);
    place.set(names.length && !names.includes(place.get("parameter")) ? { reader, parameter: names.includes("W2") ? "W2" : names[0] } : { reader });
  });
  const parameters = h("select", { tabindex: "-1", "aria-label": "parameter", onchange: (event) => place.set({ parameter: event.target.value }) });
  const colours = choice("colours", [["signed", "signed"], ["absolute", "absolute"]], "signed", (value) => set(() => { signs = value === "signed"; }));
  const scales = choice("scale", [["document", "of the document"], ["tile", "of this token"]], "document", (value) => set(() => { fixedScale = value === "document"; }));
  const orders = choice("order", [["length", "longest first"], ["stored", "as stored"]], order, (value) => set(() => { order = value; zoom = null; }));
  const spans = choice("over", [["all", "all documents"], ["one", "this document"]], whole_ ? "all" : "one", (value) => set(() => { whole_ = value === "all"; }));
  const tableButton = button("table", () => set(() => { asTable = !asTable; }), { title: "norms at updates (v)" });
  view.tools.append(readers, h("label", { class: "fwl-choice" }, h("span", {}, "parameter"), parameters), colours, scales, orders, head.starts.length > 1 ? spans : "", tableButton);

  const chart = h("div", { class: "fwl-chart" }), cursor = h("div", { class: "fwl-cursor" });
  const pinMark = h("div", { class: "fwl-cursor fwl-pin", hidden: true });
  const playButton = button("▶ play", () => (playing ? pause() : play()), { class: "fwl-play", title: "play, pause (Space)" });
  const slider = h("input", { type: "range", tabindex: "-1", "aria-label": "token", min: "0", step: "1", oninput: (event) => { pause(); go(Number(event.target.value)); } });
  const pinButton = button("pin", () => pin(), { title: "show Δθ less that at this token (x)", "aria-pressed": "false" });
  const step = (text, label, run) => button(text, run, { "aria-label": label, title: label });
  const transport = h("div", { class: "fwl-transport" },
    step("⏮", "one update back (,)", () => byUpdate(-1)), step("◂", "one token back (←)", () => go(place.get("token") - 1)), playButton,
    step("▸", "one token on (→)", () => go(place.get("token") + 1)), step("⏭", "one update on (.)", () => byUpdate(1)), slider,
    choice("speed", SPEEDS, speed, (value) => { speed = value; }), pinButton);
  const reading = h("div", { class: "fwl-reading", "aria-hidden": "true" });
  const note = h("div", { class: "fwl-note", hidden: true });
  const missing = h("div"), tablePlace = h("div");
  const pictureTitle = h("h4", {}), pictureBox = h("div", { class: "fwl-picture" }), readout = h("div", { class: "fwl-readout", "aria-hidden": "true" });
  const box = h("div", { class: "fwl-box", hidden: true }), empty = h("div", { class: "fwl-empty", hidden: true }, "Δθ = 0: nothing has been learned yet");
  const words = h("dl", { class: "fwl-words" }), legendBox = h("div"), histogramBox = h("div"), spectrumBox = h("div");
  const spectrumTitle = h("h4", {}, "Singular values ", h("small", {}, "the leading ones; σ² add up to ‖Δθ‖²"));
  const figures = h("div", { class: "fwl-figures" }, h("div", {}, pictureTitle, pictureBox, readout),
    h("div", {}, h("h4", {}, "In figures"), words, h("h4", {}, "Colours ", h("small", {}, "value of Δθ")), legendBox, h("h4", {}, "Values ", h("small", {}, "of all entries")), histogramBox, spectrumTitle, spectrumBox));
  view.body.append(chart, transport, head.texts ? reading : "", note, missing, figures, tablePlace);

  // -- drawing --------------------------------------------------------------------------------------------------------
  const bounds = () => norms.bounds(norms.document(place.get("token")));
  const range = () => (whole_ ? [0, head.tokens] : bounds());
  const canvas = document.createElement("canvas");
  let labels = [], painted = null;
  const tile = () => { const found = pictures.get(shownQuestion); return found?.absent ? undefined : found; };
  let shownQuestion = null; // what the picture is of: stays until the next is there

  const chartSurface = surface(chart, 190, (context, width, height) => {
    const { reader, parameter } = where(), relative = norms.relative(reader), lines = norms.lines(reader, range(), relative);
    const most = lines.reduce((a, line) => Math.max(a, line.most), 0) * 1.05 || 1;
    const label = `${relative ? "‖Δθ‖ / ‖θ₀‖" : "‖Δθ‖"} of each parameter${log ? ", by logarithm" : ""}`;
    const boundaries = head.starts.filter((at) => at > range()[0] && at < range()[1]);
    labels = drawNorms(context, width, height, { lines, range: range(), most, least: most / 1e4, log, boundaries, selected: parameter, label });
    moveCursor();
  }, signal);
  chart.append(cursor, pinMark);
  const chartScale = () => linear(range(), [64, chartSurface.canvas.clientWidth - 118]);
  function moveCursor() {
    const scale = chartScale(), pinned = place.get("pinned");
    cursor.style.transform = `translateX(${scale(place.get("token"))}px)`;
    pinMark.hidden = pinned === null || pinned < range()[0] || pinned >= range()[1];
    if (!pinMark.hidden) pinMark.style.transform = `translateX(${scale(pinned)}px)`;
  }

  const limits = () => {
    const peak = pictures.get(peakQuestion()), now = tile();
    const own = { limit: now.limit || now.size, size: now.size, first: 0 };
    return fixedScale && peak?.limit ? { ...peak, limit: peak.limit } : own;
  };
  const piece = () => pictures.get(pieceQuestion());
  const pictureSurface = surface(pictureBox, 470, (context, width, height) => {
    const now = tile();
    painted = null;
    if (now === undefined) return;
    const { limit, size } = limits();
    if (now.codes === undefined) {
      const sorted = order === "length" ? "largest first where ‖Δθ‖ is largest" : "as stored";
      drawVector(context, width, height, { values: now.values, limit: Math.max(fixedScale ? size : now.size, 0) || 1, signs, label: `entry, ${sorted}` });
      painted = { x: 64, y: 22, wide: width - 76, high: height - 62, rows: 1, columns: now.values.length };
      return;
    }
    const exact = piece();
    const shape = exact ? exact.columns.values[2] : now.cells;
    painted = { ...matrixBox(width, height, shape, Boolean(exact)), exact };
    paintCells(canvas, exact ? { values: exact.values, cells: shape } : now, limit, signs);
    const at = exact ? [[exact.row, exact.row + shape[0]], [exact.column, exact.column + shape[1]]] : [[0, now.shape[0]], [0, now.shape[1]]];
    const ranked = order === "length" ? ", longest first" : "";
    drawMatrix(context, painted, canvas, { norms: exact ? null : [now.norms_0, now.norms_1], spans: at, labels: [`row${ranked}`, `column${ranked}`] });
    showBox();
  }, signal, { role: "img" });
  pictureBox.append(box, empty);
  const legend = surface(legendBox, 36, (context, width, height) => { if (tile()) drawLegend(context, width, height, { ...limits(), signs }); }, signal);
  const histogram = surface(histogramBox, 150, (context, width, height) => {
    const now = tile();
    if (now === undefined) return;
    const { limit, size } = limits();
    drawHistogram(context, width, height, { bars: now.bars, size: now.size, reach: Math.max(fixedScale ? size : 0, now.size), limit, signs });
  }, signal);
  const spectrum = () => pictures.get(spectrumQuestion(shownQuestion));
  const spectra = surface(spectrumBox, 150, (context, width, height) => {
    const found = spectrum();
    if (found) drawSpectrum(context, width, height, { values: found.values, most: Math.max(fixedScale ? limits().first : 0, found.values[0]) });
  }, signal);

  /** All that follows the selection; the picture when it is there. */
  function draw() {
    if (signal.aborted) return;
    const question = tileQuestion(), found = pictures.get(question);
    if (found !== undefined && !found.absent) shownQuestion = question;
    else if (shownQuestion && (shownQuestion.reader !== where().reader || shownQuestion.parameter !== where().parameter)) shownQuestion = null;
    const state = problem(question, found);
    missing.replaceChildren(...(state ? [state] : []));
    figures.hidden = state !== null || asTable;
    figures.classList.toggle("fwl-waiting", found === undefined);
    tablePlace.replaceChildren(...(asTable && adapting.includes(where().reader) ? [normTable(norms, where().reader, where().parameter, range(), go)] : []));
    tableButton.setAttribute("aria-pressed", String(asTable));
    const now = tile();
    if (now !== undefined && state === null) drawPicture(question, now);
    say();
  }

  function drawPicture(question, now) {
    const { parameter } = where(), entry = norms.parameters(where().reader).find((one) => one.name === parameter);
    const pinned = shownQuestion.pinned, matrix = now.codes !== undefined, exact = piece();
    const size = matrix ? `${whole(now.shape[0])} × ${whole(now.shape[1])}` : `${whole(now.shape[0])} entries`;
    const how = exact ? "exact values; Escape zooms out" : matrix && now.cells.join() !== now.shape.join() ? `each cell the largest of ${Math.round((now.shape[0] * now.shape[1]) / (now.cells[0] * now.cells[1]))}` : "";
    pictureTitle.replaceChildren(`Δ${entry.label} at token ${whole(shownQuestion.token)}${pinned === null ? "" : ` less Δ${entry.label} at ${whole(pinned)}`} `, h("small", {}, [size, how].filter(Boolean).join(" · ")));
    words.replaceChildren(...deltaWords(now, matrix ? spectrum() : null, entry.slow, pinned).flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)]));
    if (now.bad) words.append(h("dt", {}, "✗ not finite"), h("dd", {}, `${whole(now.bad.count)} values; the first at ${["row", "column"].slice(0, now.bad.first.length).map((what, i) => `${what} ${whole(now.bad.first[i])}`).join(", ")}`));
    empty.hidden = now.size !== 0 || now.bad !== null;
    empty.textContent = pinned === null ? "Δθ = 0: nothing has been learned yet" : "no difference from the pinned token";
    pictureBox.classList.toggle("fwl-zoomed", zoom !== null);
    spectrumTitle.hidden = spectrumBox.hidden = !matrix;
    note.hidden = saved === null && pictures.why(pieceQuestion()) === undefined;
    note.textContent = saved === null ? pictures.why(pieceQuestion()) ?? "" : `saved view: pictures of some tokens are kept; this is token ${whole(shownQuestion.token)}, the nearest. Exact values, orders and pins need a kernel.`;
    for (const one of [pictureSurface, legend, histogram, spectra]) one.now();
    pictureSurface.canvas.setAttribute("aria-label", `picture of Δ${entry.label}`);
    if (question && tileKey(question) === tileKey(shownQuestion)) figures.dataset.token = String(shownQuestion.token);
  }

  /** What stands where there is no picture; null where there is one, or will be. */
  function problem(question, found) {
    const { reader, parameter } = where(), style = head.readers[reader] ?? { label: reader };
    const choose = (text, changes) => h("button", { type: "button", tabindex: "-1", onclick: () => place.set(changes) }, text);
    const withButton = (shown, ...more) => { shown.append(...more); return shown; };
    if (!adapting.length) return notice("absent", "Updates were not recorded: Recorder()", "How far weights moved is kept while reading.", "Score again with score(…, record=Recorder(factors=True)).");
    const first = (name) => norms.parameters(name)[0].name;
    if (!adapting.includes(reader)) {
      return withButton(notice("empty", `${style.label} does not adapt`, "Its weights stay as they are: Δθ is 0 at every token."),
        ...adapting.map((name) => choose(`show ${head.readers[name].label}`, { reader: name, parameter: first(name) })));
    }
    if (!moves()) {
      return withButton(notice("empty", `${style.label} does not adapt ${parameter}`, `It adapts ${norms.parameters(reader).length} others.`),
        choose(`show ${norms.parameters(reader)[0].label}`, { parameter: first(reader) }));
    }
    if (found?.absent) {
      const near = found.nearest === null ? [] : [choose(`go to token ${whole(found.nearest)}, the nearest with Δθ`, found.at === place.get("pinned") ? { pinned: found.nearest } : { token: found.nearest })];
      return withButton(notice("absent", found.nearest === null ? `Δθ was not recorded: ${head.record[reader]}` : `Δθ at token ${whole(found.at)} was not kept`, found.absent), ...near);
    }
    if (question === null) return notice("kernel", "saved view: browsing works, this needs a kernel", "No picture of this parameter was saved with the page.");
    const why = pictures.why(question);
    if (why !== undefined && saved === null) return notice("error", why);
    if (found === undefined && Date.now() - since > PATIENCE) return notice("kernel", "The kernel has not answered yet", "It is busy, or gone. Norms can be browsed all the same.");
    return null;
  }

  /** The selection in words, and all that is cheap: cursor, slider, text. */
  function say() {
    const { reader, parameter } = where(), at = place.get("token"), document_ = norms.document(at);
    const entry = norms.parameters(reader).find((one) => one.name === parameter), style = head.readers[reader] ?? { label: reader };
    moveCursor();
    [slider.min, slider.max] = [range()[0], range()[1] - 1].map(String);
    slider.value = String(at);
    const from = bounds()[0], updates = norms.updatesBefore(at) - (head.carry ? 0 : norms.updatesBefore(from));
    title.textContent = entry ? `What ${style.label} has learned: Δ${entry.label}` : `What ${style.label} has learned`;
    about.textContent = `${head.documents[document_]} · token ${whole(at - from)} of ${whole(bounds()[1] - from)} · ${whole(updates)} update${updates === 1 ? "" : "s"} made`;
    if (head.texts) reading.replaceChildren(...readingLine(norms, at));
    pinButton.setAttribute("aria-pressed", String(place.get("pinned") !== null));
    pinButton.textContent = place.get("pinned") === null ? "pin" : `unpin ${whole(place.get("pinned"))}`;
    if (cell && zoom && piece()) return sayCell();
    const norm = norms.at(reader, parameter, at);
    const share = entry?.slow ? `, ${fixed((100 * norm) / entry.slow)} % of ‖θ₀‖` : "";
    view.status.textContent = `token ${whole(at)}${head.texts ? ` ${printable(norms.texts[at])}` : ""}; after update ${whole(updates)}: ${entry ? `‖Δθ‖ of ${entry.label} ${brief(norm)}${share}` : "no Δθ"}`;
  }

  // -- the picture under the pointer and the keys ---------------------------------------------------------------------
  /** Row and column, in the order shown, of what is under the pointer; null beside the picture. */
  function pointed(event) {
    if (painted === null) return null;
    const area = pictureSurface.canvas.getBoundingClientRect();
    const column = Math.floor(((event.clientX - area.left - painted.x) / painted.wide) * painted.columns);
    const row = Math.floor(((event.clientY - area.top - painted.y) / painted.high) * painted.rows);
    return row >= 0 && row < painted.rows && column >= 0 && column < painted.columns ? { row, column } : null;
  }
  function describe({ row, column }) {
    const now = tile();
    if (now.codes === undefined) return `${places("entry", behind(now.order_0, now.values.length, column)).replace("entrys", "entries")}: ${brief(now.values[column])}`;
    if (painted.exact) {
      const value = painted.exact.values[row * painted.columns + column];
      return `row ${whole(now.order_0[painted.exact.row + row])}, column ${whole(now.order_1[painted.exact.column + column])}: ${Number.isFinite(value) ? value.toPrecision(7).replace("-", "−") : "not finite"}`;
    }
    const code = now.codes[row * now.cells[1] + column], value = codeValues(now.size)[code + 128];
    return `${places("row", behind(now.order_0, now.cells[0], row))}; ${places("column", behind(now.order_1, now.cells[1], column))}: ${code === -128 ? "not finite" : `about ${brief(Number(value.toPrecision(2)))}`}`;
  }
  function showBox() {
    box.hidden = cell === null || painted === null || cell.row >= painted.rows || cell.column >= painted.columns;
    if (box.hidden) return;
    const wide = painted.wide / painted.columns, high = painted.high / painted.rows, grow = Math.max(0, (8 - Math.min(wide, high)) / 2);
    box.style.cssText = `left: ${painted.x + cell.column * wide - grow}px; top: ${painted.y + cell.row * high - grow}px; width: ${wide + 2 * grow}px; height: ${high + 2 * grow}px`;
  }
  function sayCell() {
    readout.textContent = describe(cell);
    if (zoom) view.status.textContent = readout.textContent;
    showBox();
  }
  pictureSurface.canvas.addEventListener("pointermove", (event) => {
    if (zoom && !piece()) return;
    cell = pointed(event);
    if (cell && tile()) sayCell();
    else { readout.textContent = ""; box.hidden = true; }
  });
  pictureSurface.canvas.addEventListener("pointerleave", () => { if (!zoom) { cell = null; readout.textContent = ""; box.hidden = true; } });
  pictureSurface.canvas.addEventListener("click", (event) => {
    if (!zoom && pointed(event)) zoomIn(pointed(event));
    view.root.focus({ preventScroll: true });
  });
  /** To at most 64 × 64 exact values around a cell: the one pointed at, else the largest. */
  function zoomIn(to = cell) {
    const now = tile();
    if (zoom || now?.codes === undefined) return;
    if (saved) { view.status.textContent = "saved view: browsing works, exact values need a kernel"; return; }
    if (to === null) {
      const largest = now.codes.reduce((best, code, i) => (Math.abs(code) > Math.abs(now.codes[best]) ? i : best), 0);
      to = { row: Math.floor(largest / now.cells[1]), column: largest % now.cells[1] };
    }
    const [row, column] = [to.row, to.column].map((at, axis) => Math.floor(((at + 0.5) * now.shape[axis]) / now.cells[axis]));
    zoom = { row: clamp(row - PIECE_SIDE / 2, 0, Math.max(0, now.shape[0] - PIECE_SIDE)), column: clamp(column - PIECE_SIDE / 2, 0, Math.max(0, now.shape[1] - PIECE_SIDE)) };
    cell = { row: row - zoom.row, column: column - zoom.column };
    box.hidden = true;
    changed();
  }
  function zoomOut() { set(() => { zoom = null; cell = null; box.hidden = true; readout.textContent = ""; }); }

  // -- going about ----------------------------------------------------------------------------------------------------
  const go = (to) => place.set({ token: clamp(to, 0, head.tokens - 1) });
  const pin = () => place.set({ pinned: place.get("pinned") === null ? place.get("token") : null });
  function move(down, right) {
    if (zoom && piece()) {
      const [rows, columns] = piece().columns.values[2];
      cell = { row: clamp((cell?.row ?? 0) + down, 0, rows - 1), column: clamp((cell?.column ?? 0) + right, 0, columns - 1) };
      sayCell();
    } else if (right) go(place.get("token") + right);
    else {
      const names = norms.parameters(where().reader).map((entry) => entry.name);
      if (names.length) place.set({ parameter: names[clamp(names.indexOf(where().parameter) + down, 0, names.length - 1)] });
    }
  }
  /** The token after the update before, or after, the selected token. */
  function updateFrom(at, direction) {
    const updates = norms.data.updates, count = norms.updatesBefore(at);
    if (direction > 0) return count < updates.length ? Math.min(updates[count] + 1, head.tokens - 1) : head.tokens - 1;
    const index = updates[count - 1] + 1 === at ? count - 2 : count - 1;
    return index >= 0 ? updates[index] + 1 : 0;
  }
  const byUpdate = (direction) => go(updateFrom(place.get("token"), direction));
  function nextFrame(at) {
    if (saved) {
      const later = saved.filter((q) => q.reader === where().reader && q.parameter === where().parameter && q.token > at).map((q) => q.token);
      return Math.min(...later, bounds()[1] - 1);
    }
    const next = speed === "update" || still() ? updateFrom(at, 1) : at + Math.max(1, Math.round((Number(speed) * FRAME_MS) / 1000));
    return Math.min(next, bounds()[1] - 1);
  }
  /** Show a token, ask for the next, and go there when its picture is there and it is time; to the document's end. */
  async function play() {
    if (!moves()) return;
    if (place.get("token") >= bounds()[1] - 1) go(bounds()[0]);
    playing = true;
    view.status.setAttribute("aria-live", "off");
    playButton.textContent = "❚❚ pause";
    while (playing && !signal.aborted && place.get("token") < bounds()[1] - 1) {
      ahead = nextFrame(place.get("token"));
      const pace = new Promise((done) => { setTimeout(done, speed === "update" || still() || saved ? 4 * FRAME_MS : FRAME_MS); });
      pictures.pump();
      while (playing && tileQuestion(ahead) && !pictures.has(tileQuestion(ahead))) await new Promise((done) => { resume = done; });
      await pace;
      if (playing && !signal.aborted) go(ahead);
    }
    if (playing) pause();
  }
  function pause() {
    playing = false;
    ahead = null;
    resume?.();
    playButton.textContent = "▶ play";
    view.status.setAttribute("aria-live", "polite");
  }

  chartSurface.canvas.addEventListener("pointerdown", (event) => {
    const area = chartSurface.canvas.getBoundingClientRect(), x = event.clientX - area.left, y = event.clientY - area.top;
    view.root.focus({ preventScroll: true });
    if (x > area.width - 114) {
      const near = labels.reduce((best, one) => (best === null || Math.abs(one.at - y) < Math.abs(best.at - y) ? one : best), null);
      if (near) place.set({ parameter: near.name });
      return;
    }
    pause();
    chartSurface.canvas.setPointerCapture(event.pointerId);
    scrub(event);
  });
  const scrub = (event) => go(Math.round(chartScale().back(event.clientX - chartSurface.canvas.getBoundingClientRect().left)));
  chartSurface.canvas.addEventListener("pointermove", (event) => { if (event.buttons && chartSurface.canvas.hasPointerCapture(event.pointerId)) scrub(event); });

  // -- following ------------------------------------------------------------------------------------------------------
  function set(change) {
    change();
    for (const [label, value] of [[colours, signs ? "signed" : "absolute"], [scales, fixedScale ? "document" : "tile"], [orders, order], [spans, whole_ ? "all" : "one"]]) label.querySelector("select").value = value;
    chartSurface.redraw();
    changed();
  }
  let slow = null;
  function changed() {
    pictures.failed.clear();
    since = Date.now();
    clearTimeout(slow);
    slow = setTimeout(draw, PATIENCE + 50);
    draw();
    pictures.pump();
  }
  function offer() {
    readers.querySelector("select").value = where().reader;
    parameters.replaceChildren(...norms.parameters(where().reader).map((entry) => h("option", { value: entry.name, selected: entry.name === where().parameter }, entry.label)));
    chart.hidden = transport.hidden = !adapting.includes(where().reader);
    shownQuestion = zoom = cell = null;
    box.hidden = true;
    set(() => {});
  }
  const bad = () => head.moved[where().reader]?.bad ?? null;
  const badButton = button("norms that are not finite: go to the first", () => go(bad() + 1));
  view.tools.append(badButton);
  place.on(["reader", "parameter"], () => { offer(); badButton.hidden = bad() === null; });
  let document_ = norms.document(place.get("token"));
  place.on(["token", "pinned"], () => {
    const now = norms.document(place.get("token"));
    if (now !== document_ && !whole_) chartSurface.redraw();
    document_ = now;
    changed();
  });
  document.addEventListener("visibilitychange", () => { if (document.hidden) pause(); }, { signal });
  const seen = new IntersectionObserver(([entry]) => { if (!entry.isIntersecting && playing) pause(); });
  seen.observe(view.root);
  onTheme(() => draw(), signal);
  signal.addEventListener("abort", () => { pause(); clearTimeout(slow); seen.disconnect(); });
  badButton.hidden = bad() === null;
  offer();
}

export default { render };
