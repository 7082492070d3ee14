"""Hold the result of an audit, show it as a table, and keep it as an attribute of a trace. Imports no torch."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import xarray as xr

from fwl_lab.trace.configurations import describe, differences
from fwl_lab.trace.lookup import reader_configurations, reader_names
from fwl_lab.trace.schema import CERTIFICATES

CONFIGURATION = "configuration"  # key of `Certificate.about`: the configuration of the reader
PASSED, FAILED, NOT_CHECKED = "passed", "failed", "not checked"
HEADINGS = ("check", "result", "worst", "limit", "unit", "detail")


@dataclass(frozen=True)
class Check:
    """Result of one check: a line of a certificate.

    Attributes
    ----------
    name : str
    passed : bool or None
        None: not checked, which is not the same as passed.
    worst : float or None
        Largest error that was seen, in `unit`; None where there is none, or it is not finite.
    limit : float or None
        Largest `worst` with which the check passes; 0: bitwise.
    unit : str
    detail : str
        What was done, or what went wrong and where.

    Raises
    ------
    ValueError
        `worst` or `limit` is not finite (JSON cannot hold it), or `passed` is not True, False or None.
    """

    name: str
    passed: bool | None
    worst: float | None
    limit: float | None
    unit: str
    detail: str

    def __post_init__(self) -> None:
        if self.passed not in (True, False, None) or isinstance(self.passed, int) != isinstance(self.passed, bool):
            raise ValueError(f"passed of check {self.name!r} is {self.passed!r}; expected True, False or None.")
        for name, value in (("worst", self.worst), ("limit", self.limit)):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"{name} of check {self.name!r} is {value}; expected a finite number, or None.")

    @property
    def result(self) -> str:
        """The value of `passed` in words."""
        return NOT_CHECKED if self.passed is None else PASSED if self.passed else FAILED

    def texts(self) -> tuple[str, ...]:
        """Return the cells of the line as texts, in the order of `HEADINGS`."""
        return self.name, self.result, _number(self.worst), _number(self.limit), self.unit, self.detail


@dataclass(frozen=True)
class Certificate:
    """Results of all checks of a reader.

    Attributes
    ----------
    checks : tuple of Check, at least one
    about : mapping of JSON values
        Number of tokens, seed, places, configuration of the reader, hash of its model.

    Raises
    ------
    ValueError
        There is no check.
    """

    checks: tuple[Check, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.checks:
            raise ValueError("a certificate without checks says nothing; expected at least one Check.")

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Check, ...]:
        """The checks that failed."""
        return tuple(check for check in self.checks if check.passed is False)

    @property
    def summary(self) -> str:
        """The certificate in one line."""
        results = [check.result for check in self.checks]
        counts = ", ".join(f"{results.count(result)} {result}" for result in (PASSED, FAILED, NOT_CHECKED))
        return f"{'certified' if self.passed else 'NOT certified'}: {counts}"

    def __getitem__(self, name: str) -> Check:
        """Return the check of a name."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"no check {name!r}; there are {', '.join(repr(check.name) for check in self.checks)}")

    def __str__(self) -> str:
        rows = [HEADINGS, *(tuple(" ".join(text.split()) for text in check.texts()) for check in self.checks)]
        widths = [max(len(row[column]) for row in rows) for column in range(len(HEADINGS))]
        lines = ("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
        return "\n".join([self.summary, *(line.rstrip() for line in lines)])

    def _repr_html_(self) -> str:
        head = "".join(f'<th scope="col">{heading}</th>' for heading in HEADINGS)
        body = "".join(
            "<tr>" + "".join(f"<td><bdi>{html.escape(text)}</bdi></td>" for text in check.texts()) + "</tr>"
            for check in self.checks
        )
        caption = f"<caption>{html.escape(self.summary)}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def to_json(self) -> dict[str, Any]:
        """Return the certificate as JSON values."""
        return {"about": dict(self.about), "checks": [asdict(check) for check in self.checks]}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Make a certificate of what :meth:`to_json` returned.

        Raises
        ------
        ValueError
            These are not the values of a certificate.
        """
        try:
            return cls(tuple(Check(**check) for check in values["checks"]), dict(values["about"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a certificate: {error!r}; expected what Certificate.to_json() returned.") from error


def add_certificates(trace: xr.Dataset, found: Mapping[str, Certificate]) -> xr.Dataset:
    """Return the trace with certificates of its readers, by name, added to or in place of those it has.

    Raises
    ------
    ValueError
        The trace has no reader of such a name, or its configuration differs from that of the reader that was certified.
    """
    names, configured = reader_names(trace), reader_configurations(trace)
    for name, certificate in found.items():
        if name not in names:
            raise ValueError(f"the trace has no reader {name!r}; it holds {', '.join(map(repr, names))}.")
        if not isinstance(certificate, Certificate):
            raise ValueError(f"what is given for {name!r} is a {type(certificate).__name__}; expected a Certificate.")
        theirs, ours = certificate.about.get(CONFIGURATION), configured.get(name)
        if theirs and ours and (unlike := differences(theirs, ours)):
            said = describe(unlike, "the trace's")
            raise ValueError(
                f"the certificate given for {name!r} is of a reader with {said}. Expected one of the reader that made "
                "the trace."
            )
    both = certificates(trace) | dict(found)
    return trace.assign_attrs({CERTIFICATES: json.dumps({name: both[name].to_json() for name in both})})


def certificates(trace: xr.Dataset) -> dict[str, Certificate]:
    """Return the certificates that a trace holds, by reader; empty where there are none.

    Raises
    ------
    ValueError
        The attribute of the trace does not hold certificates.
    """
    try:
        found = json.loads(trace.attrs.get(CERTIFICATES, "{}"))
        return {str(name): Certificate.from_json(values) for name, values in found.items()}
    except (AttributeError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(
            f"attribute {CERTIFICATES!r} of the trace is not what add_certificates() writes: {error}"
        ) from error


def _number(value: float | None) -> str:
    """Return a number with two digits."""
    return "–" if value is None else f"{value:.2g}"
