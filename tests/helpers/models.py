"""Small random language models of every supported family, made offline, and readers over them."""

import copy
import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from fwl_lab import (
    Document,
    DynamicEvaluationReader,
    DynamicEvaluationRMS,
    DynamicEvaluationSGD,
    FastWeightReader,
    GradientStatistics,
    LanguageModel,
    NeuralCacheReader,
    Reader,
    StaticReader,
    UpdateRule,
    attach_fast_weights,
)
from fwl_lab.models.from_scratch import train_tokenizer

VOCABULARY, WIDTH, WINDOW, BOS = 48, 16, 16, 1
# Inner batch and segment divide neither the window nor each other, so that their boundaries fall apart.
INNER_BATCH, SEGMENT = 10, 12
CACHE = 23  # pairs that a neural cache keeps; less than a test's document, so that it forgets
MakeReader = Callable[[], Reader]

_LLAMA = {
    "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "bos_token_id": BOS, "eos_token_id": 2,
}  # fmt: skip
# family: model class, configuration class, settings; tied and untied, dense biases and none
_FAMILIES: dict[str, tuple[type, type, dict]] = {
    "gpt2": (GPT2LMHeadModel, GPT2Config,
             {"n_embd": WIDTH, "n_layer": 2, "n_head": 2, "n_positions": WINDOW, "bos_token_id": BOS,
              "eos_token_id": BOS}),
    "llama": (LlamaForCausalLM, LlamaConfig,
              _LLAMA | {"attention_bias": True, "mlp_bias": True, "max_position_embeddings": WINDOW}),
    "mistral": (MistralForCausalLM, MistralConfig, _LLAMA | {"sliding_window": WINDOW, "tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config,
              _LLAMA | {"max_position_embeddings": WINDOW, "tie_word_embeddings": True}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, _LLAMA | {"head_dim": 8, "max_position_embeddings": WINDOW}),
}  # fmt: skip
FAMILIES = tuple(_FAMILIES)
TEXTS = [
    "def read(document):\n    for token in document:\n        yield token\n",
    "class Reader:\n    def __init__(self, model):\n        self.model = model\n        self.tokens = []\n",
    "the quick brown fox jumps over the lazy dog, and the dog reads on — naïve, 東京, 🙂\n",
    "import os\nimport sys\n\nprint(os.getcwd(), sys.argv, sys.path)\n",
]
DOCUMENTS = [Document(f"{index}.txt", text) for index, text in enumerate(TEXTS)]


def make_network(
    family: str,
    dtype: torch.dtype = torch.float32,
    *,
    vocabulary: int = VOCABULARY,
    biased_unembedding: bool = False,
    seed: int = 0,
    **settings: Any,
) -> PreTrainedModel:
    """A Hugging Face model whose every parameter is random and large enough to matter; untouched by this library."""
    network_class, config_class, own = _FAMILIES[family]
    network = network_class(config_class(vocab_size=vocabulary, **(own | settings)))
    if biased_unembedding:
        network.lm_head.bias = nn.Parameter(torch.zeros(vocabulary))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * 1.2 * WIDTH**-0.5)
            else:
                parameter.add_(0.2 * noise)
    return network.to(dtype).eval()


def make_model(family: str, dtype: torch.dtype = torch.float32, **settings: Any) -> LanguageModel:
    """`make_network` as this library sees it."""
    return LanguageModel(make_network(family, dtype, **settings))


def fill_block(model: LanguageModel, seed: int = 1, scale: float = 0.02) -> LanguageModel:
    """The model with its block's parameters random and its step sizes of both signs, none zero."""
    generator = torch.Generator().manual_seed(seed)
    assert model.block is not None
    with torch.no_grad():
        for name, parameter in model.block.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            if name == "steps":
                parameter.copy_(scale * (noise.sign() + 0.5 * noise))
            else:
                parameter.add_(0.2 * noise)
    return model


def make_block_model(
    family: str,
    dtype: torch.dtype = torch.float32,
    *,
    inner_batch: int | None = INNER_BATCH,
    decay: float = 0.05,
    scale: float = 0.02,
    share_body: bool = True,
    **settings: Any,
) -> LanguageModel:
    """A model with a block that adapts, as if it had been trained."""
    rule = UpdateRule(inner_batch=inner_batch, decay=decay)
    model = make_model(family, dtype, **settings)
    return fill_block(attach_fast_weights(model, size=6, rule=rule, share_body=share_body), scale=scale)


@lru_cache
def make_tokenizer(vocabulary: int = 280) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with a few merges."""
    return train_tokenizer(DOCUMENTS, vocabulary)


def make_text_model(family: str = "mistral", dtype: torch.dtype = torch.float32, **settings: Any) -> LanguageModel:
    """A model without a block that reads text."""
    tokenizer = make_tokenizer()
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    network = make_network(family, dtype, vocabulary=len(tokenizer), **(ends | settings))
    return LanguageModel(network, tokenizer)


def make_tokens(rows: int, length: int, seed: int = 2) -> Tensor:
    """Random token ids (rows, length) that repeat themselves, so that adapting to them shows."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCABULARY, (rows, length), generator=generator) // 3 * 2


def sgd(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """A rule of dynamic evaluation whose steps are large enough to be seen."""
    return DynamicEvaluationSGD(parameters, lr=0.05, decay=0.01)


def rms(parameters: list[Tensor]) -> torch.optim.Optimizer:
    """The same with made-up statistics of training gradients."""
    generator = torch.Generator().manual_seed(3)
    squares = [torch.rand(p.shape, generator=generator, dtype=torch.float64) + 0.1 for p in parameters]
    return DynamicEvaluationRMS(parameters, 0.01, 0.01, 1e-3, GradientStatistics(tuple(squares), 4))


def with_bos(tokens: Tensor, bos: int = BOS) -> Tensor:
    """What a model reads to score `tokens` (B, T)."""
    return torch.cat([torch.full((len(tokens), 1), bos), tokens[:, :-1]], 1)


def band(length: int, window: int, start: int = 0) -> Tensor:
    """Which of the positions up to its own each query sees, (1, 1, length - start, length) bool."""
    distance = torch.arange(start, length)[:, None] - torch.arange(length)
    return ((distance >= 0) & (distance < window))[None, None]


def _healthy(model: LanguageModel) -> Reader:
    """A fast-weight reader whose rule has all that keeps long documents healthy."""
    twin = copy.deepcopy(model)
    assert twin.block is not None
    twin.block.rule = dataclasses.replace(twin.block.rule, schedule=(20.0, 0.5), cap=0.05)
    return FastWeightReader(twin)


# Every kind of reader, from a model with a block.
READERS: dict[str, Callable[[LanguageModel], Reader]] = {
    "base": lambda model: StaticReader(model.base),
    "static": StaticReader,
    "fwl": FastWeightReader,
    "fwl_healthy": _healthy,
    "sgd": lambda model: DynamicEvaluationReader(model.base, sgd, SEGMENT),
    "rms": lambda model: DynamicEvaluationReader(model.base, rms, SEGMENT),
    "cache": lambda model: NeuralCacheReader(model, size=CACHE, theta=5.0, interpolation=0.3),
}
ADAPTING = ("fwl", "fwl_healthy", "sgd", "rms")


def reader_maker(name: str, family: str, dtype: torch.dtype = torch.float64) -> MakeReader:
    """What makes fresh readers of one kind over one model."""
    model = make_block_model(family, dtype)
    return lambda: READERS[name](model)
