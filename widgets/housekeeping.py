"""Views that are no longer shown are closed: running a cell again replaces what it made before."""

from typing import Any, Final
from weakref import WeakSet

from IPython.core.getipython import get_ipython
from ipywidgets import Widget

# By cell: which run of it made the views, and the views.
_made: Final[dict[str, tuple[str, WeakSet[Widget]]]] = {}


def keep(view: Widget) -> None:
    """Note which cell made a view, and close what an earlier run of that cell made."""
    parent = _request()
    cell, run = parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id", "")
    if cell is None:
        return
    if cell in _made and _made[cell][0] != run:
        for old in list(_made.pop(cell)[1]):
            old.close()
    _made.setdefault(cell, (run, WeakSet()))[1].add(view)


def someone_is_there() -> bool:
    """Whether whoever runs the code could be asked something: a person in JupyterLab can, papermill cannot."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(getattr(kernel, "_allow_stdin", True))


def _request() -> dict[str, Any]:
    """The message that the kernel is executing; empty elsewhere."""
    kernel = getattr(get_ipython(), "kernel", None)
    return dict(kernel.get_parent()) if kernel is not None else {}
