"""What dynamic evaluation adapts: subsets of the parameters on every family, and LoRA."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fwl_lab import (
    DynamicEvaluationReader,
    GradientStatistics,
    LanguageModel,
    StaticReader,
    TunedRule,
    gradient_statistics,
)
from tests.helpers.models import (
    DOCUMENTS,
    FAMILIES,
    SEGMENT,
    make_block_model,
    make_model,
    make_text_model,
    make_tokens,
    sgd,
)

SUBSETS = ("mlp", "norm", "bias", "last:1", "last:2", "no-embeddings")
# Whether a subset holds a parameter, told by its full name: the names are those of the models in tests/models.py.
EXPECTED: dict[str, Callable[[str], bool]] = {
    "all": lambda name: True,
    "mlp": lambda name: ".mlp." in name,
    "norm": lambda name: any(part.endswith("norm") or part.startswith("ln_") for part in name.split(".")),
    "bias": lambda name: name.endswith(".bias"),
    "last:1": lambda name: ".1." in name,
    "last:2": lambda name: ".0." in name or ".1." in name,
    "no-embeddings": lambda name: not any(part in name for part in ("embed_tokens", "wte", "wpe", "lm_head")),
}
# How many of each the families have; 0: none, an error.
COUNTS = {
    "gpt2": {"all": 28, "mlp": 8, "norm": 10, "bias": 13, "last:1": 12, "last:2": 24, "no-embeddings": 26},
    "llama": {"all": 35, "mlp": 12, "norm": 5, "bias": 14, "last:1": 16, "last:2": 32, "no-embeddings": 33},
    "mistral": {"all": 20, "mlp": 6, "norm": 5, "bias": 0, "last:1": 9, "last:2": 18, "no-embeddings": 19},
    "qwen2": {"all": 26, "mlp": 6, "norm": 5, "bias": 6, "last:1": 12, "last:2": 24, "no-embeddings": 25},
    "qwen3": {"all": 25, "mlp": 6, "norm": 9, "bias": 0, "last:1": 11, "last:2": 22, "no-embeddings": 23},
}


def make_reader(model: LanguageModel, parameters: str, **settings: Any) -> DynamicEvaluationReader:
    return DynamicEvaluationReader(model, sgd, SEGMENT, parameters, **settings)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("parameters", EXPECTED)
def test_a_subset_adapts_exactly_what_it_names(parameters: str, family: str) -> None:
    model, tokens = make_model(family, torch.float64), make_tokens(1, 2 * SEGMENT)
    if not COUNTS[family][parameters]:
        with pytest.raises(ValueError, match=rf"parameters is '{parameters}', but .* has none of that kind") as told:
            make_reader(model, parameters)
        assert parameters not in str(told.value).partition("it has: ")[2].split(", ")
        return
    names = [name for name, _ in model.named_parameters() if EXPECTED[parameters](name)]
    assert len(names) == COUNTS[family][parameters]
    given: list[tuple[int, ...]] = []

    def rule(parameters: list[Tensor]) -> torch.optim.Optimizer:
        given.extend(tuple(p.shape) for p in parameters)
        return sgd(parameters)

    before = model.weight_hash()
    reader = DynamicEvaluationReader(model, rule, SEGMENT, parameters)
    whole = make_reader(model, "all")
    reader.read(tokens)
    whole.read(tokens[:, :SEGMENT])
    deltas = reader.fast_weights()
    assert list(deltas) == list(reader.slow_weights()) == names
    # q's bias in qwen2 and alike may have no gradient to speak of; what the first step of "all" moves, this must move.
    moved = {name for name, delta in whole.fast_weights().items() if bool(delta.any())}
    assert {name for name, delta in deltas.items() if bool(delta.any())} >= moved & set(names) != set()
    assert given == [tuple(model.get_parameter(name).shape) for name in names]
    assert {key for key in reader.state_dict() if ".weights." in key} == {f"state.weights.{name}" for name in names}
    configuration = reader.configuration()
    assert configuration["parameters"] == parameters
    assert configuration.get("adapted", names) == names
    assert model.weight_hash() == before


@pytest.mark.parametrize("parameters", SUBSETS[:3])
def test_a_subset_takes_the_step_that_all_take_there(parameters: str) -> None:
    """The first segment is read with the same weights, so the gradient of a parameter is the same."""
    model, tokens = make_model("gpt2", torch.float64), make_tokens(1, SEGMENT)
    subset, whole = make_reader(model, parameters), make_reader(model, "all")
    assert torch.equal(subset.read(tokens).nll, whole.read(tokens).nll)
    for name, delta in subset.fast_weights().items():
        torch.testing.assert_close(delta, whole.fast_weights()[name], rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "parameters", ["", "everything", "last", "last:0", "last:x", "mlp:2", "lora:0", "lora:", "Mlp", None]
)
def test_an_unknown_choice_is_refused(parameters: Any) -> None:
    with pytest.raises(ValueError, match=r"expected 'all', 'mlp', 'norm'.* whole numbers from 1"):
        make_reader(make_model("mistral"), parameters)


def test_there_must_be_as_many_layers() -> None:
    with pytest.raises(ValueError, match="parameters is 'last:3', but the model has 2 layers"):
        make_reader(make_model("mistral"), "last:3")


def test_a_block_adapts_with_all_parameters_alone() -> None:
    model, tokens = make_block_model("mistral", torch.float64), make_tokens(2, 30)
    block = {f"block.{name}" for name, _ in model.block.named_parameters()} if model.block is not None else set()
    whole = make_reader(model, "all")
    assert block and block <= set(whole.slow_weights())
    assert not block & set(make_reader(model, "norm").slow_weights())
    alone = [make_reader(model, "all").read(row[None]).nll for row in tokens]
    torch.testing.assert_close(whole.read(tokens).nll, torch.cat(alone), rtol=0, atol=1e-12)  # worst seen: 0


@pytest.mark.parametrize("parameters", ["norm", "lora:2"])
def test_a_state_of_another_subset_is_refused(parameters: str) -> None:
    model, tokens = make_model("mistral"), make_tokens(1, 20)
    reader = make_reader(model, parameters)
    reader.read(tokens)
    for other in ("all", "mlp", "lora:3"):
        with pytest.raises(ValueError, match="Load it into a reader of the same `parameters`"):
            make_reader(model, other).load_state_dict(reader.state_dict())


def test_an_rms_rule_takes_its_statistics_from_those_of_all(caplog: pytest.LogCaptureFixture) -> None:
    model = make_text_model("mistral", torch.float64)
    model.tuned_rule = TunedRule("rms_2019", lr=1e-3, eps=1e-3)
    model.gradient_statistics = gradient_statistics(model, DOCUMENTS[:2], segment=SEGMENT, batches=4)
    own = gradient_statistics(model, DOCUMENTS[:2], segment=SEGMENT, batches=4, parameters="mlp")
    names = [name for name, _ in model.named_parameters()]
    reader = DynamicEvaluationReader(model, segment=SEGMENT, parameters="mlp")
    for (name, delta), total in zip(reader.fast_weights().items(), own.sum_of_squares, strict=True):
        theirs = model.gradient_statistics.sum_of_squares[names.index(name)]
        torch.testing.assert_close(theirs, total, rtol=1e-9, atol=1e-15)
        assert not bool(delta.any())
    reader.read(model.encode(DOCUMENTS[0].text)[None, :SEGMENT])
    assert all(bool(delta.any()) for delta in reader.fast_weights().values())
    with pytest.raises(ValueError, match="make the statistics from gradients of the same parameters"):
        DynamicEvaluationReader(model, segment=SEGMENT, parameters="lora")
    model.gradient_statistics = GradientStatistics(own.sum_of_squares, own.batches)
    kept = DynamicEvaluationReader(model, segment=SEGMENT, parameters="mlp")
    kept.read(model.encode(DOCUMENTS[0].text)[None, :SEGMENT])
    for name, delta in kept.fast_weights().items():
        torch.testing.assert_close(delta, reader.fast_weights()[name], rtol=1e-9, atol=1e-15)
    with caplog.at_level(logging.WARNING, logger="fwl_lab"):
        DynamicEvaluationReader(make_model("mistral"), parameters="mlp")
    assert "no dynamic-evaluation rule was tuned" in caplog.text


# -- LoRA ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_starts_as_the_model_and_leaves_it_alone(family: str) -> None:
    model, tokens = make_model(family), make_tokens(1, 50)
    before = model.weight_hash(), [(n, p.requires_grad) for n, p in model.named_parameters()], repr(model)
    reader = make_reader(model, "lora:3")
    assert reader.model is model
    assert torch.equal(reader.next_log_probs(), StaticReader(model).next_log_probs())
    assert torch.equal(reader.read(tokens[:, :SEGMENT]).nll, StaticReader(model).read(tokens[:, :SEGMENT]).nll)
    reader.read(tokens[:, SEGMENT:])
    after = model.weight_hash(), [(n, p.requires_grad) for n, p in model.named_parameters()], repr(model)
    assert after == before
    assert not hasattr(model.network, "peft_config")
    shapes = {name.split(".")[-3]: tuple(delta.shape[1:]) for name, delta in reader.fast_weights().items()}
    assert shapes["lora_A"][0] == shapes["lora_B"][1] == 3
    moved = {name.split(".")[-3] for name, delta in reader.fast_weights().items() if bool(delta.any())}
    assert moved == {"lora_A", "lora_B"}  # A from the second segment on, when B is no longer 0


def test_lora_adapts_every_dense_layer_of_every_layer() -> None:
    expected = {"gpt2": 2 * 4, "mistral": 2 * 7}
    for family, count in expected.items():
        names = list(make_reader(make_model(family), "lora").slow_weights())
        assert len(names) == 2 * count
        assert all("lora_A" in name or "lora_B" in name for name in names)


def test_lora_is_a_low_rank_update_of_the_weights() -> None:
    """What the adapters have learned, added into a plain model's weights, predicts the same."""
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, SEGMENT)
    reader = make_reader(model, "lora:2")
    reader.read(tokens)
    adapters = {name: slow + reader.fast_weights()[name][0] for name, slow in reader.slow_weights().items()}
    merged = make_model("mistral", torch.float64)
    with torch.no_grad():
        for name, down in adapters.items():
            if ".lora_A." in name:
                layer = name.split(".lora_A.")[0]
                merged.get_parameter(f"{layer}.weight").add_(adapters[name.replace(".lora_A.", ".lora_B.")] @ down)
    reader.reset(carry=True)
    torch.testing.assert_close(reader.next_log_probs(), StaticReader(merged).next_log_probs(), rtol=0, atol=1e-12)
    assert not torch.allclose(reader.next_log_probs(), StaticReader(model).next_log_probs(), rtol=0, atol=1e-3)


def test_lora_is_the_same_each_time_and_draws_no_random_number() -> None:
    model, tokens = make_model("mistral"), make_tokens(1, 40)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = make_reader(model, "lora")
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.read(tokens).nll, make_reader(model, "lora").read(tokens).nll)


@pytest.mark.parametrize("parameters", ["lora", "mlp"])
def test_forks_states_and_step_scales_of_what_adapts(parameters: str) -> None:
    model, tokens = make_model("mistral"), make_tokens(2, 50)
    reader, other = make_reader(model, parameters), make_reader(model, parameters)
    reader.read(tokens[:, :29])
    other.load_state_dict(reader.state_dict())
    fork = reader.fork()
    fork.read(make_tokens(2, 21, seed=9))
    nll = reader.read(tokens[:, 29:]).nll
    assert torch.equal(other.read(tokens[:, 29:]).nll, nll)
    still = reader.with_step_scale(0)
    assert torch.equal(still.read(tokens).nll, StaticReader(model).read(tokens).nll)
    assert not torch.equal(nll, StaticReader(model).read(tokens).nll[:, 29:])
