"""Join the modules and style sheets of a view as text for the browser.

The files of the browser's side are ES modules that import one another by relative paths, so that editors, ESLint and
node follow them. A notebook hands the browser one text, so :func:`source` joins a view's modules when its class is
made; no build step and no node is needed. Of the module syntax it reads the following, each at the start of a line::

    import { name, other as alias } from "./file.js";
    export function name() {}      also async function, class, and const with one name
    export default { name };       once, at the end of the first module

Everything else that begins with ``import`` or ``export`` is refused.
"""

import re
from pathlib import Path
from typing import Final, NamedTuple

WIDGETS: Final = Path(__file__).parent.parent
JS: Final = Path(__file__).parent / "js"

_IMPORT: Final = re.compile(r'^import \{([^{}]*)\} from "([^"\n]+)";$', re.MULTILINE)
_EXPORT: Final = re.compile(
    r"^export (?=(?:async function|function|class) ?\*? ?([A-Za-z_$][\w$]*)|const ([A-Za-z_$][\w$]*) =)", re.MULTILINE
)
_DEFAULT: Final = re.compile(r"^export default (?=\{[^{}]*\};\s*\Z)", re.MULTILINE)
_NAME: Final = re.compile(r"([A-Za-z_$][\w$]*)(?: as ([A-Za-z_$][\w$]*))?")
# A statement that is left when those above are taken out, and imports at run time, which have no place in one text.
_OTHER: Final = re.compile(r"^[ \t]*(?:import|export)\b(?!\s*:).*|^(?!\s*(?://|\*)).*\bimport\s*[(.].*", re.MULTILINE)


class _Module(NamedTuple):
    """A module as it was read.

    Attributes
    ----------
    body : str
        Text without its imports, exported declarations without the word ``export``.
    imports : dict
        By file: pairs of the name that the file exports and the name it has here.
    exports : list of str
    default : bool
        Whether it ends with a default export, which is then a ``return`` of the body.
    """

    body: str
    imports: dict[Path, list[tuple[str, str]]]
    exports: list[str]
    default: bool


def source(view: str) -> str:
    """Return the ES module of a view: ``views/<view>/index.js`` and all that it imports, as one text.

    Raises
    ------
    FileNotFoundError, ValueError
        See :func:`join`.
    """
    return join(WIDGETS / "views" / view / "index.js", root=WIDGETS)


def style(view: str) -> str:
    """Return the style sheet of a view, after the one that views share."""
    paths = (JS / "common.css", WIDGETS / "views" / view / "style.css")
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def join(entry: Path, *, root: Path) -> str:
    """Join a module and those it imports as one module with the entry's default export.

    Each module becomes a function that returns what it exports, called once, in an order in which each comes after
    all that it imports. Names at the top of two files therefore never meet. A comment tells where each file begins.

    Parameters
    ----------
    entry
        Module whose ``export default`` becomes that of the text.
    root
        Folder that all modules lie in; their names in the text are their paths below it.

    Raises
    ------
    FileNotFoundError
        A module that is imported does not exist.
    ValueError
        A circle of imports, a name that is not exported or imported twice, a file outside of `root`, two files whose
        paths give one name, a default export that is missing or not in the entry, or syntax that is not supported.
    """
    root, entry = root.resolve(), entry.resolve()
    modules = _graph(entry, root)
    scopes: dict[str, Path] = {}
    pieces: list[str] = []
    for path, module in modules.items():
        scope = _scope(path, root)
        if (other := scopes.setdefault(scope, path)) != path:
            raise ValueError(f"{_below(other, root)} and {_below(path, root)} would both be {scope}; rename one")
        if module.default != (path == entry):
            raise ValueError(
                f"{_below(path, root)} has {'a' if module.default else 'no'} default export; "
                "the first module of a view ends with `export default { render };`, no other has one"
            )
        lines = [f"// {_below(path, root)}"]
        lines += ["export default (() => {" if path == entry else f"const {scope} = (() => {{"]
        for file, names in module.imports.items():
            taken = ", ".join(name if name == alias else f"{name}: {alias}" for name, alias in names)
            lines += [f"const {{ {taken} }} = {_scope(file, root)};"]
        lines += [module.body.strip("\n")]
        lines += [] if path == entry else [f"return {{ {', '.join(module.exports)} }};"]
        pieces.append("\n".join([*lines, "})();\n"]))
    return "\n".join(pieces)


def _graph(entry: Path, root: Path) -> dict[Path, _Module]:
    """Return the modules that an entry needs, each after all that it imports."""
    done: dict[Path, _Module] = {}
    open_: list[Path] = []

    def visit(path: Path) -> None:
        if path in done:
            return
        if path in open_:
            circle = [*open_[open_.index(path) :], path]
            raise ValueError(f"modules import one another in a circle: {' → '.join(_below(p, root) for p in circle)}")
        open_.append(path)
        module = _read(path, root)
        for file, names in module.imports.items():
            if not file.is_file():
                raise FileNotFoundError(f"{_below(path, root)} imports {_below(file, root)}, which does not exist")
            visit(file)
            for name, _ in names:
                if name not in done[file].exports:
                    raise ValueError(f"{_below(path, root)} imports {name}, which {_below(file, root)} does not export")
        open_.pop()
        done[path] = module

    visit(entry)
    return done


def _read(path: Path, root: Path) -> _Module:
    """Read a module: take out its imports and note what it exports."""
    where, text = _below(path, root), path.read_text(encoding="utf-8")
    imports: dict[Path, list[tuple[str, str]]] = {}
    known: set[str] = set()
    for clause, target in _IMPORT.findall(text):
        if not target.startswith(("./", "../")):
            raise ValueError(f'{where} imports "{target}"; a module is named by its path: "./file.js"')
        file = (path.parent / target).resolve()
        if not file.is_relative_to(root):
            raise ValueError(f'{where} imports "{target}", which lies outside of {root.name}')
        for part in filter(None, (piece.strip() for piece in clause.split(","))):
            match = _NAME.fullmatch(part)
            if match is None or match[1] == "default":
                raise ValueError(f"{where}: `{part}` is no name to import; write `name` or `name as alias`")
            name, alias = match[1], match[2] or match[1]
            if alias in known:
                raise ValueError(f"{where} imports {alias} twice")
            known.add(alias)
            imports.setdefault(file, []).append((name, alias))
    body = _IMPORT.sub("", text)
    exports = [function or constant for function, constant in _EXPORT.findall(body)]
    if twice := sorted({name for name in exports if exports.count(name) > 1 or name in known}):
        raise ValueError(f"{where} declares {twice[0]} twice")
    body, default = _DEFAULT.subn("return ", _EXPORT.sub("", body))
    if other := _OTHER.search(body):
        raise ValueError(
            f'{where}: `{other[0].strip()}` is not supported; write `import {{ name }} from "./file.js";`, '
            "`export` before a function, a class or a const of one name, and a default export at the end"
        )
    return _Module(body, imports, exports, bool(default))


def _scope(path: Path, root: Path) -> str:
    """Return the name of a module in the joined text, made of its path."""
    return re.sub(r"\W", "_", _below(path, root).removesuffix(".js"))


def _below(path: Path, root: Path) -> str:
    """Return a module's path below `root`, for messages and comments."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)
