"""Encode, decode and compare the configurations of readers, as a trace or a saved reader holds them. Imports no torch.

A configuration is what a reader's `configuration()` returns: its settings and a few facts that follow from them, as
JSON values. `lookup.reader_facts` gives those facts a type.
"""

import json
from collections.abc import Mapping
from typing import Any

#: Facts that follow from a reader's kind, model and other settings, so that two readers never differ in these alone.
DERIVED = frozenset({"label", "adapts", "update_every", "every_token", "forgets", "learns", "block"})


def encode_configurations(configurations: Mapping[str, Mapping[str, Any]]) -> str:
    """Encode the configurations of readers, by name, as the attribute "readers" of a trace."""
    return json.dumps({name: dict(one) for name, one in configurations.items()})


def decode_configurations(text: Any) -> dict[str, dict[str, Any]]:
    """Decode the attribute "readers" of a trace; the only place that does. See `lookup.reader_configurations`.

    Raises
    ------
    ValueError
        It is not a JSON object of objects.
    """
    try:
        found = json.loads(text)
    except (TypeError, ValueError) as error:
        raise ValueError(f"attribute 'readers' is not JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(one, dict) for one in found.values()):
        raise ValueError(f"attribute 'readers' is {text!r:.80}; expected an object of each reader's settings.")
    return found


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configurations, by key: (theirs, ours), None where one lacks the key.

    Both are compared as JSON holds them (a tuple is a list). Readers of unlike kinds differ in "kind" alone.
    """
    left, right = (json.loads(json.dumps(dict(one))) for one in (theirs, ours))
    keys = [key for key in left | right if key not in DERIVED and left.get(key) != right.get(key)]
    return {key: (left.get(key), right.get(key)) for key in (["kind"] if "kind" in keys else keys)}


def describe(found: Mapping[str, tuple[Any, Any]], ours: str = "this one's") -> str:
    """Return differences in words: "segment 64, this one's is 32; ...". `ours` says whose the second value is."""
    return "; ".join(f"{key} {their}, {ours} is {our}" for key, (their, our) in found.items())
