// A view's module is imported once a page, however often a cell makes the view: a browser never lets go of a module.
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
    return (await load(given.model.get("code"))).default.render(given);
  },
};
