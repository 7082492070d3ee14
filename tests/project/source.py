"""The packages' modules, by name, and their source."""

import ast
from functools import cache
from pathlib import Path

PACKAGES = ("fwl_lab", "widgets")


def modules(root: Path) -> dict[str, Path]:
    """Return the path of every module below the packages, by dotted name; a package goes by its folder's name."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def room(name: str) -> str:
    """Return the room of a module; a package itself is its own."""
    return ".".join(name.split(".")[:2])


def inside(name: str, places: tuple[str, ...]) -> bool:
    """Return whether a module is one of some modules or packages, or lies below one."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file; it is shared, so nobody changes it."""
    return _tree(path.read_text(encoding="utf-8"))


@cache
def _tree(text: str) -> ast.Module:
    return ast.parse(text)


def last_name(node: ast.AST) -> str:
    """Return the last part of a name, `c` of `a.b.c`; empty where the node is none."""
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
