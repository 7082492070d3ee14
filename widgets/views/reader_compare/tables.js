// ReaderCompare's tables: gains with intervals, certificates, settings.

import { swatch } from "../../core/js/charts.js";
import { button, h, table } from "../../core/js/elements.js";
import { brief, fixed, printable, signed, whole } from "../../core/js/format.js";
import { reach, scaled } from "./charts.js";

const BADGE_MARKS = { passed: "✓", failed: "✗", absent: "○" };
const SETTINGS_SHOWN = 5;

/** Describe the intervals: level, what was resampled, and whether they are too narrow. */
export function methodWords({ resampled, level }, documents) {
  const few = resampled === "documents" && documents < 10 ? ` (only ${documents}: too narrow)` : "";
  const own = resampled === "documents" ? "" : ": they speak of this document only";
  return `${Math.round(100 * level)} % intervals, paired bootstrap over ${resampled}${few}${own}`;
}

/** Make a mean with its interval, as text and on a scale that all rows share. */
function gainCell(estimate, plain, domain, colour) {
  const text = plain === null ? "not finite" : signed(plain, 3);
  const at = (v) => `${(100 * (v - domain[0])) / (domain[1] - domain[0] || 1)}%`;
  const bar = estimate && estimate[1] !== null
    ? h("u", { style: `left: ${at(estimate[1])}; right: calc(100% - ${at(estimate[2])}); background: ${colour}` })
    : null;
  const edges = estimate && estimate[1] !== null ? ` [${signed(estimate[1], 3)}, ${signed(estimate[2], 3)}]` : " no interval";
  return [
    h("span", { class: "fwl-track", "aria-hidden": "true" }, h("s", { style: `left: ${at(0)}` }), bar,
      plain === null ? null : h("i", { style: `left: ${at(plain)}; background: ${colour}` })),
    h("b", {}, text),
    h("small", {}, estimate === undefined ? " […]" : edges),
  ];
}

/** Make the cell of a setting: shortened, with the whole value as its title. */
function settingCell(value) {
  if (value === null) return h("td", { class: "fwl-none" }, "–");
  const number = value !== "" && Number.isFinite(Number(value)) && value.length > 8 ? brief(Number(value)) : null;
  const text = number ?? (value.length > 26 ? `${value.slice(0, 24)}…` : value);
  return h("td", { title: value }, h("bdi", {}, printable(text)));
}

/** Make a table of settings: a row for each, a column for each reader. */
function settingsTable(caption, rows, head) {
  const columns = head.order.map((name) => h("th", { scope: "col" },
    swatch(head.readers[name]), " ", h("bdi", {}, printable(head.readers[name].label))));
  const row = ([name, ...values]) => h("tr", {}, h("th", { scope: "row" }, name), values.map(settingCell));
  return h("table", { class: "fwl-settings" }, h("caption", {}, caption),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "setting"), columns)), h("tbody", {}, rows.map(row)));
}

/** Return what draws the table of readers and the settings that differ; each draws its place anew as a whole. */
export function compareTables({ head, state, view, place, compared, intervals, readersPlace, settingsPlace }) {
  const { readers, label, style, chosen, baseline, others, whole: wholeGain } = compared;
  const unknown = (value, write, otherwise = "not finite") => (value === null ? otherwise : write(value));

  /** Replace what is in a place; the view takes the focus where that was inside, so that keys go on working. */
  function anew(where, ...nodes) {
    const focused = where.contains(document.activeElement);
    where.replaceChildren(...nodes);
    if (focused) view.root.focus({ preventScroll: true });
  }
  function openBadge(name) {
    state.badge = state.badge === name ? null : name;
    drawReaders();
  }
  function badge(name) {
    const { state: kind, text } = head.badges[name];
    const open = (event) => {
      event.stopPropagation();
      openBadge(name);
    };
    return h("button", { type: "button", tabindex: "-1", class: `fwl-badge ${kind}`, title: text, onclick: open,
      "aria-expanded": String(state.badge === name) }, `${BADGE_MARKS[kind]} ${text}`);
  }
  function readerRow(name, domain, answer) {
    const f = head.figures[name];
    const gain = name === baseline() ? h("span", { class: "fwl-none" }, "baseline")
      : h("span", { class: "fwl-gain" }, gainCell(answer?.gain[name], wholeGain(name), domain, style(name).colour));
    const cell = (text, kind = "") => h("td", { class: `fwl-number ${kind}` }, text);
    return h("tr", { "aria-selected": String(name === chosen()), "data-reader": name,
      title: "click: select; Shift+click: measure gains against it",
      onclick: (event) => place.set(event.shiftKey ? { baseline: name } : { reader: name }) },
    h("th", { scope: "row" }, swatch(style(name)), " ", h("bdi", {}, printable(label(name)))),
    cell(unknown(f.nll, (x) => fixed(x, 3))),
    cell(unknown(f.perplexity, (x) => (x < 1e4 ? fixed(x) : brief(x))), "fwl-wide"),
    cell(unknown(f.bits_per_byte, (x) => fixed(x, 3), f.nll === null ? "not finite" : "–")),
    h("td", {}, gain),
    cell(f.seconds ? brief(f.seconds) : "–", "fwl-wide"),
    cell(unknown(f.tokens_per_second, (x) => whole(Math.round(x)), "–")),
    cell(scaled(f.peak_bytes, "B"), "fwl-slim"),
    cell(scaled(f.flops_per_token, ""), "fwl-slim"),
    h("td", {}, badge(name)));
  }
  function badgeRow(name) {
    const { rows, summary } = head.badges[name];
    const why = "Not certified: certify(make_reader, tokens) checks a reader; "
      + "add_certificates(trace, {name: certificate}) keeps what it found.";
    const inner = rows.length ? table(`${label(name)}: ${summary}`, head.headings, rows) : h("p", {}, why);
    return h("tr", { class: "fwl-open" }, h("td", { colspan: "10" }, inner));
  }
  function method(entry) {
    if (readers.length < 2) return "One reader only: record another one, or give runs, {name: trace}, to compare with.";
    if (entry.error) return `Intervals: ${entry.error.message}`;
    return entry.content ? methodWords(entry.content, head.documents.length) : "Intervals are being drawn …";
  }
  function drawReaders() {
    const entry = readers.length > 1 ? intervals() : { error: null }, answer = entry.content;
    const domain = reach(others().flatMap((name) => [wholeGain(name), ...(answer?.gain[name] ?? [])]));
    const heads = [
      ["reader", ""], ["NLL [nat/token]", "fwl-number"], ["perplexity", "fwl-number fwl-wide"],
      ["bit/byte", "fwl-number"],
      [`gain over ${label(baseline())} [nat/token]`, ""],
      ["time [s]", "fwl-number fwl-wide"], ["tokens/s", "fwl-number"],
      ["memory", "fwl-number fwl-slim"], ["FLOP/token", "fwl-number fwl-slim"], ["certificate", ""],
    ].map(([text, kind]) => h("th", { scope: "col", class: kind }, text));
    const opened = (name) => (state.badge === name ? [badgeRow(name)] : []);
    const rows = readers.flatMap((name) => [readerRow(name, domain, answer), ...opened(name)]);
    anew(readersPlace,
      h("table", { role: "grid", "aria-label": "readers" }, h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)),
      h("p", { class: "fwl-method" }, method(entry)),
    );
  }
  function drawSettings() {
    const { different, equal } = head.settings, shown = state.more ? different : different.slice(0, SETTINGS_SHOWN);
    const flip = (field, text) => {
      const run = () => {
        state[field] = !state[field];
        drawSettings();
      };
      return button(text, run, { "aria-expanded": String(state[field]), class: "fwl-quiet" });
    };
    const more = state.more ? "fewer" : `${different.length - shown.length} more differ`;
    const others = state.equal ? `hide ${equal.length} equal settings` : `${equal.length} equal settings hidden`;
    const text = (value) => h("dd", { title: value }, h("bdi", {}, printable(value ?? "–")));
    const pair = ([name, value]) => [h("dt", {}, name), text(value)];
    anew(settingsPlace,
      different.length ? settingsTable("Settings that differ", shown, head) : h("p", {}, "No setting differs."),
      h("div", { class: "fwl-more" }, different.length > SETTINGS_SHOWN ? flip("more", more) : null,
        equal.length ? flip("equal", others) : null),
      ...(state.equal ? [h("dl", { class: "fwl-equal" }, equal.flatMap(pair))] : []),
    );
  }
  return { drawReaders, drawSettings, openBadge };
}
