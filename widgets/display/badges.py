"""Show which readers of a trace were certified: a badge each, which opens to its checks. HTML and CSS, no script."""

from typing import Final

import xarray as xr

from fwl_lab.audit.certificate import FAILED, HEADINGS, NOT_CHECKED, Certificate, certificates
from fwl_lab.trace.lookup import reader_names
from widgets import theme
from widgets.display.document import BETTER, GROUND, MUTED, TEXT_INK, WORSE, visible

FAILURES_NAMED: Final = 3  # in a badge; the rest are counted

# JupyterLab's and VS Code's themes do not set color-scheme, which light-dark() goes by.
_STYLE: Final = """
.fwl-badges { font: 13px/1.45 %(font)s; color: light-dark(%(ink)s); background: light-dark(%(ground)s);
  display: flex; flex-direction: column; gap: 6px; margin: 12px 0; }
body[data-jp-theme-light="true"] .fwl-badges, body.vscode-light .fwl-badges { color-scheme: light; }
body[data-jp-theme-light="false"] .fwl-badges, body.vscode-dark .fwl-badges { color-scheme: dark; }
.fwl-badges details { margin: 0; }
.fwl-badges details > summary { cursor: pointer; width: fit-content; font-size: 13px; color: inherit; }
.fwl-badges .fwl-badge { display: inline-block; padding: 2px 10px; border-radius: 11px;
  border: 1px solid light-dark(%(muted)s); unicode-bidi: isolate; }
.fwl-badges .certified { background: light-dark(%(better)s); }
.fwl-badges .failed { background: light-dark(%(worse)s); font-weight: 600; }
.fwl-badges .absent { border-style: dashed; margin-left: 1em; width: fit-content; }
.fwl-badges table { display: block; overflow-x: auto; border-collapse: collapse; margin: 6px 0 12px; font-size: 12px;
  font-variant-numeric: tabular-nums; }
.fwl-badges caption { text-align: left; padding: 2px 10px; color: light-dark(%(muted)s); }
.fwl-badges th, .fwl-badges td { padding: 3px 10px; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid light-dark(#e6e9ee, #2a2f38); }
.fwl-badges thead th { color: light-dark(%(muted)s); }
.fwl-badges tr.failed > * { font-weight: 600; }
.fwl-badges tr.unchecked > * { font-style: italic; }
"""


def badge_html(trace: xr.Dataset) -> str:
    """Return a badge for each reader: certified, failed and in what, or not certified; it opens to every check.

    Blue is certified, orange failed, dashed not certified; words say the same. Names and details may hold anything, and
    are shown as text.

    Raises
    ------
    ValueError
        The trace's attribute holds something else than certificates.
    """
    found = certificates(trace)
    badges = "".join(_badge(name, found.get(name)) for name in reader_names(trace))
    colours = {"ink": TEXT_INK, "ground": GROUND, "muted": MUTED, "better": BETTER, "worse": WORSE}
    style = _STYLE % {"font": theme.FONT, **{name: ", ".join(pair) for name, pair in colours.items()}}
    return f'<section class="fwl-badges" aria-label="Certificates"><style>{style}</style>{badges}</section>'


def badge_text(certificate: Certificate | None) -> str:
    """Return the words of a badge; None: the reader has no certificate."""
    if certificate is None:
        return "not certified"
    failed = [check.name for check in certificate.failures]
    if failed:
        more = f" and {len(failed) - FAILURES_NAMED} more" if len(failed) > FAILURES_NAMED else ""
        return f"failed: {', '.join(failed[:FAILURES_NAMED])}{more}"
    missing = sum(check.passed is None for check in certificate.checks)
    return f"certified, {missing} not checked" if missing else "certified"


def _badge(reader: str, certificate: Certificate | None) -> str:
    said = f"<b>{visible(theme.label(reader))}</b>: {visible(badge_text(certificate))}"
    if certificate is None:
        return f'<div class="fwl-badge absent"><span aria-hidden="true">○</span> {said}</div>'
    kind, symbol = ("certified", "✓") if certificate.passed else ("failed", "✗")
    badge = f'<span class="fwl-badge {kind}"><span aria-hidden="true">{symbol}</span> {said}</span>'
    return f"<details><summary>{badge}</summary>{_table(certificate)}</details>"


def _table(certificate: Certificate) -> str:
    head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
    rows = []
    for check in certificate.checks:
        name, *cells = (f"<bdi>{visible(text)}</bdi>" for text in check.texts())
        kind = {FAILED: ' class="failed"', NOT_CHECKED: ' class="unchecked"'}.get(check.result, "")
        rows.append(f'<tr{kind}><th scope="row">{name}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    caption = f"<caption>{visible(certificate.summary)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
