"""The Fast Weight Layer block: two dense layers and a norm whose gradient updates are applied as linear attention.

Symbols (the README of this folder derives them): x input, k₁ key of the first layer, z₁, h = relu(z₁)², z₂, o output;
δ_v = ∂ℓ/∂v; θ₀ trained parameters, θ_c those at the inner batch's start, M inner batch, η step sizes, w token weights.
B rows, T tokens, D width, H = 4·size, S width of the norm (D when attached, `size` when published), V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..precision import RMSNorm, root_mean_square
from .attention import before, within
from .cross_entropy import linear_cross_entropy, token_nll
from .rule import PARAMETERS, UpdateRule
from .spans import spans
from .state import BlockOutput, FastWeightState

CHUNK = 64  # tokens computed at once where an inner batch is longer; changes the order of sums, never their terms


class FastWeightBlock(nn.Module):
    """A block whose parameters learn from the document while it is read.

    Published shape (this constructor): z₁ = W1 x + b1, h = relu(z₁)², z₂ = W2 h + b2, o = LN(z₂; g, b), with its own
    unembedding U, c. :meth:`attach` makes the attached shape, on top of a language model's residual stream.

    Parameters
    ----------
    input_size : int
        D, width of what it reads.
    size : int
        W1 is (4·size, D), W2 is (size, 4·size).
    vocab_size : int
    rule : UpdateRule
    epsilon : float
        Of the norm.
    """

    input_norm: nn.LayerNorm | RMSNorm | None
    unembedding: nn.Linear
    b: nn.Parameter | None

    def __init__(
        self, input_size: int, size: int, vocab_size: int, rule: UpdateRule = UpdateRule(), *, epsilon: float = 1e-6
    ) -> None:
        super().__init__()
        self._shape(input_size, size, size, rule)
        self.input_norm = None
        self.kind, self.epsilon = "layer", epsilon
        self.g, self.b = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.U, self.c = nn.Parameter(torch.empty(vocab_size, size)), nn.Parameter(torch.zeros(vocab_size))
        for weight in (self.W1, self.W2, self.U):
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)

    @classmethod
    def attach(
        cls, final_norm: nn.LayerNorm | RMSNorm, unembedding: nn.Linear, size: int, rule: UpdateRule = UpdateRule()
    ) -> "FastWeightBlock":
        """The attached shape: z₁ = W1 Norm(x) + b1, h = relu(z₁)², z₂ = W2 h + b2 + x, o = Norm(z₂).

        x is the residual stream before the model's final norm. The first Norm is that norm itself and stays slow;
        the second starts as a copy of it and its gain (and bias) are fast. The unembedding is the model's own.
        W2 and b2 start at 0, so the slow pass is exactly the model.
        """
        block = cls.__new__(cls)
        nn.Module.__init__(block)
        weight = final_norm.weight
        block._shape(weight.shape[0], size, weight.shape[0], rule)
        if isinstance(final_norm, nn.LayerNorm):
            block.kind, block.epsilon = "layer", final_norm.eps
        else:
            block.kind, block.epsilon = "rms", final_norm.variance_epsilon
        wide = torch.promote_types(weight.dtype, torch.float32)
        block.g = nn.Parameter(weight.detach().to(wide, copy=True))
        bias = getattr(final_norm, "bias", None)
        block.b = None if bias is None else nn.Parameter(bias.detach().to(wide, copy=True))
        nn.init.normal_(block.W1, std=block.W1.shape[1] ** -0.5)
        nn.init.zeros_(block.W2)
        # The model's own modules: used, not owned, so they are no submodules here and appear in no state dict twice.
        block.__dict__["input_norm"], block.__dict__["unembedding"] = final_norm, unembedding
        return block.to(weight.device, wide)

    def _shape(self, input_size: int, size: int, output_size: int, rule: UpdateRule) -> None:
        for name, value in (("input_size", input_size), ("size", size)):
            if value < 1:
                raise ValueError(f"{name} is {value}; expected at least 1.")
        self.rule, self.size = rule, size
        self.W1, self.b1 = nn.Parameter(torch.empty(4 * size, input_size)), nn.Parameter(torch.zeros(4 * size))
        self.W2, self.b2 = nn.Parameter(torch.empty(output_size, 4 * size)), nn.Parameter(torch.zeros(output_size))
        self.steps = nn.Parameter(torch.full((len(rule.steps),), float(rule.initial_step)))

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether it stands on a language model's residual stream."""
        return self.input_norm is not None

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """U (V, S) and c (V,) or None."""
        return (self.unembedding.weight, self.unembedding.bias) if self.attached else (self.U, self.c)

    @property
    def fast_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that a step size drives, in the order W1, b1, W2, b2, g, b."""
        return tuple(n for n in PARAMETERS if self.rule.step_of(n) is not None and getattr(self, n) is not None)

    def initial_state(self, rows: int) -> FastWeightState:
        """The state of `rows` documents of which nothing has been read: Δθ = 0."""
        zero = {n: getattr(self, n).new_zeros(rows, *getattr(self, n).shape) for n in self.fast_parameters}
        seen = torch.zeros(rows, dtype=torch.long, device=self.W1.device)
        return FastWeightState(zero, dict(zero), seen)

    def logits(self, hidden: Tensor) -> Tensor:
        """U hidden + c, (..., S) -> (..., V)."""
        weight, bias = self.head
        return F.linear(hidden.to(weight.dtype), weight, bias)

    def nll(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """-log softmax(logits)[labels], (B, T) nats, float32 or wider."""
        return token_nll(hidden, *self.head, labels)

    def _keys(self, x: Tensor) -> Tensor:
        """k₁ (B, T, D), what the first layer reads."""
        return x if self.input_norm is None else self.input_norm(x.to(self.input_norm.weight.dtype)).to(x.dtype)

    def _normalise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Norm(z) without gain and bias, and the factor 1/σ (..., 1)."""
        if self.kind == "rms":
            scale = torch.rsqrt(z.pow(2).mean(-1, keepdim=True) + self.epsilon)
            return root_mean_square(z, self.epsilon), scale
        scale = torch.rsqrt(z.var(-1, correction=0, keepdim=True) + self.epsilon)
        return F.layer_norm(z, z.shape[-1:], eps=self.epsilon), scale

    def _normalise_backward(self, gradient: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
        """∂ℓ/∂z from ∂ℓ/∂Norm(z)."""
        along = normed * (gradient * normed).mean(-1, keepdim=True)
        centre = gradient.mean(-1, keepdim=True) if self.kind == "layer" else 0.0
        return scale * (gradient - centre - along)

    # -- the pass -------------------------------------------------------------------------------------------------

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        state: FastWeightState | None = None,
        *,
        step_scale: float = 1.0,
        observe: Callable[[FastWeightState], None] | None = None,
    ) -> BlockOutput:
        """Read T tokens and learn from them.

        Parameters
        ----------
        hidden : (B, T, D)
        labels : (B, T) long or None
            The token that follows each position. None: look without learning.
        weights : (B, T), optional
            w_i of each token's loss. Where it is 0 a token is scored 0, not learned from and not counted.
        state : FastWeightState, optional
            Of the tokens before; None: a document's start.
        step_scale : float
            Multiplies every step size.
        observe : callable, optional
            Called with the state whenever an inner batch (where there is none, a chunk of 64 tokens) is complete.

        Returns
        -------
        BlockOutput
        """
        state = self.initial_state(len(hidden)) if state is None else state
        self._check(hidden, labels, weights, state)
        hidden = hidden.to(self.W1.dtype)
        weights = hidden.new_ones(hidden.shape[:2]) if weights is None else weights.to(hidden.dtype)
        if labels is not None:
            labels = labels.masked_fill(weights == 0, 0)
        learning = self._normalised(weights)
        steps = {n: self.steps[self.rule.step_of(n)] * step_scale for n in self.fast_parameters}
        now, fresh = self._relinearise(state, weights) if labels is None else (state, False)
        pieces = []
        for span in spans(weights != 0, state.seen, self.rule.inner_batch, CHUNK):
            if labels is None:
                piece, _ = self._chunk(span.take(hidden), None, span.take(learning), now, steps, fresh)
            else:
                w = span.take(learning) if span.real is None else span.take(learning) * span.real
                now, fresh = self._relinearise(now, w)
                piece, now = self._chunk(span.take(hidden), span.take(labels), w, now, steps, fresh)
                if observe is not None and bool((now.seen % (self.rule.inner_batch or CHUNK) == 0).any()):
                    observe(now)
            pieces.append((span, piece))
        if pieces and all(span.real is None for span, _ in pieces):
            output = torch.cat([piece for _, piece in pieces], 1)
        else:
            output = hidden.new_zeros(*hidden.shape[:2], self.W2.shape[0])
            for span, piece in pieces:
                output = span.put(output, piece)
        return BlockOutput(
            nll=None if labels is None else self.nll(output, labels).where(weights != 0, 0.0),
            hidden=output,
            state=state if labels is None else now,
            slow=lambda: self._slow(hidden, labels, weights),
        )

    def _slow(self, hidden: Tensor, labels: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        output = self(hidden, None, weights).hidden
        return output, None if labels is None else self.nll(output, labels).where(weights != 0, 0.0)

    def _normalised(self, weights: Tensor) -> Tensor:
        if self.rule.normaliser == "none":
            return weights
        return weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)

    def _check(self, hidden: Tensor, labels: Tensor | None, weights: Tensor | None, state: FastWeightState) -> None:
        if hidden.ndim != 3 or hidden.shape[2] != self.W1.shape[1]:
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (rows, tokens, {self.W1.shape[1]}).")
        for name, given in (("labels", labels), ("weights", weights)):
            if given is not None and given.shape != hidden.shape[:2]:
                raise ValueError(
                    f"{name} have shape {tuple(given.shape)}; expected {tuple(hidden.shape[:2])}, as hidden."
                )
        if len(state.seen) != len(hidden):
            raise ValueError(f"state holds {len(state.seen)} rows and hidden {len(hidden)}; expected equal numbers.")
        if labels is None:
            return
        vocabulary = self.head[0].shape[0]
        outside = (labels < 0) | (labels >= vocabulary)
        if weights is not None:
            outside &= weights != 0
        if bool(outside.any()):
            row, token = (int(i) for i in outside.nonzero()[0])
            raise ValueError(
                f"the label of token {token} in row {row} is {int(labels[row, token])}; expected 0 to {vocabulary - 1} "
                "(the vocabulary), or a weight of 0."
            )

    def _relinearise(self, state: FastWeightState, weights: Tensor) -> tuple[FastWeightState, bool]:
        """Begin a new inner batch in the rows that stand at one's start: gradients are from now on taken at θ now.

        Also says whether all rows did, so that nothing is pending anywhere.
        """
        inner = self.rule.inner_batch
        rows = (state.seen % inner == 0) & (weights != 0).any(1) if inner is not None else state.seen < 0
        if not bool(rows.any()):
            return state, False
        keep = 1.0 - self.rule.decay
        delta, pending, everywhere = {}, {}, bool(rows.all())
        for name, old in state.delta.items():
            new = keep * (old + state.pending[name]) if self.rule.decay else old + state.pending[name]
            row = rows.view(-1, *[1] * (old.ndim - 1))
            delta[name] = new if everywhere else torch.where(row, new, old)
            pending[name] = torch.zeros_like(old) if everywhere else state.pending[name].masked_fill(row, 0)
        return state._replace(delta=delta, pending=pending), everywhere

    def _chunk(
        self,
        x: Tensor,
        labels: Tensor | None,
        weights: Tensor,
        state: FastWeightState,
        steps: dict[str, Tensor],
        fresh: bool,
    ) -> tuple[Tensor, FastWeightState]:
        """One span: gradients at θ_c, then outputs at θ_c + pending + the updates of the span's own earlier tokens.

        x (B, L, D), labels and weights (B, L), `steps` η per fast parameter, `fresh`: nothing is pending.
        Returns output (B, L, S) and the state.
        """
        theta: dict[str, Tensor] = {}
        for name in PARAMETERS:
            slow = getattr(self, name)
            if slow is not None:
                row = slow if name not in state.delta else slow + state.delta[name]
                theta[name] = row if slow.ndim == 2 else row.unsqueeze(-2)  # vectors broadcast over tokens: (B, 1, n)
        through = x if self.attached else 0.0
        k1 = self._keys(x)
        z1 = k1 @ theta["W1"].mT + theta["b1"]
        updates: dict[str, Tensor] = {}
        keys: dict[str, Tensor] = {}
        if labels is not None:
            h = z1.relu().square()
            normed, scale = self._normalise(h @ theta["W2"].mT + theta["b2"] + through)
            out = normed * theta["g"] + theta.get("b", 0.0)
            _, d_out = linear_cross_entropy(out, *self.head, labels)
            d_out = d_out * weights[..., None]
            d_z2 = self._normalise_backward(d_out * theta["g"], normed, scale)
            d_z1 = d_z2 @ theta["W2"] * 2 * z1.relu()
            gradients = {"W1": d_z1, "b1": d_z1, "W2": d_z2, "b2": d_z2, "g": d_out * normed, "b": d_out}
            updates = {name: -steps[name] * gradients[name] for name in steps}
            keys = {"W1": k1, "W2": h}

        def adapted(name: str, queries: Tensor | None = None) -> Tensor | float:
            """What the updates since θ_c add: to a layer's output for its queries, or to a vector parameter."""
            if name not in state.delta:
                return 0.0
            if queries is None:
                earlier = 0.0 if fresh else state.pending[name].unsqueeze(-2)
                return earlier + before(updates[name]) if updates else earlier
            earlier = 0.0 if fresh else queries @ state.pending[name].mT
            return earlier + within(queries, keys[name], updates[name]) if updates else earlier

        hf = (z1 + adapted("W1", k1) + adapted("b1")).relu().square()
        z2f = hf @ theta["W2"].mT + theta["b2"] + through + adapted("W2", hf) + adapted("b2")
        output = self._normalise(z2f)[0] * (theta["g"] + adapted("g")) + (theta.get("b", 0.0) + adapted("b"))
        pending = {}
        for name, update in updates.items():
            new = (update.mT @ keys[name] if name in keys else update.sum(1)).to(state.pending[name].dtype)
            pending[name] = new if fresh else state.pending[name] + new  # no autocast in what is carried
        seen = state.seen + (weights != 0).sum(1)
        return output, FastWeightState(state.delta, pending or state.pending, seen)
