"""The reader that CONTRIBUTING adds as its worked example: the model averaged with a bigram counter of the document."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fwl_lab import LanguageModel, Reader
from fwl_lab.models.context import Context


class BigramState(NamedTuple):
    """The model's context, and the pairs read: `second` (B, S) followed `first` (B, S), -1 where there is none."""

    context: Context
    first: Tensor
    second: Tensor


class BigramReader(Reader):
    """Averages the model with how often each token followed the one before it, earlier in the document.

    share : float in [0, 1)
        Of the counter, once it has seen the token before.
    """

    label = "bigram"

    def __init__(self, model: LanguageModel, share: float = 0.2, *, step_scale: float = 1.0) -> None:
        self.share = share
        super().__init__(model, step_scale=step_scale)

    def initial_state(self, rows: int) -> BigramState:
        none = torch.zeros(rows, 0, dtype=torch.long, device=self.model.device)
        return BigramState(Context.empty(rows, self.model.device), none, none)

    def step(self, state: BigramState, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, BigramState]:
        nll, context = self.model(inputs, state.context, labels, weights != 0)
        if not self.share * self.step_scale:
            return nll, state._replace(context=context)
        new = inputs.where(weights != 0, -1) if self.learning else torch.full_like(inputs, -1)
        first, second = torch.cat([state.first, new], 1), torch.cat([state.second, labels], 1)  # (B, S + T)
        slots = torch.arange(first.shape[1], device=first.device)
        earlier = slots < slots[state.first.shape[1] :, None]  # (T, S + T): a pair counts from the next token on
        same = (first[:, None] == inputs[..., None]) & earlier  # (B, T, S + T)
        hits = same & (second[:, None] == labels[..., None])
        mixed = self._mix((-nll).exp(), hits.sum(-1), same.sum(-1))
        return -mixed.log(), BigramState(context, first, second)

    def logits(self, state: BigramState, last: Tensor) -> Tensor:
        probabilities = self.model(last, state.context)[0][:, -1].softmax(-1)  # (B, V)
        same = (state.first == last).to(probabilities.dtype)
        counts = torch.zeros_like(probabilities).scatter_add(1, state.second, same)
        return self._mix(probabilities, counts, same.sum(1, keepdim=True)).log()

    def _mix(self, probabilities: Tensor, hits: Tensor, found: Tensor) -> Tensor:
        hits, found = hits.to(probabilities.dtype), found.to(probabilities.dtype)  # not rounded to float32
        share = self.share * self.step_scale * found.clamp(max=1)
        return (1 - share) * probabilities + share * hits / found.clamp(min=1)

    def settings(self) -> dict[str, Any]:
        return {"share": self.share}
