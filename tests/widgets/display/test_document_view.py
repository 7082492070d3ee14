"""The coloured document: text stays text, colours mean what the legend says, and it can be read."""

import re

import numpy as np
import pytest
import xarray as xr
from bs4 import BeautifulSoup, Tag
from hypothesis import example, given
from hypothesis import strategies as st

from fwl_lab import analysis
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from tests.widgets.figures.test_figures import contrast
from widgets.display import document as document_view
from widgets.display.document import COLOUR_STEPS, document_html, visible

HOSTILE = [
    "<script>alert(1)</script>",
    "</style>",
    "</pre></div><img src=x onerror=alert(1)>",
    "<!--",
    "]]>",
    "\" onmouseover='alert(1)'",
    "&lt;&amp;",
    "\x00",
    "\u202eevil\u2066",
    "שלום",
    "🙂👩‍🚀",
    "\r",
    "\x1b[31m",
    "{x} %s $y {{z}}",
]


def _trace_of(texts: list[str], name: str = "a.py") -> xr.Dataset:
    trace = make_trace(tokens=len(texts), documents=1)
    return trace.assign_coords(
        {
            schema.TOKEN_TEXT: (schema.TOKEN, text_array(texts)),
            schema.DOCUMENT_NAME: (schema.DOCUMENT, text_array([name])),
        }
    )


def _parse(html: str) -> BeautifulSoup:
    return BeautifulSoup(html, "html.parser")


def _one(html: str, selector: str) -> Tag:
    found = _parse(html).select_one(selector)
    assert found is not None
    return found


def _shown(span: Tag) -> str:
    """A token's own text, without the marks that stand for what can't be seen."""
    return "".join(span.find_all(string=True, recursive=False))


def test_every_token_is_there_with_its_text():
    trace = _trace_of(["def", " f", "(", "x", "):", "\n    ", "return", "\t", " x", "\n"])
    spans = _parse(document_html(trace, reader="fwl").html).select("pre > span")
    assert [_shown(span) for span in spans] == trace.token_text.values.tolist()
    assert [mark["class"] for mark in _parse(document_html(trace, reader="fwl").html).select("pre i")] == [
        ["n"],
        ["t"],
        ["n"],
    ]


def test_markup_and_controls_in_tokens_are_inert():
    view = document_html(_trace_of(HOSTILE, name="<script>alert(1)</script>.py"), reader="fwl")
    tags = {tag.name for tag in _parse(view.html).find_all(True)}
    assert tags <= {"div", "style", "header", "span", "b", "br", "small", "i", "pre", "footer"}
    assert "<script" not in view.html
    spans = _parse(view.html).select("pre > span")
    assert len(spans) == len(HOSTILE)
    assert _shown(spans[0]) == HOSTILE[0]
    assert spans[5]["data-t"] == f"\u2068{HOSTILE[5]}\u2069"
    assert [spans[i].get_text() for i in (7, 8, 11, 12)] == ["␀", "⟨202E⟩evil⟨2066⟩", "␍", "␛[31m"]
    assert _one(view.html, "header b").get_text() == "<script>alert(1)</script>.py"
    assert not re.search("[\x00\u202e]", view.html)
    assert not any(attribute.startswith("on") for tag in _parse(view.html).find_all(True) for attribute in tag.attrs)


@given(st.text())
@example("</span><b>")
@example("\n\r\n\x85\u2028\u2029\ufeff")
def test_any_text_stays_text(text):
    parsed = _one(f"<pre>{visible(text)}</pre>", "pre")
    assert {tag.name for tag in parsed.find_all(True)} <= {"i"}
    expected = "".join(c for c in text if c in "\n\t" or not document_view._acts(c))
    assert "".join(parsed.find_all(string=True, recursive=False)) == expected


def test_a_reader_name_cannot_leave_the_stylesheet():
    trace = make_trace(tokens=30, readers=("base", '"}</style><script>alert(1)</script>'))
    html = document_html(trace, reader=str(trace.reader.values[1])).html
    assert "script>" not in _one(html, "style").get_text()
    assert not _parse(html).find("script")


def test_colour_follows_gain_and_the_bar_has_the_numbers():
    trace = make_trace(tokens=300, documents=2)
    view = document_html(trace, reader="fwl", document=1, limit=2.0)
    here = trace.document.values == 1
    gains = analysis.gain(trace).sel(reader="fwl").values[here]
    spans = _parse(view.html).select("pre > span")
    assert len(spans) == here.sum()
    for span, gain, nll in zip(spans, gains, trace.nll.sel(reader="fwl").values[here], strict=True):
        step = round(float(np.clip(gain / 2.0, -1, 1)) * COLOUR_STEPS)
        assert span["class"] == [f"p{step}" if step > 0 else f"m{-step}"]
        assert span["data-g"] == f"{gain:+.2f}"
        assert span["data-r3"] == f"{nll:.2f}"
    header = _one(view.html, "header").get_text(" ")
    assert "worse −2" in header
    assert "+2 nat better" in header
    assert f"mean gain {gains.mean():+.3f} nat / token" in header


def test_blue_is_better_and_orange_is_worse():
    for scheme in (0, 1):
        better, worse = document_view.colour(COLOUR_STEPS, scheme), document_view.colour(-COLOUR_STEPS, scheme)
        assert int(better[5:7], 16) > int(better[1:3], 16)
        assert int(worse[1:3], 16) > int(worse[5:7], 16)
        assert document_view.colour(0, scheme) == document_view.GROUND[scheme]


@pytest.mark.parametrize("scheme", [0, 1])
def test_text_reads_on_every_colour(scheme):
    ratios = [
        contrast(document_view.TEXT_INK[scheme], document_view.colour(s, scheme))
        for s in range(-COLOUR_STEPS, COLOUR_STEPS + 1)
    ]
    assert min(ratios) >= 4.5
    assert contrast(document_view.MUTED[scheme], document_view.GROUND[scheme]) >= 4.5


def test_the_default_limit_leaves_a_tenth_at_full_colour():
    trace = make_trace(tokens=2000, documents=1)
    gains = np.abs(analysis.gain(trace).sel(reader="fwl").values)
    header = _one(document_html(trace, reader="fwl").html, "header").get_text(" ")
    limit = float(re.search(r"\+([\d.]+) nat better", header).group(1))  # type: ignore[union-attr]
    assert 0 < (gains > limit).mean() <= 0.1
    assert (gains > limit - 0.5).mean() > 0.1


def test_four_thousand_tokens_are_less_than_a_megabyte_and_ask_for_nothing():
    html = document_html(make_trace(tokens=4096, documents=1), reader="fwl").html
    assert len(html.encode()) < 1_000_000
    assert not re.search(r"(src|href|@import|url\()", html)


def test_only_the_first_tokens_are_shown_when_asked():
    view = document_html(make_trace(tokens=100, documents=1), reader="fwl", max_tokens=7)
    assert len(_parse(view.html).select("pre > span")) == 7
    assert "positions 0 to 6 of 100 tokens" in view.html


def test_equal_views_are_equal_text_and_unlike_ones_keep_their_styles_apart():
    trace = make_trace()
    views = [document_html(trace, reader=reader) for reader in ("fwl", "fwl", "dynamic_evaluation")]
    assert views[0] == views[1]
    identities = [_one(view.html, "div")["id"] for view in views]
    assert identities[0] != identities[2]
    assert f"#{identities[2]} pre span:hover::after" in views[2].html


def test_a_saved_page_stands_alone(tmp_path):
    view = document_html(_trace_of(HOSTILE, name="<b>&"), reader="fwl")
    page = view.to_html(tmp_path / "new" / "page.html").read_text(encoding="utf-8")
    assert view._repr_html_() in page
    assert _one(page, "title").get_text() == "<b>&: FWL against base"
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reader": "nobody"}, "no reader 'nobody'"),
        ({"reader": "base"}, "is the baseline"),
        ({"reader": "fwl", "baseline": "nobody"}, "no reader 'nobody'"),
        ({"reader": "fwl", "document": 3}, "no document 3 in this trace; it holds 3"),
        ({"reader": "fwl", "max_tokens": 0}, "must be positive"),
        ({"reader": "fwl", "limit": -1.0}, "must be positive"),
        ({"reader": "fwl", "limit": float("nan")}, "must be positive"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        document_html(make_trace(), **arguments)
