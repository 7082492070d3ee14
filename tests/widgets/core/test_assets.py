"""Joining a view's modules: order, names, what is refused; and what all modules of the browser's side keep to."""

import re
import shutil
import subprocess

import pytest

from widgets.core.assets import JS, WIDGETS, join, source, style

VIEWS = sorted(path.parent.name for path in WIDGETS.glob("views/*/index.js"))
MODULES = sorted(path for path in WIDGETS.glob("**/*.js") if path.name not in ("page.js", "loader.js", "report.js"))
DEFAULT = "export default { render };\n"
NODE = shutil.which("node")


@pytest.fixture
def write(tmp_path):
    """Write files of modules below one folder, and return what joins them from a first one."""

    def write_and_join(files, entry="views/one/index.js"):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return join(tmp_path / entry, root=tmp_path)

    return write_and_join


def run(text):
    """Run a joined module in node; return what its `render` prints."""
    if NODE is None:
        pytest.skip("node is not here")
    script = text.replace("export default", "const view =") + "\nview.render();"
    done = subprocess.run([NODE, "--input-type=module"], input=script, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_a_module_comes_after_all_that_it_imports(write):
    text = write(
        {
            "views/one/index.js": 'import { a } from "./a.js";\nimport { c } from "../../core/c.js";\n'
            f"function render() {{ console.log(a, c); }}\n{DEFAULT}",
            "views/one/a.js": 'import { b } from "./b.js";\nexport const a = `a${b}`;\n',
            "views/one/b.js": 'import {\n  c as d,\n} from "../../core/c.js";\nexport const b = `b${d}`;\n',
            "core/c.js": 'export const c = "c";\n',
        }
    )
    assert re.findall(r"^// (.*)$", text, re.MULTILINE) == [
        "core/c.js",
        "views/one/b.js",
        "views/one/a.js",
        "views/one/index.js",
    ]
    assert text.count("export") == text.count("export default") == 1 and "import" not in text
    assert "const { c: d } = core_c;" in text
    assert run(text) == ["abc", "c"]


def test_names_of_two_files_never_meet(write):
    text = write(
        {
            "views/one/index.js": 'import { first } from "./first.js";\nimport { second } from "./second.js";\n'
            f"const kept = 3;\nfunction render() {{ console.log(first(), second(), kept); }}\n{DEFAULT}",
            "views/one/first.js": "let kept = 0;\nexport function first() { return kept += 1; }\n",
            "views/one/second.js": "let kept = 10;\nexport class Unused {}\nexport const second = () => kept += 1;\n",
        }
    )
    assert run(text) == ["1", "11", "3"]


def test_what_two_modules_share_is_one_thing(write):
    text = write(
        {
            "views/one/index.js": 'import { add } from "./add.js";\nimport { count } from "./count.js";\n'
            f"function render() {{ add(); console.log(count.size); }}\n{DEFAULT}",
            "views/one/add.js": 'import { count } from "./count.js";\nexport function add() { count.size += 1; }\n',
            "views/one/count.js": "export const count = { size: 1 };\n",
        }
    )
    assert run(text) == ["2"]


CIRCLE = {
    "views/one/index.js": f'import {{ a }} from "./a.js";\n{DEFAULT}',
    "views/one/a.js": 'import { b } from "./b.js";\nexport const a = 1;\n',
    "views/one/b.js": 'import { a } from "./a.js";\nexport const b = 1;\n',
}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (CIRCLE, r"in a circle: views/one/a\.js → views/one/b\.js → views/one/a\.js"),
        ({"views/one/index.js": f'import {{ render }} from "./index.js";\n{DEFAULT}'}, "circle"),
        (
            {
                "views/one/index.js": f'import {{ b }} from "./a.js";\n{DEFAULT}',
                "views/one/a.js": "const b = 1;\nexport const a = b;\n",
            },
            r"views/one/index\.js imports b, which views/one/a\.js does not export",
        ),
        (
            {
                "views/one/index.js": 'import { a } from "./a.js";\nimport { a } from "../../a.js";\n' + DEFAULT,
                "views/one/a.js": "export const a = 1;\n",
                "a.js": "export const a = 2;\n",
            },
            r"index\.js imports a twice",
        ),
        (
            {
                "views/one/index.js": f'import {{ a }} from "./a.js";\nexport function a() {{}}\n{DEFAULT}',
                "views/one/a.js": "export const a = 1;\n",
            },
            r"index\.js declares a twice",
        ),
        (
            {
                "views/one/index.js": 'import { a } from "./a-b.js";\nimport { b } from "./a_b.js";\n' + DEFAULT,
                "views/one/a-b.js": "export const a = 1;\n",
                "views/one/a_b.js": "export const b = 2;\n",
            },
            "would both be views_one_a_b",
        ),
        (
            {
                "views/one/index.js": f'import {{ a }} from "./a.js";\n{DEFAULT}',
                "views/one/a.js": f"export const a = 1;\nfunction render() {{}}\n{DEFAULT}",
            },
            r"a\.js has a default export",
        ),
        ({"views/one/index.js": "function render() {}\n"}, r"index\.js has no default export"),
        ({"views/one/index.js": f'import {{ h }} from "preact";\n{DEFAULT}'}, "named by its path"),
        ({"views/one/index.js": f'import {{ h }} from "../../../h.js";\n{DEFAULT}'}, "lies outside"),
    ],
)
def test_modules_that_do_not_fit_together_are_refused(write, files, said):
    with pytest.raises(ValueError, match=said):
        write(files)


def test_a_module_that_is_missing_is_named(write):
    with pytest.raises(FileNotFoundError, match=r"index\.js imports views/one/gone\.js, which does not exist"):
        write({"views/one/index.js": f'import {{ a }} from "./gone.js";\n{DEFAULT}'})


@pytest.mark.parametrize(
    "statement",
    [
        'import * as all from "./a.js";',
        'import all from "./a.js";',
        'import "./a.js";',
        "import { a } from './a.js';",
        '  import { a } from "./a.js";',
        'import { default as a } from "./a.js";',
        'export { a } from "./a.js";',
        'export * from "./a.js";',
        "const a = 1;\nexport { a };",
        "export let a = 1;",
        "export const { a } = { a: 1 };",
        "export default function render() {}",
        "export default { render };\nconst later = 1;",
        'const a = await import("./a.js");',
        "const here = import.meta.url;",
    ],
)
def test_other_syntax_of_modules_is_refused(write, statement):
    files = {"views/one/index.js": f"{statement}\n{DEFAULT}", "views/one/a.js": "export const a = 1;\n"}
    with pytest.raises(ValueError, match=r"index\.js: .* (is not supported|is no name to import)"):
        write(files)


def test_words_in_comments_and_keys_are_no_statements(write):
    text = write(
        {"views/one/index.js": f"// import(x) and\n/**\n * import.meta\n */\nconst a = {{\n  import: 1 }};\n{DEFAULT}"}
    )
    assert "const a" in text


# -- the views --------------------------------------------------------------------------------------------------------


def test_there_are_six_views():
    assert VIEWS == ["document_lens", "live_pad", "reader_compare", "receipts", "run_console", "update_scope"]


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_is_one_module_of_all_its_files(view):
    text = source(view)
    assert text.count("export default") == 1
    mine = {f"views/{view}/{path.name}" for path in (WIDGETS / "views" / view).glob("*.js")}
    joined = set(re.findall(r"^// ((?:core|views)/\S+\.js)$", text, re.MULTILINE))
    assert mine <= joined and {name for name in joined - mine if not name.startswith("core/js/")} == set()
    assert ".fwl-help" in style(view) and f".fwl-{view}" in style(view)


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.skipif(NODE is None, reason="node is not here")
def test_a_view_parses(view):
    command = [str(NODE), "--input-type=module", "--check"]
    done = subprocess.run(command, input=source(view), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_shared_module_is_used():
    joined = {name for view in VIEWS for name in re.findall(r"^// core/js/(\S+\.js)$", source(view), re.MULTILINE)}
    assert joined == {path.name for path in MODULES if path.parent == JS}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(WIDGETS)))
def test_a_module_asks_nothing_of_the_network_and_writes_no_markup(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\beval\(|innerHTML|outerHTML|insertAdjacentHTML|\bfetch\(", text)
    assert len(text.splitlines()) <= 300


@pytest.mark.parametrize("path", [JS / "page.js", JS / "common.css"], ids=lambda path: path.name)
def test_what_a_page_holds_names_no_address(path):
    text = path.read_text(encoding="utf-8")
    assert not re.search(r"https?://|\beval\(|innerHTML|outerHTML|insertAdjacentHTML|@import", text)
