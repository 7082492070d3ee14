// A saved page: models and answers in place of the kernel and of JupyterLab's models, so that views run unchanged.

const revive = (key, value) =>
  value !== null && typeof value === "object" && typeof value.base64 === "string"
    ? new DataView(Uint8Array.from(atob(value.base64), (c) => c.charCodeAt(0)).buffer)
    : value;

/** Return a question as text, whatever the order of its fields; `widgets.core.wire.question_key` makes the same. */
const questionKey = ({ id, ...question }) =>
  `{${Object.keys(question).sort().map((name) => `${JSON.stringify(name)}:${JSON.stringify(question[name])}`).join(",")}}`;

class SavedModel {
  constructor({ state, answers }, models) {
    this.state = state;
    this.answers = answers;
    this.listeners = new Map();
    this.changed = new Set();
    this.widget_manager = { get_model: async (id) => models.get(id) };
  }

  get(name) { return this.state[name]; }

  set(name, value) {
    if (JSON.stringify(this.state[name]) === JSON.stringify(value)) return;
    this.state[name] = value;
    this.emit(`change:${name}`);
  }

  save_changes() {}

  send(question) {
    const answer = this.answers[questionKey(question)];
    const [content, buffers] = answer ?? [{ error: "saved view: browsing works, this needs a kernel" }, []];
    queueMicrotask(() => this.emit("msg:custom", { ...content, id: question.id }, buffers));
  }

  on(events, callback) {
    for (const event of events.split(" ")) {
      if (!this.listeners.has(event)) this.listeners.set(event, new Set());
      this.listeners.get(event).add(callback);
    }
  }

  off(events, callback) {
    for (const event of events.split(" ")) this.listeners.get(event)?.delete(callback);
  }

  emit(event, ...given) {
    for (const callback of this.listeners.get(event) ?? []) callback(...given);
  }
}

const saved = JSON.parse(document.getElementById("state").textContent, revive);
const models = new Map();
for (const [id, model] of Object.entries(saved)) models.set(id, new SavedModel(model, models));
const places = [...document.querySelectorAll("[data-model]")];
Promise.all(places.map((place) => {
  const id = place.dataset.model;
  const given = { model: models.get(id), el: place, signal: new AbortController().signal };
  return viewModules[saved[id].kind].render(given).catch((error) => {
    place.textContent = `This view could not be shown: ${error.message}. Save it again; if that does not help, it is a defect of the view.`;
    throw error;
  });
})).then(() => { document.body.dataset.ready = "true"; });
