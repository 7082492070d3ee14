"""Encode text as token ids and decode it again, with the piece of text and the bytes that each token stands for.

No special token is added to a text, and none is recognised in it: a text survives a round trip unchanged.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from fwl_lab.corpora.documents import check_text


class Encoding(NamedTuple):
    """Tokens of a text. The concatenated `texts` are the text; `bytes` add up to its UTF-8 length.

    Attributes
    ----------
    ids : (T,) long
        Token ids.
    texts : list of T str
        Characters that begin with each token ("" where it only continues one).
    bytes : list of T int
        UTF-8 lengths of `texts`.
    """

    ids: Tensor
    texts: list[str]
    bytes: list[int]

    def head(self, tokens: int | None) -> "Encoding":
        """Return the first `tokens` tokens; all for None."""
        return Encoding(self.ids[:tokens], self.texts[:tokens], self.bytes[:tokens])


def encode(tokenizer: PreTrainedTokenizerBase | None, text: str, name: str = "text") -> Encoding:
    """Return the tokens of a text; `name` says in error messages which text it is.

    Raises
    ------
    ValueError
        The text is empty or holds a lone surrogate; or there is no tokenizer.
    """
    encoded = _require(tokenizer)(
        check_text(text, name),
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    texts, end = [], 0
    ends = [stop for _, stop in encoded["offset_mapping"]]
    for index, stop in enumerate(ends):
        stop = len(text) if index == len(ends) - 1 else max(end, stop)
        texts.append(text[end:stop])
        end = stop
    ids = torch.tensor(encoded["input_ids"], dtype=torch.long)
    return Encoding(ids, texts, [len(piece.encode()) for piece in texts])


def encode_batch(tokenizer: PreTrainedTokenizerBase | None, texts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of many texts, encoded together, as :func:`encode` gives them; errors as there."""
    texts = [check_text(text, f"text {index}") for index, text in enumerate(texts)]
    encoded = _require(tokenizer)(texts, add_special_tokens=False, split_special_tokens=True, verbose=False)
    return list(encoded["input_ids"])


def decode(tokenizer: PreTrainedTokenizerBase | None, ids: Tensor | np.ndarray) -> str:
    """Return the text of token ids (T,); ValueError where there is no tokenizer."""
    return str(_require(tokenizer).decode(ids.tolist(), clean_up_tokenization_spaces=False))


def start_token(tokenizer: PreTrainedTokenizerBase | None, config: PreTrainedConfig, vocab_size: int) -> int:
    """Return the id of BOS, or of the end of a text, or, for a model with neither, 0."""
    for source in (tokenizer, config):
        for name in ("bos_token_id", "eos_token_id"):
            token = getattr(source, name, None)
            if isinstance(token, int) and 0 <= token < vocab_size:
                return token
    return 0


def _require(tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
    if tokenizer is None:
        raise ValueError("this model has no tokenizer: load it from a folder that holds one, or pass token ids.")
    return tokenizer
