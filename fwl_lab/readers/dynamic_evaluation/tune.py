"""Search rule, step size and decay of dynamic evaluation, on validation documents only, never on reported ones."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fwl_lab.corpora.documents import Document, corpus_hash
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import SEGMENT, SGD, GradientStatistics, TunedRule
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader

FINER = (0.6, 1.7)  # factors of the grid's best step size that are tried next
DECAYS = (0.003, 0.03)  # decays tried with the best step size
# Step sizes, decays and ε of each rule, coarse and wide; ε is relative to the mean root-mean-square gradient.
GRID: Mapping[str, Mapping[str, Sequence[float]]] = {
    SGD: {"lr": (0.03, 0.1, 0.3, 1.0, 3.0), "decay": (0.0,)},
    "rms_2018": {"lr": (3e-5, 1e-4, 3e-4, 1e-3), "decay": (0.0,), "eps": (0.3,)},
}


@dataclass(frozen=True)
class Trial:
    """Result of one rule on the validation documents.

    Attributes
    ----------
    tuned_rule : TunedRule
        The rule that was tried.
    nats : float
        Mean NLL per token, nats; inf where the reading diverged.
    """

    tuned_rule: TunedRule
    nats: float


def tune_dynamic_evaluation(
    model: LanguageModel,
    documents: Sequence[Document],
    *,
    statistics: GradientStatistics | None = None,
    grid: Mapping[str, Mapping[str, Sequence[float]]] = GRID,
    segment: int = SEGMENT,
    max_tokens: int = 2048,
    progress: bool = True,
) -> list[Trial]:
    """Read validation documents with each rule of a grid, then with steps near the best one and with a decay.

    Parameters
    ----------
    model : LanguageModel
        The base, without a block.
    documents : sequence of Document
        Validation documents.
    statistics : GradientStatistics, optional
        For the RMS rules; without it they are left out.
    grid : mapping from rule to mapping from hyperparameter to values
        Values of `lr`, `decay` and `eps`; ε is relative to the mean root-mean-square gradient.
    segment, max_tokens : int
        Tokens between updates; tokens read of each document.
    progress : bool
        Show a progress bar.

    Returns
    -------
    trials : list of Trial
        Best first. Each rule says its segment and the hash of the documents.
    """
    tokens = [model.encode(document.text)[None, :max_tokens].to(model.device) for document in documents]
    length = sum(ids.shape[1] for ids in tokens)
    tried_on = corpus_hash(documents)
    plan = [
        [replace(rule, segment=segment, documents=tried_on) for rule in _rules(name, values, statistics)]
        for name, values in grid.items()
        if name == SGD or statistics is not None
    ]
    count = sum(len(rules) + len(FINER) + len(DECAYS) for rules in plan)
    trials: list[Trial] = []
    bar = tqdm(desc="tuning", total=count * length, unit="tok", unit_scale=True, disable=not progress)

    def measure(rule: TunedRule) -> Trial:
        reader = DynamicEvaluationReader(model, make_optimizer(rule, statistics), segment)
        total, begun = 0.0, bar.n
        try:
            for ids in tokens:
                reader.reset()
                total += float(reader.read(ids).nll.double().sum())
                bar.update(ids.shape[1])
        except FloatingPointError:
            total = float("inf")
        trial = Trial(rule, total / length)
        trials.append(trial)
        bar.update(begun + length - bar.n)  # tokens that a diverged reading has left unread
        bar.set_postfix(best=f"{min(t.nats for t in trials):.4f}")
        return trial

    with bar:
        for rules in plan:
            best = min(map(measure, rules), key=lambda t: t.nats)
            centre = best.tuned_rule
            for factor in FINER:
                best = min(best, measure(replace(centre, lr=centre.lr * factor)), key=lambda t: t.nats)
            for decay in DECAYS:
                measure(replace(best.tuned_rule, decay=decay))
    return sorted(trials, key=lambda t: t.nats)


def _rules(
    name: str, values: Mapping[str, Sequence[float]], statistics: GradientStatistics | None
) -> Iterator[TunedRule]:
    """Yield every combination of hyperparameter values of one rule."""
    scale = 1.0
    if name != SGD and statistics is not None:
        means = [float(m.double().sqrt().mean()) for m in statistics.mean_of_squares]
        scale = float(np.mean(means))
    for combination in itertools.product(*values.values()):
        facts: dict[str, Any] = {"rule": name, **dict(zip(values, combination, strict=True))}
        if "eps" in facts:
            facts["eps"] *= scale
        yield TunedRule(**facts)
