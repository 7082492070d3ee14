// The shared selection, and questions to the kernel.

import { h, notice } from "./elements.js";
import { PATIENCE, SLOW } from "./timing.js";

/** Return the selection that views of a trace share: `get(name)`, `set({token: 7})`, `on(["token"], callback)`. */
export async function connect(model, signal) {
  const shared = await model.widget_manager.get_model(model.get("selection").replace("IPY_MODEL_", ""));
  return {
    get: (name) => shared.get(name),
    set(changes) {
      for (const [name, value] of Object.entries(changes)) shared.set(name, value);
      try {
        shared.save_changes();
      } catch { /* no kernel: the views still follow each other */ }
    },
    on(names, callback) {
      const events = names.map((name) => `change:${name}`).join(" ");
      shared.on(events, callback);
      signal.addEventListener("abort", () => shared.off(events, callback));
    },
  };
}

/** Return `ask({kind: ...})`, which promises {content, buffers} and rejects with the kernel's error message. */
export function asker(model, signal) {
  const mine = Math.random().toString(36).slice(2);
  const waiting = new Map();
  let count = 0;
  const heard = (content, buffers) => {
    const asked = waiting.get(content.id);
    if (asked === undefined) return;
    waiting.delete(content.id);
    if (content.error !== undefined) asked.reject(new Error(content.error));
    else asked.resolve({ content, buffers });
  };
  model.on("msg:custom", heard);
  signal.addEventListener("abort", () => model.off("msg:custom", heard));
  return (question) => new Promise((resolve, reject) => {
    const id = `${mine}-${count += 1}`;
    waiting.set(id, { resolve, reject });
    try {
      model.send({ ...question, id });
    } catch {
      waiting.delete(id);
      reject(new Error("saved view: browsing works, this needs a kernel"));
    }
  });
}

/**
 * Show in `place` that something is under way, its result by `show`, or its error; nothing once `current()` is false.
 * `working` names work that takes long, so that its wait does not count as a silent kernel.
 */
export async function showAnswer(place, promise, show, { current = () => true, working = null } = {}) {
  const put = (...nodes) => { if (current()) place.replaceChildren(...nodes); };
  const slow = setTimeout(() => put(
    notice("loading", working ?? "Working …"), h("progress", { "aria-label": "working" }),
  ), SLOW);
  const gone = working !== null ? null : setTimeout(() => put(notice(
    "kernel", "The kernel has not answered yet", "It is busy, or gone. What is on the page can be browsed all the same.",
    "What was asked for is shown when the kernel answers; a saved view needs a kernel for it.",
  )), PATIENCE);
  try {
    const answer = await promise;
    clearTimeout(slow);
    clearTimeout(gone);
    if (current()) show(answer);
  } catch (error) {
    clearTimeout(slow);
    clearTimeout(gone);
    const saved = error.message.startsWith("saved view");
    put(notice(saved ? "kernel" : "error", error.message));
  }
}
