"""Make a small, untrained language model and its tokenizer from documents."""

from collections.abc import Sequence

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from fwl_lab.corpora.documents import Document
from fwl_lab.models.language_model import LanguageModel

END_OF_TEXT = "<|endoftext|>"


def train_tokenizer(documents: Sequence[Document], vocab_size: int = 4096) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer (Sennrich et al. 2016), which encodes any text.

    It has at most `vocab_size` tokens, and at least 257: all bytes and the end of a text.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((document.text for document in documents), trainer, length=len(documents))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT)


def new_model(
    documents: Sequence[Document],
    *,
    vocab_size: int = 4096,
    hidden_size: int = 256,
    layers: int = 6,
    window: int = 512,
    seed: int = 0,
) -> LanguageModel:
    """Make an untrained causal LM with rotary positions and a sliding window (Mistral), and train its tokenizer.

    Heads are 64 wide, two query heads share a key-value head (at width 64 there is one of each), the feed-forward part
    is 3 · hidden_size wide, and input and output embeddings are tied. The defaults give 5.8 M parameters.

    Parameters
    ----------
    documents : sequence of Document
        For the tokenizer, and for `token_counts` of the result.
    vocab_size, hidden_size, layers : int
        Tokens V; width D, 64 or a multiple of 128; transformer layers.
    window : int
        Positions that each layer sees, the token's own included.
    seed : int
        Seed of the random weights; sets torch's global generator.

    Raises
    ------
    ValueError
        `hidden_size` is neither 64 nor a multiple of 128, or `vocab_size` is less than 257 (all bytes and the end of a
        text).
    """
    heads = hidden_size // 64
    if hidden_size % 64 or not (heads == 1 or heads % 2 == 0):
        raise ValueError(f"hidden_size is {hidden_size}; expected 64 or a multiple of 128, since heads are 64 wide.")
    tokenizer = train_tokenizer(documents, vocab_size)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size}; expected at least {len(tokenizer)}: all bytes, and what ends a text."
        )
    torch.manual_seed(seed)
    network = MistralForCausalLM(
        MistralConfig(
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=3 * hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=max(1, heads // 2),
            sliding_window=window,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model = LanguageModel(network, tokenizer)
    ids = model.encode_batch([document.text for document in documents])
    model.token_counts = np.bincount(np.concatenate([np.asarray(i) for i in ids]), minlength=vocab_size)
    return model
