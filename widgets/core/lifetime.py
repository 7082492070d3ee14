"""Close widgets that are no longer shown: running a cell again replaces the widgets that it made before.

Where nobody could use them, as in a batch run, widgets open no channel to a page, so that nothing of them is stored.
"""

from typing import Any, Final
from weakref import WeakSet

from comm import DummyComm
from IPython.core.getipython import get_ipython

# By cell: the run of it that made widgets, and those widgets.
_made: Final[dict[str, tuple[str, "WeakSet[Housed]"]]] = {}


def keep(widget: "Housed") -> None:
    """Note which cell made a widget, and close those that an earlier run of that cell made."""
    parent = _request()
    cell, run = parent.get("metadata", {}).get("cellId"), parent.get("header", {}).get("msg_id", "")
    if cell is None:
        return
    if cell in _made and _made[cell][0] != run:
        for old in list(_made.pop(cell)[1]):
            old.retire()
    _made.setdefault(cell, (run, WeakSet()))[1].add(widget)


def someone_is_there() -> bool:
    """Return whether a person could answer the running code: one in JupyterLab can, papermill cannot."""
    kernel = getattr(get_ipython(), "kernel", None)
    return kernel is not None and bool(getattr(kernel, "_allow_stdin", True))


class Housed:
    """Mixin before a kind of widget: it opens a channel to a page only where a person may see one."""

    comm: Any

    def retire(self) -> None:
        """Close, because the cell that made this was run again."""
        self.close()  # type: ignore[attr-defined]

    def open(self) -> None:
        """Open the channel to the page; a dummy where nobody is there."""
        if self.comm is None and not someone_is_there():
            self.comm = DummyComm(target_name="jupyter.widget")
        super().open()  # type: ignore[misc]


def _request() -> dict[str, Any]:
    """Return the message that the kernel is executing; empty elsewhere."""
    kernel = getattr(get_ipython(), "kernel", None)
    return dict(kernel.get_parent()) if kernel is not None else {}
