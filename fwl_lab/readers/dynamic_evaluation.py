"""Dynamic evaluation (Krause et al. 2018, 2019): the model's own weights follow the gradient of what it has read."""

import copy
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from ..corpus import Document
from ..language_model import LanguageModel
from ..optimizers import DynamicEvaluationRMS, DynamicEvaluationSGD, GradientStatistics
from ..states import detach, from_tensors, to_tensors
from ..windows import Context
from .base import Reader
from .static import StaticReader

MakeOptimizer = Callable[[Sequence[Tensor]], torch.optim.Optimizer]
UNTUNED_STEP = 1e-3  # a cautious step of plain gradient descent, for models nobody has tuned
log = logging.getLogger("fwl_lab")


@dataclasses.dataclass
class _Document:
    """One document under way.

    Attributes
    ----------
    weights : dict of leaf tensors, the adapted parameters
    optimizer : over them
    before : Context at the start of the segment
    now : Context after the last input read
    inputs, labels, token_weights : (1, n) of the segment so far
    """

    weights: dict[str, Tensor]
    optimizer: torch.optim.Optimizer
    before: Context
    now: Context
    inputs: Tensor
    labels: Tensor
    token_weights: Tensor


class DynamicEvaluationReader(Reader):
    """Reads segment by segment; after each segment all weights take one step along its mean loss' gradient.

    Cached keys and values stay as computed by the weights of their time, and the gradient runs through the current
    segment only (Krause et al. 2019). Each document adapts its own copy of the parameters.

    Parameters
    ----------
    model : LanguageModel
    optimizer : callable, optional
        From a list of parameters to a torch Optimizer. None: the rule and step that were tuned on validation
        documents for this model and are kept in its provenance.
    segment : int
        Tokens between two updates, counted from the document's start, whatever the calls.
    parameters : str
        "all".
    step_scale : float
        Every update is multiplied by this.
    """

    def __init__(
        self,
        model: LanguageModel,
        optimizer: MakeOptimizer | None = None,
        segment: int = 64,
        parameters: str = "all",
        *,
        step_scale: float = 1.0,
    ) -> None:
        if not isinstance(segment, int) or segment < 1:
            raise ValueError(f"segment is {segment!r}; expected a whole number of tokens, at least 1.")
        if parameters != "all":
            raise ValueError(f"parameters is {parameters!r}; expected 'all'.")
        self.segment = segment
        self.tuned: dict[str, Any] = {}
        if optimizer is None:
            self.tuned = model.provenance.get("dynamic_evaluation", {"rule": "sgd", "lr": UNTUNED_STEP, "tuned": False})
            optimizer = make_optimizer(self.tuned, model.gradient_statistics)
            if "tuned" in self.tuned:
                log.warning("no dynamic-evaluation rule was tuned for this model; SGD with step %g", UNTUNED_STEP)
        self.make_optimizer = optimizer
        super().__init__(model, step_scale=step_scale)

    def _start(self) -> None:
        self.documents = [self._new_document()]
        # Where nothing will be learned, all documents are read together, bit for bit as StaticReader reads them.
        self.still = StaticReader(self.model) if self.step_scale == 0 else None

    def _carry(self) -> None:
        self.documents = [self._new_document(d.weights, d.optimizer) for d in self.documents]
        if self.still is not None:
            self.still.context = Context.empty(len(self.last), self.model.device)

    def _new_document(
        self, weights: dict[str, Tensor] | None = None, optimizer: torch.optim.Optimizer | None = None
    ) -> _Document:
        if weights is None:
            weights = {n: p.detach().clone().requires_grad_(True) for n, p in self.model.named_parameters()}
        context = Context.empty(1, self.model.device)
        none = torch.zeros(1, 0, dtype=torch.long, device=self.model.device)
        optimizer = optimizer or self.make_optimizer(list(weights.values()))
        return _Document(weights, optimizer, context, context, none, none, none.float())

    def _expand(self, rows: int) -> None:
        # Copies, not new documents: weights carried from the document before serve every row.
        self.documents += [copy.deepcopy(self.documents[0]) for _ in range(rows - 1)]
        if self.still is not None:
            self.still._expand(rows)

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if self.still is not None:
            return self.still._read(inputs, labels, weights)
        nll = torch.zeros(
            labels.shape, dtype=torch.promote_types(self.model.dtype, torch.float32), device=labels.device
        )
        for row, document in enumerate(self.documents):
            real = weights[row] != 0
            if bool(real.any()):
                own = (x[row : row + 1, real] for x in (inputs, labels, weights))
                nll[row, real] = self._read_document(document, *own)
        return nll

    def _read_document(self, document: _Document, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """NLL (n,) of the next real tokens (1, n) of one document."""
        scores = []
        while inputs.shape[1]:
            room = self.segment - document.inputs.shape[1]
            new = [x[:, :room] for x in (inputs, labels, weights)]
            inputs, labels, weights = (x[:, room:] for x in (inputs, labels, weights))
            begun = document.inputs.shape[1]
            held = (document.inputs, document.labels, document.token_weights)
            document.inputs, document.labels, document.token_weights = (
                torch.cat(pair, 1) for pair in zip(held, new, strict=True)
            )
            complete = document.inputs.shape[1] == self.segment
            if begun or not complete:
                nll, document.now = self._call(document, new[0], document.now, new[1])
            if complete:
                whole = self._learn(document)
                nll = nll if begun else whole
            scores.append(nll[0])
        return torch.cat(scores)

    def _call(
        self, document: _Document, ids: Tensor, context: Context, labels: Tensor | None
    ) -> tuple[Tensor, Context]:
        return functional_call(self.model, document.weights, (ids, context, labels))

    def _learn(self, document: _Document) -> Tensor:
        """One step along the gradient of the segment's mean loss; the NLL (1, segment) before it."""
        with torch.enable_grad():
            nll, context = self._call(document, document.inputs, document.before, document.labels)
            loss = (nll * document.token_weights).sum() / self.segment
            gradients = torch.autograd.grad(loss, list(document.weights.values()), allow_unused=True)
        old = {} if self.step_scale == 1 else {n: p.detach().clone() for n, p in document.weights.items()}
        self._step(document, gradients)
        for name, start in old.items():
            parameter = document.weights[name]
            parameter.copy_(torch.lerp(start, parameter, self.step_scale))
        document.before = document.now = detach(context)
        document.inputs, document.labels, document.token_weights = (
            x[:, :0] for x in (document.inputs, document.labels, document.token_weights)
        )
        if self._observers and document is self.documents[0]:
            self._notify(document.now.seen, self.fast_weights)
        return nll.detach()

    def _step(self, document: _Document, gradients: Sequence[Tensor | None]) -> None:
        for parameter, gradient in zip(document.weights.values(), gradients, strict=True):
            parameter.grad = gradient
        document.optimizer.step()
        document.optimizer.zero_grad(set_to_none=True)

    def _logits(self, last: Tensor) -> Tensor:
        if self.still is not None:
            return self.still._logits(last)
        rows = [self._call(d, last[i : i + 1], d.now, None)[0][:, -1] for i, d in enumerate(self.documents)]
        return torch.cat(rows)

    def fork(self) -> Self:
        twin = super().fork()
        # One deepcopy of weights and optimizer together keeps the optimizer on the copied tensors.
        twin.documents = [copy.deepcopy(document) for document in self.documents]
        twin.still = None if self.still is None else self.still.fork()
        return twin

    def fast_weights(self) -> dict[str, Tensor]:
        slow = self.slow_weights()
        return {n: torch.stack([d.weights[n].detach() - slow[n] for d in self.documents]) for n in slow}

    def slow_weights(self) -> dict[str, Tensor]:
        return {n: p.detach() for n, p in self.model.named_parameters()}

    def configuration(self) -> dict[str, Any]:
        optimizer = self.documents[0].optimizer
        values = {k: v for k, v in optimizer.param_groups[0].items() if isinstance(v, int | float | str)}
        return super().configuration() | {
            "segment": self.segment, "parameters": "all", "optimizer": type(optimizer).__name__, **values,
        }  # fmt: skip

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"segment": torch.tensor(self.segment)}
        if self.still is not None:
            tensors |= self.still._tensors()
        for row, document in enumerate(self.documents):
            tensors |= to_tensors(document.before, f"{row}.before.") | to_tensors(document.now, f"{row}.now.")
            tensors |= {f"{row}.{n}": getattr(document, n).clone() for n in ("inputs", "labels", "token_weights")}
            tensors |= {f"{row}.weights.{n}": p.detach().clone() for n, p in document.weights.items()}
            for index, state in document.optimizer.state_dict()["state"].items():
                tensors |= {f"{row}.optimizer.{index}.{k}": torch.as_tensor(v).clone() for k, v in state.items()}
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        if int(tensors.get("segment", torch.tensor(self.segment))) != self.segment:
            raise ValueError(
                f"the state was saved with segments of {int(tensors['segment'])} tokens, not {self.segment}."
            )
        if self.still is not None:
            self.still._restore(tensors)
        for row, document in enumerate(self.documents):
            own = {k.removeprefix(f"{row}."): v for k, v in tensors.items() if k.startswith(f"{row}.")}
            document.before, document.now = (from_tensors(document.now, own, f"{n}.") for n in ("before", "now"))
            for name in ("inputs", "labels", "token_weights"):
                setattr(document, name, own[name].to(self.model.device))
            with torch.no_grad():
                for name, parameter in document.weights.items():
                    parameter.copy_(own[f"weights.{name}"])
            states: dict[int, dict[str, Tensor]] = {}
            for key, value in own.items():
                if key.startswith("optimizer."):
                    _, index, name = key.split(".", 2)
                    states.setdefault(int(index), {})[name] = value.clone()
            document.optimizer.load_state_dict(document.optimizer.state_dict() | {"state": states})


def make_optimizer(facts: dict[str, Any], statistics: GradientStatistics | None = None) -> MakeOptimizer:
    """An optimizer factory from plain facts, as kept in a model's provenance.

    Parameters
    ----------
    facts : dict
        `rule` ("sgd", "rms_2018", "rms_2019" or "gpt2"), `lr`, and where the rule has them `decay` and `eps`.
    statistics : GradientStatistics
        For the RMS rules.
    """
    rule, lr, decay = facts["rule"], facts["lr"], facts.get("decay", 0.0)
    if rule == "sgd":
        return lambda parameters: DynamicEvaluationSGD(parameters, lr, decay)
    if statistics is None:
        raise ValueError(f"the rule {rule!r} needs gradient statistics; see gradient_statistics(model, documents).")
    variant = rule.removeprefix("rms_")
    return lambda parameters: DynamicEvaluationRMS(parameters, lr, decay, facts["eps"], statistics, variant)


def gradient_statistics(
    model: LanguageModel, documents: Iterable[Document], *, segment: int = 64, batches: int = 200
) -> GradientStatistics:
    """Statistics of the gradient of a segment's mean loss at θ₀, over the first segments of (training) documents.

    Each document gives equally many segments, `batches` in all (fewer where documents are too short).
    """
    return GradientStatistics.from_gradients(_segment_gradients(model, list(documents), segment, batches))


class _GradientReader(DynamicEvaluationReader):
    """Reads by segments and hands each segment's gradient over instead of following it."""

    def __init__(self, model: LanguageModel, segment: int) -> None:
        self.caught: list[list[Tensor]] = []
        super().__init__(model, lambda parameters: DynamicEvaluationSGD(parameters, 0.0), segment)

    def _step(self, document: _Document, gradients: Sequence[Tensor | None]) -> None:
        weights = document.weights.values()
        self.caught.append([torch.zeros_like(p) if g is None else g for p, g in zip(weights, gradients, strict=True)])


def _segment_gradients(
    model: LanguageModel, documents: list[Document], segment: int, batches: int
) -> Iterator[list[Tensor]]:
    each = -(-batches // len(documents))
    reader = _GradientReader(model, segment)
    for document in documents:
        ids = model.encode(document.text)[None, : each * segment].to(model.device)
        reader.reset()
        for piece in ids.split(segment, 1):
            reader.read(piece)
            yield from reader.caught
            batches -= len(reader.caught)
            reader.caught.clear()
            if batches <= 0:
                return
