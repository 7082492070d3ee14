"""From θ₀ to the weights of dynamic evaluation: what each update did on the way to one token.

All weights of the reading are scaled together: along α, position p is processed with θ₀ + α Δθ_q, q the segment that
holds p, cached keys and values included. The NLL of the target is then a function of every Δθ_q within its reach, and
since Δθ_q = Σ_{j<q} u_j, update j has paid −∫₀¹ Σ_{q>j} ⟨∂L/∂θ_q(α), u_j⟩ dα of the gain.

The path can turn sharply, and its slope, exact, with it. Seen where updates make a repetitive text worse: embeddings
move by a sixth of their length, and a head whose scores span hundreds, so that its softmax is a choice, turns from one
position to the one before, within 0.04 of α and at another α for each query. Twelve nodes then miss the gain by tenths
of a nat; cut into stretches where it turns, the path took some 200.

Symbols: q segments and j updates (update j ends segment j), u_j what the optimizer made of the weights in one step, its
decay included; Δθ_q weights in segment q minus θ₀; p positions in the document, W window.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from torch.func import functional_call

from fwl_lab.attribution.path_integral import Integral, Parts, Rule, integrate
from fwl_lab.inference.recorder import size_text
from fwl_lab.models.context import Context
from fwl_lab.readers import DynamicEvaluationReader
from fwl_lab.trace import schema as schema

RULE = Rule(nodes=12, tolerance=5e-4, most=600)
MOST_BYTES = 2**33  # of Δθ, one for every segment up to the target
Weights = dict[str, Tensor]


class ModelPaths:
    """Paths to the tokens of one document that dynamic evaluation reads.

    Reads the document again and keeps Δθ of every segment up to the last target: as many copies of what adapts. A
    receipt also takes the gradients, and a graph, over the target's reach: of a rotary model layers × (W − 1)
    positions before it, of one with absolute positions its window.

    Parameters
    ----------
    reader : DynamicEvaluationReader
        Set as the one that made the trace; stays as it is.
    trace : Dataset
    first, stop : int
        Trace indices: the document's first token, and one past the last target.

    Raises
    ------
    ValueError
        The weights of all segments would take more than 8 GiB.
    """

    def __init__(self, reader: DynamicEvaluationReader, trace: xr.Dataset, first: int, stop: int) -> None:
        self.reader, self.first, self.segment = reader, first, reader.segment
        self.ids = torch.from_numpy(trace[schema.TOKEN_ID].values[first:stop].astype(np.int64))
        self.model = reader.adapted
        self.called = _Called(self.model)
        self.slow_weights = reader.slow_weights()
        self.inputs = torch.cat([torch.tensor([self.model.bos]), self.ids[:-1]]).to(self.model.device)
        segments = (len(self.ids) - 1) // self.segment + 1
        size = segments * sum(w.numel() * w.element_size() for w in self.slow_weights.values())
        if size > MOST_BYTES:
            raise ValueError(
                f"the weights of {segments} segments would take {size_text(size)}, and {size_text(MOST_BYTES)} are the "
                "most. Ask for receipts of earlier tokens, or adapt fewer parameters."
            )
        self.deltas = self._read(segments)

    def _read(self, segments: int) -> list[Weights]:
        """Δθ_q of each segment q."""
        fresh = self.reader.with_step_scale(self.reader.step_scale)
        deltas = [{name: torch.zeros_like(w) for name, w in self.slow_weights.items()}]
        for q in range(segments - 1):
            fresh.read(self.ids[None, q * self.segment : (q + 1) * self.segment])
            deltas.append({name: delta[0].clone() for name, delta in fresh.fast_weights().items()})
        return deltas

    # -- what a receipt asks --------------------------------------------------------------------------------------

    def sources(self, token: int) -> np.ndarray:
        """Trace indices of the last token of each update before `token`, (n,)."""
        return self.first + np.arange(1, (token - self.first) // self.segment + 1) * self.segment - 1

    @torch.no_grad()
    def slow(self, token: int) -> float:
        """NLL at θ₀."""
        return float(self._nll(token - self.first, lambda q: self.slow_weights))

    def shares(self, token: int, rule: Rule) -> Integral:
        """What each update paid of the gain, (n,) nats, by parameter."""
        place = token - self.first
        return integrate(partial(self._slope, place), partial(self._scaled_nll, place), rule)

    @torch.no_grad()
    def held(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """NLL without each of some updates (trace indices), the others as they were."""
        return np.array([float(self._nll(token - self.first, self._without(j))) for j in self._updates(sources)])

    def replayed(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """NLL where each of some segments taught nothing, and all that follows it was read again."""
        place, updates = token - self.first, self._updates(sources)
        found, reader, at = np.zeros(len(updates)), self.reader.with_step_scale(self.reader.step_scale), 0
        for index in np.argsort(updates).tolist():
            begin = updates[index] * self.segment
            if begin > at:
                reader.read(self.ids[None, at:begin])
                at = begin
            twin = reader.fork()
            twin.learning = False
            twin.read(self.ids[None, begin : begin + self.segment])
            twin.learning = True
            found[index] = float(twin.read(self.ids[None, begin + self.segment : place + 1]).nll[0, -1])
        return found

    # -- along the path -------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _scaled_nll(self, place: int, alpha: float) -> float:
        """L(α)."""

        def weights(q: int) -> Weights:
            return {name: slow + alpha * self.deltas[q][name] for name, slow in self.slow_weights.items()}

        return float(self._nll(place, weights))

    def _slope(self, place: int, alphas: np.ndarray, weights: np.ndarray) -> Parts:
        """−Σ w Σ_{q>j} ⟨∂L/∂θ_q(α), u_j⟩ over places α and weights w (N,), of each update j (n,), by parameter."""
        last = place // self.segment
        total: dict[int, Weights] = {}  # Σ w ∂L/∂θ_q
        for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
            self._add_gradients(place, alpha, weight, total)
        found = {name: np.zeros(last) for name in self.slow_weights}
        along: Weights = {}  # the sum over all segments after update j
        for j in reversed(range(last)):
            for name, gradient in total.pop(j + 1, {}).items():
                along[name] = along[name].add_(gradient) if name in along else gradient
            for name, gradient in along.items():
                step = self.deltas[j + 1][name] - self.deltas[j][name]
                found[name][j] = -float(torch.dot(gradient.flatten(), step.flatten()))
        return found

    def _updates(self, sources: Sequence[int]) -> list[int]:
        return [(source - self.first + 1) // self.segment - 1 for source in sources]

    def _without(self, update: int) -> Callable[[int], Weights]:
        """θ₀ + Δθ_q less one update."""

        def weights(q: int) -> Weights:
            gone = q > update
            return {
                name: slow + self.deltas[q][name]
                - (self.deltas[update + 1][name] - self.deltas[update][name] if gone else 0.0)
                for name, slow in self.slow_weights.items()
            }  # fmt: skip

        return weights

    def _add_gradients(self, place: int, alpha: float, weight: float, total: dict[int, Weights]) -> None:
        """Add weight · ∂L/∂θ_q at α to `total`, for every segment q within reach."""
        leaves: dict[int, Weights] = {}

        def weights(q: int) -> Weights:
            if q not in leaves:
                own = {n: (slow + alpha * self.deltas[q][n]).requires_grad_() for n, slow in self.slow_weights.items()}
                into = total.setdefault(q, {n: torch.zeros_like(slow) for n, slow in self.slow_weights.items()})
                for name, leaf in own.items():
                    leaf.grad = into[name]  # to which autograd adds in place: gradients are never there twice
                leaves[q] = own
            return leaves[q]

        with torch.enable_grad():
            (weight * self._nll(place, weights)).backward()

    def _nll(self, place: int, weights: Callable[[int], Weights]) -> Tensor:
        """NLL () of the token at a position, each segment q processed with `weights(q)`."""
        context, pieces = self._pieces(place)
        for q, begin, end in pieces:  # at least the target's own segment
            own = self.reader.fixed | weights(q)
            residual, context = self.called.using(own, self.model.read, self.inputs[None, begin:end], context)
        label = self.ids[place].to(self.model.device).view(1, 1)
        hidden = self.called.using(own, self.model.slow_output, residual[:, -1:])
        return self.called.using(own, self.model.nll, hidden, label)[0, 0]

    def _pieces(self, place: int) -> tuple[Context, list[tuple[int, int, int]]]:
        """What the state at a position is made of: (segment, begin, end), and the context before the first of them."""
        window, context = self.model.window, Context.empty(1, self.model.device)
        pieces = []
        if self.model.rotary:
            begin = max(0, place - self.model.network.config.num_hidden_layers * (window - 1))
            context = context._replace(seen=context.seen + begin)
        else:
            # A window reads its first half again, with the weights of the time when it begins.
            half = window // 2
            start = max(0, place // half - 1) * half
            begin = start + half if start else 0
            pieces = [(begin // self.segment, start, begin)] if start else []
        cuts = range((begin // self.segment + 1) * self.segment, place + 1, self.segment)
        pieces += [(b // self.segment, b, e) for b, e in pairwise([begin, *cuts, place + 1])]
        return context, pieces


class _Called(nn.Module):
    """Calls parts of a model with other weights in it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, part: Callable[..., Any], *arguments: Any) -> Any:
        return part(*arguments)

    def using(self, weights: Weights, part: Callable[..., Any], *arguments: Any) -> Any:
        """A part of the model, called with `weights` put in."""
        return functional_call(self, {f"model.{name}": w for name, w in weights.items()}, (part, *arguments))
