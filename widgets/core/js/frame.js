// The frame of a view: heading, controls, body, status line, and its keys.

import { button, h } from "./elements.js";
import { clamp } from "./format.js";

/**
 * Build a view's frame in `el`: `heading`, `tools`, `body` and `status`, a line that is read out.
 * It is one tab stop, inside which keys move. `keys` lists them: {key: "n", does: "next gain", run: (event) => ...};
 * the help lists those that have `does`.
 */
export function frame(el, { name, label, keys = [], signal }) {
  const tools = h("div", { class: "fwl-tools", role: "toolbar", "aria-label": `${label}: controls` });
  const heading = h("div", { class: "fwl-heading" });
  const body = h("div", { class: "fwl-body" });
  const status = h("div", { class: "fwl-status", role: "status", "aria-live": "polite" });
  const help = h("dl", { class: "fwl-help", hidden: true });
  const explain = () => { help.hidden = !help.hidden; };
  const root = h(
    "section",
    { class: `fwl fwl-${name}`, tabindex: "0", role: "application", "aria-label": label },
    h("header", {}, heading, tools, button("?", explain, { class: "fwl-ask", title: "the keys of this view (?)", "aria-label": "keys" })), body, status, help,
  );
  const shown = { root, heading, tools, body, status };
  const all = [
    ...keys,
    { key: "c", does: "to the controls; arrows move among them", run: () => tools.querySelector("[tabindex]")?.focus() },
    { key: "Escape", does: "back to the view", run: () => root.focus() },
    { key: "?", does: "these keys", run: explain },
  ];
  help.append(...all.filter((entry) => entry.does).flatMap((entry) => [h("dt", {}, h("kbd", {}, entry.shown ?? entry.key)), h("dd", {}, entry.does)]));
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "Escape" && !help.hidden) { explain(); event.preventDefault(); event.stopPropagation(); return; }
    const typing = event.target.matches("input:not([type=checkbox]):not([type=range]), textarea");
    if (typing && event.key !== "Escape") return;
    if (tools.contains(event.target) && moveAmong(tools, event)) return;
    if (event.target.matches("select") && event.key !== "Escape") return;
    if (event.target.matches("button, input, summary") && [" ", "Enter", "ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const entry = all.find((candidate) => candidate.key === event.key);
    if (entry === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    entry.run(event);
  });
  signal.addEventListener("abort", () => root.remove());
  el.replaceChildren(root);
  return shown;
}

/** Move the focus among controls by left and right, since none is a tab stop; up and down stay with choices and sliders. */
function moveAmong(tools, event) {
  if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return false;
  const controls = [...tools.querySelectorAll("[tabindex]:not([disabled])")].filter((node) => node.checkVisibility());
  const next = controls.indexOf(event.target) + (event.key === "ArrowRight" ? 1 : -1);
  controls[clamp(next, 0, controls.length - 1)].focus();
  event.preventDefault();
  return true;
}
