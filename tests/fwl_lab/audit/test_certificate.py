"""Certificates: what they print, that they are inert as HTML, and that they survive in traces."""

import dataclasses
import json
from pathlib import Path

import pytest

from fwl_lab import Certificate, Check, add_certificates, certificates, open_trace, save_trace
from fwl_lab.testing.traces import make_trace
from fwl_lab.trace import schema

CHECKS = (
    Check("causality", False, 0.25, 0.0, "nat", "token <3>\nchanges & breaks"),
    Check("fork", None, None, 0.0, "nat", "the reader has no fork()"),
    Check("partition", True, 1e-6, 1e-4, "nat", "ragged"),
)
CERTIFICATE = Certificate(CHECKS, {"tokens": 48})


def test_a_certificate_prints_as_an_aligned_table() -> None:
    lines = str(CERTIFICATE).splitlines()
    assert lines[0] == "NOT certified: 1 passed, 1 failed, 1 not checked"
    assert len(lines) == 5
    column = lines[1].index("detail")
    assert [line[column:] for line in lines[2:]] == ["token <3> changes & breaks", CHECKS[1].detail, "ragged"]
    assert CERTIFICATE["fork"] is CHECKS[1]
    with pytest.raises(KeyError, match="no check 'magic'"):
        CERTIFICATE["magic"]


def test_a_certificate_as_html_is_inert() -> None:
    html = CERTIFICATE._repr_html_()
    assert "token &lt;3&gt;" in html and "&amp; breaks" in html and "<3>" not in html
    assert html.count("<tr>") == 4 and html.count("not checked") == 2


def test_a_certificate_survives_json() -> None:
    assert Certificate.from_json(json.loads(json.dumps(CERTIFICATE.to_json(), allow_nan=False))) == CERTIFICATE
    with pytest.raises(ValueError, match="not a certificate"):
        Certificate.from_json({"checks": [{"name": "x"}], "about": {}})
    with pytest.raises(ValueError, match="says nothing"):
        Certificate(())
    with pytest.raises(ValueError, match="worst of check 'causality' is nan"):
        dataclasses.replace(CHECKS[0], worst=float("nan"))
    with pytest.raises(ValueError, match="expected True, False or None"):
        dataclasses.replace(CHECKS[0], passed=1)


def test_certificates_stay_in_a_trace(tmp_path: Path) -> None:
    trace = make_trace(tokens=30, recorded=False)
    assert certificates(trace) == {}
    held = add_certificates(trace, {"fwl": CERTIFICATE})
    held = add_certificates(held, {"base": Certificate(CHECKS[2:])})
    assert schema.CERTIFICATES not in trace.attrs
    found = certificates(open_trace(save_trace(held, tmp_path / "trace.zarr")))
    assert found == {"fwl": CERTIFICATE, "base": Certificate(CHECKS[2:])}
    assert not found["fwl"].passed and found["base"].passed
    again = add_certificates(held, {"fwl": Certificate(CHECKS[2:])})
    assert certificates(again)["fwl"].passed


def test_certificates_of_other_readers_are_refused() -> None:
    trace = make_trace(tokens=30).assign_attrs({schema.READERS: json.dumps({"fwl": {"step_scale": 1.0}})})
    with pytest.raises(ValueError, match="no reader 'magic'; it holds 'base'"):
        add_certificates(trace, {"magic": CERTIFICATE})
    with pytest.raises(ValueError, match="a dict; expected a Certificate"):
        add_certificates(trace, {"fwl": {}})
    other = Certificate(CHECKS, {"configuration": {"step_scale": 0.5}})
    with pytest.raises(ValueError, match=r"step_scale 0\.5, the trace's is 1\.0"):
        add_certificates(trace, {"fwl": other})
    own = Certificate(CHECKS, {"configuration": {"step_scale": 1.0}})
    assert certificates(add_certificates(trace, {"fwl": own}))["fwl"] == own
    with pytest.raises(ValueError, match="not what add_certificates"):
        certificates(trace.assign_attrs({schema.CERTIFICATES: "[]"}))
