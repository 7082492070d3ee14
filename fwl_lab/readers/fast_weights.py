"""The reader whose fast-weight block learns from every token it reads."""

from typing import Any

import torch
from torch import Tensor

from fwl_lab.fast_weights import FastWeightState, UpdateRule
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.linear_attention import CHUNK
from fwl_lab.ops.state import expand_rows, from_tensors, to_tensors
from fwl_lab.readers.base import Reader


class FastWeightReader(Reader):
    """Reads with a Fast Weight Layer block.

    Parameters
    ----------
    model : LanguageModel
        With a block, of any rule whose scores depend on the past of their own document alone.
    step_scale : float
        Multiplies the learned step sizes.
    rule : UpdateRule, optional
        Another rule than the block was trained with, of the same `steps`; None: the block's own.
    """

    def __init__(self, model: LanguageModel, *, step_scale: float = 1.0, rule: UpdateRule | None = None) -> None:
        require_model(model)
        if model.block is None:
            raise ValueError("the model has no fast-weight block; see attach_fast_weights, or use another reader.")
        block = model.block if rule is None else model.block.with_rule(rule)
        if block.rule.normaliser != "none":
            raise ValueError(
                "the rule divides by the weights of the whole batch, so a score would depend on batch mates and on the "
                "length of the future; it is for training. Expected UpdateRule(normaliser='none')."
            )
        self.block = block
        super().__init__(model, step_scale=step_scale)

    def _start(self) -> None:
        self.context = Context.empty(1, self.model.device)
        self.state: FastWeightState = self.block.initial_state(1)

    def _carry(self) -> None:
        fresh = self.block.initial_state(len(self.last))
        self.context = Context.empty(len(self.last), self.model.device)
        self.state = fresh._replace(delta=self.state.fast_weights())

    def _expand(self, rows: int) -> None:
        self.context, self.state = expand_rows(self.context, rows), expand_rows(self.state, rows)

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        residual, self.context = self.model.read(inputs, self.context, weights != 0)
        observer = self._observer
        out = self.block(
            residual, labels if self.learning else None, weights, self.state, step_scale=self._scales(weights),
            observer=observer,
        )  # fmt: skip
        if observer is not None:
            observer.expected(labels.shape[1], lambda part: self.block.logits(out.hidden[:, part]))
        self.state = out.state
        return self.model.nll(out.hidden, labels) if out.nll is None else out.nll

    def _scales(self, weights: Tensor) -> float | dict[str, Tensor]:
        """What multiplies the updates of the tokens (B, T) that are read."""
        return self.step_scale

    def _logits(self, last: Tensor) -> Tensor:
        residual, _ = self.model.read(last, self.context)
        return self.block.logits(self.block(residual, state=self.state).hidden)[:, -1]

    def _freeze(self) -> None:
        # No step scale of 0: what was read would still move the inner batches on, and decay with them.
        self.learning = False

    def fast_weights(self) -> dict[str, Tensor]:
        return self.state.fast_weights()

    def slow_weights(self) -> dict[str, Tensor]:
        return {name: getattr(self.block, name).detach() for name in self.block.fast_parameters}

    @property
    def update_every(self) -> int:
        return self.block.rule.inner_batch or CHUNK

    def configuration(self) -> dict[str, Any]:
        rule = self.block.rule
        steps = {"/".join(names): s for names, s in zip(rule.steps, self.block.steps.tolist(), strict=True) if names}
        return super().configuration() | {
            "inner_batch": rule.inner_batch, "decay": float(torch.as_tensor(self.block.decay()).detach()),
            "schedule": None if rule.schedule is None else list(rule.schedule), "cap": rule.cap, "step_sizes": steps,
        }  # fmt: skip

    def _tensors(self) -> dict[str, Tensor]:
        return to_tensors(self.context, "context.") | to_tensors(self.state, "state.")

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        self.context = from_tensors(self.context, tensors, "context.")
        self.state = from_tensors(self.state, tensors, "state.")
