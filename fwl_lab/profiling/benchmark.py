"""Measure what reading and learning cost, all in one run: `python -m fwl_lab.profiling.benchmark runs/bench.json`.

Every way of reading, and a training step of the block, is run in turn, round after round, so that a slow minute of the
machine affects all of them; a record holds the median. Memory is measured apart from time. Each record also says which
fraction it reaches of the rate of one large matrix product, measured on the same machine in the same rounds.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fwl_lab.fast_weights import UpdateRule
from fwl_lab.models.attach import attach_fast_weights
from fwl_lab.models.devices import choose_device
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.loading import load_model
from fwl_lab.profiling.flop_formulas import (
    DYNAMIC,
    FROZEN,
    FWL,
    FWL_TRAINING,
    PLAIN_TRAINING,
    STATIC,
    WORK,
    flops_per_token,
)
from fwl_lab.profiling.flops import count_flops
from fwl_lab.profiling.memory import in_a_fresh_process, peak_bytes, product_rate, seconds
from fwl_lab.profiling.workloads import STEP_SIZE, document, workload

READ_AT_LENGTH = (STATIC, FWL)  # these read the long document too
Case = tuple[str, int]  # one of `WORK`, and the number of tokens


class Subject(NamedTuple):
    """A model that is measured: a function of device and dtype that makes it, and the number of rounds."""

    make: Callable[[torch.device, torch.dtype], LanguageModel]
    rounds: int


def _bundled(device: torch.device, dtype: torch.dtype) -> LanguageModel:
    return load_model("bundled", device, dtype)


def _gpt2_small(device: torch.device, dtype: torch.dtype) -> LanguageModel:
    """Make a model of GPT-2's smallest configuration, 124 M random parameters, with a block."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = GPT2LMHeadModel(GPT2Config())  # Any: the declared type of `to` accepts no device
    return attach_fast_weights(LanguageModel(network.to(device, dtype)), rule=UpdateRule(initial_step=STEP_SIZE))


SUBJECTS = {"bundled": Subject(_bundled, 9), "gpt2-small": Subject(_gpt2_small, 3)}


def benchmark(
    subjects: Mapping[str, Subject] = SUBJECTS,
    *,
    tokens: int = 1024,
    long: int = 4096,
    rounds: int | None = None,
    device: str = "auto",
    whats: Iterable[str] = tuple(WORK),
) -> list[dict[str, Any]]:
    """Measure each subject; one record for each of `whats` at `tokens`, and for reading with and without FWL at `long`.

    Parameters
    ----------
    subjects : mapping of names to Subject
        Models to measure.
    tokens, long : int
        Lengths of the documents.
    rounds : int, optional
        Number of times that each is timed at `tokens`; None: the subject's own. `long` is timed once.
    device : str
        "auto" is a GPU where there is one.
    whats : iterable of str
        Names in `WORK`; see `flops_per_token`.

    Returns
    -------
    list of dict
        `model`, `tokens`, `what`; `seconds` (median), `spread` (interquartile range / median; None for one round),
        `repeats`, `tokens_per_second`; `peak_bytes` above the resident size with the model loaded (None where the
        system does not tell); `flops_per_token` as executed and `flops_per_token_formula`; `product_flops_per_second`
        of one large matrix product, `fraction_of_peak` of it; `device`, `threads`, `dtype`.
    """
    place, whats = choose_device(device), tuple(whats)
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    records = []
    for name, subject in subjects.items():
        _say(f"{name}: making the model")
        model = subject.make(place, dtype)
        cases = {(what, tokens): workload(model, what, document(model, tokens)) for what in whats}
        cases |= {
            (what, long): workload(model, what, document(model, long)) for what in whats if what in READ_AT_LENGTH
        }
        flops = {}
        for case, function in cases.items():  # this warms each up too
            flops[case] = count_flops(function) / case[1]
            _say(f"{name}: {case[0]}, {case[1]} tokens: {flops[case] / 1e6:.4g} MFLOP / token")
        times, rate = _time(name, cases, tokens, rounds or subject.rounds, product_rate(place, dtype), place)
        _say(f"{name}: memory")
        # A process for each case: small blocks that one frees would be reused, and not seen, in another.
        peaks = {case: in_a_fresh_process(_peak, subject, case, str(place), place=place) for case in cases}
        for what, length in cases:
            peak = peaks[what, length]
            taken, done = times[what, length], flops[what, length]
            median = statistics.median(taken)
            records.append(
                {
                    "model": name, "tokens": length, "what": what,
                    "seconds": median, "spread": _spread(taken), "repeats": len(taken),
                    "tokens_per_second": length / median, "peak_bytes": peak,
                    "flops_per_token": done, "flops_per_token_formula": flops_per_token(model, what, length),
                    "product_flops_per_second": rate, "fraction_of_peak": done * length / median / rate,
                    "device": device_name(place), "threads": torch.get_num_threads(), "dtype": str(dtype)[6:],
                }
            )  # fmt: skip
    return records


def _peak(subject: Subject, case: Case, device: str) -> int | None:
    """Return the most bytes held in a case, above those held with the model loaded."""
    place = torch.device(device)
    model = subject.make(place, torch.bfloat16 if place.type == "cuda" else torch.float32)
    what, length = case
    function = workload(model, what, document(model, length))
    function()  # buffers that a first call allocates for good are not counted
    return peak_bytes(function, place)


def _time(
    name: str,
    cases: Mapping[Case, Callable[[], object]],
    tokens: int,
    rounds: int,
    product: Callable[[], float],
    device: torch.device,
) -> tuple[dict[Case, list[float]], float]:
    """Return seconds of each case in each round (at other lengths than `tokens`, in the first), and the median rate."""
    times: dict[Case, list[float]] = {case: [] for case in cases}
    product()
    rates = []
    for number in range(rounds):
        started = time.perf_counter()
        rates += [product() for _ in range(3)]
        for case, function in cases.items():
            if case[1] == tokens or not number:
                times[case].append(seconds(function, device))
        _say(f"{name}: round {number + 1} of {rounds}: {time.perf_counter() - started:.1f} s")
    return times, statistics.median(rates)


def _spread(values: list[float]) -> float | None:
    """Return the interquartile range over the median; None for a single value."""
    if len(values) < 2:
        return None
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return (high - low) / median


def device_name(device: torch.device) -> str:
    """Return the manufacturer's name of a device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def table(records: Iterable[Mapping[str, Any]]) -> str:
    """Return the records as a Markdown table, with the ratios of interest beneath it."""
    records = list(records)
    lines = [
        "| model | tokens | what | seconds | spread | tokens / s | peak MB | MFLOP / token | of the machine's rate |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|",
    ]
    for name in dict.fromkeys(r["model"] for r in records):
        own = [r for r in records if r["model"] == name]
        for r in own:
            spread = "" if r["spread"] is None else f"{r['spread']:.1%}"
            peak = "" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 1e6:,.0f}"
            lines.append(
                f"| {name} | {r['tokens']:,} | {r['what']} | {r['seconds']:.4g} | {spread} "
                f"| {r['tokens_per_second']:,.0f} | {peak} | {r['flops_per_token'] / 1e6:,.1f} "
                f"| {r['fraction_of_peak']:.0%} |"
            )
        rate = own[0]["product_flops_per_second"] / 1e9
        lines.append(f"| {name} | | one matrix product: {rate:,.0f} GFLOP / s | | | | | | 100% |")
    first = records[0]
    lines += ["", f"{first['device']}, {first['threads']} threads, {first['dtype']}.", *_ratios(records)]
    return "\n".join(lines)


# Pairs that are compared, and the columns.
RATIOS = (
    (FWL, STATIC, ("seconds", "flops_per_token")),
    (DYNAMIC, FWL, ("seconds", "flops_per_token")),
    (FWL_TRAINING, PLAIN_TRAINING, ("seconds", "peak_bytes", "flops_per_token")),
    (FWL_TRAINING + FROZEN, PLAIN_TRAINING + FROZEN, ("seconds", "peak_bytes", "flops_per_token")),
)


def _ratios(records: list[Mapping[str, Any]]) -> list[str]:
    """Return a line for each pair of `RATIOS` that was measured with one model and length."""
    by = {(r["model"], r["tokens"], r["what"]): r for r in records}
    lines = []
    for name, tokens in dict.fromkeys((r["model"], r["tokens"]) for r in records):
        for one, other, columns in RATIOS:
            if (name, tokens, one) in by and (name, tokens, other) in by:
                over, under = by[name, tokens, one], by[name, tokens, other]
                parts = [f"{c} {over[c] / under[c]:.2f}" for c in columns if under[c] and over[c] is not None]
                lines.append(f"- {name}, {tokens:,} tokens, {one} / {other}: {', '.join(parts)}")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark, print its table, write its records."""
    parser = argparse.ArgumentParser(
        prog="python -m fwl_lab.profiling.benchmark", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("path", type=Path, help="where the records go, as JSON")
    parser.add_argument("--models", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--tokens", type=int, default=1024, help="of the document that all read")
    parser.add_argument("--long", type=int, default=4096, help="of the one that is read with and without FWL only")
    parser.add_argument("--rounds", type=int, help="how often each is timed; without it, by the model's size")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda")
    given = parser.parse_args(arguments)
    subjects = {name: SUBJECTS[name] for name in given.models}
    records = benchmark(subjects, tokens=given.tokens, long=given.long, rounds=given.rounds, device=given.device)
    given.path.parent.mkdir(parents=True, exist_ok=True)
    given.path.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
    print(table(records))


if __name__ == "__main__":
    main()
