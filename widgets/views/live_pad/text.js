// LivePad's text: a field to type in, and behind it the same text in coloured tokens.

import { h } from "../../core/js/elements.js";
import { clamp } from "../../core/js/format.js";
import { css, diverging, inkOn, magnitude } from "../../core/js/theme.js";

// Nats at which the colour scales end.
export const FULL_GAIN = 3;
export const FULL_NLL = 8;

/** Return a token's colour by gain or NLL, [r, g, b], or null where that is not known. */
export function liveColour(kind, nll, base) {
  if (kind === "nll") return nll === undefined ? null : magnitude(clamp(nll / FULL_NLL, 0, 1));
  return nll === undefined || base === undefined ? null : diverging(clamp((base - nll) / FULL_GAIN, -1, 1));
}

/**
 * Make a field to type in whose text is drawn in tokens. `paint(texts, colours)` colours as many tokens from the start as
 * the text still has; `token()` returns the index of the token at the caret or null. `moved(index)` is called with the
 * token under the pointer, else with that at the caret.
 */
export function liveText({ label, value, typed, moved }) {
  const behind = h("div", { class: "fwl-behind", dir: "auto", "aria-hidden": "true" });
  const field = h("textarea", {
    class: "fwl-field", tabindex: "-1", dir: "auto", spellcheck: "false", autocomplete: "off", autocapitalize: "off",
    "aria-label": label, placeholder: "Type or paste a text. Write a name twice, and see the second time cost less.",
    oninput: () => { paint(texts, colours); typed(); },
  });
  field.value = value;
  const place = h("div", { class: "fwl-paper" }, h("div", { class: "fwl-sheet" }, behind, field));
  const unread = behind.appendChild(h("span", { class: "fwl-unread" }));
  // JupyterLab refuses line breaks in fields of a cell, by a listener at the field: the event is stopped before it.
  place.addEventListener("beforeinput", (event) => event.stopPropagation(), true);
  let texts = [], colours = [], standing = 0, starts = [];
  for (const event of ["click", "focus"]) field.addEventListener(event, () => moved(token()));
  field.addEventListener("keyup", (event) => { if (/^(Arrow|Home|End|Page)/.test(event.key)) moved(token()); });
  field.addEventListener("pointermove", (event) => moved(under(event)));
  field.addEventListener("pointerleave", () => moved(token()));

  /** Return how many tokens from the start the text still has, and how many characters they are. */
  function common() {
    let at = 0, count = 0;
    while (count < texts.length && field.value.startsWith(texts[count], at)) at += texts[count++].length;
    return [count, at];
  }
  function paint(newTexts, newColours) {
    [texts, colours] = [newTexts, newColours];
    const [count, end] = common();
    standing = count;
    starts = [];
    let at = 0;
    for (let i = 0; i < count; i += 1) {
      if (behind.children[i] === unread) unread.before(h("span"));
      const span = behind.children[i];
      if (span.textContent !== texts[i]) span.textContent = texts[i];
      const colour = colours[i] ?? null;
      const ground = colour === null ? "" : css(colour);
      if (span.dataset.ground !== ground) {
        span.dataset.ground = ground;
        span.style.background = ground;
        span.style.color = colour === null ? "" : inkOn(colour);
      }
      starts.push(at);
      at += texts[i].length;
    }
    while (behind.children.length > count + 1) unread.previousElementSibling.remove();
    // A zero-width space gives the last line its height where it is empty.
    unread.textContent = `${field.value.slice(end)}\u200b`;
  }
  /** Return the index of the token that ends at the caret or holds it, or null. */
  function token() {
    const at = Math.max(field.selectionEnd - 1, 0);
    const index = starts.findLastIndex((start) => start <= at);
    return index >= 0 && index < standing && at < starts[index] + texts[index].length ? index : null;
  }
  function under(event) {
    const span = document.elementsFromPoint(event.clientX, event.clientY).find((node) => node.parentElement === behind);
    const index = span === undefined ? -1 : [...behind.children].indexOf(span);
    return index >= 0 && index < standing ? index : null;
  }
  return { place, field, paint, token, count: () => standing };
}
