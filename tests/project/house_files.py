"""Rules about files and what they say, each a function from a checkout's root to what breaks it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.project.source import PACKAGES, inside, last_name, modules, parse

FILES, LINES, LITERALS = 11, 330, 20
USUAL_NAMES = ("static", "dynamic_evaluation", "fwl", "neural_cache")
READERS = "fwl_lab.readers"  # the room that knows kinds of readers
TRACE = "fwl_lab.trace"  # the room that decodes a trace's reader configurations, and the function that does
DECODER = "decode_configurations"
CONFIGURATIONS = ("READERS", "readers")  # the constant and the text that name them in a trace
WRITTEN = {".py", ".js", ".css", ".md", ".ipynb"}


def full_folders(root: Path) -> list[str]:
    """Find folders with more than `FILES` files of one language; `__init__.py` does not count."""
    found = []
    for kind in (".py", ".js"):
        counts: dict[Path, int] = {}
        for path in _sources(root, kind):
            counts[path.parent] = counts.get(path.parent, 0) + (path.name != "__init__.py")
        found += [f"{_at(root, folder)}: {count} {kind} files" for folder, count in counts.items() if count > FILES]
    return found


def long_files(root: Path) -> list[str]:
    """Find files of more than `LINES` lines."""
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in _sources(root, ".py", ".js")}
    return [f"{_at(root, path)}: {length} lines" for path, length in lengths.items() if length > LINES]


def name_literals(root: Path) -> list[str]:
    """Return every literal of a usual reader's name."""
    found = []
    for path in _sources(root, ".py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.Constant) and node.value in USUAL_NAMES:
                found.append(f"{_at(root, path)}:{node.lineno} {node.value!r}")
    quoted = re.compile(rf"""(["'`])({"|".join(USUAL_NAMES)})\1""")
    for path in _sources(root, ".js"):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            found += [f"{_at(root, path)}:{number} {match[0]}" for match in quoted.finditer(line)]
    return found


def too_many_literals(root: Path) -> list[str]:
    """Return the literals of usual readers' names where they are more than `LITERALS`."""
    found = name_literals(root)
    return found if len(found) > LITERALS else []


def decisions_by_kind(root: Path) -> list[str]:
    """Find what asks for a reader's class, or for its name, outside the room of readers."""
    return [
        f"{_at(root, path)}:{line} {ast.unparse(node)}"
        for name, path in modules(root).items()
        if not inside(name, (READERS,))
        for node in ast.walk(parse(path))
        for line in _asks_for_kind(node)
    ]


def configurations_decoded(root: Path) -> list[str]:
    """Return the functions that decode a trace's reader configurations, or ask for the one that does."""
    found = []
    for name, path in modules(root).items():
        tree = parse(path)
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        loose = ast.Module([node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)], [])
        for scope in [*functions, loose]:
            nodes = list(ast.walk(scope))
            loads = any(isinstance(node, ast.Call) and last_name(node.func) == "loads" for node in nodes)
            named = any(last_name(node) == CONFIGURATIONS[0] or _is_key(node, CONFIGURATIONS[1]) for node in nodes)
            asks = any(last_name(node) == DECODER for node in nodes) and not inside(name, (TRACE,))
            if (loads and (named or getattr(scope, "name", "") == DECODER)) or asks:
                found.append(f"{_at(root, path)} {getattr(scope, 'name', 'at the top')}")
    return found


def decoded_elsewhere(root: Path) -> list[str]:
    """Find what decodes reader configurations besides the one function of the room of traces."""
    there = rf"fwl_lab/trace/\w+\.py {DECODER}"
    return [place for place in configurations_decoded(root) if not re.fullmatch(there, place)]


def undescribed_folders(root: Path) -> list[str]:
    """Find folders of modules whose `__init__.py` is missing or has no docstring."""
    found = []
    for folder in sorted({path.parent for path in _sources(root, ".py")}):
        opening = folder / "__init__.py"
        if not opening.exists() or not ast.get_docstring(parse(opening)):
            found.append(_at(root, folder))
    return found


def stale_names(root: Path) -> list[str]:
    """Find dotted names, in code, text and comments, of modules and attributes that are not there."""
    found = []
    folders = [*PACKAGES, "tests", "notebooks"]
    paths = [path for folder in folders for path in (root / folder).rglob("*") if path.suffix in WRITTEN]
    for path in sorted([*paths, *root.glob("*.md"), *root.glob("Makefile")]):
        if {".ipynb_checkpoints", "project"} & set(path.relative_to(root).parts):  # here are names that must not exist
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            names = re.findall(rf"(?<![\w./-])(?:{'|'.join(PACKAGES)})(?:\.[a-zA-Z_]\w*)+", line)
            found += [f"{_at(root, path)}:{number} {name}" for name in names if not _exists(root, name)]
    return found


def _sources(root: Path, *kinds: str) -> list[Path]:
    folders = (root / package for package in PACKAGES)
    return sorted(path for folder in folders for path in folder.rglob("*") if path.suffix in kinds)


def _at(root: Path, path: Path) -> str:
    return path.relative_to(root).as_posix()


def _is_key(node: ast.AST, key: str) -> bool:
    """Return whether a node looks something up under a text."""
    if isinstance(node, ast.Subscript):
        return isinstance(node.slice, ast.Constant) and node.slice.value == key
    if isinstance(node, ast.Call) and last_name(node.func) == "get" and node.args:
        return isinstance(node.args[0], ast.Constant) and node.args[0].value == key
    return False


def _names_a_kind(node: ast.AST) -> bool:
    """Return whether a node is the class of a kind of reader, its name, or a collection of such."""
    if isinstance(node, ast.Tuple | ast.List | ast.Set):
        return any(map(_names_a_kind, node.elts))
    if isinstance(node, ast.BinOp):
        return _names_a_kind(node.left) or _names_a_kind(node.right)
    name = node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else last_name(node)
    return re.fullmatch(r"[A-Za-z]\w*Reader", name) is not None


def _is_type(node: ast.AST) -> bool:
    """Return whether a node is `type(x)` or `x.__class__`."""
    called = isinstance(node, ast.Call) and last_name(node.func) == "type" and len(node.args) == 1
    return called or last_name(node) == "__class__"


def _asks_for_kind(node: ast.AST) -> Iterator[int]:
    """Yield the line where a node decides by a reader's class."""
    if isinstance(node, ast.Call) and last_name(node.func) in ("isinstance", "issubclass"):
        if len(node.args) == 2 and _names_a_kind(node.args[1]):
            yield node.lineno
    elif isinstance(node, ast.Compare):
        sides = [node.left, *node.comparators]
        by_name = (isinstance(one, ast.Attribute) and one.attr == "__name__" and _is_type(one.value) for one in sides)
        if any(map(_names_a_kind, sides)) or any(by_name):
            yield node.lineno
    elif isinstance(node, ast.MatchClass):
        if _names_a_kind(node.cls):
            yield node.lineno
    elif isinstance(node, ast.Dict) and any(key is not None and _names_a_kind(key) for key in node.keys):
        yield node.lineno


def _exists(root: Path, name: str) -> bool:
    """Return whether a dotted name is a module, or begins with one that has the next part as a name of its own."""
    path, parts = root, name.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").exists():
        path /= f"{parts.pop(0)}.py"
    if not parts or parts[0].startswith("__"):
        return True
    source = path / "__init__.py" if path.is_dir() else path
    nodes = list(ast.walk(parse(source))) if source.exists() else []
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)}
    imports = (node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom))
    aliases = {alias.asname or alias.name for node in imports for alias in node.names}
    own = {getattr(node, "name", "") for node in nodes} | {node.id for node in nodes if isinstance(node, ast.Name)}
    return parts[0] in texts | aliases | own
