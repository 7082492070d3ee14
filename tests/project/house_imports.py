"""Rules about imports, each a function from a checkout's root to what breaks it; all is read from the source.

A *room* is a folder of `fwl_lab` or of `widgets`, or a module that lies beside them (`widgets.theme`). Imports count
wherever they stand: at the top, in a function, under TYPE_CHECKING, by `importlib.import_module` or lazily.
"""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.project.source import PACKAGES, inside, last_name, modules, parse, room

#: Rooms in their order: a room imports from the rows above its own, and not from the others in its row.
ROWS = (
    ("fwl_lab.ops", "fwl_lab.corpora", "fwl_lab.trace"),
    ("fwl_lab.fast_weights", "fwl_lab.analysis"),
    ("fwl_lab.models",),
    ("fwl_lab.readers",),
    ("fwl_lab.training", "fwl_lab.profiling"),
    ("fwl_lab.inference",),
    ("fwl_lab.attribution", "fwl_lab.interventions", "fwl_lab.audit"),
    ("fwl_lab.testing",),
    ("widgets.theme",),
    ("widgets.core", "widgets.figures", "widgets.display"),
    ("widgets.views", "widgets.report"),
)
#: Rooms that may import less than the rows above would let them.
ONLY = {"fwl_lab.testing": ("fwl_lab.trace", "fwl_lab.analysis", "fwl_lab.audit.certificate")}

TORCH = ("torch", "transformers", "tokenizers", "safetensors")
DRAWING = ("plotly", "ipywidgets", "anywidget", "widgets")
TORCH_FREE = (
    "fwl_lab.trace",
    "fwl_lab.analysis",
    "fwl_lab.testing",
    "fwl_lab.audit.certificate",
    "fwl_lab.attribution.summary",
    "fwl_lab.interventions.surgery",
    "widgets",
)


def imported(name: str, path: Path) -> Iterator[tuple[str, str]]:
    """Yield (module, attribute) of all that a module imports; the attribute is empty where the module itself is."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((source, alias.name) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = last_name(node.func)
            if called in ("import_module", "__import__") and node.args and isinstance(node.args[0], ast.Constant):
                yield f"{node.args[0].value!s}", ""
            elif called == "attach":
                for table in (keyword.value for keyword in node.keywords if keyword.arg == "submod_attrs"):
                    keys = table.keys if isinstance(table, ast.Dict) else []
                    yield from ((f"{package}.{key.value!s}", "") for key in keys if isinstance(key, ast.Constant))


def graph(root: Path) -> dict[str, set[str]]:
    """Return which modules of the packages each of them imports."""
    known = modules(root)
    edges: dict[str, set[str]] = {}
    for name, path in known.items():
        targets = (
            f"{source}.{what}" if f"{source}.{what}" in known else source for source, what in imported(name, path)
        )
        edges[name] = {target for target in targets if target.partition(".")[0] in PACKAGES}
    return edges


def wrong_direction(root: Path) -> list[str]:
    """Find imports that go against the order of the rooms, and rooms that have no place in it."""
    row = {one: index for index, row in enumerate(ROWS) for one in row}
    found = []
    for name, targets in graph(root).items():
        here = room(name)
        if name in PACKAGES:  # the public names, which are imported when they are used
            continue
        if here not in row:
            found.append(f"{name} lies in no room of the table")
            continue
        for target in sorted(targets):
            there = room(target)
            if target in PACKAGES:
                if target == PACKAGES[0] and here.startswith("widgets."):  # the public names of the whole library
                    continue
                found.append(f"{name} imports {target}, whose names come from any room; name the module")
            elif there == here:
                continue
            elif there not in row:
                found.append(f"{name} imports {target}, which lies in no room of the table")
            elif row[there] >= row[here] or (here in ONLY and not inside(target, ONLY[here])):
                found.append(f"{name} imports {target}")
    return found


def module_circles(root: Path) -> list[str]:
    """Find modules that import each other, by whatever way."""
    return _circles(graph(root))


def room_circles(root: Path) -> list[str]:
    """Find rooms that import each other, by whatever way."""
    between: dict[str, set[str]] = {}
    for name, targets in graph(root).items():
        if name not in PACKAGES:
            ours = {room(target) for target in targets if target not in PACKAGES}
            between.setdefault(room(name), set()).update(ours - {room(name)})
    return _circles(between)


def torch_named(root: Path) -> list[str]:
    """Find torch-free modules that import torch or what comes with it, functions included."""
    return [
        f"{name} imports {source}"
        for name, path in modules(root).items()
        if inside(name, TORCH_FREE)
        for source, _ in imported(name, path)
        if inside(source, TORCH)
    ]


def torch_loaded(root: Path) -> list[str]:
    """Find torch-free modules whose import loads torch or what comes with it, in one fresh process for all."""
    names = [name for name in modules(root) if name == PACKAGES[0] or inside(name, TORCH_FREE)]
    code = f"""
import importlib, json, sys
found, loaded = [], set()
for name in {names}:
    try:
        importlib.import_module(name)
    except Exception as error:
        found.append(f"{{name}} cannot be imported: {{error!r}}")
    now = {{package for package in {TORCH} if package in sys.modules}}
    found += [f"{{name}} loads {{package}}" for package in sorted(now - loaded)]
    loaded |= now
print(json.dumps(found))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return list(json.loads(done.stdout))


def drawing_in_library(root: Path) -> list[str]:
    """Find modules of the library that import what draws."""
    return [
        f"{name} imports {source}"
        for name, path in modules(root).items()
        if inside(name, PACKAGES[:1])
        for source, _ in imported(name, path)
        if inside(source, DRAWING)
    ]


def _circles(edges: dict[str, set[str]]) -> list[str]:
    """Return what can reach itself; a pair or a longer circle is one entry."""

    def reached(start: str) -> set[str]:
        seen, waiting = set(), list(edges.get(start, ()))
        while waiting:
            one = waiting.pop()
            if one not in seen:
                seen.add(one)
                waiting += edges.get(one, ())
        return seen

    reach = {name: reached(name) for name in edges}
    circles = {tuple(sorted(o for o in reach[n] if n in reach.get(o, ()))) for n in edges if n in reach[n]}
    return [" - ".join(circle) for circle in sorted(circles)]
