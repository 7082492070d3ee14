"""The benchmark compares like with like, and its instruments show what is there. No test looks at a clock's value."""

import argparse
import inspect
import json
import os
import statistics
import sys
import threading
import time
from functools import partial

import pytest
import torch

from fwl_lab import UpdateRule, attach_fast_weights
from fwl_lab.profiling import benchmark as bench
from fwl_lab.profiling import memory as measuring
from fwl_lab.profiling.benchmark import Subject, benchmark, table
from fwl_lab.profiling.flop_formulas import DYNAMIC, FROZEN, FWL, FWL_TRAINING, PLAIN_TRAINING, STATIC, WORK
from fwl_lab.profiling.workloads import block_nll, document, plain_nll, workload
from tests.helpers.models import fill_block, make_block_model, make_text_model, make_tokens

CPU = torch.device("cpu")
MEGA = 10**6


def _tiny(device, dtype):
    return make_block_model("gpt2", dtype, n_positions=64)


SUBJECTS = {"tiny": Subject(_tiny, 3)}


def _here(function, *arguments, place):
    """In place of a process for each of eleven cases."""
    return function(*arguments)


def test_a_case_is_measured_in_a_process_of_its_own():
    subject, case = SUBJECTS["tiny"], (FWL, 40)
    found = measuring.in_a_fresh_process(bench._peak, subject, case, "cpu", place=CPU)
    assert found is None or 0 <= found < 50 * MEGA
    assert measuring.in_a_fresh_process(os.getpid, place=CPU) != os.getpid()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
@pytest.mark.parametrize("healthy", [{}, {"schedule": (20.0, 0.5), "cap": 0.1, "learn_decay": True}])
def test_the_plain_step_is_the_blocks(family, dtype, tolerance, healthy):
    """Values and all gradients. Worst seen: 4e-7 of the largest entry in float32, 1e-15 in float64."""
    network = make_block_model(family, dtype).network
    rule = UpdateRule(inner_batch=10, decay=0.05, **healthy)
    model = fill_block(attach_fast_weights(network, size=6, rule=rule))
    hidden, labels = torch.randn(2, 45, model.block.W1.shape[1], dtype=dtype), make_tokens(2, 45)
    model.requires_grad_(False)
    learned = {**dict(model.block.named_parameters()), "U": model.unembedding.weight}
    for parameter in learned.values():
        parameter.requires_grad_(True)
    plain, ours = (f(model.block, hidden, labels) for f in (plain_nll, block_nll))
    assert (plain - model.block.nll(hidden, labels)).abs().max() > 0.1, "adapting should show"
    torch.testing.assert_close(plain, ours, rtol=tolerance, atol=tolerance)
    expected, gradients = (torch.autograd.grad(nll.sum(), list(learned.values())) for nll in (plain, ours))
    for name, one, other in zip(learned, expected, gradients, strict=True):
        scale = float(one.abs().max())
        assert scale > 0.1, name
        assert float((one - other).abs().max()) < tolerance * scale, name


def test_a_step_makes_gradients_for_block_and_where_asked_for_head():
    model = make_block_model("mistral", tie_word_embeddings=False)
    seen = {}
    real = model.zero_grad

    def zero_grad(set_to_none=True):
        seen.update({n: p.grad is not None for n, p in model.named_parameters() if p.grad is not None})
        real(set_to_none=set_to_none)

    model.zero_grad = zero_grad
    own = {f"block.{n}" for n, _ in model.block.named_parameters()}
    for what in (FWL_TRAINING, PLAIN_TRAINING):
        seen.clear()
        workload(model, what + FROZEN, make_tokens(1, 30))()
        assert set(seen) == own
        seen.clear()
        workload(model, what, make_tokens(1, 30))()
        assert set(seen) == own | {"network.lm_head.weight"}


@pytest.mark.skipif(not measuring.STATUS.exists(), reason="this system does not tell a process its size")
@pytest.mark.parametrize("way", ["high-water mark", "samples"])
def test_an_allocation_shows(way, monkeypatch, tmp_path):
    if way == "samples":
        monkeypatch.setattr(measuring, "CLEAR_REFS", tmp_path / "missing" / "clear_refs")
    measuring.peak_bytes(partial(torch.ones, 1000), CPU)
    for size in (200 * MEGA, 50 * MEGA, 200 * MEGA):  # what was freed before hides nothing
        found = measuring.peak_bytes(partial(_hold, size), CPU)
        assert found == pytest.approx(size, rel=0.1)
    assert threading.active_count() < 20


def _hold(size):
    block = torch.ones(size // 4)
    time.sleep(0.1)  # many samples, on a busy machine too
    return block


@pytest.mark.skipif(sys.platform != "linux" or not measuring.STATUS.exists(), reason="of glibc's heap")
def test_holes_that_freed_blocks_leave_do_not_count():
    """A reading's memory crept up by several blocks over the first 100,000 tokens, with ever the same in use."""
    block = torch.ones(31 * MEGA // 4)
    del block  # as large as it was, glibc lets blocks enter the heap from then on
    between: list[torch.Tensor] = []
    peaks: list[int] = []
    for _ in range(3):  # the least of them: what the system had swapped out comes back in meanwhile, and counts
        with measuring.held_at_most(CPU) as peak:
            for size in range(10, 30):
                block = torch.ones(size * MEGA // 4)
                between.append(torch.ones(10))
                del block
            peaks.append(peak() or 0)
    assert min(peaks) == pytest.approx(29 * MEGA, rel=0.1)


def test_no_size_where_the_system_does_not_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "STATUS", tmp_path / "status")
    called = []
    assert measuring.peak_bytes(lambda: called.append(1), CPU) is None


class Prepared:
    """A workload that says what it is."""

    def __init__(self, model, what, tokens):
        self.what, self.tokens = what, tokens.shape[1]
        self.run = workload(model, what, tokens)

    def __call__(self):
        self.run()


def test_records(monkeypatch):
    """Times are made up, one for each case and round, so that medians, spread and ratios can be written down."""
    clock = {STATIC: [4.0, 1.0, 2.0], FWL: [4.0, 3.0, 8.0], DYNAMIC: [16.0, 16.0, 16.0]}
    order = []

    def seconds(function, device):
        case = (function.what, function.tokens)
        order.append(case)
        return clock.get(case[0], [5.0] * 3)[order.count(case) - 1] if case[1] == 40 else 7.0

    monkeypatch.setattr(bench, "seconds", seconds)
    monkeypatch.setattr(bench, "workload", Prepared)
    monkeypatch.setattr(bench, "product_rate", lambda device, dtype: lambda: 1e6)
    monkeypatch.setattr(bench, "in_a_fresh_process", _here)
    records = benchmark(SUBJECTS, tokens=40, long=60, device="cpu")
    by = {(r["what"], r["tokens"]): r for r in records}
    assert set(by) == {(what, 40) for what in WORK} | {(STATIC, 60), (FWL, 60)}
    one_round = [(what, 40) for what in WORK]
    assert order == [*one_round, (STATIC, 60), (FWL, 60), *one_round, *one_round]
    static, fwl = by[STATIC, 40], by[FWL, 40]
    assert (static["seconds"], static["repeats"], static["tokens_per_second"]) == (2.0, 3, 20.0)
    assert static["spread"] == (3.0 - 1.5) / 2.0
    assert (by[FWL, 60]["seconds"], by[FWL, 60]["repeats"], by[FWL, 60]["spread"]) == (7.0, 1, None)
    assert static["fraction_of_peak"] == pytest.approx(static["flops_per_token"] * 40 / 2.0 / 1e6)
    for record in records:
        assert record["model"] == "tiny" and record["dtype"] == "float32"
        assert record["flops_per_token"] == pytest.approx(record["flops_per_token_formula"], rel=0.02)
        assert record["peak_bytes"] is None or record["peak_bytes"] >= 0
    shown = table(records)
    rows = [[cell.strip() for cell in line.split("|")] for line in shown.splitlines() if line.startswith("| tiny")]
    assert len(rows) == len(records) + 1
    assert rows[0][1:7] == ["tiny", "40", "static", "2", "75.0%", "20"]
    ratio = fwl["flops_per_token"] / static["flops_per_token"]
    assert f"- tiny, 40 tokens, fwl / static: seconds 2.00, flops_per_token {ratio:.2f}" in shown
    assert "- tiny, 40 tokens, dynamic-evaluation / fwl: seconds 4.00" in shown
    assert "- tiny, 40 tokens, fwl-training / plain-training: seconds 1.00, peak_bytes" in shown


def test_a_run_from_the_command_line(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(bench, "SUBJECTS", SUBJECTS)
    monkeypatch.setattr(bench, "in_a_fresh_process", _here)
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 64})
    path = tmp_path / "runs" / "bench.json"
    bench.main([str(path), "--models", "tiny", "--tokens", "40", "--long", "60", "--rounds", "2", "--device", "cpu"])
    records = json.loads(path.read_text())
    said = capsys.readouterr()
    assert said.out == table(records) + "\n"
    assert "tiny: round 2 of 2" in said.err
    assert all(r["seconds"] > 0 and r["fraction_of_peak"] > 0 for r in records)
    assert {r["repeats"] for r in records if r["tokens"] == 40} == {2}


def test_documents_are_source_where_there_is_a_tokenizer():
    text = make_text_model()
    ids = document(text, 300)
    assert ids.shape == (1, 300)
    assert text.decode(ids[0]) in inspect.getsource(argparse)
    model = make_block_model("gpt2")
    random = document(model, 300)
    assert torch.equal(random, document(model, 300)) and len(random.unique()) > model.vocab_size // 2


def test_a_product_counts_two_operations_for_each_multiply_add(monkeypatch):
    monkeypatch.setattr(measuring, "SIDES", {"cpu": 64})
    monkeypatch.setattr(measuring, "seconds", lambda function, device: function().sum().item() and 0.5)
    assert measuring.product_rate(CPU, torch.float32)() == 2 * 64**3 / 0.5


def test_spread_is_relative_to_the_median():
    values = [1.0, 2.0, 3.0, 4.0, 10.0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    assert bench._spread(values) == (high - low) / middle == 2 / 3
    assert bench._spread([1.0]) is None
