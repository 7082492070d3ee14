"""Views that are no longer shown are closed: running a cell again replaces what it made before.

Where nobody could use them, as in a batch run, they open no way to a page, so that nothing of them is stored.
"""

from typing import Any, Final
from weakref import WeakSet

from comm import DummyComm
from IPython.core.getipython import get_ipython

# By cell: which run of it made the views, and the views.
_made: Final[dict[str, tuple[str, "WeakSet[Housed]"]]] = {}


def keep(view: "Housed") -> None:
    """Note which cell made a view, and close what an earlier run of that cell made."""
    parent = _request()
    cell, run = parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id", "")
    if cell is None:
        return
    if cell in _made and _made[cell][0] != run:
        for old in list(_made.pop(cell)[1]):
            old.retire()
    _made.setdefault(cell, (run, WeakSet()))[1].add(view)


def someone_is_there() -> bool:
    """Whether whoever runs the code could be asked something: a person in JupyterLab can, papermill cannot."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(getattr(kernel, "_allow_stdin", True))


class Housed:
    """Named before a kind of widget: one that talks to a page only where there is one."""

    comm: Any

    def retire(self) -> None:
        """The cell that made this was run again."""
        self.close()  # type: ignore[attr-defined]

    def open(self) -> None:
        """Open the way to the page; a dead end where nobody is there."""
        if self.comm is None and not someone_is_there():
            self.comm = DummyComm(target_name="jupyter.widget")
        super().open()  # type: ignore[misc]


def _request() -> dict[str, Any]:
    """The message that the kernel is executing; empty elsewhere."""
    kernel = getattr(get_ipython(), "kernel", None)
    return dict(kernel.get_parent()) if kernel is not None else {}
