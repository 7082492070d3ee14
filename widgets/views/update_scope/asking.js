// UpdateScope's questions to the kernel: one at a time, the one most wanted at that moment; answers are kept.

import { unpack } from "../../core/js/packing.js";

const KEPT_ANSWERS = 96;
const questionText = (question) => Object.entries(question).map(([name, value]) => `${name}=${value}`).join("|");

/** Pictures of Δθ and what goes with them, asked for as they are wanted. */
export class Pictures {
  /** Begin with no answers. `state` has order, zoom and ahead; `arrived()` is called after each answer. */
  constructor({ ask, place, norms, state, arrived, signal }) {
    Object.assign(this, { ask, place, norms, state, arrived, signal, answers: new Map(), failed: new Map(), busy: false, saved: null });
  }

  where() { return { reader: this.place.get("reader"), parameter: this.place.get("parameter") }; }

  /** Tell whether the selected reader adapts the selected parameter. */
  moves() { return this.norms.parameters(this.where().reader).some((entry) => entry.name === this.where().parameter); }

  // -- questions ------------------------------------------------------------------------------------------------------

  /** Return the question for the picture at a token; on a saved page, for the nearest one that it has of the document. */
  tile(at = this.place.get("token")) {
    const { reader, parameter } = this.where();
    if (this.saved === null) return { kind: "tile", order: this.state.order, reader, parameter, token: at, pinned: this.place.get("pinned") };
    return this.savedHere(at).reduce((best, q) => (best === null || Math.abs(q.token - at) < Math.abs(best.token - at) ? q : best), null);
  }

  savedHere(at) {
    const { reader, parameter } = this.where(), document = this.norms.document(at);
    return this.saved.filter((q) => q.reader === reader && q.parameter === parameter && this.norms.document(q.token) === document);
  }

  spectrum(of) { return of && { kind: "spectrum", reader: of.reader, parameter: of.parameter, token: of.token, pinned: of.pinned }; }

  peak() { return { kind: "peak", ...this.where(), document: this.norms.document(this.place.get("token")) }; }

  piece() {
    const { zoom } = this.state;
    return zoom === null || this.saved !== null ? null : { ...this.tile(), kind: "piece", row: zoom.row, column: zoom.column };
  }

  /** Return the questions from the most to the least wanted; null where one does not apply. */
  wanted() {
    if (!this.moves() || this.signal.aborted) return [];
    const tile = this.get(this.tile()), there = tile !== undefined && !tile.absent;
    const matrix = there && tile.codes !== undefined && tile.bad === null;
    return [this.tile(), there ? this.piece() : null, there ? this.peak() : null, matrix ? this.spectrum(this.tile()) : null,
      this.state.ahead === null ? null : this.tile(this.state.ahead)];
  }

  // -- answers --------------------------------------------------------------------------------------------------------

  get(question) { return question ? this.answers.get(questionText(question)) : undefined; }

  why(question) { return question ? this.failed.get(questionText(question)) : undefined; }

  has(question) { return this.get(question) !== undefined || this.why(question) !== undefined; }

  /** Ask for what is wanted until all of it is there or has failed. */
  async pump() {
    if (this.busy) return;
    this.busy = true;
    const next = () => this.wanted().find((question) => question && !this.has(question));
    for (let question = next(); question !== undefined; question = next()) {
      const key = questionText(question);
      try {
        const { content, buffers } = await this.ask(question);
        this.answers.set(key, content.columns ? { ...content, ...unpack(content.columns, buffers[0]) } : content);
        if (this.answers.size > KEPT_ANSWERS) this.answers.delete(this.answers.keys().next().value);
      } catch (error) {
        this.failed.set(key, error.message);
        if (error.message.startsWith("saved view")) await this.missed(question);
      }
      this.arrived();
    }
    this.busy = false;
  }

  /** Note that a saved page lacks a picture, and find out which it has: they are shown instead from now on. */
  async missed(question) {
    if (this.saved !== null) {
      this.saved = this.saved.filter((q) => questionText(q) !== questionText(question));
      return;
    }
    this.saved = [];
    this.state.zoom = null;
    try {
      this.saved = (await this.ask({ kind: "saved" })).content.tiles;
    } catch { /* the page has none at all */ }
    if (this.saved.length) this.state.order = this.saved[0].order;
  }
}
