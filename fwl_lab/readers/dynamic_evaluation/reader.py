"""Dynamic evaluation (Krause et al. 2018, 2019): the model's own weights follow the gradient of what it has read.

Symbols: B documents, T tokens of a call, n tokens of a piece of a segment, V vocabulary.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, Self

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.functional_call import FunctionalCalls
from fwl_lab.ops.observer import Observer
from fwl_lab.ops.state import Rows, concatenate_rows, detach, select_rows
from fwl_lab.readers.base import Reader
from fwl_lab.readers.description import model_of
from fwl_lab.readers.dynamic_evaluation.batched import Together
from fwl_lab.readers.dynamic_evaluation.groups import groups, most_together
from fwl_lab.readers.dynamic_evaluation.optimizers import MakeOptimizer, optimizer_from, tuned_optimizer
from fwl_lab.readers.dynamic_evaluation.parameters import adapt, select_statistics, shared_parts, weight_versions
from fwl_lab.readers.dynamic_evaluation.row_optimizers import RowOptimizers, take_step
from fwl_lab.readers.dynamic_evaluation.state import DocumentState, DynamicEvaluationState, leaves_of
from fwl_lab.readers.standing import STATE
from fwl_lab.readers.static import StaticReader, StaticState

#: With step scale 0 nothing is learned, and all documents are read together, bit for bit as StaticReader reads them.
State = DynamicEvaluationState | StaticState
Weights = dict[str, Tensor]


class DynamicEvaluationReader(Reader):
    """Reads segment by segment; after each segment what adapts takes one step along its mean loss' gradient.

    Cached keys and values stay as computed by the weights of their time, and the gradient runs through the current
    segment only (Krause et al. 2019). Each document adapts its own copy of the parameters: B documents take B times
    the memory of what adapts, of its gradient and of what the optimizer keeps. Documents that stand at the same place
    are read together; a document's scores are those of a reading alone, up to rounding.

    Parameters
    ----------
    model : LanguageModel
    optimizer : callable, optional
        From a list of parameters to a torch Optimizer. None: the rule and step that were tuned on validation
        documents for this model, its `tuned_rule`; they were tuned for all parameters, and smaller
        subsets often bear larger steps.
    segment : int
        Tokens between two updates, counted from the document's start, whatever the calls.
    parameters : str
        What adapts: "all", "mlp", "norm", "bias", "last:k", "no-embeddings", "lora" or "lora:r"; see `adapted`.
    step_scale : float
        Every update is multiplied by this.

    Raises
    ------
    ValueError
        A segment below 1; an optimizer that is no function; no such choice of parameters, or none of that kind in the
        model; an RMS rule for which no statistics of these parameters are at hand.
    """

    label = "dynamic evaluation"
    learns = "model"

    def __init__(
        self,
        model: LanguageModel,
        optimizer: MakeOptimizer | None = None,
        segment: int = 64,
        parameters: str = "all",
        *,
        step_scale: float = 1.0,
    ) -> None:
        require_model(model)
        if not isinstance(segment, int) or segment < 1:
            raise ValueError(f"segment is {segment!r}; expected a whole number of tokens, at least 1.")
        if optimizer is not None and not callable(optimizer):
            raise ValueError(
                f"optimizer is a {type(optimizer).__name__}; expected a function from parameters to a torch Optimizer, "
                "such as lambda parameters: torch.optim.SGD(parameters, 1e-3), or None for the model's own rule."
            )
        self.segment, self.parameters = segment, parameters
        if optimizer is None:
            statistics = select_statistics(model.gradient_statistics, model, adapt(model, parameters)[1])
            optimizer = tuned_optimizer(model, statistics)
        self.make_optimizer = optimizer
        self._prepare(model)
        super().__init__(model, step_scale=step_scale)

    def _prepare(self, model: LanguageModel) -> None:
        """Make all that depends on the model's weights as they are."""
        # With LoRA this is a model of its own over the same weights; otherwise it is the model.
        self.adapted, self.slow = adapt(model, self.parameters)
        leaves = [parameter.detach().requires_grad_(True) for parameter in self.slow.values()]
        self._row_optimizers = RowOptimizers(leaves, self.make_optimizer(leaves))
        self._static = StaticReader(model)
        # Modules of its own over the same weights: the model is never written to, also not for a moment.
        self._calls = FunctionalCalls(self.adapted, keep=shared_parts(self.adapted))
        self.__dict__.pop("_together", None)
        self.fixed = {n: p.detach() for n, p in self.adapted.named_parameters() if n not in self.slow}
        self._prepared = weight_versions(model)

    @property
    def in_place(self) -> bool:
        """Whether `step` changes weights in place; where nothing is learned it does not."""
        return not isinstance(self.state, StaticState)

    def reset(self, *, carry: bool = False) -> None:
        """Begin new documents; see `Reader.reset`. Weights of the model that were changed meanwhile are taken up."""
        if not carry and weight_versions(self.model) != self._prepared:
            self._prepare(self.model)
        super().reset(carry=carry)
        if not carry:
            self._row_optimizers = self._row_optimizers.fresh()

    def initial_state(self, rows: int) -> State:
        """Return the state of `rows` documents of which nothing has been read."""
        learns = self.step_scale != 0 and self.learning
        return self._at_start(rows) if learns else self._static.initial_state(rows)

    def _at_start(self, rows: int) -> DynamicEvaluationState:
        weights = {name: p.detach()[None].repeat(rows, *[1] * p.ndim) for name, p in self.slow.items()}
        return DynamicEvaluationState(weights, Rows(DocumentState.begin(self.model.device) for _ in range(rows)))

    def carried(self, state: State) -> State:
        """Return new documents with the weights, and the optimizers, of those before."""
        if isinstance(state, StaticState):
            return self.initial_state(len(self.last))
        begun = (DocumentState.begin(self.model.device, document.optimizer) for document in state.documents)
        return state._replace(documents=Rows(begun))

    def step(self, state: State, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, State]:
        """Score the next tokens, and learn from each segment that they complete; see `Reader.step`."""
        return self._segments(state, inputs, labels, weights, None)

    def observe(
        self, state: State, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, State]:
        """Do as `step` does, and tell of each segment; see `Reader.observe`."""
        return self._segments(state, inputs, labels, weights, observer)

    def _segments(
        self, state: State, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer | None
    ) -> tuple[Tensor, State]:
        if isinstance(state, StaticState):
            if observer is None:
                return self._static.step(state, inputs, labels, weights)
            return self._static.observe(state, inputs, labels, weights, observer)
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        nll = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
        columns = [row.nonzero()[:, 0] for row in weights != 0]
        while any(map(len, columns)):
            # Each document goes on by one piece: to the end of its segment, or of what there is.
            pieces = {
                row: min(len(left), self.segment - state.documents[row].inputs.shape[1])
                for row, left in enumerate(columns)
                if len(left)
            }
            learned = False
            for rows in self._groups(state, pieces):
                at = torch.stack([columns[row][: pieces[row]] for row in rows])  # (len(rows), n)
                picked = (torch.tensor(rows, device=at.device)[:, None], at)
                piece = (inputs[picked], labels[picked], weights[picked])
                nll[picked], state, complete = self._advance(state, rows, piece, observer)
                learned |= complete
            columns = [left[pieces.get(row, 0) :] for row, left in enumerate(columns)]
            if learned and self.learning and observer is not None:
                seen = torch.cat([document.now.seen for document in state.documents])
                observer.updated(seen, lambda state=state: self.fast_weights(state))  # type: ignore[misc]
        return nll, state

    def _groups(self, state: DynamicEvaluationState, pieces: Mapping[int, int]) -> Iterator[list[int]]:
        """Rows that are read together, given how many tokens each is to read."""
        largest = max(parameter.numel() for parameter in self.slow.values())
        most = most_together(len(pieces), self.segment * self.model.vocab_size, largest, self.model.device.type)
        return groups(state.documents, pieces, self.model.rotary, most)

    def _advance(
        self, state: DynamicEvaluationState, rows: list[int], piece: tuple[Tensor, ...], observer: Observer | None
    ) -> tuple[Tensor, DynamicEvaluationState, bool]:
        """NLL (B, n) of the next tokens (B, n) of some documents, the state after, and whether that ends a segment."""
        inputs, labels, _ = piece
        documents = [state.documents[row] for row in rows]
        begun = documents[0].inputs.shape[1]
        complete = begun + inputs.shape[1] == self.segment
        now, nll = concatenate_rows([d.now for d in documents]), None
        if observer is not None:
            observer.expected(inputs.shape[1], self._expected(state, rows, inputs, now))
        if begun or not complete:
            nll, now = self._call(leaves_of(state, rows), inputs, now, labels)
        extended = [
            document.extend(*(x[index : index + 1] for x in piece), select_rows(now, slice(index, index + 1)))
            for index, document in enumerate(documents)
        ]
        if complete:
            whole, extended = self._learn(state, rows, extended)
            nll = whole if nll is None else nll
        assert nll is not None
        every = list(state.documents)
        for row, document in zip(rows, extended, strict=True):
            every[row] = document
        return nll, state._replace(documents=Rows(every)), complete

    def _expected(self, state: DynamicEvaluationState, rows: list[int], inputs: Tensor, now: Context) -> Any:
        """Logits (B, n, V) in some places of the next tokens; all are computed when the first are asked for."""

        @cache
        def logits() -> Tensor:
            return self._call(leaves_of(state, rows), inputs, now, None)[0].detach()

        return lambda places: logits()[:, places]

    def _call(self, leaves: Weights, ids: Tensor, context: Context, labels: Tensor | None) -> tuple[Tensor, Context]:
        """Call the model on tokens (B, T) with the weights (B, ...) of as many documents."""
        if len(ids) > 1:
            return self._together.read(leaves, self.fixed, ids, context, labels)
        own = self.fixed | {name: leaf.squeeze(0) for name, leaf in leaves.items()}
        return self._calls(own, LanguageModel.forward, ids, context, labels)

    @cached_property
    def _together(self) -> Together:
        return Together(self._calls)

    def _learn(
        self, state: DynamicEvaluationState, rows: list[int], documents: list[DocumentState]
    ) -> tuple[Tensor, list[DocumentState]]:
        """Take one step along the gradient of each segment's mean loss; the NLL (B, segment) before it."""
        learning = self.learning and self.step_scale != 0
        with torch.set_grad_enabled(learning):
            leaves, before = leaves_of(state, rows), concatenate_rows([d.before for d in documents])
            ids, labels, weights = (
                torch.cat([getattr(d, name) for d in documents]) for name in ("inputs", "labels", "token_weights")
            )
            nll, context = self._call(leaves, ids, before, labels)
            loss = (nll * weights).sum() / self.segment
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if learning else ()
        context, after = detach(context), []
        for index, (row, document) in enumerate(zip(rows, documents, strict=True)):
            kept = document.optimizer
            if learning:
                own, optimizer = self._row_optimizers.of(state)[row]
                place = int(document.before.seen) + self.segment - 1
                self._update(place, own, optimizer, [None if g is None else g[index].contiguous() for g in gradients])
                kept = self._row_optimizers.kept(list(own.values()), optimizer)
            after.append(document.next_segment(select_rows(context, slice(index, index + 1)), kept))
        return nll.detach(), after

    def _update(self, place: int, weights: Weights, optimizer: Optimizer, gradients: Sequence[Tensor | None]) -> None:
        """Take one step along the gradients of a segment whose last token stands at position `place`; in place."""
        take_step(list(weights.values()), optimizer, gradients, self.step_scale)

    def logits(self, state: State, last: Tensor) -> Tensor:
        """Return the logits (B, V) of the token after `last` (B, 1)."""
        if isinstance(state, StaticState):
            return self._static.logits(state, last)
        found: dict[int, Tensor] = {}
        for rows in self._groups(state, dict.fromkeys(range(len(last)), 1)):
            context = concatenate_rows([state.documents[row].now for row in rows])
            logits, _ = self._call(leaves_of(state, rows), last[rows], context, None)
            found |= dict(zip(rows, logits[:, -1].detach(), strict=True))
        return torch.stack([found[row] for row in range(len(last))])

    def fork(self) -> Self:
        """Return a reader that has read the same and goes its own way; it copies what adapts."""
        twin = super().fork()
        own = self._row_optimizers
        twin._row_optimizers = own.fork(self.state, twin.state) if self.in_place else own.fresh()
        return twin

    def fast_weights(self, state: State | None = None) -> dict[str, Tensor]:
        """Return Δθ of each adapted parameter, (B, ...)."""
        state, slow = self.state if state is None else state, self.slow_weights()
        if isinstance(state, StaticState):
            return {
                name: torch.zeros_like(weight).expand(len(self.last), *weight.shape) for name, weight in slow.items()
            }
        return {name: state.weights[name] - weight for name, weight in slow.items()}

    def slow_weights(self) -> dict[str, Tensor]:
        """Return θ₀ of each adapted parameter."""
        return {name: parameter.detach() for name, parameter in self.slow.items()}

    @property
    def update_every(self) -> int:
        """Tokens of a segment."""
        return self.segment

    def settings(self) -> dict[str, Any]:
        """Return what adapts, how often, and the optimizer with its hyperparameters."""
        # A subset is named in full; what "all" are, the model knows.
        names = {} if self.parameters == "all" else {"adapted": list(self.slow)}
        return {"segment": self.segment, "parameters": self.parameters} | names | self._row_optimizers.hyperparameters()

    @classmethod
    def from_configuration(cls, model: LanguageModel, configuration: Mapping[str, Any]) -> Self:
        """Make a reader of this kind, set as a `configuration` says.

        Raises
        ------
        ValueError
            Its optimizer is none of the published rules, so that a configuration does not say all of it.
        """
        model, parameters = model_of(model, configuration), configuration["parameters"]
        statistics = select_statistics(model.gradient_statistics, model, adapt(model, parameters)[1])
        optimizer = optimizer_from(configuration, statistics)
        step_scale = configuration["step_scale"]
        return cls(model, optimizer, configuration["segment"], parameters, step_scale=step_scale)

    def _like(self, tensors: Mapping[str, Tensor], rows: int) -> State:
        # What has learned goes on as it is, though this reader may learn no more.
        learned = any(name.startswith(f"{STATE}weights.") for name in tensors)
        return self._at_start(rows) if learned else self._static.initial_state(rows)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was read, as a flat dict of tensors."""
        return super().state_dict() | {"segment": torch.tensor(self.segment)} | self._row_optimizers.facts()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on where another reader of the same kind and model stood."""
        if (theirs := int(tensors.get("segment", torch.tensor(self.segment)))) != self.segment:
            raise ValueError(f"the state was saved with segments of {theirs} tokens, not {self.segment}.")
        self._row_optimizers.check(tensors)
        try:
            super().load_state_dict(tensors)
        except ValueError as error:
            raise ValueError(f"{error} Load it into a reader of the same `parameters`.") from None
        self._row_optimizers = self._row_optimizers.fresh()  # what optimizers keep is in the state
