// Elements of all views: controls, notices, tables. Token texts are set as text, never as markup.

import { printable } from "./format.js";

// JupyterLab runs its shortcuts (x cuts a cell) unless the element that has the focus says that it takes the keys.
export const OWN_KEYS = "data-lm-suppress-shortcuts";
const FOCUSABLE = ["button", "select", "input", "textarea", "summary"];

/** Make an element. Attributes that are functions listen ("onclick"); children are nodes or texts; null is left out. */
export function h(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  if (FOCUSABLE.includes(tag) || (attributes.tabindex ?? null) !== null) node.setAttribute(OWN_KEYS, "true");
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

let namespace = null;
/** Make an element of a drawing. Its name space is read from the parser, because a saved page holds no address, not even this. */
export function svg(tag, attributes = {}) {
  namespace ??= new DOMParser().parseFromString("<svg></svg>", "text/html").querySelector("svg").namespaceURI;
  const node = document.createElementNS(namespace, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/** Make an element of a token's text, on one line and isolated from the writing direction around it. */
export const token = (text, attributes = {}) => h("bdi", { class: "fwl-token", ...attributes }, printable(text));

/** Make a button among a view's controls. */
export const button = (text, run, attributes = {}) => h("button", { type: "button", tabindex: "-1", onclick: run, ...attributes }, text);

/** Make a labelled choice among [value, text] pairs; `run` gets the chosen value. */
export function choice(label, pairs, value, run) {
  const select = h(
    "select", { tabindex: "-1", "aria-label": label, onchange: (event) => run(event.target.value) },
    pairs.map(([key, text]) => h("option", { value: key, selected: key === value }, text)),
  );
  return h("label", { class: "fwl-choice" }, h("span", {}, label), select);
}

/** Make what stands where there is nothing to show: the fact, the reason, and what to do about it. */
export function notice(state, what, why = null, todo = null) {
  const symbols = { empty: "○", loading: "…", error: "✗", absent: "○", kernel: "○" };
  return h(
    "div", { class: `fwl-notice fwl-${state}`, role: state === "error" ? "alert" : null },
    h("b", {}, `${symbols[state]} ${what}`), why === null ? null : h("p", {}, why), todo === null ? null : h("p", {}, todo),
  );
}

/** Make a table of texts and nodes; columns of numbers are aligned to the right. */
export function table(caption, columns, rows) {
  const numeric = columns.map((_, i) => rows.length > 0 && rows.every((row) => typeof row[i] === "string" && /^[+−]?[\d.,]+/.test(row[i])));
  return h(
    "div", { class: "fwl-table", tabindex: "-1" },
    h("table", {}, h("caption", {}, caption),
      h("thead", {}, h("tr", {}, columns.map((name, i) => h("th", { scope: "col", class: numeric[i] ? "fwl-number" : null }, name)))),
      h("tbody", {}, rows.map((row) => h("tr", {}, row.map((cell, i) => h("td", { class: numeric[i] ? "fwl-number" : null }, cell)))))),
  );
}
