"""Run a notebook into a folder and write a report that opens anywhere, without a network or a kernel.

    python -m widgets.report NOTEBOOK FOLDER [-p NAME VALUE]...

The notebook runs in the directory the command is given in, so that relative paths mean what they say there. The
executed notebook and ``report.html`` are left in FOLDER; a parameter ``output``, if the notebook has one and it is not
given, becomes FOLDER.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from widgets.report.render import write_report
from widgets.report.run import NotebookFailed, run_notebook


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command, and return its exit code: 0 done, 1 the notebook failed, 2 a mistake in the arguments."""
    parser = argparse.ArgumentParser(prog="python -m widgets.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("-p", "--parameter", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"))
    asked = parser.parse_args(arguments)
    try:
        executed = run_notebook(asked.notebook, asked.folder, dict(asked.parameter))
        print(write_report(executed, asked.folder / "report.html"))
    except NotebookFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except (FileNotFoundError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
