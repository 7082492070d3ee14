"""Make the calls that the benchmark measures: readings, a training step of the block, and that step written plainly.

Symbols: B rows, T tokens, M inner batch, D width, V vocabulary.
"""

import argparse
import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from fwl_lab.fast_weights import FastWeightBlock
from fwl_lab.fast_weights.update_rule import PARAMETERS
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.linear_attention import before
from fwl_lab.ops.norms import Normalisation
from fwl_lab.profiling.flop_formulas import DYNAMIC, FROZEN, FWL, PLAIN_TRAINING, READING, STATIC
from fwl_lab.readers import DynamicEvaluationReader, FastWeightReader, StaticReader
from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationSGD

STEP_SIZE = 1e-3  # large enough that updates are not skipped, small enough that reading stays stable


def document(model: LanguageModel, tokens: int) -> Tensor:
    """Return token ids (1, tokens): Python source where the model has a tokenizer, else random ones."""
    if model.tokenizer is not None:
        ids = model.encode(inspect.getsource(argparse))
        ids = ids.repeat(-(-tokens // len(ids)))[:tokens]
    else:
        ids = torch.randint(model.vocab_size, (tokens,), generator=torch.Generator().manual_seed(0))
    return ids[None].to(model.device)


def plain_nll(block: FastWeightBlock, hidden: Tensor, labels: Tensor) -> Tensor:
    """Score tokens by an attached block in the plain way that `FastWeightBlock` is compared with.

    Inner gradients come from autograd, over full logits, and stay in the graph, as do the logits of all tokens.

    Parameters
    ----------
    block : FastWeightBlock
        Attached, with a rule without a normaliser.
    hidden : (B, T, D)
        Residual stream before the final norm.
    labels : (B, T) long

    Returns
    -------
    (B, T) nats
    """
    assert block.input_norm is not None and block.rule.normaliser == "none"
    slow = {n: getattr(block, n) for n in PARAMETERS if getattr(block, n) is not None}
    eta = {n: block.steps[block.rule.step_of(n)] for n in block.fast_parameters}
    delta = {n: slow[n].new_zeros(len(hidden), *slow[n].shape) for n in eta}
    vocabulary, inner = block.head[0].shape[0], block.rule.inner_batch or hidden.shape[1]
    norm = Normalisation(block.kind, block.epsilon)
    begin, power = block.rule.schedule or (1.0, 0.0)
    limit = block.limit()
    seen = torch.arange(hidden.shape[1], dtype=hidden.dtype, device=hidden.device)[None, :, None]
    paces = (1 + seen / begin).pow(-power)  # (1, T, 1)
    outputs = []
    for x, y, pace in zip(*(t.split(inner, 1) for t in (hidden, labels, paces)), strict=True):
        theta = {n: slow[n] + delta[n] if n in delta else slow[n].expand(len(x), *slow[n].shape) for n in slow}
        theta = {n: value if value.ndim == 3 else value[:, None] for n, value in theta.items()}
        k1 = block.input_norm(x)
        z1 = k1 @ theta["W1"].mT + theta["b1"]
        h = z1.relu().square()
        z2 = h @ theta["W2"].mT + theta["b2"] + x
        n = norm.apply(z2)
        out = n * theta["g"] + theta.get("b", 0)
        logits = block.logits(out)  # (B, M, V)
        loss = F.cross_entropy(logits.view(-1, vocabulary), y.flatten(), reduction="sum")
        d_z1, d_z2, d_out = torch.autograd.grad(loss, [z1, z2, out], create_graph=True)
        gradients = {"W1": d_z1, "b1": d_z1, "W2": d_z2, "b2": d_z2, "g": d_out * n, "b": d_out}
        update = {n: -eta[n] * pace * gradients[n] for n in eta}
        add = {n: before(u) for n, u in update.items()}
        hf = z1 + add.get("b1", 0)
        hf = (hf + (k1 @ k1.mT).tril(-1) @ update["W1"] if "W1" in eta else hf).relu().square()
        z2f = hf @ theta["W2"].mT + theta["b2"] + x + add.get("b2", 0)
        z2f = z2f + (hf @ h.mT).tril(-1) @ update["W2"] if "W2" in eta else z2f
        outputs.append(norm.apply(z2f) * (theta["g"] + add.get("g", 0)) + (theta.get("b", 0) + add.get("b", 0)))
        keys = {"W1": k1, "W2": h}
        sums = {n: u.mT @ keys[n] if n in keys else u.sum(1) for n, u in update.items()}
        delta = {n: delta[n] + sums[n] for n in eta}
        keep = block.retention(delta, limit)
        delta = delta if keep is None else {n: d * keep.view(-1, *[1] * (d.ndim - 1)) for n, d in delta.items()}
    logits = block.logits(torch.cat(outputs, 1))  # (B, T, V)
    return F.cross_entropy(logits.view(-1, vocabulary), labels.flatten(), reduction="none").view(labels.shape)


def block_nll(block: FastWeightBlock, hidden: Tensor, labels: Tensor) -> Tensor:
    """Score tokens (B, T), nats, by the block itself, which computes what :func:`plain_nll` does."""
    nll = block(hidden, labels).nll
    assert nll is not None
    return nll


def workload(model: LanguageModel, what: str, tokens: Tensor) -> Callable[[], object]:
    """Make a function that does `what` with a document (1, T), always from its start; see `flops_per_token`."""
    if what in READING:
        makers = {
            STATIC: lambda: StaticReader(model.base),
            FWL: lambda: FastWeightReader(model),
            DYNAMIC: lambda: DynamicEvaluationReader(model.base, lambda p: DynamicEvaluationSGD(p, STEP_SIZE)),
        }
        make = makers[what]
        return _in_bfloat16_on_a_gpu(model, lambda: make().read(tokens))
    block = model.block
    assert block is not None
    nll = plain_nll if what.startswith(PLAIN_TRAINING) else block_nll
    inputs = torch.cat([torch.full_like(tokens[:, :1], model.bos), tokens[:, :-1]], 1)
    with torch.no_grad():
        hidden = model.read(inputs, Context.empty(1, model.device))[0].to(block.W1.dtype)

    def step() -> None:
        model.requires_grad_(False)
        block.requires_grad_(True)
        if not what.endswith(FROZEN):
            model.unembedding.requires_grad_(True)
        model.zero_grad(set_to_none=True)
        nll(block, hidden, tokens).sum().backward()

    return _in_bfloat16_on_a_gpu(model, step)


def _in_bfloat16_on_a_gpu(model: LanguageModel, function: Callable[[], object]) -> Callable[[], None]:
    """Wrap a function so that on a GPU products with the block's float32 weights are made in bfloat16."""

    def run() -> None:
        with torch.autocast(model.device.type, torch.bfloat16, enabled=model.device.type == "cuda"):
            function()
        model.zero_grad(set_to_none=True)

    return run
