"""What readers say of their settings: how two are compared, and which model one read with."""

import json
from collections.abc import Mapping
from typing import Any

from fwl_lab.models.language_model import LanguageModel

#: Follow from a reader's kind, model and other settings, so that two readers never differ in these alone.
DERIVED = frozenset({"label", "adapts", "update_every", "every_token", "forgets", "block"})


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what differs between two configurations, by key: (theirs, ours), None where one lacks the key.

    Both are compared as JSON holds them (a tuple is a list). Readers of unlike kinds differ in "kind" alone.
    """
    left, right = (json.loads(json.dumps(dict(one))) for one in (theirs, ours))
    keys = [key for key in left | right if key not in DERIVED and left.get(key) != right.get(key)]
    return {key: (left.get(key), right.get(key)) for key in (["kind"] if "kind" in keys else keys)}


def describe(found: Mapping[str, tuple[Any, Any]]) -> str:
    """Return differences in words: "segment 64, this one's is 32; ..."."""
    return "; ".join(f"{key} {theirs}, this one's is {ours}" for key, (theirs, ours) in found.items())


def model_of(model: LanguageModel, configuration: Mapping[str, Any]) -> LanguageModel:
    """Return the model that a reader of this configuration reads with: `model`, or its base where it had no block.

    Raises
    ------
    ValueError
        The reader had a block, and the model has none.
    """
    if not configuration.get("block"):
        return model.base
    if model.block is None:
        raise ValueError(
            "the reader read with a fast-weight block, and the model has none; expected the one that read."
        )
    return model
