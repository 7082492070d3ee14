"""Text to tokens and back, the parts of a model, and what cannot be taken apart."""

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import (
    BertConfig,
    BertLMHeadModel,
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedModel,
)

from fwl_lab import LanguageModel, StaticReader, UpdateRule, attach_fast_weights
from fwl_lab.models.context import Context
from tests.helpers.models import (
    FAMILIES,
    VOCABULARY,
    WINDOW,
    make_block_model,
    make_model,
    make_network,
    make_text_model,
    make_tokens,
)

TINY: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 32,
}  # fmt: skip

text_model = make_text_model()

# Any text but lone surrogates, which are tested apart.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)


@settings(max_examples=60)
@given(texts)
@example("<|endoftext|>")
@example("x<|endoftext|><|endoftext|>y")
@example("\x00")
@example("🙂\x00👩‍👩‍👧‍👦 e\u0301 \ufeff\r\n\t  東京")
@example(" leading and trailing ")
def test_any_text_survives_a_round_trip(text: str) -> None:
    encoding = text_model.encode_text(text)
    assert text_model.decode(encoding.ids) == text
    assert "".join(encoding.texts) == text
    assert sum(encoding.bytes) == len(text.encode())
    assert [len(piece.encode()) for piece in encoding.texts] == encoding.bytes
    assert len(encoding.ids) == len(encoding.texts) == len(encoding.bytes)
    assert torch.equal(text_model.encode(text), encoding.ids) and encoding.ids.dtype == torch.long
    assert text_model.encode_batch([text, "x"]) == [encoding.ids.tolist(), text_model.encode("x").tolist()]


def test_special_tokens_in_a_text_are_text() -> None:
    ids = text_model.encode("a<|endoftext|>b").tolist()
    assert text_model.bos not in ids
    assert text_model.decode(torch.tensor([text_model.bos])) == "<|endoftext|>"
    assert text_model.bos not in text_model.encode_batch(["a<|endoftext|>b"])[0]


def test_tokens_of_one_character_share_it() -> None:
    encoding = text_model.encode_text("a🙂b")  # not a whole token of this vocabulary
    assert [piece for piece in encoding.texts if piece] == ["a", "🙂", "b"]
    assert sorted(encoding.bytes, reverse=True)[:3] == [4, 1, 1]
    assert len(encoding.ids) > 3
    head = encoding.head(2)
    assert (head.ids.tolist(), head.texts, head.bytes) == (
        encoding.ids[:2].tolist(), encoding.texts[:2], encoding.bytes[:2],
    )  # fmt: skip
    assert encoding.head(None).texts == encoding.texts


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="text is empty: a document needs at least one character"):
        text_model.encode("")
    with pytest.raises(ValueError, match=r"the lone surrogate U\+DC80 at character 3"):
        text_model.encode("abc\udc80d")
    with pytest.raises(ValueError, match="text 1 is empty"):
        text_model.encode_batch(["a", ""])
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        make_model("mistral").encode("abc")


@pytest.mark.parametrize("family", FAMILIES)
def test_the_parts_make_the_whole(family: str) -> None:
    model = make_model(family, torch.float64)
    ids = make_tokens(2, 10)
    residual, context = model.read(ids, Context.empty(2, "cpu"))
    logits = model.logits(model.slow_output(residual))
    expected = make_network(family, torch.float64)(input_ids=ids).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)  # float32 inside the library's norms
    normed = model.normalise(residual)
    ones = normed.square().mean(-1)
    torch.testing.assert_close(ones, torch.ones_like(ones), rtol=1e-3, atol=0)  # ε keeps it below 1
    assert context.seen.tolist() == [10, 10]
    labels = make_tokens(2, 10, seed=8)
    nll = model.nll(model.slow_output(residual), labels)
    torch.testing.assert_close(nll, -logits.log_softmax(-1).gather(2, labels[..., None])[..., 0], rtol=0, atol=1e-12)
    assert (model.vocab_size, model.bos, model.dtype, model.window) == (VOCABULARY, 1, torch.float64, WINDOW)


def test_base_is_the_same_body_without_the_block() -> None:
    model = make_block_model("llama")
    assert model.base.block is None and model.base.base is model.base
    assert model.base.network is model.network
    apart = make_block_model("llama", share_body=False)
    assert apart.base.network is not apart.network
    with torch.no_grad():
        apart.network.get_input_embeddings().weight.zero_()
    tokens = make_tokens(1, 20)
    assert torch.equal(StaticReader(apart.base).read(tokens).nll, StaticReader(model.base).read(tokens).nll)
    assert not torch.equal(StaticReader(apart).read(tokens).nll, StaticReader(model).read(tokens).nll)


def test_attaching_is_seeded_and_leaves_the_global_generator_alone() -> None:
    model, state = make_model("mistral"), torch.get_rng_state()
    blocks = [attach_fast_weights(model, seed=seed).block for seed in (0, 0, 1)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (block.W1 for block in blocks if block is not None)
    assert torch.equal(first, again) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="size is -1; expected at least 1"):
        attach_fast_weights(make_model("mistral"), size=-1)


def unsupported() -> list[PreTrainedModel]:
    bert = {k: v for k, v in TINY.items() if k != "max_position_embeddings"}
    return [
        OPTForCausalLM(OPTConfig(vocab_size=40, hidden_size=16, ffn_dim=24, num_hidden_layers=1, num_attention_heads=2,
                                 word_embed_proj_dim=16)),
        BertLMHeadModel(BertConfig(is_decoder=True, **bert)),
        # Rotary and with a final norm called "norm", but that norm multiplies by 1 + weight.
        GemmaForCausalLM(GemmaConfig(head_dim=8, num_key_value_heads=1, **TINY)),
    ]  # fmt: skip


def test_a_family_that_cannot_be_taken_apart_is_refused() -> None:
    for network in unsupported():
        with pytest.raises(ValueError, match=f"{type(network).__name__} is not a model this library can take apart"):
            LanguageModel(network)


def test_positions_that_change_with_the_length_are_refused() -> None:
    scaling = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    network = LlamaForCausalLM(LlamaConfig(**TINY, rope_parameters=scaling))
    with pytest.raises(ValueError, match="rotary positions of kind 'dynamic' change with the length read"):
        LanguageModel(network)


def test_a_window_must_fit_the_model() -> None:
    assert LanguageModel(make_network("gpt2"), window=10).window == 10
    with pytest.raises(ValueError, match=f"window is 99, but the model has {WINDOW} positions"):
        LanguageModel(make_network("gpt2"), window=99)
    for family, window in (("gpt2", 1), ("gpt2", 0), ("mistral", 0), ("mistral", -3)):
        with pytest.raises(ValueError, match=f"window is {window}; expected at least"):
            LanguageModel(make_network(family), window=window)
    one = StaticReader(LanguageModel(make_network("mistral"), window=1)).read(torch.tensor([[5, 7, 5, 7]])).nll[0]
    assert float((one[1] - one[3]).abs()) < 1e-5 < float((one[1] - one[2]).abs())  # it sees one token only


def test_the_weight_hash_tells_models_apart() -> None:
    hashes = [make_model("mistral", **s).weight_hash() for s in ({}, {}, {"seed": 1}, {"dtype": torch.float64})]
    assert hashes[0] == hashes[1] and len(set(hashes)) == 3


def test_the_weight_hash_takes_in_a_learned_decay() -> None:
    """A parameter without dimensions could not be hashed."""
    model = attach_fast_weights(make_model("mistral"), 4, UpdateRule(decay=0.1, learn_decay=True))
    before = model.weight_hash()
    assert model.block is not None and model.block.forgetting is not None
    with torch.no_grad():
        model.block.forgetting += 1
    assert model.weight_hash() != before
