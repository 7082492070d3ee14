"""Training: a base LM from scratch, a fast-weight block on a frozen base (retrofit), both jointly, or a slow control.

Every step is a function of documents, configuration and step number; a checkpoint holds all else (weights, optimizer
moments, the state of the documents under way), so a run that was interrupted ends with the weights of one that was not.
"""

import dataclasses
import json
import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fwl_lab.corpora.documents import Document, corpus_hash
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.state import detach, from_tensors, to_tensors
from fwl_lab.ops.tensor_files import read_tensors, write_tensors
from fwl_lab.training.batches import Batch, DocumentBatches, PackedBatches

MODES = ("base", "retrofit", "joint", "slow-control")
log = logging.getLogger("fwl_lab")


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """What a training run is, besides its documents.

    Attributes
    ----------
    mode : {"base", "retrofit", "joint", "slow-control"}
        base: the whole LM, no block. retrofit: only the block (and `last_layers` of the body) learns. joint: all.
        slow-control: as retrofit or joint (by `last_layers`), the block never adapting.
    steps, rows, tokens : int
        Optimizer steps; documents side by side; tokens of each per step.
    learning_rate, step_size_learning_rate, weight_decay, clip : float
        AdamW's; the second is for the step sizes η, whose gradients are large. Weight decay is for matrices only.
    warmup : int
        Steps over which the learning rate rises; it falls as a cosine to a tenth.
    last_layers : int
        Layers at the end of the body that learn with the block; -1: the whole LM.
    longest : int or None
        Tokens of a document after which it is left.
    seed : int
    precision : {"float32", "bfloat16"}
        bfloat16: autocast; weights, moments and fast-weight state stay float32.
    """

    mode: Literal["base", "retrofit", "joint", "slow-control"] = "retrofit"
    steps: int = 1000
    rows: int = 4
    tokens: int = 1024
    learning_rate: float = 1e-3
    step_size_learning_rate: float = 1e-3
    weight_decay: float = 0.1
    clip: float = 1.0
    warmup: int = 100
    last_layers: int = 0
    longest: int | None = 16384
    seed: int = 0
    precision: Literal["float32", "bfloat16"] = "float32"

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode is {self.mode!r}; expected one of {', '.join(MODES)}.")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision is {self.precision!r}; expected 'float32' or 'bfloat16'.")
        for name in ("steps", "rows", "tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name, least in (("last_layers", -1), ("warmup", 0), ("weight_decay", 0)):
            if not getattr(self, name) >= least:  # so put, nan is refused too
                raise ValueError(f"{name} is {getattr(self, name)}; expected at least {least}.")
        for name in ("learning_rate", "step_size_learning_rate", "clip"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; expected more than 0.")

    def rate(self, step: int) -> float:
        """The learning rate of a step, as a fraction of the highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done)))


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
    config : TrainingConfig
    folder : path, optional
        Where `checkpoint.safetensors` lies. If it is there, training goes on from it; it must be of the same
        configuration, documents, rule, block size and (where the base does not learn) base.
    checkpoint_every : int
        Steps between checkpoints.

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
    run = _Run(model, documents, config)
    path = Path(folder) / "checkpoint.safetensors" if folder is not None else None
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            run.load(path)
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
                run.save(path)
                with path.with_name("curve.json").open("w") as file:
                    json.dump(run.curve, file)
    finally:
        bar.close()
        model.eval().requires_grad_(True)
    return run.curve


class _Run:
    """A training run between two steps."""

    def __init__(self, model: LanguageModel, documents: Sequence[Document], config: TrainingConfig) -> None:
        if (config.mode == "base") != (model.block is None):
            raise ValueError(
                f"mode {config.mode!r} {'trains a model without' if config.mode == 'base' else 'needs a model with'} "
                "a fast-weight block; see attach_fast_weights."
            )
        body_learns = config.mode == "joint" or config.last_layers != 0
        if config.mode != "base" and body_learns and model.network is model.base.network:
            raise ValueError(
                "this run trains the body, which the model shares with its base: the base would change too. "
                "Use attach_fast_weights(..., share_body=False)."
            )
        self.model, self.config = model, config
        self.names = dict(_learning(model, config))
        self.facts = _facts(model, documents, config)
        model.train().requires_grad_(False)
        if config.mode != "base" and not body_learns:
            model.network.eval()  # a frozen body is read as readers read it, without dropout
        for parameter in self.names.values():
            parameter.requires_grad_(True)
        steps = [p for n, p in self.names.items() if n == "block.steps"]
        matrices = [p for n, p in self.names.items() if p.ndim > 1]
        vectors = [p for n, p in self.names.items() if p.ndim < 2 and n != "block.steps"]
        groups = [
            {"params": matrices, "base": config.learning_rate, "weight_decay": config.weight_decay},
            {"params": vectors, "base": config.learning_rate, "weight_decay": 0.0},
            {"params": steps, "base": config.step_size_learning_rate, "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.95))
        ids = _encode(model, documents)
        shape = {"rows": config.rows, "tokens": config.tokens, "seed": config.seed}
        self.batches: PackedBatches | DocumentBatches
        if config.mode == "base":
            self.batches = PackedBatches(ids, model.bos, **shape)
        else:
            self.batches = DocumentBatches(ids, model.bos, longest=config.longest, **shape)
        self.context = Context.empty(config.rows, model.device)
        self.state = None if model.block is None else model.block.initial_state(config.rows)
        self.step = self.tokens = 0
        self.sums = [0.0, 0.0]
        self.curve: list[dict[str, float]] = []
        self.began = time.perf_counter()

    def advance(self) -> int:
        """One optimizer step; returns the tokens it saw."""
        batch = self.batches[self.step]
        device = self.model.device
        batch = Batch(*(x.to(device) for x in batch))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self.config.rate(self.step)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # What dropout drops is a function of the step too, so that a resumed run goes on alike.
            torch.manual_seed((self.config.seed << 32) + self.step)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bfloat16"):
                nll = self._nll(batch)
        count = int(batch.valid.sum())
        loss = nll.sum() / count
        if not bool(loss.isfinite()):
            raise FloatingPointError(
                f"the loss of step {self.step} is {float(loss.detach())}; lower the learning rates or raise the "
                "warm-up. The last checkpoint is whole."
            )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.names.values(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += self.config.rows * self.config.tokens
        self.sums = [self.sums[0] + float(nll.detach().sum()), self.sums[1] + count]
        if self.step % 20 == 0:
            seconds = time.perf_counter() - self.began
            self.curve.append({"step": self.step, "tokens": self.tokens, "loss": self.sums[0] / self.sums[1],
                               "seconds": round(seconds, 1)})  # fmt: skip
            self.sums = [0.0, 0.0]
        return self.config.rows * self.config.tokens

    def _nll(self, batch: Batch) -> Tensor:
        """(B, T) nats, 0 at padding."""
        model = self.model
        if self.config.mode == "base":
            return model(batch.inputs, self.context, batch.labels)[0]
        self.context = self.context.reset_rows(batch.fresh)
        frozen_body = self.config.mode != "joint" and self.config.last_layers == 0
        with torch.set_grad_enabled(not frozen_body):
            residual, context = model.read(batch.inputs, self.context, batch.valid)
        self.context = detach(context)
        if self.config.mode == "slow-control":
            return model.nll(model.slow_output(residual), batch.labels) * batch.valid
        assert model.block is not None and self.state is not None
        out = model.block(residual, batch.labels, batch.valid.to(residual.dtype), self.state.reset_rows(batch.fresh))
        self.state = detach(out.state)
        return out.nll

    # -- checkpoints ----------------------------------------------------------------------------------------------

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, parameter in self.names.items():
            yield f"weights.{name}", parameter.detach()
            for key, value in self.optimizer.state.get(parameter, {}).items():
                yield f"optimizer.{name}.{key}", value
        yield from to_tensors(self.context, "context.").items()
        if self.state is not None:
            yield from to_tensors(self.state, "state.").items()

    def save(self, path: Path) -> None:
        """Write all that resuming needs, atomically: a file of that name is always whole."""
        facts = {"run": self.facts, "step": self.step, "tokens": self.tokens,
                 "sums": self.sums, "curve": self.curve}  # fmt: skip
        write_tensors({n: t.cpu().contiguous().clone() for n, t in self._tensors()}, path, {"run": json.dumps(facts)})

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        tensors, metadata = read_tensors(path, self.model.device)
        if "run" not in metadata:
            raise ValueError(f"{path} is no checkpoint of a training run; use another folder.")
        facts = json.loads(metadata["run"])
        theirs = facts.get("run", {})
        differing = [name for name, value in self.facts.items() if name not in theirs or theirs[name] != value]
        if differing:
            raise ValueError(
                f"{path} is a checkpoint of another run: {', '.join(differing)} differ; "
                "resume it with what it was begun with, or use another folder."
            )
        self.step, self.tokens, self.sums, self.curve = (facts[k] for k in ("step", "tokens", "sums", "curve"))
        with torch.no_grad():
            for name, parameter in self.names.items():
                parameter.copy_(tensors[f"weights.{name}"])
                prefix = f"optimizer.{name}."
                self.optimizer.state[parameter] = {
                    key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
                }
        self.context = from_tensors(self.context, tensors, "context.")
        if self.state is not None:
            self.state = from_tensors(self.state, tensors, "state.")
        log.info("resumed %s at step %d of %d", path, self.step, self.config.steps)


def _facts(model: LanguageModel, documents: Sequence[Document], config: TrainingConfig) -> dict[str, Any]:
    """What a checkpoint must agree with to be of this run, by name, as JSON gives it back (lists for tuples)."""
    facts = dataclasses.asdict(config) | {"documents": corpus_hash(documents), "rule": None}
    if model.block is not None:
        rule = dataclasses.asdict(model.block.rule)
        facts |= {"rule": rule, "block size": model.block.size, "base": model.base.weight_hash()}
    return json.loads(json.dumps(facts))


def _learning(model: LanguageModel, config: TrainingConfig) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of the parameters that a run trains."""
    if config.last_layers < 0 or config.mode in ("base", "joint"):
        yield from model.named_parameters()
        return
    assert model.block is not None
    yield from ((f"block.{n}", p) for n, p in model.block.named_parameters())
    layers = next(m for m in model.network.base_model.children() if isinstance(m, torch.nn.ModuleList))
    if config.last_layers > len(layers):
        raise ValueError(
            f"last_layers is {config.last_layers}, but the model has {len(layers)} layers; expected at most that, "
            "or -1 for the whole LM."
        )
    chosen = {id(p) for layer in list(layers)[len(layers) - config.last_layers :] for p in layer.parameters()}
    yield from ((n, p) for n, p in model.named_parameters() if id(p) in chosen)


def _encode(model: LanguageModel, documents: Sequence[Document]) -> list[np.ndarray]:
    return [np.asarray(ids) for ids in model.encode_batch([document.text for document in documents])]
