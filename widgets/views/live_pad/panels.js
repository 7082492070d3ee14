// LivePad's panels: expected next tokens, mean scores, the chart of gains, sliders.

import { LINE_DASHES, axes, linear } from "../../core/js/charts.js";
import { h, token } from "../../core/js/elements.js";
import { clamp, fixed, signed, whole } from "../../core/js/format.js";
import { palette } from "../../core/js/theme.js";

/** Make a reader's list of expected next tokens: bars of probability, marks of the baseline's, changes of rank. */
export function nextList(name, reader, styles, baseline) {
  const { label, colour } = styles[name];
  const most = Math.max(...reader.next.map(([, p]) => p), 1e-9);
  const moved = (rank, now) => (rank === null || name === baseline ? "" : rank === now ? "=" : rank > now ? `↑ ${whole(rank - now)}` : `↓ ${whole(now - rank)}`);
  return h("section", { class: "fwl-next", "aria-label": `${label} expects next` },
    h("h4", {}, h("i", { style: `background: ${colour}` }), label),
    h("ol", {}, reader.next.map(([text, p, before, rank], i) => h("li", {
      title: before === null ? `${fixed(100 * p, 1)} %` : `${fixed(100 * p, 1)} %; ${styles[baseline].label}: ${fixed(100 * before, 1)} %, rank ${whole(rank)}`,
    },
    token(text), h("span", { class: "fwl-bar", "aria-hidden": "true" },
      h("i", { style: `width: ${(100 * p) / most}%; background: ${colour}` }),
      before === null || name === baseline ? null : h("u", { style: `left: ${clamp((100 * before) / most, 0, 100)}%` })),
    h("b", {}, `${fixed(100 * p, p < 0.0995 ? 1 : 0)} %`), h("small", {}, moved(rank, i + 1))))));
}

/** Return a table row for each reader: label, mean NLL and gain over the baseline [nat/token], tokens read and time. */
export function liveRows(reading, styles, baseline) {
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
  const base = reading.readers[baseline]?.nll;
  return Object.entries(reading.readers).map(([name, reader]) => {
    if (reader.error !== undefined) return [styles[name].label, "not finite", "", ""];
    const nll = mean(reader.nll), gain = base === undefined ? "–" : name === baseline ? "0.000" : signed(mean(base) - nll, 3);
    return [styles[name].label, fixed(nll, 3), gain, `${whole(reader.tokens)} in ${fixed(1000 * reader.seconds, 0)} ms`];
  });
}

/** Draw the cumulative gain over the baseline [nat], a line for each reader, and the token at hand. */
export function gainChart(context, width, height, reading, styles, baseline, at) {
  const base = reading.readers[baseline]?.nll;
  const lines = base === undefined ? [] : Object.entries(reading.readers)
    .filter(([name, reader]) => name !== baseline && reader.nll !== undefined)
    .map(([name, reader]) => { let sum = 0; return [name, [0, ...reader.nll.map((nll, i) => (sum += base[i] - nll))]]; });
  if (!lines.length) return;
  const all = lines.flatMap(([, sums]) => [Math.min(...sums), Math.max(...sums)]);
  const x = linear([0, base.length], [52, width - 12]);
  const y = linear([Math.min(0, ...all), Math.max(1e-3, ...all)], [height - 38, 24]);
  axes(context, { scale: x, label: "tokens read" }, { scale: y, label: `gain since the beginning [nat], over ${styles[baseline].label}` });
  for (const [name, sums] of lines) {
    context.strokeStyle = styles[name].colour;
    context.lineWidth = 2;
    context.setLineDash(LINE_DASHES[styles[name].dash]);
    context.beginPath();
    sums.forEach((value, i) => context.lineTo(x(i), y(value)));
    context.stroke();
    context.setLineDash([]);
  }
  if (at !== null) {
    context.strokeStyle = palette().muted;
    context.lineWidth = 1;
    context.beginPath();
    context.moveTo(x(at + 1), y.range[0]);
    context.lineTo(x(at + 1), y.range[1]);
    context.stroke();
  }
}

/** Make a slider over given values, with its value in words beside it; `put(value)` sets it from outside. */
export function slider(label, values, value, words, run) {
  const output = h("output", { "aria-live": "off" }, words(value));
  const input = h("input", {
    type: "range", tabindex: "-1", min: "0", max: String(values.length - 1), step: "1", "aria-label": label,
    value: String(Math.max(values.indexOf(value), 0)), "aria-valuetext": words(value),
    oninput: () => {
      const chosen = values[Number(input.value)];
      output.textContent = words(chosen);
      input.setAttribute("aria-valuetext", words(chosen));
      run(chosen);
    },
  });
  const put = (chosen) => {
    input.value = String(Math.max(values.indexOf(chosen), 0));
    output.textContent = words(chosen);
    input.setAttribute("aria-valuetext", words(chosen));
  };
  return { node: h("label", { class: "fwl-slider" }, h("span", {}, label), input, output), put };
}
