"""Show a document's text coloured by gain, token by token: one self-contained piece of HTML and CSS, no script.

Token texts may hold anything, and are never markup: characters that HTML reads are escaped, those that act on their
surroundings (controls, bidirectional overrides) are shown as symbols, and each token is isolated.
"""

import base64
import hashlib
import html
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import xarray as xr

from fwl_lab import analysis
from fwl_lab.trace.lookup import default_baseline, reader_names
from fwl_lab.trace.schema import DOCUMENT, DOCUMENT_NAME, NAT, NLL, READER, TOKEN, TOKEN_TEXT
from widgets import theme

#: Steps of colour on either side of a gain of 0.
COLOUR_STEPS: Final = 10
#: Ground, ink, and the ends of the diverging scale, for (light, dark). Ink reads at 4.5:1 or more on all of it.
GROUND: Final = ("#ffffff", "#14171c")
TEXT_INK: Final = ("#1b1f24", "#eceff4")
BETTER: Final = ("#5aa9e8", "#1c65b0")
WORSE: Final = ("#f5a04e", "#9c530c")
MUTED: Final = ("#5b6470", "#9aa3b0")

#: Letters without ink.
_BLANK: Final = "\u115f\u1160\u2800\u3164\uffa0"
#: Sign for a token without text: a later byte of a character that an earlier token shows.
LATER_BYTE: Final = "‧"
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>:root {{ color-scheme: light dark; }} body {{ margin: 2rem auto; max-width: 960px; padding: 0 1rem;
background: light-dark({ground[0]}, {ground[1]}); }}</style>
</head>
<body>
{body}
</body>
</html>
"""

# The inspected token is written into the bar below the text: `::after` of a token is placed against the outer box,
# so that it needs no script and is not cut off by the scrolling pane. JupyterLab's and VS Code's themes do not set
# color-scheme, which light-dark() goes by.
_STYLE: Final = """
.fwl-doc { position: relative; font: 13px/1.45 %(font)s; color: var(--fwl-ink); background: var(--fwl-ground);
  border: 1px solid light-dark(#d5d9e0, #353b45); border-radius: 8px; overflow: hidden; margin: 12px 0;
  --fwl-ground: light-dark(%(ground)s); --fwl-ink: light-dark(%(ink)s); --fwl-muted: light-dark(%(muted)s); }
body[data-jp-theme-light="true"] .fwl-doc, body.vscode-light .fwl-doc { color-scheme: light; }
body[data-jp-theme-light="false"] .fwl-doc, body.vscode-dark .fwl-doc { color-scheme: dark; }
.fwl-doc header { display: flex; flex-wrap: wrap; gap: 4px 24px; align-items: center; justify-content: space-between;
  padding: 10px 16px; border-bottom: 1px solid light-dark(#e6e9ee, #2a2f38); }
.fwl-doc header b { font-weight: 600; unicode-bidi: isolate; }
.fwl-doc header small, .fwl-doc footer { color: var(--fwl-muted); font-size: 12px; }
.fwl-doc .fwl-scale { display: flex; align-items: center; gap: 8px; font-size: 12px; color: var(--fwl-muted); }
.fwl-doc .fwl-steps { display: flex; }
.fwl-doc .fwl-steps i { display: block; width: 9px; height: 14px; overflow: hidden; }
.fwl-doc pre { margin: 0; padding: 14px 16px; max-height: 520px; overflow: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; font: 13px/1.75 ui-monospace, "JetBrains Mono", "SF Mono", Menlo, Consolas,
  "DejaVu Sans Mono", monospace; color: inherit; background: none; border: 0; tab-size: 4; }
.fwl-doc pre span { unicode-bidi: isolate; border-radius: 3px; padding: 2px 0; }
.fwl-doc pre span:hover { outline: 1.5px solid var(--fwl-ink); }
.fwl-doc pre i { font-style: normal; font-size: 0.85em; }
.fwl-doc pre .n::before { content: "↵"; opacity: 0.4; }
.fwl-doc pre .t::before { content: "⇥"; opacity: 0.4; }
.fwl-doc footer, .fwl-doc pre span:hover::after { box-sizing: border-box; height: 34px; padding: 8px 16px;
  line-height: 17px; white-space: pre; overflow: hidden; text-overflow: ellipsis; }
.fwl-doc footer { border-top: 1px solid light-dark(#e6e9ee, #2a2f38); }
.fwl-doc pre span:hover::after { position: absolute; left: 0; right: 0; bottom: 0; font: 12px/17px %(font)s;
  font-variant-numeric: tabular-nums; color: var(--fwl-ink); background: light-dark(#eef1f5, #232832); }
"""


@dataclass(frozen=True)
class DocumentView:
    """Piece of HTML that notebooks show, and that can be saved as a page of its own."""

    html: str
    title: str

    def __repr__(self) -> str:
        # A notebook stores it beside the HTML.
        return f"DocumentView({self.title!r})"

    def _repr_html_(self) -> str:
        return self.html

    def to_html(self, path: str | Path) -> Path:
        """Write a page that needs nothing else, and return its path."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        page = _PAGE.format(title=html.escape(self.title), ground=GROUND, body=self.html)
        path.write_text(page, encoding="utf-8")
        return path


def document_html(
    trace: xr.Dataset,
    *,
    reader: str,
    document: int = 0,
    baseline: str | None = None,
    start: int = 0,
    max_tokens: int | None = None,
    limit: float | None = None,
) -> DocumentView:
    """Return the text of one document, each token on a ground that shows its gain: blue better, orange worse.

    Pointing at a token shows it, its NLL by every reader and its gain.

    Parameters
    ----------
    reader : str
    document : int
        Index of the document.
    baseline : str, optional
        What gains are measured against; None: `fwl_lab.trace.lookup.default_baseline`.
    start : int
        Position of the first token to show.
    max_tokens : int, optional
        Number of tokens to show from there; None: all.
    limit : float, optional
        Gain at which colours are full, nats; None: 90 % of the tokens shown are below, and it is at least 0.5.

    Raises
    ------
    ValueError
        There is no such reader or document, the reader is its own baseline, or `max_tokens` or `limit` is not positive.
    """
    analysis.require_reader(trace, reader)
    baseline = default_baseline(trace) if baseline is None else baseline
    if reader == baseline:
        raise ValueError(f"reader {reader!r} is the baseline; choose another of them to see a gain")
    if not 0 <= document < trace.sizes[DOCUMENT]:
        raise ValueError(f"no document {document} in this trace; it holds {trace.sizes[DOCUMENT]}, counted from 0")
    tokens = np.flatnonzero(trace[DOCUMENT].values == document)
    if not 0 <= start < len(tokens):
        raise ValueError(f"start is {start}; expected 0 to {len(tokens) - 1}, positions in this document")
    if (max_tokens is not None and max_tokens < 1) or (limit is not None and not limit > 0):
        raise ValueError(f"max_tokens ({max_tokens}) and limit ({limit}) must be positive")
    shown = trace.isel({TOKEN: tokens[start:][:max_tokens]})
    gain = analysis.gain(shown, baseline).sel({READER: reader}).values
    if limit is None:
        limit = max(0.5, float(np.ceil(2 * np.quantile(np.abs(gain), 0.9)) / 2))
    readers = reader_names(trace)
    name = str(trace[DOCUMENT_NAME].values[document])
    body = _tokens(shown[TOKEN_TEXT].values.tolist(), shown[NLL].transpose(TOKEN, READER).values, gain, limit, start)
    # The identity follows from the content, so that equal views are equal text.
    identity = "fwl-" + hashlib.sha256(f"{name}\0{reader}\0{baseline}\0{body}".encode()).hexdigest()[:10]
    count, mean = f"{len(tokens):,} tokens", f"mean gain {gain.mean():+.3f} {NAT} / token"
    if len(gain) < len(tokens):
        count, mean = f"positions {start:,} to {start + len(gain) - 1:,} of {count}", f"{mean} in these"
    heading = f"{theme.label(reader)} against {theme.label(baseline)}"
    return DocumentView(
        f'<div class="fwl-doc" id="{identity}"><style>{_css(identity, readers)}</style>'
        f"<header><span><b>{html.escape(name)}</b><br><small>{html.escape(heading)} · {count} · {mean}</small></span>"
        f'{_scale(limit)}</header><pre dir="ltr">{body}</pre>'
        "<footer>Point at a token to see what each reader made of it.</footer></div>",
        f"{name}: {heading}",
    )


def picture(drawing: str, box: str, label: str) -> str:
    """Return SVG elements as an image on a light ground: a notebook that is not trusted shows no SVG in its text.

    Parameters
    ----------
    drawing : str
        XML; texts in it went through `quoted`.
    box : str
        The SVG's viewBox.
    label : str
        The image in words, for those who do not see it.
    """
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{box}" font-family="sans-serif" font-size="12" '
        f'style="background:{GROUND[0]}">{drawing}</svg>'
    )
    data = base64.b64encode(svg.encode()).decode()
    return f'<img alt="{html.escape(label)}" src="data:image/svg+xml;base64,{data}" width="100%">'


def visible(text: str) -> str:
    """Return token text as inert HTML in which line breaks, tabs and invisible controls can be seen."""
    return "".join(_character(c) for c in text)


def _character(c: str) -> str:
    if c == "\n":
        return '<i class="n"></i>\n'
    if c == "\t":
        return '<i class="t"></i>\t'
    return f"<i>{_symbol(c)}</i>" if _acts(c) else html.escape(c)


def _acts(c: str) -> bool:
    """Return whether a character acts on the page or has no ink; those that join emoji are let through."""
    return c not in "\u200d " and (unicodedata.category(c) in ("Cc", "Cf", "Zl", "Zp", "Zs", "Cn") or c in _BLANK)


def _symbol(c: str) -> str:
    """Return a visible stand-in: Unicode's control picture where there is one, else the code point."""
    if ord(c) < 0x20:
        return chr(0x2400 + ord(c))
    return "␡" if c == "\x7f" else f"⟨{ord(c):04X}⟩"


def quoted(text: str) -> str:
    """Return token text on one line, as text or as an attribute's value."""
    plain = "".join({"\n": "↵", "\t": "⇥"}.get(c) or (_symbol(c) if _acts(c) else c) for c in text)
    plain = plain or LATER_BYTE
    # Isolated here as well, by a pair of characters, since an attribute has no markup.
    return html.escape(f"\u2068{plain}\u2069")


def level(gain: np.ndarray, limit: float) -> np.ndarray:
    """Return the colour step of each gain, −COLOUR_STEPS..COLOUR_STEPS, linear up to `limit` nats."""
    return np.rint(np.clip(gain / limit, -1, 1) * COLOUR_STEPS).astype(int)


def colour(step: int, scheme: int) -> str:
    """Return the ground of a colour step as "#rrggbb"; `scheme` 0 is light, 1 dark."""
    end = (BETTER if step > 0 else WORSE)[scheme]
    share = abs(step) / COLOUR_STEPS
    mixed = [
        round((1 - share) * int(GROUND[scheme][i : i + 2], 16) + share * int(end[i : i + 2], 16)) for i in (1, 3, 5)
    ]
    return "#{:02x}{:02x}{:02x}".format(*mixed)


def _class(step: int) -> str:
    return f"p{step}" if step > 0 else f"m{-step}"


def _tokens(texts: list[str], nll: np.ndarray, gain: np.ndarray, limit: float, start: int) -> str:
    """Return one element a token; the bar's numbers are in its attributes, the words around them in the stylesheet."""
    parts = []
    rows = zip(texts, nll, gain, level(gain, limit), strict=True)
    for position, (text, row, value, step) in enumerate(rows, start):
        numbers = "".join(f' data-r{i}="{x:.2f}"' for i, x in enumerate(row))
        data = f'data-p="{position:,}" data-t="{quoted(text)}" data-g="{value:+.2f}"{numbers}'
        parts.append(f"<span {_ground(step)} {data}>{visible(text) or f'<i>{LATER_BYTE}</i>'}</span>")
    return "".join(parts)


def _ground(step: int) -> str:
    """Return attributes that colour an element; notebooks that are not trusted drop stylesheets, hence the style."""
    style = f' style="background-color:{colour(step, 0)};color:{TEXT_INK[0]}"' if step else ""
    return f'class="{_class(step)}"{style}'


def _css(identity: str, readers: list[str]) -> str:
    pairs = {"ground": GROUND, "ink": TEXT_INK, "muted": MUTED}
    style = _STYLE % {"font": theme.FONT, **{name: ", ".join(pair) for name, pair in pairs.items()}}
    grounds = "".join(
        f".fwl-doc .{_class(step)} {{ background: light-dark({colour(step, 0)}, {colour(step, 1)}) !important; "
        "color: var(--fwl-ink) !important; }\n"
        for step in range(-COLOUR_STEPS, COLOUR_STEPS + 1)
        if step
    )
    values = "".join(f' "   {_css_text(theme.label(name))} " attr(data-r{i})' for i, name in enumerate(readers))
    bar = f'attr(data-t) "   gain " attr(data-g) " {NAT}    NLL:"{values} "   position " attr(data-p)'
    return f"{style}{grounds}#{identity} pre span:hover::after {{ content: {bar}; }}"


def _css_text(text: str) -> str:
    """Return text for the inside of a CSS string: all but plain letters, digits and a few signs as code points."""
    return "".join(c if c.isascii() and (c.isalnum() or c in " _-.") else f"\\{ord(c):06x}" for c in text)


def _scale(limit: float) -> str:
    steps = "".join(f"<i {_ground(step)}>&nbsp;</i>" for step in range(-COLOUR_STEPS, COLOUR_STEPS + 1))
    return (
        f' <span class="fwl-scale"><span>worse −{limit:g}</span> <span class="fwl-steps">{steps}</span>'
        f" <span>+{limit:g} {NAT} better</span></span>"
    )
