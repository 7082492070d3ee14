"""ReaderCompare: gains of readers with intervals, where they come from, what they cost, and settings that differ."""

from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Final

import numpy as np
import xarray as xr

from fwl_lab import analysis
from fwl_lab.audit.certificate import HEADINGS, Certificate
from fwl_lab.trace import schema
from widgets import theme
from widgets.core.assets import source, style
from widgets.core.packing import pack
from widgets.core.selection import Selection, require_tokens
from widgets.core.view import View
from widgets.core.wire import Answer
from widgets.display.badges import badge_text
from widgets.display.comparisons import breakdown_record
from widgets.display.document import GROUND, MUTED, TEXT_INK, picture, quoted, visible
from widgets.display.numbers import signed
from widgets.views.reader_compare import runs as compared_runs

#: Buckets that the longest document is cut into, at most; each holds a power of two of tokens.
_POSITION_BUCKETS: Final = 12
#: Points of a line in the still picture, and the picture's size.
_PICTURE_POINTS: Final = 160
_PICTURE_SIZE: Final = (640, 200)

#: Line styles as SVG has them.
_SVG_DASHES: Final = {"dot": "2 4", "dash": "7 5", "longdash": "13 5", "dashdot": "8 4 2 4", "longdashdot": "14 4 2 4"}
# JupyterLab's themes do not set color-scheme, which light-dark() goes by.
_STYLE: Final = """
.fwl-compared { color-scheme: light dark; font: 13px/1.45 %(font)s; color: light-dark(%(ink)s); max-width: 760px;
  background: light-dark(%(ground)s); padding: 8px 12px; font-variant-numeric: tabular-nums; }
body[data-jp-theme-light="true"] .fwl-compared { color-scheme: light; }
body[data-jp-theme-light="false"] .fwl-compared { color-scheme: dark; }
.fwl-compared table { color: inherit; font: inherit; border-collapse: collapse; margin: 0; }
.fwl-compared :is(th, td) { padding: 2px 14px 2px 0; text-align: left; font-weight: 400; background: none; }
.fwl-compared thead th { color: light-dark(%(muted)s); }
"""

_BREAKDOWNS: Final = {
    "position": "position in the document",
    "occurrence": "earlier occurrences in the document",
    "repetition": "repetition",
    "class": "kind of token",
    "frequency": "frequency in training",
}


class ReaderCompare(View):
    """Readers, or runs, side by side: figures with intervals, settings that differ, and the sources of the gain.

    Parameters
    ----------
    trace : Dataset, or mapping from name of a run to Dataset
        Several runs must be over the same tokens. The first one's readers keep their names, the others' are called
        "run: reader"; a reader that was the same in both is not repeated.
    selection : Selection, optional
        Shared with other views; with several runs, one of `ReaderCompare(...).trace`, which holds all readers.
    counts : (V,) int, optional
        How often each token id occurs in the model's training split; with it, gain by frequency is shown.

    Raises
    ------
    ValueError
        The runs are of unlike tokens; `selection` does not know a reader that is compared; `counts` does not fit.
    """

    _esm = source("reader_compare")
    _css = style("reader_compare")

    def __init__(
        self,
        trace: xr.Dataset | Mapping[str, xr.Dataset],
        *,
        selection: Selection | None = None,
        counts: np.ndarray | None = None,
    ) -> None:
        # A Dataset is a mapping, too.
        runs = dict(trace) if isinstance(trace, Mapping) and not isinstance(trace, xr.Dataset) else {"": trace}
        for one in runs.values():
            require_tokens(one)
        found = compared_runs.sources(runs)
        unknown = [name for name in found if selection is not None and name not in selection.readers]
        if unknown:
            raise ValueError(
                f"the selection knows no reader {', '.join(map(repr, unknown))}; expected one made for all runs: "
                "compare = ReaderCompare(runs), then selection=compare.selection in the other views"
            )
        self._scores: xr.Dataset | None = compared_runs.together(runs, found)
        self._counts = counts
        self._known: dict[tuple[str, ...], dict[str, Any]] = {}
        if counts is not None:
            _check_counts(counts, self._scores)
        at, sums = compared_runs.cumulative_points(self._scores)
        layout, data = pack({"at": at, "sums": sums})
        head = {
            "columns": layout,
            "readers": compared_runs.styles(runs, found),
            "order": list(found),
            "runs": list(runs),
            "figures": compared_runs.plain_figures(self._scores),
            "documents": compared_runs.documents(self._scores),
            "tokens": self._scores.sizes[schema.TOKEN],
            "exact": len(at) == self._scores.sizes[schema.TOKEN] + 1,
            "badges": {name: _badge(found) for name, found in compared_runs.badges(runs, found).items()},
            "headings": list(HEADINGS),
            "settings": compared_runs.settings(runs, found),
            "breakdowns": [[by, text] for by, text in _BREAKDOWNS.items() if by != "frequency" or counts is not None],
            "strange": compared_runs.not_finite(self._scores),
        }
        whole = trace if isinstance(trace, xr.Dataset) else self._scores
        super().__init__(whole, selection=selection, head=head, data=data)

    def answer(self, question: Mapping[str, Any]) -> Answer | Future[Answer]:
        """Answer "intervals" and "breakdown", over a baseline, and "stretch" (gains over some tokens)."""
        if self._scores is None:
            raise ValueError("this view was closed; run its cell again")
        baseline = str(question.get("baseline"))
        match question.get("kind"):
            case "intervals":
                return self._once(("intervals", baseline), lambda scores: compared_runs.intervals(scores, baseline)), []
            case "breakdown":
                by = str(question.get("by"))
                return self._once((by, baseline), lambda scores: self._breakdown(scores, by, baseline)), []
            case "stretch":
                return compared_runs.stretch(self._scores, int(question["start"]), int(question["stop"]), baseline), []
        return super().answer(question)

    def foreseen(self) -> Iterable[dict[str, Any]]:
        """Yield intervals and breakdowns over each baseline, the selected one first."""
        assert self.selection is not None
        first = self.selection.baseline
        for baseline in sorted(self.head["order"], key=lambda name: name != first):
            yield {"kind": "intervals", "baseline": baseline}
            for by, _ in self.head["breakdowns"]:
                yield {"kind": "breakdown", "by": by, "baseline": baseline}

    def fallback_html(self) -> str:
        """Return cumulative gains and figures as a still picture."""
        assert self.selection is not None and self._scores is not None
        return still_picture(self.head, self._scores, self.selection.baseline)

    def close(self) -> None:
        """Close the view, and release the scores and the answers kept."""
        super().close()
        self._scores = None
        self._known = {}  # also of a view that refused its arguments

    def _once(self, key: tuple[str, ...], compute: Callable[[xr.Dataset], dict[str, Any]]) -> dict[str, Any]:
        """Return what does not change; it is computed once."""
        assert self._scores is not None
        if key not in self._known:
            self._known[key] = compute(self._scores)
        return self._known[key]

    def _breakdown(self, scores: xr.Dataset, by: str, baseline: str) -> dict[str, Any]:
        match by:
            case "position":
                longest = int(scores[schema.POSITION].max()) + 1
                bucket = 2 ** max(int(np.ceil(np.log2(longest / _POSITION_BUCKETS))), 4)
                result = analysis.gain_by_position(scores, bucket, baseline=baseline)
            case "occurrence":
                result = analysis.gain_by_occurrence(scores, baseline=baseline)
            case "repetition":
                result = analysis.gain_by_repetition(scores, baseline=baseline)
            case "class":
                result = analysis.gain_by_token_class(scores, baseline=baseline)
            case "frequency" if self._counts is not None:
                result = analysis.gain_by_frequency(scores, self._counts, baseline=baseline)
            case "frequency":
                raise ValueError("how often tokens occur in training is not known: ReaderCompare(trace, counts=...)")
            case _:
                raise ValueError(f"no breakdown by {by!r}; expected one of {', '.join(_BREAKDOWNS)}")
        return {"title": _BREAKDOWNS[by], "buckets": breakdown_record(result)} | compared_runs.method(result)


def still_picture(head: Mapping[str, Any], scores: xr.Dataset, baseline: str) -> str:
    """Return cumulative gains and figures, without intervals, as inert HTML."""
    at, sums = compared_runs.cumulative_points(scores, _PICTURE_POINTS)
    row = head["order"].index(baseline)
    gains = sums[row] - sums
    width, height = _PICTURE_SIZE
    known = gains[np.isfinite(gains)]
    low, high = min(known.min(initial=0), 0.0), max(known.max(initial=0), 1e-9)
    y = (1 - (gains - low) / (high - low)) * height
    lines = "".join(
        f'<polyline fill="none" stroke-width="2" stroke="{head["readers"][name]["colour"]}" '
        f'stroke-dasharray="{_SVG_DASHES.get(head["readers"][name]["dash"], "")}" points="'
        + " ".join(f"{x:.1f},{v:.1f}" for x, v in zip(at / at[-1] * width, line, strict=True) if np.isfinite(v))
        + '"/>'
        for name, line in zip(head["order"], y, strict=True)
    )
    texts = []
    for name in head["order"]:
        figures, reader = head["figures"][name], head["readers"][name]
        mean = "not finite" if figures["nll"] is None else f"{figures['nll']:.3f}"
        total = gains[head["order"].index(name), -1] / at[-1]
        gain = "baseline" if name == baseline else signed(total) if np.isfinite(total) else "not finite"
        texts.append(
            f'<tr><th scope="row"><span style="color:{reader["colour"]}">■</span> '
            f"{visible(reader['label'])}</th><td>{mean}</td><td>{gain}</td>"
            f"<td>{visible(head['badges'][name]['text'])}</td></tr>"
        )
    pairs = {"ground": GROUND, "ink": TEXT_INK, "muted": MUTED}
    look = _STYLE % {"font": theme.FONT, **{name: ", ".join(pair) for name, pair in pairs.items()}}
    over = f"over {visible(head['readers'][baseline]['label'])}"
    drawing = (
        f'<g fill="{MUTED[0]}"><text y="-6">cumulative gain over {quoted(head["readers"][baseline]["label"])}, up to '
        f'{high:+,.0f} nat</text><text x="{width}" y="{height + 18}" text-anchor="end">{at[-1]:,} tokens</text></g>'
    )
    image = picture(drawing + lines, f"-4 -18 {width + 8} {height + 40}", "cumulative gains")
    image = f'<div style="max-width:{width}px">{image}</div>'
    heads = "".join(
        f'<th scope="col">{text}</th>' for text in ("reader", "NLL [nat/token]", f"gain {over}", "certificate")
    )
    return (
        f'<div class="fwl-compared"><style>{look}</style>{image}<table><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(texts)}</tbody></table></div>"
    )


def _badge(certificate: Certificate | None) -> dict[str, Any]:
    """Return a certificate for the browser: its state, its badge's words, and a row of texts a check."""
    if certificate is None:
        return {"state": "absent", "text": badge_text(None), "rows": [], "summary": "not certified"}
    state = "passed" if certificate.passed else "failed"
    rows = [list(check.texts()) for check in certificate.checks]
    return {"state": state, "text": badge_text(certificate), "rows": rows, "summary": certificate.summary}


def _check_counts(counts: np.ndarray, scores: xr.Dataset) -> None:
    """Raise ValueError at once, and not when the breakdown is looked at."""
    top = int(scores[schema.TOKEN_ID].max())
    if np.ndim(counts) != 1 or len(counts) <= top or np.min(counts) < 0:
        raise ValueError(
            f"counts must be one number, 0 or more, for each token id up to {top}, not shape {np.shape(counts)}"
        )
