"""A usual name on a reader of another kind means nothing: it is shown as what it says of itself."""

from fwl_lab.trace.lookup import ReaderFacts
from widgets import theme

ADAPTING = {"adapts": True, "update_every": 64, "every_token": True, "block": True}
STILL = {"adapts": False, "update_every": None, "every_token": False, "block": False}


def test_a_name_alone_decides_nothing():
    swapped = {"fwl": ReaderFacts.of("fwl", STILL), "base": ReaderFacts.of("base", ADAPTING)}
    shown = theme.styles(swapped)
    assert (shown["fwl"].label, shown["fwl"].dash) == ("fwl", "dot") and shown["fwl"].colour == theme.COLOURS["base"]
    assert (shown["base"].label, shown["base"].dash) == ("base", "solid") and shown["base"].colour == theme.COLOURS[
        "fwl"
    ]


def test_the_usual_names_keep_their_looks():
    usual = {"fwl": ReaderFacts.of("fwl", ADAPTING), "base": ReaderFacts.of("base", STILL)}
    shown = theme.styles(usual)
    assert (shown["fwl"].label, shown["fwl"].colour) == ("FWL", theme.ACCENT)
    assert shown["base"].colour == theme.NEUTRAL
    assert theme.name_styles(["fwl"])["fwl"].label == "FWL", "of which only the name is known"
