// Rules for the browser's side, its tests and this file. Node is only needed for linting and testing.

import js from "@eslint/js";
import globals from "globals";

export default [
  { ignores: [".venv/", "runs/", "docs/", "build/", "dist/"] },
  js.configs.recommended,
  {
    linterOptions: { reportUnusedDisableDirectives: "error" },
    rules: {
      "eqeqeq": "error",
      "prefer-const": ["error", { destructuring: "all" }],
      "no-var": "error",
      "no-undef": "error",
      "no-unused-vars": ["error", { ignoreRestSiblings: true }],
      "no-use-before-define": ["error", { functions: false, classes: true, variables: false }],
      "no-duplicate-imports": "error",
      "no-implicit-globals": "error",
      "no-throw-literal": "error",
      "no-eval": "error",
      "no-new-func": "error",
      "no-implied-eval": "error",
      "object-shorthand": "error",
      "prefer-template": "error",
      "max-lines": ["error", { max: 300 }],
    },
  },
  {
    files: ["widgets/**/*.js"],
    languageOptions: { globals: globals.browser },
    rules: {
      // `widgets/core/assets.py` joins a view's modules and reads only these forms of import and export.
      "no-restricted-syntax": [
        "error",
        { selector: "ImportDefaultSpecifier, ImportNamespaceSpecifier", message: "Import names: import { name } from \"./file.js\"." },
        { selector: "ExportAllDeclaration, ExportNamedDeclaration[source], ExportNamedDeclaration[declaration=null]",
          message: "Export where a name is declared: export function name() { … }." },
        { selector: "ExportNamedDeclaration > VariableDeclaration[kind!='const']", message: "Export what is never assigned again." },
        { selector: "ExportNamedDeclaration > VariableDeclaration[declarations.length>1]", message: "Export one name at a time." },
      ],
    },
  },
  // Scripts of a page rather than modules.
  { files: ["widgets/core/js/page.js"], languageOptions: { sourceType: "script", globals: { ...globals.browser, viewModules: "readonly" } }, rules: { "no-implicit-globals": "off" } },
  { files: ["widgets/report/report.js"], languageOptions: { sourceType: "script", globals: { ...globals.browser, Plotly: "readonly" } }, rules: { "no-implicit-globals": "off" } },
  { files: ["tests/js/**/*.js"], languageOptions: { globals: globals.node } },
];
