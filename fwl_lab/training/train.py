"""Train a model: a base LM from scratch, a block on a frozen base (retrofit), both jointly, or a slow control."""

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from fwl_lab.corpora.documents import Document
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.training.checkpoint import load_checkpoint, run_facts, save_checkpoint
from fwl_lab.training.config import TrainingConfig
from fwl_lab.training.run import Run


def train(
    model: LanguageModel,
    documents: Sequence[Document],
    config: TrainingConfig,
    *,
    folder: str | Path | None = None,
    checkpoint_every: int = 100,
    progress: bool = True,
) -> list[dict[str, float]]:
    """Train `model` in place.

    Parameters
    ----------
    model : LanguageModel
        With a block, except in mode "base".
    documents : sequence of Document
        Training documents.
    config : TrainingConfig
        Mode, length and learning rates of the run.
    folder : path, optional
        Folder of `checkpoint.safetensors`. If the file is there, training resumes from it; it must be of the same
        configuration, documents, rule, block size and (where the base does not learn) base.
    checkpoint_every : int
        Steps between checkpoints.
    progress : bool
        Show a progress bar.

    Returns
    -------
    curve : list of dict
        One per 20 steps: step, tokens seen, loss [nat/token] (mean since the last), seconds.

    Raises
    ------
    ValueError
        Model, documents and configuration do not go together, or the checkpoint is of other ones.
    FloatingPointError
        The loss is not finite.
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every is {checkpoint_every}; expected at least 1 step.")
    run = Run(model, documents, config)
    facts = run_facts(model, documents, config)
    path = Path(folder) / "checkpoint.safetensors" if folder is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            load_checkpoint(run, path, facts)
    bar = tqdm(
        total=config.steps * config.rows * config.tokens,
        initial=run.tokens,
        unit="tok",
        unit_scale=True,
        desc=config.mode,
        disable=not progress,
        mininterval=1.0,
    )
    try:
        while run.step < config.steps:
            bar.update(run.advance())
            if run.curve:
                bar.set_postfix(nats=f"{run.curve[-1]['loss']:.3f}", refresh=False)
            if path is not None and (run.step % checkpoint_every == 0 or run.step == config.steps):
                save_checkpoint(run, path, facts)
                with path.with_name("curve.json").open("w") as file:
                    json.dump(run.curve, file)
    finally:
        bar.close()
        model.eval().requires_grad_(True)
    return run.curve
