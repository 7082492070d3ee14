"""Take the steps of a training run, one by one.

Symbols: B rows, T tokens of each per step.
"""

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fwl_lab.corpora.documents import Document
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.state import detach
from fwl_lab.training.batches import Batch, DocumentBatches, PackedBatches
from fwl_lab.training.config import TrainingConfig

REPORT_EVERY = 20  # steps between two points of the loss curve


class Run:
    """A training run between two steps.

    Parameters
    ----------
    model : LanguageModel
        Trained in place; its parameters that do not learn lose `requires_grad` for the time of the run.
    documents : sequence of Document
    config : TrainingConfig

    Attributes
    ----------
    learning : dict of Tensor
        Parameters that the run trains, by name.
    optimizer : AdamW
        Over `learning`.
    context, state : Context, and FastWeightState or None
        State of the documents under way, a row each.
    step, tokens : int
        Steps taken and tokens seen.
    sums : list of two float
        Loss [nat] and tokens since the last point of the curve.
    curve : list of dict
        See `train`.

    Raises
    ------
    ValueError
        Model, documents and configuration do not go together.
    """

    def __init__(self, model: LanguageModel, documents: Sequence[Document], config: TrainingConfig) -> None:
        _check(model, config)
        self.model, self.config = model, config
        self.learning = dict(_learning(model, config))
        model.train().requires_grad_(False)
        if config.mode != "base" and not config.body_learns:
            model.network.eval()  # a frozen body is read as readers read it, without dropout
        for parameter in self.learning.values():
            parameter.requires_grad_(True)
        self.optimizer = _optimizer(self.learning, config)
        ids = [np.asarray(found) for found in model.encode_batch([document.text for document in documents])]
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
        """Take one optimizer step and return the number of tokens it saw.

        Raises
        ------
        FloatingPointError
            The loss is not finite.
        """
        batch = self.batches[self.step]
        device = self.model.device
        batch = Batch(*(x.to(device) for x in batch))
        for group in self.optimizer.param_groups:
            group["lr"] = group["base"] * self.config.rate(self.step)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            # Dropout is a function of the step too, so that a resumed run ends with the same weights.
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
        torch.nn.utils.clip_grad_norm_(self.learning.values(), self.config.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += self.config.rows * self.config.tokens
        self._report(float(nll.detach().sum()), count)
        return self.config.rows * self.config.tokens

    def _report(self, nats: float, count: int) -> None:
        """Add a step's summed loss, and every so often a point to the curve."""
        self.sums = [self.sums[0] + nats, self.sums[1] + count]
        if self.step % REPORT_EVERY == 0:
            loss, seconds = self.sums[0] / self.sums[1], round(time.perf_counter() - self.began, 1)
            self.curve.append({"step": self.step, "tokens": self.tokens, "loss": loss, "seconds": seconds})
            self.sums = [0.0, 0.0]

    def _nll(self, batch: Batch) -> Tensor:
        """Score a batch, (B, T) nats, 0 at padding, and carry the documents' state on."""
        model = self.model
        if self.config.mode == "base":
            return model(batch.inputs, self.context, batch.labels)[0]
        self.context = self.context.reset_rows(batch.fresh)
        with torch.set_grad_enabled(self.config.body_learns):
            residual, context = model.read(batch.inputs, self.context, batch.valid)
        self.context = detach(context)
        if self.config.mode == "slow-control":
            return model.nll(model.slow_output(residual), batch.labels) * batch.valid
        assert model.block is not None and self.state is not None
        out = model.block(residual, batch.labels, batch.valid.to(residual.dtype), self.state.reset_rows(batch.fresh))
        self.state = detach(out.state)
        return out.nll


def _check(model: LanguageModel, config: TrainingConfig) -> None:
    """Raise a ValueError unless the model is of the kind that the mode trains."""
    if (config.mode == "base") != (model.block is None):
        raise ValueError(
            f"mode {config.mode!r} {'trains a model without' if config.mode == 'base' else 'needs a model with'} "
            "a fast-weight block; see attach_fast_weights."
        )
    if config.mode != "base" and config.body_learns and model.network is model.base.network:
        raise ValueError(
            "this run trains the body, which the model shares with its base: the base would change too. "
            "Use attach_fast_weights(..., share_body=False)."
        )


def _learning(model: LanguageModel, config: TrainingConfig) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of each parameter that a run trains."""
    if config.last_layers < 0 or config.mode in ("base", "joint"):
        yield from model.named_parameters()
        return
    assert model.block is not None
    yield from ((f"block.{n}", p) for n, p in model.block.named_parameters())
    layers = list(model.layers)
    if config.last_layers > len(layers):
        raise ValueError(
            f"last_layers is {config.last_layers}, but the model has {len(layers)} layers; expected at most that, "
            "or -1 for the whole LM."
        )
    chosen = {id(p) for layer in layers[len(layers) - config.last_layers :] for p in layer.parameters()}
    yield from ((n, p) for n, p in model.named_parameters() if id(p) in chosen)


def _optimizer(learning: dict[str, Tensor], config: TrainingConfig) -> torch.optim.AdamW:
    """Make AdamW with groups for matrices, vectors and step sizes; "base" is a group's highest learning rate."""
    steps = [p for n, p in learning.items() if n == "block.steps"]
    matrices = [p for n, p in learning.items() if p.ndim > 1]
    vectors = [p for n, p in learning.items() if p.ndim < 2 and n != "block.steps"]
    groups = [
        {"params": matrices, "base": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": vectors, "base": config.learning_rate, "weight_decay": 0.0},
        {"params": steps, "base": config.step_size_learning_rate, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=0.0, betas=(0.9, 0.95))
