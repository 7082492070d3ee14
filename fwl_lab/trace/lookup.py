"""Look up what a trace holds: its readers, their configurations, its parameters and documents. Imports no torch.

Readers are told apart by their facts, never by their names. The one exception is
:data:`~fwl_lab.trace.schema.BASE`, the name of the reader that gains are measured against.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from fwl_lab.trace import schema
from fwl_lab.trace.configurations import decode_configurations

CHUNK = 64  # tokens between recorded updates of a block without inner batches, in traces of older versions


@dataclass(frozen=True)
class ReaderFacts:
    """Facts about a reader of a trace, from the configuration that it wrote there.

    Attributes
    ----------
    name : str
        Name of the reader in the trace.
    label : str
        Name of its kind for figures, such as "FWL".
    kind : str
        Name of its class.
    adapts : bool
        Whether what it has read changes its later scores other than through the model's context.
    update_every : int or None
        Tokens between two updates of its fast weights, counted from a document's start; None: it has no fast weights,
        or the trace does not say.
    every_token : bool
        Whether each token makes an update of its own, so that Δθ also changes between the recorded updates.
    forgets : bool
        Whether a decay or a cap may shrink Δθ when an update is complete.
    block : bool
        Whether its model has a fast-weight block.
    learns : "block", "model" or None
        Whose parameters its updates are gradient steps of, where receipts and surgery know them.
    configuration : mapping
        All of its settings, as JSON values; empty where the trace holds none.
    """

    name: str
    label: str
    kind: str
    adapts: bool
    update_every: int | None
    every_token: bool
    forgets: bool
    block: bool
    learns: str | None
    configuration: Mapping[str, Any]

    @classmethod
    def of(cls, name: str, configuration: Mapping[str, Any]) -> "ReaderFacts":
        """Make the facts of a reader's `configuration()`; an empty one is taken for a reader that does not adapt."""
        configuration = with_facts(configuration)
        given = configuration.get
        update_every = given("update_every")
        return cls(
            name=name,
            label=str(given("label") or name),
            kind=str(given("kind") or schema.UNKNOWN),
            adapts=bool(given("adapts")),
            update_every=update_every,
            every_token=bool(given("every_token")),
            forgets=bool(given("forgets")),
            block=bool(given("block")),
            learns=given("learns"),
            configuration=configuration,
        )

    @property
    def stepwise(self) -> bool:
        """Whether Δθ is known to stay as it is between two recorded updates."""
        return self.update_every is not None and not self.every_token

    @property
    def tokens_per_update(self) -> int:
        """Number of tokens that one update learned from; 1 where the trace does not say."""
        return 1 if self.every_token or self.update_every is None else self.update_every


def with_facts(configuration: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a configuration with the facts that those written by older versions left to their reader to guess."""
    if "adapts" in configuration or "kind" not in configuration:
        return configuration
    block, segment = "inner_batch" in configuration, configuration.get("segment")
    operated = "surgery" in configuration
    facts: dict[str, Any] = {
        "adapts": block or segment is not None or "theta" in configuration,
        "update_every": (configuration["inner_batch"] or CHUNK) if block else segment,
        "every_token": block,
        "forgets": bool(configuration.get("decay") or configuration.get("cap")) and block,
        "learns": None if operated else "block" if block else "model" if segment is not None else None,
    }
    return {**configuration, **facts} | ({"block": block} if block or segment is not None else {})


def reader_names(trace: xr.Dataset) -> list[str]:
    """Return the readers of a trace, in its order."""
    return [str(name) for name in trace[schema.READER].values]


def reader_configurations(trace: xr.Dataset) -> dict[str, dict[str, Any]]:
    """Return the configuration of each reader that the trace describes, by name.

    Raises
    ------
    ValueError
        The attribute is not a JSON object of objects.
    """
    return decode_configurations(trace.attrs.get(schema.READERS, "{}"))


def reader_facts(trace: xr.Dataset) -> dict[str, ReaderFacts]:
    """Return the facts of each reader of a trace, by name and in its order."""
    configurations = reader_configurations(trace)
    return {name: ReaderFacts.of(name, configurations.get(name, {})) for name in reader_names(trace)}


def default_baseline(trace: xr.Dataset) -> str:
    """Return the reader that gains are measured against: the one named "base", or the first that does not adapt.

    Among those that do not adapt one without a block comes first.

    Raises
    ------
    ValueError
        Every reader adapts.
    """
    found = find_baseline(trace)
    if found is None:
        raise ValueError(
            f"no reader {schema.BASE!r} in this trace; it holds {', '.join(reader_names(trace))}, and each of them "
            "adapts. Name the one that gains are measured against: baseline=..."
        )
    return found


def find_baseline(trace: xr.Dataset) -> str | None:
    """Return what :func:`default_baseline` does, or None where every reader adapts."""
    facts = reader_facts(trace)
    if schema.BASE in facts:
        return schema.BASE
    still = sorted((one for one in facts.values() if not one.adapts), key=lambda one: one.block)
    return still[0].name if still else None


def default_reader(trace: xr.Dataset) -> str:
    """Return the reader to show where none is named.

    That is the reader whose factors the trace holds; else the first that learns with every token, the first that has
    fast weights, the first that adapts, or the last one.
    """
    facts = reader_facts(trace)
    if (factored := str(trace.attrs.get(schema.FACTORED, ""))) in facts:
        return factored

    def rank(one: ReaderFacts) -> int:
        return 3 if one.every_token else 2 if one.update_every is not None else 1 if one.adapts else 0

    best = max(facts.values(), key=rank)  # the first of equals
    return best.name if rank(best) else list(facts)[-1]


def default_learner(trace: xr.Dataset) -> str:
    """Return the reader whose updates receipts and replays take where none is named.

    That is the first of those that learn with every token, or else the first of those that step, whose updates are
    known; where there is none, :func:`default_reader`.
    """
    known = [one for one in reader_facts(trace).values() if one.learns is not None]
    return max(known, key=lambda one: one.every_token).name if known else default_reader(trace)


def require_reader(trace: xr.Dataset, name: str) -> str:
    """Check that the trace has a reader, and return its name.

    Raises
    ------
    ValueError
        It has no such reader; the message lists those it has.
    """
    known = reader_names(trace)
    if name not in known:
        raise ValueError(f"no reader {name!r} in this trace; it holds {', '.join(known)}")
    return name


def require_parameter(trace: xr.Dataset, parameter: str) -> None:
    """Check that a fast parameter was recorded.

    Raises
    ------
    ValueError
        It was not; the message lists those that were, or says how to record them.
    """
    known = [str(name) for name in trace[schema.PARAMETER].values] if schema.PARAMETER in trace.variables else []
    if parameter not in known:
        hint = "" if known else " Record Δθ: score(..., record=Recorder(factors=True))."
        raise ValueError(
            f"no parameter {parameter!r} was recorded; this trace holds {', '.join(known) or 'none'}.{hint}"
        )


def first_tokens(trace: xr.Dataset) -> np.ndarray:
    """Return the index of the first token of each document that the trace holds tokens of, rising."""
    return np.flatnonzero(np.diff(trace[schema.DOCUMENT].values, prepend=-1))
