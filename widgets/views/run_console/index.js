// RunConsole: a form for a run (documents, readers, what is recorded), its plan, its progress, and its result.

import { swatch } from "../../core/js/charts.js";
import { h, notice } from "../../core/js/elements.js";
import { many, printable, whole } from "../../core/js/format.js";
import { asker } from "../../core/js/kernel.js";
import { SLOW, settled } from "../../core/js/timing.js";
import {
  boxes, documentList, duration, field, freshId, progressBars, speedText, summaryOf, timeLeft,
} from "./parts.js";

const BUSY = ["preparing", "reading", "measuring", "stopping"];
const NO_KERNEL = "saved view: browsing works, reading needs a kernel";
const MEASURE_AFTER = 500; // ms without a change before speeds are measured

async function render({ model, el, signal }) {
  const ask = asker(model, signal);
  const head = model.get("head"), styles = head.readers;
  let turn = 0, kernel = true, refused = "", planned = false, spoken = "", settling = null;

  function update(changes) {
    model.set("settings", { ...model.get("settings"), ...changes });
    try {
      model.save_changes();
    } catch { /* no kernel: said below */ }
  }
  const running = () => BUSY.includes(model.get("run").phase);

  // -- choices
  const documents = documentList(head.documents, (chosen) => update({ documents: chosen }));
  const named = Object.entries(styles).map(([name, style]) => [name, [h("span", {}, swatch(style), style.label)]]);
  const readers = boxes("checkbox", named, (chosen) => update({ readers: chosen }));
  const kept = head.records.map(([name, ...texts]) => [name, texts]);
  const records = boxes("radio", kept, ([record]) => update({ record }));
  const device = h("select", { onchange: () => update({ device: device.value }) },
    head.devices.map((name) => h("option", { value: name }, name)));
  const most = h("input", { type: "number", min: "1", step: "1", placeholder: "whole documents",
    oninput: () => update({ max_tokens: most.value === "" ? null : Number(most.value) }) });
  const folder = h("input", { type: "text", spellcheck: "false", oninput: () => update({ folder: folder.value }) });
  const groups = [
    h("fieldset", {}, h("legend", {}, "Documents"), documents.node),
    h("fieldset", {}, h("legend", {}, "Readers"), readers.lines, field("Device", device),
      field("Tokens of each, at most", most)),
    h("fieldset", {}, h("legend", {}, "Record"), records.lines,
      field("Folder", folder, "a new trace each time; none is overwritten")),
  ];

  // -- plan, actions, run
  const plan = h("div", { class: "fwl-plan" }), times = h("div", { class: "fwl-times" });
  const why = h("p", { class: "fwl-why", id: freshId("why") });
  const start = h("button", { type: "button", class: "fwl-start", "aria-describedby": why.id, onclick: () => begin() },
    "Start reading");
  const cancel = h("button", { type: "button", onclick: () => stop() }, "Cancel ", h("kbd", {}, "Esc"));
  const copy = h("button", { type: "button", onclick: () => copyCommand() }, "Copy as papermill command");
  const command = h("div", { class: "fwl-command" });
  const bars = progressBars(styles), outcome = h("div", { class: "fwl-outcome" });
  const status = h("div", { class: "fwl-status", role: "status", "aria-live": "polite" });
  const root = h(
    "section",
    { class: "fwl fwl-run_console", role: "region", "aria-label": "Run console" },
    h("header", {},
      h("div", { class: "fwl-heading" }, h("b", {}, "Run console"), " ", h("small", {}, printable(head.model)))),
    h("div", { class: "fwl-body" }, h("div", { class: "fwl-form" }, groups),
      h("div", { class: "fwl-before" }, plan, times),
      h("div", { class: "fwl-actions" }, start, cancel, copy, why), command, bars.node, outcome),
    status,
  );
  root.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !running()) return;
    event.preventDefault();
    event.stopPropagation();
    stop();
  });
  signal.addEventListener("abort", () => root.remove());

  const say = (words) => { if (words !== spoken) status.textContent = spoken = words; };

  function showButtons() {
    const busy = running(), focused = document.activeElement;
    start.disabled = !kernel || !planned;
    why.textContent = kernel ? refused && `Cannot start: ${refused}` : NO_KERNEL;
    why.hidden = busy || !why.textContent;
    start.hidden = copy.hidden = busy;
    cancel.hidden = !busy;
    cancel.disabled = !kernel;
    groups.slice(1).forEach((group) => { group.disabled = busy || !kernel; });
    documents.disable(busy || !kernel);
    // A button that is hidden passes the focus on to the one that takes its place.
    if (busy && focused === start) cancel.focus();
    if (!busy && focused === cancel) start.focus();
  }

  async function makePlan(quiet = false) {
    const mine = turn += 1, settings = model.get("settings");
    planned = false;
    refused = "";
    command.replaceChildren();
    times.replaceChildren();
    const slow = setTimeout(() => { if (mine === turn) plan.replaceChildren("Planning …"); }, SLOW);
    try {
      const { content } = await ask({ kind: "plan", settings });
      if (mine !== turn || signal.aborted) return;
      planned = true;
      showPlan(content);
      measure(mine, settings);
    } catch (error) {
      if (mine !== turn) return;
      refused = error.message;
      plan.replaceChildren(kernel ? "" : "This choice was not planned before the view was saved.");
    } finally {
      clearTimeout(slow);
    }
    showButtons();
    if (!quiet) say(planned ? `planned: ${plan.textContent}` : why.textContent.split(". ")[0]);
  }
  function showPlan(content) {
    const largest = content.largest.map(([name, size]) => `${name} ${size}`).join(", ");
    const read = many(content.documents, "document");
    plan.replaceChildren(
      h("b", {}, many(content.tokens, "token")), ` of ${read} → `,
      h("code", {}, content.path), " · ", h("b", {}, content.size), ` before compression (largest: ${largest})`,
    );
  }

  const measure = settled(async (mine, settings) => {
    if (mine !== turn || !kernel || signal.aborted || running()) return;
    times.replaceChildren("Measuring each reader's speed on this device …",
      h("progress", { "aria-label": "measuring speed" }));
    try {
      const { content } = await ask({ kind: "time", settings });
      if (mine !== turn) return;
      times.replaceChildren(
        h("span", {}, "about ", h("b", {}, duration(content.total)),
          ` to read, by ${whole(content.probed)} tokens read just now:`),
        ...Object.entries(content.seconds).map(([name, seconds]) => h("span", { class: "fwl-time" },
          swatch(styles[name]), `${styles[name].label} ${duration(seconds)} (${speedText(content.speeds[name])})`)),
      );
    } catch (error) {
      if (mine === turn) times.replaceChildren(`The time could not be measured: ${error.message}`);
    }
  }, MEASURE_AFTER);

  async function begin() {
    await settling; // a choice made just before belongs to the run
    if (running() || !planned) return;
    try {
      await ask({ kind: "start", settings: model.get("settings") });
    } catch (error) {
      outcome.replaceChildren(notice("error", error.message));
    }
  }
  function stop() {
    ask({ kind: "cancel" }).catch((error) => say(error.message));
  }
  async function copyCommand() {
    try {
      const { content } = await ask({ kind: "command", settings: model.get("settings") });
      let told = "Copied.";
      try {
        await navigator.clipboard.writeText(content.line);
      } catch {
        told = "This browser does not let a page copy; select the command.";
      }
      command.replaceChildren(
        h("p", {}, `${told} In the project's folder it reads the same and writes a report, factors recorded:`),
        h("pre", { tabindex: "0", "aria-label": "papermill command" }, content.line),
      );
      say(told);
    } catch (error) {
      const words = error.message.startsWith("saved view") ? NO_KERNEL : `No command can do this: ${error.message}`;
      command.replaceChildren(h("p", {}, words));
      say(words);
    }
  }

  function sayRun() {
    const run = model.get("run");
    if (run.phase === "preparing") return "preparing: the documents are cut into tokens";
    if (run.phase === "measuring") return "all is read; counting each reader's operations and memory";
    if (run.phase === "stopping") return "stopping after the block that is being read";
    if (run.phase === "failed") return `the reading failed: ${run.words}`;
    if (run.phase === "stopped" && !run.path) return "cancelled before the first block was complete: nothing was kept";
    if (run.phase === "stopped") return `cancelled: ${whole(run.tokens)} tokens were read by all, and kept`;
    if (run.phase === "done") return `done: ${whole(run.tokens)} tokens read by ${many(run.summary.length, "reader")}`;
    if (run.phase !== "reading") return "";
    const part = Math.min(...Object.values(run.done)) / run.total, left = timeLeft(run);
    // The line is read out, so it changes with each tenth only.
    const more = Number.isNaN(left) ? "" : `, about ${left < 10 ? "a few seconds" : duration(left)} left`;
    return `reading: ${10 * Math.floor(10 * part)} %${more}`;
  }
  function showRun() {
    const run = model.get("run"), busy = running();
    bars.node.hidden = !busy || !run.done;
    if (run.done) bars.show(run);
    if (busy) {
      command.replaceChildren();
      outcome.replaceChildren();
    } else {
      const failed = run.phase === "failed" ? [notice("error", "The reading failed", run.words,
        run.path ? "What all readers had read until then is kept."
          : "Nothing was complete. Change what it says above, then start again.")] : [];
      const stopped = run.phase === "stopped" ? [h("p", { class: "fwl-end" }, `${sayRun()}.`)] : [];
      outcome.replaceChildren(...failed, ...stopped, ...(run.summary?.length ? summaryOf(run, styles) : []));
    }
    showButtons();
    if (sayRun()) say(sayRun());
  }
  function showSettings() {
    const settings = model.get("settings");
    documents.show(settings.documents);
    readers.show(settings.readers);
    records.show([settings.record]);
    device.value = settings.device;
    if (document.activeElement !== most) most.value = settings.max_tokens ?? "";
    if (document.activeElement !== folder) folder.value = settings.folder;
  }

  let before = model.get("run").phase;
  model.on("change:run", () => {
    const ended = BUSY.includes(before) && !running();
    before = model.get("run").phase;
    showRun();
    if (ended) settling = makePlan(true); // the next trace goes to another path
  });
  model.on("change:settings", () => { showSettings(); if (!running()) settling = makePlan(); });

  el.replaceChildren(root);
  showSettings();
  showRun();
  ask({ kind: "lengths" }).then(({ content }) => documents.lengths(content.tokens), () => {});
  ask({ kind: "hello" }).catch(() => { kernel = false; showButtons(); });
  if (!running()) settling = makePlan(sayRun() !== "");
}

export default { render };
