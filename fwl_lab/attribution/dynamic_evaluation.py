"""Split the gain of a token read by dynamic evaluation over the updates that were made before it.

All weights of the reading are scaled together: at α, position p is processed with θ₀ + α Δθ_q, where q is the segment
that holds p, and so are its cached keys and values. The NLL of the target is then a function L of every Δθ_q within its
reach. Since Δθ_q = Σ_{j<q} u_j, the share of update j is −∫₀¹ Σ_{q>j} ⟨∂L/∂θ_q(α), u_j⟩ dα.

L can change abruptly along the path, and the slope with it, although each evaluation is exact. Measured where updates
make a repetitive text worse: embeddings move by a sixth of their length, and an attention head whose scores span
hundreds, so that its softmax selects one position, switches from one position to the one before within 0.04 of α, at a
different α for each query. Twelve nodes then miss the gain by tenths of a nat; refined where L changes abruptly, the
integral took about 200 nodes.

Symbols: q segments; j updates (update j is made at the end of segment j); u_j change of the weights in one step of the
optimizer, its decay included; Δθ_q weights in segment q minus θ₀; p positions in the document; W window.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fwl_lab.attribution.path_integral import Integral, Parts, Quadrature, integrate
from fwl_lab.inference.recorder import size_text
from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.functional_call import FunctionalCalls
from fwl_lab.readers.dynamic_evaluation.parameters import shared_parts
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader
from fwl_lab.trace import schema

QUADRATURE = Quadrature(nodes=12, tolerance=5e-4, most=600)
MOST_BYTES = 2**33  # limit of the memory for Δθ, of which every segment up to the target has one
Weights = dict[str, Tensor]


class ModelPaths:
    """NLL of tokens of one document along the paths from θ₀ to the weights of dynamic evaluation.

    Reads the document again and keeps Δθ of every segment up to the last target: one copy of all adapted parameters
    each. A receipt also needs the gradients, and the autograd graph, of the positions that the target depends on: in a
    rotary model layers × (W − 1) positions before it, in a model with absolute positions its window.

    Parameters
    ----------
    reader : DynamicEvaluationReader
        Set as the one that made the trace; unchanged.
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
        self.call = FunctionalCalls(self.model, keep=shared_parts(self.model))
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
        """Return Δθ_q of each segment q."""
        fresh = self.reader.with_step_scale(self.reader.step_scale)
        deltas = [{name: torch.zeros_like(w) for name, w in self.slow_weights.items()}]
        for q in range(segments - 1):
            fresh.read(self.ids[None, q * self.segment : (q + 1) * self.segment])
            deltas.append({name: delta[0].clone() for name, delta in fresh.fast_weights().items()})
        return deltas

    def sources(self, token: int) -> np.ndarray:
        """Return the trace index of the last token of each update made before `token`, (n,)."""
        return self.first + np.arange(1, (token - self.first) // self.segment + 1) * self.segment - 1

    @torch.no_grad()
    def slow(self, token: int) -> float:
        """Return the NLL of a token at θ₀, nats."""
        return float(self._nll(token - self.first, lambda q: self.slow_weights))

    def shares(self, token: int, quadrature: Quadrature) -> Integral:
        """Return the integral whose parts are each update's share of a token's gain, (n,) nats, by parameter."""
        place = token - self.first
        return integrate(partial(self._slope, place), partial(self._scaled_nll, place), quadrature)

    @torch.no_grad()
    def held(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """Return the token's NLL without the update of each source (trace indices), the others as they were, nats."""
        return np.array([float(self._nll(token - self.first, self._without(j))) for j in self._updates(sources)])

    def replayed(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """Return the token's NLL when each source's update is not made and all after it is read again, nats."""
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

    @torch.no_grad()
    def _scaled_nll(self, place: int, alpha: float) -> float:
        """Return L(α) for the token at a position, nats."""

        def weights(q: int) -> Weights:
            return {name: slow + alpha * self.deltas[q][name] for name, slow in self.slow_weights.items()}

        return float(self._nll(place, weights))

    def _slope(self, place: int, alphas: np.ndarray, weights: np.ndarray) -> Parts:
        """Return −Σ_α w Σ_{q>j} ⟨∂L/∂θ_q(α), u_j⟩ of each update j (n,), nats, by parameter.

        Parameters
        ----------
        place : int
            Position of the target.
        alphas, weights : (N,) float
            Places α, and the weights w with which their slopes are summed.
        """
        last = place // self.segment
        total: dict[int, Weights] = {}  # by segment q, Σ_α w ∂L/∂θ_q(α)
        for alpha, weight in zip(alphas.tolist(), weights.tolist(), strict=True):
            self._add_gradients(place, alpha, weight, total)
        found = {name: np.zeros(last) for name in self.slow_weights}
        along: Weights = {}  # the sum of `total` over all segments after update j
        for j in reversed(range(last)):
            for name, gradient in total.pop(j + 1, {}).items():
                along[name] = along[name].add_(gradient) if name in along else gradient
            for name, gradient in along.items():
                step = self.deltas[j + 1][name] - self.deltas[j][name]
                found[name][j] = -float(torch.dot(gradient.flatten(), step.flatten()))
        return found

    def _updates(self, sources: Sequence[int]) -> list[int]:
        """Return the number j of the update that each source (trace index) is the last token of."""
        return [(source - self.first + 1) // self.segment - 1 for source in sources]

    def _without(self, update: int) -> Callable[[int], Weights]:
        """Return a function from a segment q to θ₀ + Δθ_q without one update."""

        def weights(q: int) -> Weights:
            gone = q > update
            return {
                name: slow + self.deltas[q][name]
                - (self.deltas[update + 1][name] - self.deltas[update][name] if gone else 0.0)
                for name, slow in self.slow_weights.items()
            }  # fmt: skip

        return weights

    def _add_gradients(self, place: int, alpha: float, weight: float, total: dict[int, Weights]) -> None:
        """Add weight · ∂L/∂θ_q at α to `total`, for every segment q that the token's NLL depends on."""
        leaves: dict[int, Weights] = {}

        def weights(q: int) -> Weights:
            if q not in leaves:
                own = {n: (slow + alpha * self.deltas[q][n]).requires_grad_() for n, slow in self.slow_weights.items()}
                into = total.setdefault(q, {n: torch.zeros_like(slow) for n, slow in self.slow_weights.items()})
                for name, leaf in own.items():
                    leaf.grad = into[name]  # autograd adds to it in place, without a second copy of the gradients
                leaves[q] = own
            return leaves[q]

        with torch.enable_grad():
            (weight * self._nll(place, weights)).backward()

    def _nll(self, place: int, weights: Callable[[int], Weights]) -> Tensor:
        """Return the NLL () of the token at a position, nats, with each segment q processed with `weights(q)`."""
        context, pieces = self._pieces(place)
        for q, begin, end in pieces:  # never empty: it ends with the target's own segment
            own = self.reader.fixed | weights(q)
            residual, context = self.call(own, LanguageModel.read, self.inputs[None, begin:end], context)
        label = self.ids[place].to(self.model.device).view(1, 1)
        hidden = self.call(own, LanguageModel.slow_output, residual[:, -1:])
        return self.call(own, LanguageModel.nll, hidden, label)[0, 0]

    def _pieces(self, place: int) -> tuple[Context, list[tuple[int, int, int]]]:
        """Return the ranges of positions that the hidden state at a position depends on.

        Returns
        -------
        context : Context
            Before the first range.
        pieces : list of (segment, begin, end)
            In reading order, each within one segment.
        """
        window, context = self.model.window, Context.empty(1, self.model.device)
        pieces = []
        if self.model.rotary:
            begin = max(0, place - self.model.network.config.num_hidden_layers * (window - 1))
            context = context._replace(seen=context.seen + begin)
        else:
            # A window begins by reading its first half again, with the weights of that moment.
            half = window // 2
            start = max(0, place // half - 1) * half
            begin = start + half if start else 0
            pieces = [(begin // self.segment, start, begin)] if start else []
        cuts = range((begin // self.segment + 1) * self.segment, place + 1, self.segment)
        pieces += [(b // self.segment, b, e) for b, e in pairwise([begin, *cuts, place + 1])]
        return context, pieces
