// ReaderCompare in words: the status line, the line below the chart, scores that are not finite.

import { swatch } from "../../core/js/charts.js";
import { button, h } from "../../core/js/elements.js";
import { brief, fixed, printable, signed, whole } from "../../core/js/format.js";
import { intervalText, marked } from "./charts.js";

/** Describe the selection: the brushed stretch, the reader, and scores that are not finite. */
export function compareWords({ head, state, view, place, compared, known, intervals, charts, biggest, clear, wordsPlace }) {
  const { at, points, readers, others, nearest, gainBetween, baseline, chosen, label, style, documentOf } = compared;

  /** Return where the stretch is and the mean gains over it: from the sums where it ends at points, else the kernel's. */
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
