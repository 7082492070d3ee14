"""The block against its oracle and against the numbers of the published implementations, in float64."""

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from fwl_lab.fast_weights import FastWeightBlock, UpdateRule, scan
from fwl_lab.fast_weights import reference as oracle
from fwl_lab.ops import cross_entropy
from fwl_lab.ops import linear_attention as attention
from fwl_lab.ops import recompute as checkpoints
from fwl_lab.ops.norms import RMSNorm
from fwl_lab.ops.observer import Deltas, Observer

DATA = Path(__file__).parents[2] / "data"
PUBLISHED = sorted(p.stem for p in DATA.glob("fwl_*.npz"))
NAMES = {"W1": "k1", "b1": "b1", "W2": "k2", "b2": "b2", "g": "ln_scale", "b": "ln_bias", "U": "unk", "c": "unb"}
WIDTH, SIZE, VOCABULARY = 6, 3, 11


def make_block(shape: str, rule: UpdateRule, seed: int = 0) -> FastWeightBlock:
    """A float64 block with every parameter random and step sizes of both signs."""
    torch.manual_seed(seed)
    if shape == "published":
        block = FastWeightBlock(WIDTH, SIZE, VOCABULARY, rule)
    else:
        norm = nn.LayerNorm(WIDTH) if shape == "attached-layer" else RMSNorm(nn.Parameter(torch.ones(WIDTH)), 1e-6)
        block = FastWeightBlock.attach(norm, nn.Linear(WIDTH, VOCABULARY, bias=shape == "attached-layer"), SIZE, rule)
        block.unembedding.double()
        norm.double()
    block.double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        block.steps.copy_(torch.tensor([0.3, -0.1, 0.2, 0.15, 0.1, -0.2], dtype=torch.float64)[: len(block.steps)])
    return block


def make_documents(lengths: tuple[int, ...], seed: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, labels and 0/1 weights of documents of unlike length in one right-padded batch."""
    generator = torch.Generator().manual_seed(seed)
    rows, longest = len(lengths), max(lengths)
    hidden = torch.randn(rows, longest, WIDTH, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, VOCABULARY, (rows, longest), generator=generator)
    weights = torch.tensor([[float(t < n) for t in range(longest)] for n in lengths], dtype=torch.float64)
    return hidden, labels, weights


@pytest.mark.parametrize("name", PUBLISHED)
def test_block_gives_published_numbers(name):
    arrays = dict(np.load(DATA / f"{name}.npz"))
    block = oracle.load_published_parameters(arrays, "jax" if "jax" in name else "tf")
    hidden, labels, weights = (torch.from_numpy(arrays[k]) for k in ("x", "labels", "w"))
    out = block(hidden, labels, weights)
    loss = (out.nll * weights).sum() / weights.sum()
    loss.backward()
    # Worst seen: 9e-15 for values, 1.2e-14 for gradients.
    for ours, theirs in ((block.logits(out.hidden), "out"), (block.logits(out.slow_hidden), "slow"), (loss, "loss")):
        np.testing.assert_allclose(ours.detach(), arrays[theirs], rtol=0, atol=1e-10)
    for ours, theirs in (NAMES | {"steps": "steps"}).items():
        np.testing.assert_allclose(getattr(block, ours).grad, arrays[f"g_{theirs}"].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", PUBLISHED)
def test_oracle_gives_published_numbers(name):
    arrays = dict(np.load(DATA / f"{name}.npz"))
    block = oracle.load_published_parameters(arrays, "jax" if "jax" in name else "tf")
    hidden, labels, weights = (torch.from_numpy(arrays[k]) for k in ("x", "labels", "w"))
    nll, output, _ = oracle.read(block, hidden, labels, weights)
    loss = (nll * weights).sum() / weights.sum()
    loss.backward()
    np.testing.assert_allclose(loss.detach(), arrays["loss"], rtol=0, atol=1e-10)
    real = weights != 0  # the oracle does not look at what has no weight with its own label
    np.testing.assert_allclose(block.logits(output).detach()[real], arrays["out"][real], rtol=0, atol=1e-10)
    for ours, theirs in NAMES.items():
        np.testing.assert_allclose(getattr(block, ours).grad, arrays[f"g_{theirs}"].T, rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", ["published", "attached-layer", "attached-rms"])
@pytest.mark.parametrize("inner_batch", [1, 5, 64, None])
@pytest.mark.parametrize("length", [1, 63, 100, 128])
def test_block_equals_oracle(shape, inner_batch, length):
    block = make_block(shape, UpdateRule(inner_batch=inner_batch))
    hidden, labels, weights = make_documents((length, max(1, length * 2 // 3)))
    with torch.no_grad():
        out = block(hidden, labels, weights)
        nll, output, delta = oracle.read(block, hidden, labels, weights)
    # Worst seen over all cases: 3e-14.
    torch.testing.assert_close(out.nll, nll, rtol=0, atol=1e-10)
    torch.testing.assert_close(out.hidden[weights != 0], output[weights != 0], rtol=0, atol=1e-10)
    for name, value in out.state.fast_weights().items():
        torch.testing.assert_close(value, delta[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("shape", ["published", "attached-layer", "attached-rms"])
@pytest.mark.parametrize("inner_batch", [1, 5, 64, None])
def test_gradients_equal_oracle(shape, inner_batch):
    block = make_block(shape, UpdateRule(inner_batch=inner_batch, decay=0.05))
    hidden, labels, weights = make_documents((17, 11))
    parameters = [p.requires_grad_(True) for p in block.parameters()]
    hidden.requires_grad_(True)
    fast = torch.autograd.grad(block(hidden, labels, weights).nll.sum(), [hidden, *parameters])
    slow = torch.autograd.grad(oracle.read(block, hidden, labels, weights)[0].sum(), [hidden, *parameters])
    for ours, theirs in zip(fast, slow, strict=True):  # worst seen: 2e-13
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


HEALTHY = {
    "decay": {"decay": 0.1},
    "learned decay": {"decay": 0.1, "learn_decay": True},
    "schedule": {"schedule": (8.0, 0.6)},
    "cap": {"cap": 0.2},
    "all": {"decay": 0.1, "learn_decay": True, "schedule": (8.0, 0.6), "cap": 0.2},
}


@pytest.mark.parametrize("settings", HEALTHY.values(), ids=HEALTHY.keys())
def test_what_keeps_long_documents_healthy_equals_oracle(settings):
    """Values and all gradients; each setting changes the numbers."""
    block = make_block("attached-layer", UpdateRule(inner_batch=5, **settings))
    plain = make_block("attached-layer", UpdateRule(inner_batch=5))
    hidden, labels, weights = make_documents((23, 14))
    parameters = list(block.parameters())
    ours, theirs = block(hidden, labels, weights).nll, oracle.read(block, hidden, labels, weights)[0]
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    assert float((ours - plain(hidden, labels, weights).nll).detach().abs().max()) > 1e-3
    gradients = [torch.autograd.grad(nll.sum(), parameters) for nll in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)
    parts: list[torch.Tensor] = []
    state = None
    for a, b in ((0, 7), (7, 8), (8, 23)):
        out = block(hidden[:, a:b], labels[:, a:b], weights[:, a:b], state)
        parts, state = [*parts, out.nll], out.state
    torch.testing.assert_close(torch.cat(parts, 1), ours, rtol=0, atol=1e-10)


@pytest.mark.parametrize("steps", [(("W2",),), (("W2", "b2"),)])
def test_a_cap_where_the_trained_parameters_are_0_leaves_nothing(steps):
    """0 / 0 once: a new block, of which only W2 is fast, was NaN from the first token."""
    norm, head = nn.LayerNorm(WIDTH).double(), nn.Linear(WIDTH, VOCABULARY).double()
    rule = UpdateRule(inner_batch=4, steps=steps, initial_step=0.1, cap=0.1)
    block = FastWeightBlock.attach(norm, head, SIZE, rule)
    hidden, labels, weights = make_documents((12,))
    out = block(hidden, labels, weights)
    torch.testing.assert_close(out.nll, oracle.read(block, hidden, labels, weights)[0], rtol=0, atol=1e-10)
    assert float(out.nll.detach().sub(out.slow_nll.detach()).abs().max()) > 1e-3
    gradients = torch.autograd.grad(out.nll.sum(), [block.W2, block.steps])
    assert all(bool(g.isfinite().all()) for g in gradients)


def test_a_schedule_that_has_come_to_nothing_still_counts_tokens():
    """(1 + t)^-400 is 0 in float64 from token 6 on: inner batches go on all the same."""
    block = make_block("attached-layer", UpdateRule(inner_batch=4, schedule=(1.0, 400.0), decay=0.1))
    hidden, labels, weights = make_documents((30,))
    out = block(hidden, labels, weights)
    assert out.state.seen.tolist() == [30]
    torch.testing.assert_close(out.nll, oracle.read(block, hidden, labels, weights)[0], rtol=0, atol=1e-10)


def test_observers_see_each_inner_batch_once_in_training_too():
    block = make_block("attached-layer", UpdateRule(inner_batch=4))
    hidden, labels, weights = make_documents((40,))
    seen: list[int] = []

    class Watch(Observer):
        def updated(self, now: Tensor, fast_weights: Deltas) -> None:
            seen.append(int(now[0]))

    block(hidden, labels, weights, observer=Watch()).nll.sum().backward()
    assert seen == list(range(4, 41, 4))


def test_a_cap_holds_and_small_changes_pass_below_it():
    hidden, labels, weights = make_documents((60,))

    def drift(cap: float | None) -> float:
        """‖Δθ‖ / ‖θ₀‖ at the start of the last inner batch."""
        block = make_block("attached-layer", UpdateRule(inner_batch=4, cap=cap))
        with torch.no_grad():
            delta = block(hidden, labels, weights).state.delta
        total = sum(value.square().sum() for value in delta.values())
        return float((total / sum(getattr(block, name).detach().square().sum() for name in delta)).sqrt())

    free = drift(None)
    assert drift(free / 3) == pytest.approx(free / 3, rel=1e-9)
    assert drift(free * 3) == free


@pytest.mark.parametrize("inner_batch", [5, None])
@pytest.mark.parametrize("lengths", [(23, 23), (40, 11, 0, 26)])
def test_recomputing_changes_no_number(inner_batch, lengths, monkeypatch):
    """Groups that are computed again backward give the values and gradients of one graph."""
    block = make_block("attached-rms", UpdateRule(inner_batch=inner_batch, decay=0.05))
    hidden, labels, weights = make_documents(lengths)
    hidden.requires_grad_(True)
    parameters = [hidden, *(p.requires_grad_(True) for p in block.parameters()), block.unembedding.weight]
    monkeypatch.setattr(attention, "CHUNK", 3)
    monkeypatch.setattr(scan, "LONGEST_SPAN", 16)
    results = []
    for fewest in (4, 1000):
        monkeypatch.setattr(checkpoints, "FEWEST_STEPS", fewest)
        nll = block(hidden, labels, weights).nll
        results.append((nll, *torch.autograd.grad(nll.sum(), parameters)))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


def test_observers_are_told_each_retention_once_in_training_too():
    """The checkpoint's repetition told them again."""
    block = make_block("attached-layer", UpdateRule(inner_batch=4, decay=0.1))
    hidden, labels, weights = make_documents((40,))
    kept: list[Tensor] = []

    class Keep(Observer):
        def retained(self, keep: Tensor) -> None:
            kept.append(keep)

    block(hidden, labels, weights, observer=Keep()).nll.sum().backward()
    assert len(kept) == 10 and all(torch.allclose(keep, torch.tensor([0.9], dtype=torch.float64)) for keep in kept)


@pytest.mark.parametrize("learns", [True, False])
def test_recomputing_uses_the_weights_of_its_call(learns):
    """Of a functional call, which is over when gradients are taken: those came from the block's own weights."""
    rule = UpdateRule(inner_batch=4, decay=0.05)
    block, other = make_block("attached-layer", rule), make_block("attached-layer", rule, seed=2)
    hidden, labels, _ = make_documents((40,))
    arguments = (hidden, labels if learns else None)
    weights: dict[str, Tensor] = dict(other.named_parameters())
    # The norm and the unembedding are the model's: used by a block, not owned.
    block.__dict__["input_norm"], block.__dict__["unembedding"] = other.input_norm, other.unembedding
    found = [functional_call(block, weights, arguments).hidden, other(*arguments).hidden]
    gradients = [torch.autograd.grad(x.square().sum(), list(other.parameters()), allow_unused=True) for x in found]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_a_repeated_group_makes_no_product_with_the_unembedding(monkeypatch):
    """The passes over the vocabulary for δ are as many in groups that are computed again as in one graph."""
    block = make_block("attached-rms", UpdateRule(inner_batch=5))
    hidden, labels, weights = make_documents((40,))
    passes: list[Tensor] = []
    forward = cross_entropy._forward

    def counted(hidden: Tensor, *rest: Tensor) -> cross_entropy.TokenLosses:
        passes.append(hidden)
        return forward(hidden, *rest)

    monkeypatch.setattr(cross_entropy, "_forward", counted)
    block(hidden, labels, weights).nll.sum().backward()
    assert len(passes) == 8


def test_a_graph_grows_with_the_root_of_the_inner_batches():
    """Bytes that a graph holds for 256 inner batches: fewer than 8 times those for 16 (at least 4, the root)."""

    def held(count: int) -> int:
        block = make_block("attached-rms", UpdateRule(inner_batch=1))
        hidden, labels, weights = make_documents((count,))
        sizes: dict[int, int] = {}

        def pack(x: torch.Tensor) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        gc.collect()
        before = {id(x) for x in gc.get_objects() if type(x) is torch.Tensor}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            out = block(hidden, labels, weights)
        assert out.nll.requires_grad
        for x in gc.get_objects():  # what checkpoints were called with
            if type(x) is torch.Tensor and id(x) not in before:
                pack(x)
        return sum(sizes.values())

    assert held(256) < 8 * held(16)


def test_rows_that_have_ended_cost_nothing():
    """Documents of 5 and 50 tokens: the products of the first row stop after its inner batch."""
    block = make_block("attached-rms", UpdateRule(inner_batch=5))

    def operations(lengths: tuple[int, ...]) -> int:
        hidden, labels, weights = make_documents(lengths)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            block(hidden, labels, weights)
        return counter.get_total_flops()

    scored = 2 * WIDTH * VOCABULARY  # of a token's logits; the two that are padding are not scored
    assert operations((3, 50)) == operations((50,)) + operations((5,)) - 2 * scored


@pytest.mark.parametrize("inner_batch", [5, None])
def test_state_stays_float32_under_bfloat16_autocast(inner_batch):
    block = make_block("attached-rms", UpdateRule(inner_batch=inner_batch))
    hidden, labels, weights = make_documents((40, 26))
    with torch.no_grad():
        expected = block(hidden, labels, weights)
        block.float()
        block.unembedding.float()
        assert block.input_norm is not None
        block.input_norm.float()
        with torch.autocast("cpu", torch.bfloat16):
            out = block(hidden.float(), labels, weights.float())
            after = block(hidden.float(), labels, weights.float(), out.state)
    for state in (out.state, after.state):
        assert {x.dtype for x in (*state.delta.values(), *state.pending.values())} == {torch.float32}
    assert out.nll.dtype == torch.float32
    torch.testing.assert_close(out.nll.double(), expected.nll, rtol=0, atol=0.05)  # worst seen: 0.009


def test_the_gradient_of_the_unembedding_is_summed_in_float32_under_autocast():
    """In bfloat16 a sum over 200 inner batches was 6 % off."""
    block = make_block("attached-rms", UpdateRule(inner_batch=1)).float()
    block.unembedding.float()
    assert block.input_norm is not None
    block.input_norm.float()
    with torch.no_grad():
        block.steps.fill_(1e-4)
    hidden, labels, weights = (x.float() if x.is_floating_point() else x for x in make_documents((200,)))
    weight = block.unembedding.weight
    exact = torch.autograd.grad(block(hidden, labels, weights).nll.sum(), weight)[0]
    with torch.autocast("cpu", torch.bfloat16):
        nll = block(hidden, labels, weights).nll
    rounded = torch.autograd.grad(nll.sum(), weight)[0]
    assert rounded.dtype == torch.float32
    assert float((rounded - exact).norm() / exact.norm()) < 0.01


CUTS = {"halves": [50], "ragged": [1, 8, 41, 74, 75, 139], "token by token": list(range(1, 150))}


@pytest.mark.parametrize("cuts", CUTS.values(), ids=CUTS.keys())
@pytest.mark.parametrize("inner_batch", [1, 5, 64, None])
def test_calls_may_be_cut_anywhere(cuts, inner_batch):
    block = make_block("attached-rms", UpdateRule(inner_batch=inner_batch, decay=0.1))
    hidden, labels, weights = make_documents((150, 97))
    with torch.no_grad():
        whole = block(hidden, labels, weights)
        state, nll = None, []
        for a, b in zip([0, *cuts], [*cuts, 150], strict=True):
            out = block(hidden[:, a:b], labels[:, a:b], weights[:, a:b], state)
            state = out.state
            nll.append(out.nll)
    torch.testing.assert_close(torch.cat(nll, 1), whole.nll, rtol=0, atol=1e-10)  # worst seen: 2e-14
    assert state is not None and state.seen.tolist() == [150, 97]
    for name, value in state.fast_weights().items():
        torch.testing.assert_close(value, whole.state.fast_weights()[name], rtol=0, atol=1e-10)


def test_rows_that_stand_at_unlike_places_go_on_after_padding():
    """A row that was padded in one call continues in the next, in the middle of its own inner batch."""
    block = make_block("attached-layer", UpdateRule(inner_batch=8))
    hidden, labels, _ = make_documents((40, 40))
    padded = torch.ones(2, 20, dtype=torch.float64)
    padded[1, 13:] = 0
    with torch.no_grad():
        alone = block(hidden[1:], labels[1:])
        first = block(hidden[:, :20], labels[:, :20], padded)
        second = block(hidden[:, 13:33], labels[:, 13:33], None, first.state)
    torch.testing.assert_close(second.nll[1], alone.nll[0, 13:33], rtol=0, atol=1e-10)


def test_fractional_weights_scale_what_is_learned():
    block = make_block("attached-layer", UpdateRule(inner_batch=5))
    hidden, labels, _ = make_documents((23, 23))
    weights = torch.rand(2, 23, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    weights[0, 4] = 0.0
    with torch.no_grad():
        ours, theirs = block(hidden, labels, weights), oracle.read(block, hidden, labels, weights)
    torch.testing.assert_close(ours.nll, theirs[0], rtol=0, atol=1e-10)


def test_slow_nll_is_the_loss_at_the_trained_parameters():
    block = make_block("attached-rms", UpdateRule(inner_batch=5))
    hidden, labels, weights = make_documents((30, 20))
    theta = {n: getattr(block, n) for n in ("W1", "b1", "W2", "b2", "g")}
    with torch.no_grad():
        out = block(hidden, labels, weights)
        for row, token in ((0, 0), (0, 29), (1, 19)):
            expected, _ = oracle.token_loss(block, theta, hidden[row, token], labels[row, token])
            torch.testing.assert_close(out.slow_nll[row, token], expected, rtol=0, atol=1e-12)
    assert float(out.slow_nll[1, 25]) == 0.0


@pytest.mark.parametrize("length", [1, 63, 100, 128, 700])
@pytest.mark.parametrize("function", [attention.chunked, attention.mixed])
def test_fast_attention_equals_naive(function, length):
    generator = torch.Generator().manual_seed(length)
    q, k, v, state = (torch.randn(2, n, m, generator=generator, dtype=torch.float64, requires_grad=True)
                      for n, m in ((length, 4), (length, 4), (length, 3), (3, 4)))  # fmt: skip
    results = [function(q, k, v, state) for function in (attention.naive, function)]
    for ours, theirs in zip(results[1], results[0], strict=True):  # worst seen: 6e-14
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    gradients = [torch.autograd.grad(out.square().sum() + last.sum(), (q, k, v, state)) for out, last in results]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-9)


def test_before_carries_nothing_of_a_token_into_itself():
    """`cumsum − self` leaks a token's own value by rounding; a shifted sum cannot."""
    values = torch.randn(1, 100, 2, generator=torch.Generator().manual_seed(0)) * 1e3
    changed = values.clone()
    changed[0, 60:] *= 1e6
    assert torch.equal(attention.before(values)[:, :61], attention.before(changed)[:, :61])
    assert not torch.equal(attention.before(values)[:, 61], attention.before(changed)[:, 61])
