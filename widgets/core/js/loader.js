// Import a view's module once a page, however often a cell makes the view: browsers never free a module.
const modules = (globalThis.fwlLabModules ??= new Map());

function load(code) {
  if (!modules.has(code)) {
    const address = URL.createObjectURL(new Blob([code], { type: "text/javascript" }));
    modules.set(code, import(address).finally(() => URL.revokeObjectURL(address)));
  }
  return modules.get(code);
}

export default {
  async render(given) {
    const { default: view } = await load(given.model.get("code"));
    try {
      return await view.render(given);
    } catch (error) {
      given.el.textContent = error.message === "widget model not found"
        ? "This view was closed before it could be shown; run its cell again."
        : `This view could not be shown (${error.message}). Run its cell again; if that does not help, it is a defect of the view: the browser's console says where.`;
      if (error.message !== "widget model not found") throw error;
    }
  },
};
