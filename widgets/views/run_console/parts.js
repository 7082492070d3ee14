// RunConsole's parts: the list of documents, the choices, the progress bars, the summary of a run.

import { swatch } from "../../core/js/charts.js";
import { h, table } from "../../core/js/elements.js";
import { clamp, fixed, many, printable, signed, whole } from "../../core/js/format.js";

const MOST_SHOWN = 200; // documents in the list; a filter finds the others

/** Write seconds as a duration: 2 min 5 s. */
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "unknown";
  if (seconds < 1) return "under 1 s";
  const [hours, minutes] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60];
  if (hours) return `${whole(hours)} h ${minutes} min`;
  return minutes ? `${minutes} min ${Math.floor(seconds % 60)} s` : `${Math.ceil(seconds)} s`;
}

export const speedText = (speed) => `${whole(Math.round(speed))} tokens/s`;

let fields = 0;
/** Return an id that no other element of the page has. */
export const freshId = (kind) => `fwl-${kind}-${fields += 1}`;

/** Make a labelled control with a line of explanation. */
export function field(label, control, hint = null) {
  control.id = freshId("field");
  return h("div", { class: "fwl-field" }, h("label", { for: control.id }, label), control,
    hint === null ? null : h("small", {}, hint));
}

/**
 * Make a list of documents to choose from: one tab stop, arrows move, Space or a click chooses.
 * `show(indices)` marks the chosen ones; `lengths(tokens)` sets how many tokens each has.
 */
export function documentList(documents, run) {
  const list = h("ul", { class: "fwl-documents", role: "listbox", "aria-multiselectable": "true",
    "aria-label": "documents", tabindex: "0" });
  const filter = h("input", { type: "search", placeholder: "filter by name",
    "aria-label": "filter documents by name", oninput: () => fill() });
  const told = h("small", { class: "fwl-told" });
  const own = freshId("documents");
  let chosen = new Set(), tokens = null, rows = new Map(), active = 0, off = false;

  const long = (index) => (
    tokens === null ? many(documents[index][1], "character") : many(tokens[index], "token"));
  const ordered = (indices) => [...indices].sort((a, b) => a - b);
  function mark() {
    for (const [index, row] of rows) row.setAttribute("aria-selected", String(chosen.has(index)));
    const sum = tokens === null ? "" : ` · ${many([...chosen].reduce((n, index) => n + tokens[index], 0), "token")}`;
    const missing = [...chosen].filter((index) => !rows.has(index)).length;
    const hidden = missing ? ` · ${whole(missing)} not in view` : "";
    told.textContent = `${whole(chosen.size)} of ${whole(documents.length)} chosen${sum}${hidden}`;
  }
  function activate(index, scroll = true) {
    rows.get(active)?.classList.remove("fwl-active");
    active = index;
    const row = rows.get(index);
    if (row === undefined) return list.removeAttribute("aria-activedescendant");
    row.classList.add("fwl-active");
    list.setAttribute("aria-activedescendant", row.id);
    if (scroll) row.scrollIntoView({ block: "nearest" });
  }
  function toggle(index) {
    if (off || !rows.has(index)) return;
    const next = new Set(chosen);
    if (!next.delete(index)) next.add(index);
    activate(index, false);
    run(ordered(next));
  }
  function chooseAll(shown) {
    if (!off) run(ordered(new Set([...chosen, ...shown])));
  }
  function fill() {
    const wanted = filter.value.trim().toLowerCase();
    const found = documents.flatMap(([name], index) => (name.toLowerCase().includes(wanted) ? [index] : []));
    rows = new Map(found.slice(0, MOST_SHOWN).map((index) => [index, h(
      "li", { role: "option", id: `${own}-${index}`, onclick: () => toggle(index) },
      h("bdi", { class: "fwl-name" }, printable(documents[index][0])), h("span", { class: "fwl-long" }, long(index)),
    )]));
    const more = found.length - rows.size;
    list.replaceChildren(...rows.values());
    const none = found.length === 0 ? "no document has this in its name" : null;
    note.textContent = none ?? (more > 0 ? `${whole(more)} more: filter by name` : "");
    activate(rows.has(active) ? active : (rows.keys().next().value ?? 0), false);
    mark();
  }
  list.addEventListener("keydown", (event) => {
    const all = [...rows.keys()], at = all.indexOf(active);
    const places = {
      ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: all.length - 1, PageDown: at + 8, PageUp: at - 8,
    };
    const to = places[event.key];
    if (to !== undefined && all.length) activate(all[clamp(to, 0, all.length - 1)]);
    else if (event.key === " " || event.key === "Enter") toggle(active);
    else if (event.key === "a" && (event.ctrlKey || event.metaKey)) chooseAll(all);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const note = h("small", { class: "fwl-told" });
  fill();
  return {
    node: h("div", { class: "fwl-choose" }, filter, list, note, told),
    show(indices) { chosen = new Set(indices); mark(); },
    lengths(counts) { tokens = counts; fill(); },
    disable(value) { off = value; list.setAttribute("aria-disabled", String(value)); }, // the filter stays usable
  };
}

/** Make a box for each of [value, [title, hint]]; `type` is checkbox (several) or radio (one). */
export function boxes(type, pairs, run) {
  const group = freshId("boxes");
  const inputs = new Map(pairs.map(([value]) => [value, h("input", {
    type, name: group, onchange: () => run([...inputs].filter(([, input]) => input.checked).map(([name]) => name)),
  })]));
  const lines = pairs.map(([value, [title, hint]]) => h("label", { class: "fwl-box" }, inputs.get(value),
    h("span", {}, title, hint ? h("small", {}, hint) : null)));
  return { lines, show: (values) => inputs.forEach((input, value) => { input.checked = values.includes(value); }) };
}

/** Make a progress bar for each reader of a run; `show(run)` moves them. */
export function progressBars(styles) {
  const place = h("div", { class: "fwl-bars" });
  let bars = new Map();
  return {
    node: place,
    show(run) {
      const names = Object.keys(run.done ?? {});
      if (String(names) !== String([...bars.keys()])) {
        bars = new Map(names.map((name) => [name, {
          bar: h("progress", { "aria-label": styles[name].label }), words: h("span", { class: "fwl-words" }),
        }]));
        place.replaceChildren(...[...bars].map(([name, { bar, words }]) => h(
          "div", { class: "fwl-bar", style: `--colour: ${styles[name].colour}` },
          h("span", { class: "fwl-name" }, swatch(styles[name]), styles[name].label), bar, words,
        )));
      }
      for (const [name, { bar, words }] of bars) {
        const [done, seconds] = [run.done[name], run.seconds[name]], speed = done / seconds;
        bar.max = Math.max(run.total, 1);
        bar.value = done;
        const left = done && done < run.total ? ` · ${duration((run.total - done) / speed)} left` : "";
        const rate = done ? ` · ${speedText(speed)}` : "";
        words.textContent = `${whole(done)} of ${whole(run.total)} tokens${rate}${left}`;
      }
    },
  };
}

/** Return the seconds until all readers, which take turns, are done; NaN before each has read something. */
export const timeLeft = (run) => Object.entries(run.done)
  .reduce((sum, [name, done]) => sum + (run.total - done) * (done ? run.seconds[name] / done : NaN), 0);

/** Make the summary of a run: figures of each reader, the path of the trace, and how to open it. */
export function summaryOf(run, styles) {
  const rows = run.summary.map((row) => [
    h("span", {}, swatch(styles[row.reader]), row.label), fixed(row.nll, 3),
    row.gain === null ? "no base" : signed(row.gain, 3), whole(Math.round(row.speed)),
  ]);
  const columns = ["reader", "mean NLL [nat/token]", `gain over ${run.over ?? "base"} [nat/token]`, "tokens/s"];
  return [
    table(`${whole(run.tokens)} tokens, read by each`, columns, rows),
    h("dl", { class: "fwl-kept" },
      h("dt", {}, "trace"), h("dd", {}, h("code", {}, run.path)),
      h("dt", {}, "go on"), h("dd", {}, h("code", {}, "explore(console.trace)"), " in a cell; later, with no model: ",
        h("code", {}, `explore(open_trace(${JSON.stringify(run.path)}))`))),
  ];
}
