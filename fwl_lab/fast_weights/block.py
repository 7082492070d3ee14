"""Fast Weight Layer block: two dense layers and a norm whose gradient updates are applied as linear attention.

Symbols (the README of this folder derives them): x input, k₁ key of the first layer, z₁, h = relu(z₁)², z₂, o output;
δ_v = ∂ℓ/∂v; θ₀ trained parameters, θ_c those at the inner batch's start, M inner batch, η step sizes, w token weights.
B rows, T tokens, D width, H = 4·size, S width of the norm (D when attached, `size` when published), V vocabulary.
"""

import copy
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fwl_lab.fast_weights.inner_batch import Head, Labels
from fwl_lab.fast_weights.parameters import BlockParameters
from fwl_lab.fast_weights.scan import Scan
from fwl_lab.fast_weights.state import BlockOutput, FastWeightState
from fwl_lab.fast_weights.update_rule import PARAMETERS, UpdateRule
from fwl_lab.ops.cross_entropy import Gathered, in_autocast, token_nll
from fwl_lab.ops.norms import Normalisation, RMSNorm
from fwl_lab.ops.observer import Observer


class FastWeightBlock(nn.Module):
    """A block whose parameters learn from the document while it is read.

    Published shape (this constructor): z₁ = W1 x + b1, h = relu(z₁)², z₂ = W2 h + b2, o = LN(z₂; g, b), with its own
    unembedding U, c. :meth:`attach` makes the attached shape, on top of a language model's residual stream.

    Parameters
    ----------
    input_size : int
        D, width of the hidden states.
    size : int
        W1 is (4·size, D), W2 is (size, 4·size).
    vocab_size : int
    rule : UpdateRule
    epsilon : float
        ε of the norm.

    Raises
    ------
    ValueError
        A size below 1.
    """

    input_norm: nn.LayerNorm | RMSNorm | None
    unembedding: nn.Linear
    b: nn.Parameter | None
    kind: Literal["layer", "rms"]

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
        """Make the attached shape: z₁ = W1 Norm(x) + b1, h = relu(z₁)², z₂ = W2 h + b2 + x, o = Norm(z₂).

        x is the residual stream before the model's final norm. The first Norm is that norm itself and stays slow;
        the second starts as a copy of it and its gain (and bias) are fast. The unembedding is the model's own.
        W2 and b2 start at 0, so the slow pass is exactly the model. Weights are float32 or wider.
        """
        block = cls.__new__(cls)
        nn.Module.__init__(block)
        weight = final_norm.weight
        block._shape(weight.shape[0], size, weight.shape[0], rule)
        norm = Normalisation.of(final_norm)
        block.kind, block.epsilon = norm.kind, norm.epsilon
        wide = torch.promote_types(weight.dtype, torch.float32)
        block.g = nn.Parameter(weight.detach().to(wide, copy=True))
        bias = getattr(final_norm, "bias", None)
        block.b = None if bias is None else nn.Parameter(bias.detach().to(wide, copy=True))
        nn.init.normal_(block.W1, std=block.W1.shape[1] ** -0.5)
        nn.init.zeros_(block.W2)
        # The model's own modules are not registered as submodules, or they would stand in a state dict twice.
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
        # The logit of the decay, where that is learned.
        self.forgetting = nn.Parameter(torch.logit(torch.tensor(rule.decay))) if rule.learn_decay else None

    # -- parts ----------------------------------------------------------------------------------------------------

    @property
    def tensors(self) -> BlockParameters:
        """Weights as they are now, as data: what a call of the block computes with."""
        slow = {name: weight for name in PARAMETERS if (weight := getattr(self, name)) is not None}
        norm = self.input_norm
        gain, bias = (None, None) if norm is None else (norm.weight, getattr(norm, "bias", None))
        return BlockParameters(slow, self.rule, Normalisation(self.kind, self.epsilon), gain, bias, self.forgetting)

    @property
    def attached(self) -> bool:
        """Whether the block stands on a language model's residual stream."""
        return self.input_norm is not None

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        """U (V, S) and c (V,) or None."""
        return (self.unembedding.weight, self.unembedding.bias) if self.attached else (self.U, self.c)

    @property
    def fast_parameters(self) -> tuple[str, ...]:
        """Names of the parameters that a step size drives, in the order W1, b1, W2, b2, g, b."""
        return self.tensors.fast

    def initial_state(self, rows: int) -> FastWeightState:
        """Return the state of `rows` documents of which nothing has been read: Δθ = 0."""
        zero = {n: getattr(self, n).new_zeros(rows, *getattr(self, n).shape) for n in self.fast_parameters}
        seen = torch.zeros(rows, dtype=torch.long, device=self.W1.device)
        return FastWeightState(zero, dict(zero), seen)

    def with_rule(self, rule: UpdateRule) -> "FastWeightBlock":
        """Return a block over the same weights under another rule.

        Raises
        ------
        ValueError
            The rule has other `steps`, or learns a decay that this block has not learned.
        """
        if not isinstance(rule, UpdateRule):
            raise ValueError(f"rule is {rule!r:.80}; expected an UpdateRule, such as UpdateRule(inner_batch=64).")
        if rule.steps != self.rule.steps:
            raise ValueError(f"steps is {rule.steps}; expected {self.rule.steps}, for which the block has step sizes.")
        if rule.learn_decay and self.forgetting is None:
            raise ValueError("learn_decay is True, but this block learned no decay; expected learn_decay=False.")
        twin = copy.copy(self)
        twin.__dict__["_parameters"] = dict(self._parameters)
        twin.rule = rule
        if not rule.learn_decay:
            twin.forgetting = None
        return twin

    @property
    def forgets(self) -> bool:
        """Whether a decay or a cap may take something from Δθ."""
        return self.tensors.forgets

    def decay(self) -> Tensor | float:
        """Return the part of Δθ that is forgotten at each re-linearisation."""
        return self.tensors.decay()

    def limit(self) -> Tensor | None:
        """Return the square of the norm up to which a cap leaves Δθ as it is, (), or None without a cap."""
        return self.tensors.limit()

    def retention(self, fast: Mapping[str, Tensor], limit: Tensor | None = None) -> Tensor | None:
        """Return the factor (B,) that decay and cap leave of Δθ, a dict of (B, ...), or None: all of it.

        Callers that ask often give the `limit` that they have computed once.
        """
        return self.tensors.retention(fast, limit)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return U hidden + c, (..., S) -> (..., V)."""
        weight, bias = self.head
        return F.linear(hidden.to(weight.dtype), weight, bias)

    def nll(self, hidden: Tensor, labels: Tensor, valid: Tensor | None = None) -> Tensor:
        """Return −log softmax(logits)[labels], (B, T) nats, float32 or wider; 0 where `valid` (B, T) is False."""
        return token_nll(hidden, *self.head, labels, valid)

    def keys(self, x: Tensor) -> Tensor:
        """Return k₁ (B, T, D), the input of the first layer, from hidden states x (B, T, D)."""
        return self.tensors.keys(x)

    def normalise(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return Norm(z) without gain and bias, and the factor 1/σ (..., 1)."""
        return Normalisation(self.kind, self.epsilon).forward(z)

    def normalise_backward(self, gradient: Tensor, normed: Tensor, scale: Tensor) -> Tensor:
        """Return ∂ℓ/∂z from ∂ℓ/∂Norm(z)."""
        return Normalisation(self.kind, self.epsilon).backward(gradient, normed, scale)

    # -- the pass -------------------------------------------------------------------------------------------------

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        weights: Tensor | None = None,
        state: FastWeightState | None = None,
        *,
        step_scale: float | Mapping[str, Tensor] = 1.0,
        observer: Observer | None = None,
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
        step_scale : float, or dict of (B, T)
            Multiplies every step size; or the update that each token makes to each fast parameter.
        observer : Observer, optional
            Sees every token's factors, and the fast weights whenever an inner batch (where there is none, a chunk of
            64 tokens) is complete.

        Returns
        -------
        BlockOutput
        """
        state = self.initial_state(len(hidden)) if state is None else state
        self._check(hidden, labels, weights, state)
        parameters = self.tensors
        hidden = hidden.to(self.W1.dtype)
        weights = hidden.new_ones(hidden.shape[:2]) if weights is None else weights.to(hidden.dtype)
        if labels is not None:
            labels = labels.masked_fill(weights == 0, 0)
        head = self._shared_head()
        given = nll = None
        if labels is not None:
            given = Labels(labels, self._learning(weights, state), self._scaled_steps(step_scale))
        scan = Scan(parameters, head, hidden, weights, given, parameters.limit(), observer)
        output, after = scan.run(state)
        if labels is not None:
            nll = token_nll(output, head.weight, head.bias, labels, weights != 0, gathered=head.gathered)
        after = state if labels is None else after
        return BlockOutput(nll, output, after, slow=lambda: self._slow(hidden, labels, weights))

    def _scaled_steps(self, step_scale: float | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return η of each fast parameter, () or (B, T), times its scale."""
        fast = self.fast_parameters
        scales = step_scale if isinstance(step_scale, Mapping) else dict.fromkeys(fast, step_scale)
        return {name: self.steps[self.rule.step_of(name)] * scales[name] for name in fast}

    def _slow(self, hidden: Tensor, labels: Tensor | None, weights: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return output and NLL at θ₀."""
        output = self(hidden, None, weights).hidden
        return output, None if labels is None else token_nll(output, *self.head, labels, weights != 0)

    def _shared_head(self) -> Head:
        """Return U, c and, where U learns, what gathers its gradient."""
        weight, bias = self.head
        if not (torch.is_grad_enabled() and weight.requires_grad):
            return Head(in_autocast(weight), bias, None)
        gathered = Gathered()
        return Head(gathered.share(weight), bias, gathered)

    def _learning(self, weights: Tensor, state: FastWeightState) -> Tensor:
        """Return what each token's gradient is multiplied by beside η, (B, T)."""
        if self.rule.normaliser == "batch":
            weights = weights / weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
        if self.rule.schedule is None:
            return weights
        begin, power = self.rule.schedule
        counted = (weights != 0).long()
        seen = state.seen[:, None] + counted.cumsum(1) - counted  # (B, T), tokens learned from before each
        return weights * (1.0 + seen.to(weights.dtype) / begin).pow(-power)

    def _check(self, hidden: Tensor, labels: Tensor | None, weights: Tensor | None, state: FastWeightState) -> None:
        if hidden.ndim != 3 or hidden.shape[2] != self.W1.shape[1]:
            raise ValueError(f"hidden has shape {tuple(hidden.shape)}; expected (rows, tokens, {self.W1.shape[1]}).")
        for name, given in (("labels", labels), ("weights", weights)):
            if given is not None and given.shape != hidden.shape[:2]:
                raise ValueError(
                    f"{name} have shape {tuple(given.shape)}; expected {tuple(hidden.shape[:2])}, as hidden."
                )
        if not hidden.shape[1]:
            raise ValueError("hidden holds no token; expected (rows, tokens, width) with at least one.")
        if weights is not None and not bool(weights.isfinite().all()):
            row, token = (int(i) for i in (~weights.isfinite()).nonzero()[0])
            raise ValueError(
                f"the weight of token {token} in row {row} is {float(weights[row, token])}; expected finite numbers."
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
