"""Badges say of each reader what its certificate says, in words, and stay text."""

import re

import pytest
import xarray as xr
from bs4 import BeautifulSoup, Tag

from fwl_lab import Certificate, Check, add_certificates
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema
from fwl_lab.trace.arrays import text_array
from tests.widgets.display.test_document_view import HOSTILE
from tests.widgets.figures.test_figures import contrast
from widgets.display.badges import badge_html, badge_text
from widgets.display.document import BETTER, GROUND, MUTED, TEXT_INK, WORSE

GOOD = Check("causality", True, 0.0, 0.0, "nat", "all places")
BAD = Check("padding", False, 0.5, 5e-5, "nat", "token 7 has another score")
NONE = Check("fork", None, None, 0.0, "nat", "the reader has no fork()")


def _parse(trace: xr.Dataset) -> BeautifulSoup:
    return BeautifulSoup(badge_html(trace), "html.parser")


@pytest.fixture
def trace() -> xr.Dataset:
    found = {
        "fwl": Certificate((GOOD,)),
        "dynamic_evaluation": Certificate((GOOD, BAD)),
        "base": Certificate((GOOD, NONE)),
    }
    return add_certificates(make_trace(tokens=20, documents=1, recorded=False), found)


def _texts(page: BeautifulSoup) -> list[str]:
    return [badge.get_text(" ", strip=True) for badge in page.select(".fwl-badge")]


def test_every_reader_has_a_badge_that_says_how_it_stands(trace: xr.Dataset) -> None:
    page = _parse(trace)
    assert _texts(page) == [
        "✓ base : certified, 1 not checked",
        "○ static : not certified",
        "✗ dynamic evaluation : failed: padding",
        "✓ FWL : certified",
    ]
    kinds = [badge.get("class") for badge in page.select(".fwl-badge")]
    assert [kind[-1] for kind in kinds if isinstance(kind, list)] == ["certified", "absent", "failed", "certified"]
    assert all(symbol.get("aria-hidden") == "true" for symbol in page.select(".fwl-badge > span"))


def test_behind_a_badge_stand_the_checks(trace: xr.Dataset) -> None:
    page = _parse(trace)
    assert len(page.select("details")) == 3  # none for what was not certified
    details = page.select("details")[1]
    rows = [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in details.select("tr")]
    assert rows[0] == ["check", "result", "worst", "limit", "unit", "detail"]
    assert rows[1:] == [["causality", "passed", "0", "0", "nat", "all places"],
                        ["padding", "failed", "0.5", "5e-05", "nat", "token 7 has another score"]]  # fmt: skip
    assert [row.get("class") for row in details.select("tbody tr")] == [None, ["failed"]]
    caption = details.caption
    assert isinstance(caption, Tag) and caption.get_text() == "NOT certified: 1 passed, 1 failed, 0 not checked"
    assert {cell.get("scope") for cell in details.select("th")} == {"row", "col"}


def test_many_failures_are_counted() -> None:
    failed = tuple(Check(name, False, None, 0.0, "nat", "") for name in "abcde")
    assert badge_text(Certificate((GOOD, *failed))) == "failed: a, b, c and 2 more"
    assert badge_text(Certificate(failed[:3])) == "failed: a, b, c"


@pytest.mark.parametrize("text", HOSTILE)
def test_names_and_details_are_inert(text: str) -> None:
    trace = make_trace(tokens=20, documents=1, readers=("base", "x"))
    trace = trace.assign_coords({schema.READER: (schema.READER, text_array(["base", f"r{text}"]))})
    trace.attrs.pop(schema.READERS, None)
    check = Check(f"c{text}", False, None, 0.0, "nat", f"d{text}")
    page = _parse(add_certificates(trace, {f"r{text}": Certificate((check,))}))
    allowed = {"section", "style", "div", "span", "b", "i", "bdi", "details", "summary", "table", "caption", "thead",
               "tbody", "tr", "th", "td"}  # fmt: skip
    assert {tag.name for tag in page.find_all(True)} <= allowed
    assert not [tag for tag in page.find_all(True) if set(tag.attrs) - {"class", "aria-label", "aria-hidden", "scope"}]
    assert not set("\x00\u202e\u2066\x1b\r") & set(page.get_text())
    if text.isprintable() and "\u200d" not in text:
        assert f"d{text}" in page.get_text()


def test_a_trace_without_certificates_says_so() -> None:
    page = _parse(make_trace(tokens=20, documents=1, recorded=False))
    assert {text.partition(" : ")[2] for text in _texts(page)} == {"not certified"}
    assert not page.select("details")


@pytest.mark.parametrize("scheme", [0, 1])
def test_badges_can_be_read(scheme: int) -> None:
    for ground in (BETTER, WORSE, GROUND):
        assert contrast(TEXT_INK[scheme], ground[scheme]) >= 4.5
    assert contrast(MUTED[scheme], GROUND[scheme]) >= 4.5


def test_the_style_is_for_badges_alone(trace: xr.Dataset) -> None:
    style = _parse(trace).style
    assert isinstance(style, Tag)
    selectors = re.findall(r"([^{}]+)\{", style.get_text())
    assert len(selectors) > 10
    assert all(".fwl-badges" in part for selector in selectors for part in selector.split(","))
