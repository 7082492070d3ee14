"""Define the reader whose fast-weight block learns from every token it reads."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fwl_lab.fast_weights import FastWeightBlock, FastWeightState, UpdateRule
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.linear_attention import CHUNK
from fwl_lab.ops.observer import Observer
from fwl_lab.readers.base import Reader
from fwl_lab.readers.description import model_of
from fwl_lab.readers.observe import observes_its_own_step


class FastWeightReaderState(NamedTuple):
    """State of a reader with a fast-weight block.

    Attributes
    ----------
    context : Context
        KV cache and positions of the model's body.
    block : FastWeightState
        Δθ of the block's fast parameters, and the tokens read.
    """

    context: Context
    block: FastWeightState


class FastWeightReader(Reader):
    """Reader that adapts a Fast Weight Layer block to the document, token by token.

    Parameters
    ----------
    model : LanguageModel
        With a block.
    step_scale : float
        Multiplies the learned step sizes.
    rule : UpdateRule, optional
        Rule to use instead of the block's own, with the same `steps`.

    Raises
    ------
    ValueError
        The model has no block, or the rule divides by the weights of the batch, so that a score would depend on other
        documents and later tokens.
    """

    label = "FWL"
    every_token = True
    learns = "block"

    def __init__(self, model: LanguageModel, *, step_scale: float = 1.0, rule: UpdateRule | None = None) -> None:
        require_model(model)
        own = require_block(model)
        block = own if rule is None else own.with_rule(rule)
        if block.rule.normaliser != "none":
            raise ValueError(
                "the rule divides by the weights of the whole batch, so a score would depend on batch mates and on the "
                "length of the future; it is for training. Expected UpdateRule(normaliser='none')."
            )
        self.block = block
        super().__init__(model, step_scale=step_scale)

    def initial_state(self, rows: int) -> FastWeightReaderState:
        """Return the state of `rows` documents before their first token."""
        return FastWeightReaderState(Context.empty(rows, self.model.device), self.block.initial_state(rows))

    def carried(self, state: FastWeightReaderState) -> FastWeightReaderState:
        """Return the state before the first token with the fast weights of `state`."""
        fresh = self.initial_state(len(state.block.seen))
        return fresh._replace(block=fresh.block._replace(delta=state.block.fast_weights()))

    def step(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Score the next tokens and learn from each of them; see `Reader.step`."""
        return self._learn(state, inputs, labels, weights, None)

    def observe(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Score and learn as `step` does, and report each token's factors too; see `Reader.observe`."""
        return self._learn(state, inputs, labels, weights, observer)

    def _learn(
        self, state: FastWeightReaderState, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, FastWeightReaderState]:
        """Score and learn, and report to an observer, if there is one; scores alone where `learning` is off."""
        residual, context = self.model.read(inputs, state.context, weights != 0)
        out = self.block(
            residual, labels if self.learning else None, weights, state.block,
            step_scale=self._scales(state, weights), observer=observer,
        )  # fmt: skip
        if observer is not None:
            observer.expected(labels.shape[1], lambda part: self.block.logits(out.hidden[:, part]))
        nll = self.model.nll(out.hidden, labels) if out.nll is None else out.nll
        return nll, FastWeightReaderState(context, out.state)

    def _scales(self, state: FastWeightReaderState, weights: Tensor) -> float | dict[str, Tensor]:
        """Return the factor of the updates of the next tokens: a number, or a tensor (B, T) by parameter."""
        return self.step_scale

    def logits(self, state: FastWeightReaderState, last: Tensor) -> Tensor:
        """Return the logits (B, V) of the token after `last` (B, 1)."""
        residual, _ = self.model.read(last, state.context)
        return self.block.logits(self.block(residual, state=state.block).hidden)[:, -1]

    def fast_weights(self, state: FastWeightReaderState | None = None) -> dict[str, Tensor]:
        """Return Δθ of each fast parameter, (B, ...)."""
        return (self.state if state is None else state).block.fast_weights()

    def slow_weights(self) -> dict[str, Tensor]:
        """Return θ₀ of each fast parameter."""
        return {name: getattr(self.block, name).detach() for name in self.block.fast_parameters}

    @property
    def update_every(self) -> int:
        """Number of tokens in an inner batch; without inner batches, in a chunk after which Δθ is recorded."""
        return self.block.rule.inner_batch or CHUNK

    @property
    def factors(self) -> bool:
        """Whether each token's factors are told and add up to Δθ; not where a subclass redefines `step` alone."""
        return observes_its_own_step(type(self))

    @property
    def forgets(self) -> bool:
        """Whether the rule has a decay or a cap, which may shrink Δθ."""
        return self.block.forgets

    def settings(self) -> dict[str, Any]:
        """Return the rule of this reader and the block's learned step sizes, as JSON values."""
        rule = self.block.rule
        steps = {"/".join(names): s for names, s in zip(rule.steps, self.block.steps.tolist(), strict=True) if names}
        return {
            "inner_batch": rule.inner_batch, "decay": float(torch.as_tensor(self.block.decay()).detach()),
            "schedule": None if rule.schedule is None else list(rule.schedule), "cap": rule.cap, "step_sizes": steps,
        }  # fmt: skip

    @classmethod
    def from_configuration(cls, model: LanguageModel, configuration: Mapping[str, Any]) -> Self:
        """Make a reader of this kind with the rule of a `configuration`; step sizes are the block's own."""
        model = model_of(model, configuration)
        block = require_block(model)
        schedule = configuration.get("schedule")
        rule = dataclasses.replace(
            block.rule,
            inner_batch=configuration["inner_batch"],
            schedule=None if schedule is None else tuple(schedule),
            cap=configuration.get("cap"),
        )
        if (decay := configuration.get("decay", 0.0)) != float(torch.as_tensor(block.decay()).detach()):
            rule = dataclasses.replace(rule, decay=decay, learn_decay=False)
        return cls(model, step_scale=configuration["step_scale"], rule=None if rule == block.rule else rule)


def require_block(model: LanguageModel) -> FastWeightBlock:
    """Return the model's block, or raise ValueError where it has none."""
    if model.block is None:
        raise ValueError("the model has no fast-weight block; see attach_fast_weights, or use another reader.")
    return model.block
