"""Which rule and step dynamic evaluation takes: a search on validation documents, never on those that are reported."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fwl_lab.corpora.documents import Document
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import GradientStatistics
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader

FINER = (0.6, 1.7)  # times the grid's best step: its neighbours
DECAYS = (0.003, 0.03)  # tried with the best step
# Step sizes, decays and ε of each rule, coarse and wide; ε is relative to the mean root-mean-square gradient.
GRID: Mapping[str, Mapping[str, Sequence[float]]] = {
    "sgd": {"lr": (0.03, 0.1, 0.3, 1.0, 3.0), "decay": (0.0,)},
    "rms_2018": {"lr": (3e-5, 1e-4, 3e-4, 1e-3), "decay": (0.0,), "eps": (0.3,)},
}


@dataclasses.dataclass(frozen=True)
class Trial:
    """One rule on the validation documents: `facts` as for `make_optimizer`, `nats` per token (inf: diverged)."""

    facts: dict[str, Any]
    nats: float


def tune_dynamic_evaluation(
    model: LanguageModel,
    documents: Sequence[Document],
    *,
    statistics: GradientStatistics | None = None,
    grid: Mapping[str, Mapping[str, Sequence[float]]] = GRID,
    segment: int = 64,
    max_tokens: int = 2048,
    progress: bool = True,
) -> list[Trial]:
    """Read validation documents with each rule of a grid, then between the best step's neighbours and with a decay.

    Parameters
    ----------
    model : LanguageModel
        The base, without a block.
    documents : sequence of Document
        Validation documents.
    statistics : GradientStatistics, optional
        For the RMS rules; without it they are left out.
    grid : mapping from rule to mapping from hyperparameter to values
    segment, max_tokens : int
        Tokens between updates; tokens read of each document.

    Returns
    -------
    trials : list of Trial, best first
    """
    tokens = [model.encode(document.text)[None, :max_tokens].to(model.device) for document in documents]
    length = sum(ids.shape[1] for ids in tokens)
    plan = {rule: list(_settings(rule, values, statistics)) for rule, values in grid.items()
            if rule == "sgd" or statistics is not None}  # fmt: skip
    count = sum(len(settings) + len(FINER) + len(DECAYS) for settings in plan.values())
    trials: list[Trial] = []
    bar = tqdm(desc="tuning", total=count * length, unit="tok", unit_scale=True, disable=not progress)

    def measure(facts: dict[str, Any]) -> Trial:
        reader = DynamicEvaluationReader(model, make_optimizer(facts, statistics), segment)
        total, begun = 0.0, bar.n
        try:
            for ids in tokens:
                reader.reset()
                total += float(reader.read(ids).nll.double().sum())
                bar.update(ids.shape[1])
        except FloatingPointError:
            total = float("inf")
        trial = Trial(facts, total / length)
        trials.append(trial)
        bar.update(begun + length - bar.n)  # what a rule that diverged has left unread
        bar.set_postfix(best=f"{min(t.nats for t in trials):.4f}")
        return trial

    with bar:
        for settings in plan.values():
            best = min(map(measure, settings), key=lambda t: t.nats)
            centre = best.facts
            for factor in FINER:
                best = min(best, measure(centre | {"lr": centre["lr"] * factor}), key=lambda t: t.nats)
            for decay in DECAYS:
                measure(best.facts | {"decay": decay})
    return sorted(trials, key=lambda t: t.nats)


def _settings(
    rule: str, values: Mapping[str, Sequence[float]], statistics: GradientStatistics | None
) -> Iterator[dict[str, Any]]:
    scale = 1.0
    if rule != "sgd" and statistics is not None:
        means = [float(m.double().sqrt().mean()) for m in statistics.mean_of_squares]
        scale = float(np.mean(means))
    for combination in itertools.product(*values.values()):
        numbers = dict(zip(values, combination, strict=True))
        if "eps" in numbers:
            numbers["eps"] *= scale
        yield {"rule": rule, **numbers}
