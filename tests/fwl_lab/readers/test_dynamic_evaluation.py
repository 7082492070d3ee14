"""Dynamic evaluation against a training loop written out."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache, PreTrainedModel

from fwl_lab import (
    DynamicEvaluationReader,
    DynamicEvaluationSGD,
    Reader,
    StaticReader,
    TunedRule,
    gradient_statistics,
)
from fwl_lab.models.context import Context
from fwl_lab.models.exact import make_exact
from tests.helpers.models import (
    DOCUMENTS,
    SEGMENT,
    WINDOW,
    band,
    make_model,
    make_network,
    make_text_model,
    make_tokens,
    sgd,
    with_bos,
)


def evaluate_dynamically(network: PreTrainedModel, tokens: Tensor, window: int, lr: float) -> tuple[Tensor, Tensor]:
    """Dynamic evaluation written out: NLL (1, T), and the unembedding's weights at the end."""
    optimizer = torch.optim.SGD(network.parameters(), lr)
    cache, scores = DynamicCache(), []
    for start in range(0, tokens.shape[1], SEGMENT):
        inputs, labels = (x[:, start : start + SEGMENT] for x in (with_bos(tokens), tokens))
        stop = start + inputs.shape[1]
        logits = network(
            input_ids=inputs, position_ids=torch.arange(start, stop)[None], use_cache=True,
            attention_mask=band(stop, window, start), past_key_values=cache,
        ).logits  # fmt: skip
        nll = F.cross_entropy(logits.mT, labels, reduction="none")
        scores.append(nll.detach())
        if stop - start == SEGMENT:
            optimizer.zero_grad()
            nll.mean().backward()
            optimizer.step()
        old, cache = cache, DynamicCache()
        for index, (keys, values, *_) in enumerate(old):
            cache.update(keys.detach(), values.detach(), index)
    return torch.cat(scores, 1), network.get_output_embeddings().weight.detach()


@pytest.mark.parametrize(("family", "window"), [("mistral", WINDOW), ("llama", WINDOW), ("gpt2", 256)])
def test_dynamic_evaluation_is_an_explicit_training_loop(family: str, window: int) -> None:
    settings: dict[str, Any] = {"n_positions": window} if family == "gpt2" else {}
    tokens, lr = make_tokens(1, 63), 0.1
    network = make_network(family, torch.float64, **settings)
    make_exact(network)  # float64 norms; that they compute the same is tested above
    expected, weight = evaluate_dynamically(network, tokens, window, lr)
    model = make_model(family, torch.float64, **settings)
    reader = DynamicEvaluationReader(model, lambda p: DynamicEvaluationSGD(p, lr), SEGMENT)
    nll = torch.cat([reader.read(part).nll for part in tokens.split(17, dim=1)], 1)
    torch.testing.assert_close(nll, expected, rtol=0, atol=1e-11)  # worst seen: 4e-14
    torch.testing.assert_close(learned_unembedding(reader), weight - model.unembedding.weight, rtol=0, atol=1e-11)
    assert float((nll - StaticReader(model).read(tokens).nll).abs().max()) > 0.1


def learned_unembedding(reader: Reader) -> Tensor:
    """Δθ of the unembedding, by whichever of its names a tied model gives it."""
    names = {id(parameter): name for name, parameter in reader.model.named_parameters()}
    return reader.fast_weights()[names[id(reader.model.unembedding.weight)]][0]


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
def test_a_segment_read_in_pieces_gives_the_gradient_of_the_whole(family: str) -> None:
    model, tokens = make_model(family, torch.float64), make_tokens(1, 3 * SEGMENT)
    whole, pieces = (DynamicEvaluationReader(model, sgd, SEGMENT) for _ in range(2))
    whole.read(tokens)
    for part in tokens.split(5, dim=1):
        pieces.read(part)
    for name, delta in whole.fast_weights().items():
        torch.testing.assert_close(pieces.fast_weights()[name], delta, rtol=0, atol=1e-13)
    assert float(learned_unembedding(whole).abs().max()) > 1e-3


def test_any_torch_optimizer_may_be_given_and_saved(tmp_path: Path) -> None:
    model, tokens = make_model("mistral"), make_tokens(1, 60)
    for optimizer in (lambda p: torch.optim.AdamW(p, 1e-2), lambda p: torch.optim.SGD(p, 0.05, momentum=0.9)):
        reader, other = (DynamicEvaluationReader(model, optimizer, SEGMENT) for _ in range(2))
        reader.read(tokens[:, :29])
        save_file(reader.state_dict(), tmp_path / "reader.safetensors")
        other.load_state_dict(load_file(tmp_path / "reader.safetensors"))
        nll = reader.read(tokens[:, 29:]).nll
        assert torch.equal(other.read(tokens[:, 29:]).nll, nll)
        assert not torch.equal(StaticReader(model).read(tokens).nll[:, 29:], nll)


def test_a_state_is_refused_where_the_optimizer_differs_in_a_pair_of_numbers(tmp_path: Path) -> None:
    model = make_model("mistral")
    usual, other, same = (
        DynamicEvaluationReader(model, lambda p, betas=betas: torch.optim.AdamW(p, 1e-2, betas), SEGMENT)
        for betas in ((0.9, 0.999), (0.8, 0.999), (0.9, 0.999))
    )
    usual.read(make_tokens(1, 2 * SEGMENT))
    usual.save(tmp_path / "reader.safetensors")
    assert usual.configuration()["betas"] == [0.9, 0.999]
    with pytest.raises(ValueError, match=r"betas \[0.9, 0.999\], this one's is \[0.8, 0.999\]"):
        other.load(tmp_path / "reader.safetensors")
    same.load(tmp_path / "reader.safetensors")
    assert torch.equal(same.next_log_probs(), usual.next_log_probs())


@pytest.mark.parametrize(("optimizer", "kind"), [("adam", "str"), (torch.optim.SGD([torch.ones(1)], 0.1), "SGD")])
def test_an_optimizer_is_made_by_a_function(optimizer: Any, kind: str) -> None:
    with pytest.raises(
        ValueError, match=f"optimizer is a {kind}; expected a function from parameters to a torch Optimizer"
    ):
        DynamicEvaluationReader(make_model("mistral"), optimizer)


def test_dynamic_evaluation_takes_the_models_own_rule() -> None:
    model = make_model("mistral")
    model.tuned_rule = TunedRule("sgd", lr=0.25)
    configuration = DynamicEvaluationReader(model).configuration()
    assert (configuration["lr"], configuration["optimizer"], configuration["segment"]) == (
        0.25, "DynamicEvaluationSGD", 64,
    )  # fmt: skip
    model.tuned_rule = TunedRule("rms_2018", lr=0.1, eps=1e-3)
    with pytest.raises(ValueError, match="needs gradient statistics"):
        DynamicEvaluationReader(model)
    for arguments, message in (({"segment": 0}, "segment is 0"), ({"parameters": "bias"}, "parameters is 'bias'")):
        with pytest.raises(ValueError, match=message):
            DynamicEvaluationReader(model, sgd, **arguments)


def test_gradient_statistics_are_those_of_first_segments() -> None:
    model = make_text_model("mistral", torch.float64)
    statistics = gradient_statistics(model, DOCUMENTS[:2], segment=SEGMENT, batches=2)
    assert statistics.batches == 2
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for document in DOCUMENTS[:2]:
        tokens = model.encode(document.text)[None, :SEGMENT]
        inputs = torch.cat([torch.full((1, 1), model.bos), tokens[:, :-1]], 1)
        nll, _ = model(inputs, Context.empty(1, "cpu"), tokens)
        gradients = torch.autograd.grad(nll.mean(), list(model.parameters()))
        expected = [total + g.square() for total, g in zip(expected, gradients, strict=True)]
    for ours, theirs in zip(statistics.sum_of_squares, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-15)


def test_weights_scale_what_a_segment_teaches_but_no_score_of_it() -> None:
    model, tokens = make_model("mistral", torch.float64), make_tokens(1, SEGMENT)
    whole, half = (DynamicEvaluationReader(model, lambda p: DynamicEvaluationSGD(p, 0.05), SEGMENT) for _ in range(2))
    assert torch.equal(half.read(tokens, torch.full((1, SEGMENT), 0.5)).nll, whole.read(tokens).nll)
    for parameter, delta in whole.fast_weights().items():
        torch.testing.assert_close(half.fast_weights()[parameter], delta / 2, rtol=1e-9, atol=1e-13)
    assert float(learned_unembedding(whole).abs().max()) > 1e-3
