"""Find the model that a reader of a given configuration read with."""

from collections.abc import Mapping
from typing import Any

from fwl_lab.models.language_model import LanguageModel


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
