"""Split the gain of a token read with a fast-weight block over the earlier tokens that the block learned from.

The body does not adapt, so a token's residual state x is fixed, and its NLL when all updates are scaled by α is
L(α) = ℓ(θ₀ + α Δθ) with Δθ = Σ_i ρ_i u_i. Then L(0) − L(1) = −∫₀¹ Σ_i ⟨∇L(α), ρ_i u_i⟩ dα, and term i is the share of
source i. Both the gradient of a matrix and an update are outer products, d qᵀ and δ_i k_iᵀ, so their inner product is
(d·δ_i)(q·k_i).

Symbols: n sources; N nodes α; H = 4·size; S width of the norm; k_i, δ_i the factors of source i (−η·w included in δ);
u_i its update, δ_i k_iᵀ or δ_i; ρ_i the fraction of it that decay and caps have left at the target; z₁, h, z₂, o and
δ_v = ∂ℓ/∂v as in `fast_weights/README.md`. Everything is computed in float64 on the CPU.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fwl_lab.attribution.path_integral import Integral, Parts, Quadrature, integrate
from fwl_lab.fast_weights import FastWeightState
from fwl_lab.fast_weights.update_rule import PARAMETERS
from fwl_lab.models.context import Context
from fwl_lab.ops.observer import Observer
from fwl_lab.readers.fast_weights import FastWeightReader
from fwl_lab.trace import schema

QUADRATURE = Quadrature(nodes=16, tolerance=1e-4, most=2048)
STATE_EVERY = 512  # tokens in a call, and between two stored states from which a replay can start


class BlockPaths:
    """NLL of tokens along the paths from θ₀ to the fast weights of a block.

    Holds the factors in float64 of all tokens of one document, or, where fast weights were carried, of all documents
    up to it: with the bundled model 31 kB a token. They are taken from the trace, or made by reading the document again
    where the trace does not hold them.

    Parameters
    ----------
    reader : FastWeightReader
        With the settings of the reader that made the trace; it is not changed.
    trace : Dataset
    name : str
        Name of the reader in the trace.
    first, stop : int
        Trace indices: the first token that can be a source, and one past the last target.

    Raises
    ------
    ValueError
        Fast weights were carried over from earlier documents, and the trace does not hold all factors.
    """

    def __init__(self, reader: FastWeightReader, trace: xr.Dataset, name: str, first: int, stop: int) -> None:
        self.reader, self.first, self.model = reader, first, reader.model
        self.block = reader.block
        self.ids = torch.from_numpy(trace[schema.TOKEN_ID].values[first:stop].astype(np.int64))
        starts = np.flatnonzero(trace[schema.POSITION].values[first:stop] == 0).tolist()
        self.documents = list(zip(starts, [*starts[1:], stop - first], strict=True))
        self.slow_weights = {n: _wide(w) for n in PARAMETERS if (w := getattr(self.block, n)) is not None}
        weight, bias = self.block.head
        self.head = (_wide(weight), 0.0 if bias is None else _wide(bias))
        self.hidden = self._residuals()
        if holds_factors(trace, name, self.block.fast_parameters):
            self._take(trace, name, stop)
        else:
            self._collect(trace)
        self.states: dict[int, FastWeightState] = {}

    @torch.no_grad()
    def _residuals(self) -> Tensor:
        """Return the block's input for the score of each token, (n, D)."""
        pieces, bos = [], torch.tensor([self.model.bos])
        for start, end in self.documents:
            context = Context.empty(1, self.model.device)
            inputs = torch.cat([bos, self.ids[start : end - 1]]).to(self.model.device)
            for part in inputs.split(STATE_EVERY):
                residual, context = self.model.read(part[None], context)
                pieces.append(residual[0])
        return torch.cat(pieces)

    def _take(self, trace: xr.Dataset, name: str, stop: int) -> None:
        """Take factors and retention from the trace."""
        at = {schema.TOKEN: slice(self.first, stop)}

        def recorded(variable: str) -> Tensor:
            return torch.from_numpy(trace[variable].isel(at).values).double()

        fast = self.block.fast_parameters
        self.deltas = {n: recorded(schema.delta_name(n)) for n in fast}
        self.keys = {n: recorded(schema.key_name(n)) for n in fast if schema.key_name(n) in trace}
        grid = trace[schema.UPDATE_TOKEN].values
        inside = (grid >= self.first) & (grid < stop)
        self.keep = np.ones(stop - self.first)
        self.keep[grid[inside] - self.first] = trace[schema.RETENTION].sel({schema.READER: name}).values[inside]

    def _collect(self, trace: xr.Dataset) -> None:
        """Make factors and retention by reading the document again; ValueError where there are several documents."""
        if len(self.documents) > 1:
            raise ValueError(
                "fast weights were carried over from earlier documents, and the trace does not hold the factors of all "
                "fast parameters; score again with record=Recorder(factors=True) and without `parameters`."
            )
        fresh, collector = self.reader.with_step_scale(self.reader.step_scale), _Collector(len(self.ids))
        with fresh.observed(collector):
            for part in self.ids.split(STATE_EVERY):
                fresh.read(part[None])
        self.deltas = {n: torch.cat(parts) for n, parts in collector.deltas.items()}
        self.keys = {n: torch.cat(parts) for n, parts in collector.keys.items()}
        self.keep = collector.keep

    def sources(self, token: int) -> np.ndarray:
        """Return the trace indices of the tokens whose updates are in Δθ at `token`, (n,)."""
        return np.arange(self.first, token)

    def slow(self, token: int) -> float:
        """Return the NLL of a token at θ₀, nats."""
        return float(_Target(self, token - self.first).nll(torch.zeros(1, 1).double())[0])

    def shares(self, token: int, quadrature: Quadrature) -> Integral:
        """Return the integral whose parts are each source's share of a token's gain, (n,) nats, by parameter."""
        target = _Target(self, token - self.first)
        return integrate(target.slope, lambda alpha: float(target.nll(torch.tensor([[alpha]]).double())[0]), quadrature)

    def held(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """Return the token's NLL without the update of each source (trace indices), the others as they were, nats."""
        without = torch.tensor([source - self.first for source in sources])
        target = _Target(self, token - self.first)
        return target.nll(torch.ones(len(without), 1).double(), without).numpy()

    @torch.no_grad()
    def replayed(self, token: int, sources: Sequence[int]) -> np.ndarray:
        """Return the token's NLL when each source's update is not made and all after it is read again, nats."""
        return np.array([self._replay(token - self.first, source - self.first) for source in sources])

    def _replay(self, target: int, dropped: int) -> float:
        """Return the NLL of a target, read again without the update of one source; both count from `first`."""
        calls = list(self._calls(target + 1))
        if not self.states:
            state = self.block.initial_state(1)
            for begin, end in self._calls(len(self.ids)):
                self.states[begin] = state = self._enter(state, begin)
                state = self._advance(state, begin, end)[1]
        at = max(begin for begin, _ in calls if begin <= dropped)
        state, nll = self.states[at], torch.zeros(1)
        for begin, end in calls:
            if begin >= at:
                nll, state = self._advance(self._enter(state, begin), begin, end, dropped)
        return float(nll[-1])

    def _calls(self, stop: int) -> list[tuple[int, int]]:
        """Return the ranges in which the tokens before `stop` are read, each within one document."""
        cuts = [(start, min(end, stop)) for start, end in self.documents if start < stop]
        return [
            (begin, min(begin + STATE_EVERY, end)) for start, end in cuts for begin in range(start, end, STATE_EVERY)
        ]

    def _enter(self, state: FastWeightState, begin: int) -> FastWeightState:
        """Return the state before a range: at a document's start a fresh one with the carried Δθ, else `state`."""
        if begin in (start for start, _ in self.documents) and int(state.seen[0]):
            return self.block.initial_state(1)._replace(delta=state.fast_weights())
        return state

    def _advance(
        self, state: FastWeightState, begin: int, end: int, dropped: int | None = None
    ) -> tuple[Tensor, FastWeightState]:
        """Return the NLL (end − begin,) of a range of tokens, nats, and the state after it.

        dropped : index of a token whose update is not made; None: all are made.
        """
        hidden, labels = self.hidden[None, begin:end], self.ids[None, begin:end].to(self.model.device)
        scale: float | dict[str, Tensor] = self.reader.step_scale
        if dropped is not None and begin <= dropped < end:
            # In the block's dtype: a scale in a narrower one would round the step sizes.
            each = self.block.W1.new_full(labels.shape, self.reader.step_scale)
            each[0, dropped - begin] = 0.0
            scale = dict.fromkeys(self.block.fast_parameters, each)
        out = self.block(hidden, labels, None, state, step_scale=scale)
        return out.nll[0], out.state


class _Target:
    """One token's NLL and slope along the path, and its NLL with some updates taken out.

    Parameters
    ----------
    paths : BlockPaths
    target : int
        Index of the token, counted from `paths.first`.
    """

    def __init__(self, paths: BlockPaths, target: int) -> None:
        self.paths, self.block, self.label = paths, paths.block, int(paths.ids[target])
        self.rho = torch.from_numpy(np.cumprod(paths.keep[:target][::-1])[::-1].copy())  # (n,)
        self.deltas = {n: delta[:target] for n, delta in paths.deltas.items()}
        self.keys = {n: key[:target] for n, key in paths.keys.items()}
        x = paths.hidden[target].to(self.block.W1.dtype)
        self.k1 = _wide(self.block.keys(x))
        self.through = _wide(x) if self.block.attached else 0.0
        self.match = self.keys["W1"] @ self.k1 * self.rho if "W1" in self.keys else None  # ρ_i (k_i·k₁), (n,)

    def _moved(self, name: str, alpha: Tensor, without: Tensor | None) -> Tensor | float:
        """Return α Δθ of a vector, (N, ...), for α (N, 1); minus the update of source `without` (N,) in each row."""
        if name not in self.deltas:
            return 0.0
        moved = alpha * (self.rho @ self.deltas[name])
        return moved if without is None else moved - self.rho[without, None] * self.deltas[name][without]

    def _forward(self, alpha: Tensor, without: Tensor | None = None) -> dict[str, Tensor]:
        """Compute the block's output for the token at each α (N, 1), minus the update of source `without` (N,).

        Returns
        -------
        dict
            z1 (N, H); matches ρ_i (k_i·h) of the sources' keys of W2 (N, n); normed, scale of the norm; gain; logits
            (N, V).
        """
        theta = self.paths.slow_weights
        z1 = theta["W1"] @ self.k1 + theta["b1"] + self._moved("b1", alpha, without)
        if self.match is not None:
            z1 = z1 + alpha * (self.match @ self.deltas["W1"])
            if without is not None:
                z1 = z1 - self.match[without, None] * self.deltas["W1"][without]
        z1 = z1.expand(len(alpha), -1)
        h = z1.relu().square()
        z2 = h @ theta["W2"].T + theta["b2"] + self.through + self._moved("b2", alpha, without)
        matches = h.new_zeros(len(alpha), len(self.rho))
        if "W2" in self.keys:
            matches = h @ self.keys["W2"].T * self.rho  # ρ_i (k_i·h), (N, n)
            z2 = z2 + alpha * (matches @ self.deltas["W2"])
            if without is not None:
                own = matches.gather(1, without[:, None])
                z2 = z2 - own * self.deltas["W2"][without]
        normed, scale = self.block.normalise(z2)
        gain = theta["g"] + self._moved("g", alpha, without)
        out = normed * gain + theta.get("b", 0.0) + self._moved("b", alpha, without)
        logits = out @ self.paths.head[0].T + self.paths.head[1]
        return {"z1": z1, "matches": matches, "normed": normed, "scale": scale, "gain": gain, "logits": logits}

    @torch.no_grad()
    def nll(self, alpha: Tensor, without: Tensor | None = None) -> Tensor:
        """Return L(α) for each α (N, 1), (N,) nats, minus the update of source `without` (N,) in each row."""
        logits = self._forward(alpha, without)["logits"]
        return logits.logsumexp(1) - logits[:, self.label]

    @torch.no_grad()
    def slope(self, places: np.ndarray, weighted: np.ndarray) -> Parts:
        """Return −Σ_α w ⟨∇L(α), ρ_i u_i⟩ of each source i (n,), nats, by parameter.

        Parameters
        ----------
        places, weighted : (N,) float
            Nodes α, and the weights w with which the slopes at them are summed.
        """
        alpha, weights = (torch.from_numpy(x)[:, None] for x in (places, weighted))
        way = self._forward(alpha)
        unembedding = self.paths.head[0]
        d_out = way["logits"].softmax(1) @ unembedding - unembedding[self.label]
        d_z2 = self.block.normalise_backward(d_out * way["gain"], way["normed"], way["scale"])
        d_h = d_z2 @ self.paths.slow_weights["W2"]
        errors = torch.zeros_like(way["matches"])
        if "W2" in self.keys:
            errors = d_z2 @ self.deltas["W2"].T  # d·δ_i, (N, n)
            d_h = d_h + alpha * (errors * self.rho) @ self.keys["W2"]
        d_z1 = d_h * 2 * way["z1"].relu()
        found = {}
        along = {"W1": d_z1, "b1": d_z1, "b2": d_z2, "g": d_out * way["normed"], "b": d_out}
        for name, deltas in self.deltas.items():
            if name == "W2":
                found[name] = -(weights * errors * way["matches"]).sum(0)
            else:
                match = self.match if name == "W1" and self.match is not None else self.rho
                found[name] = -match * (deltas @ (weights * along[name]).sum(0))
        return {name: share.numpy() for name, share in found.items()}


class _Collector(Observer):
    """Observer that keeps the factors of each token, and the retention after it (1 without decay or cap)."""

    def __init__(self, tokens: int) -> None:
        self.keys: dict[str, list[Tensor]] = {}
        self.deltas: dict[str, list[Tensor]] = {}
        self.keep = np.ones(tokens)
        self.count = 0

    def learned(self, factors: dict[str, tuple[Tensor | None, Tensor]]) -> None:
        """Keep the factors of the next tokens."""
        for name, (key, delta) in factors.items():
            self.deltas.setdefault(name, []).append(_wide(delta[0]))
            if key is not None:
                self.keys.setdefault(name, []).append(_wide(key[0]))
        self.count += next(iter(factors.values()))[1].shape[1]

    def retained(self, keep: Tensor) -> None:
        """Keep the factor by which Δθ was multiplied after the last token learned."""
        if self.count:
            self.keep[self.count - 1] = float(keep[0])


def holds_factors(trace: xr.Dataset, name: str, parameters: Sequence[str]) -> bool:
    """Return whether a trace holds a reader's factors of all these parameters."""
    recorded = all(schema.delta_name(parameter) in trace for parameter in parameters)
    return trace.attrs.get(schema.FACTORED) == name and recorded


def _wide(x: Tensor) -> Tensor:
    """Return a float64 copy on the CPU."""
    return x.detach().to("cpu", torch.float64, copy=True)
