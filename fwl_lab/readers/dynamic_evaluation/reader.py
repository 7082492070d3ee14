"""Dynamic evaluation (Krause et al. 2018, 2019): the model's own weights follow the gradient of what it has read."""

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import Any, Self

import torch
from torch import Tensor
from torch.func import functional_call

from fwl_lab.models.context import Context
from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.state import detach
from fwl_lab.readers.base import Reader
from fwl_lab.readers.dynamic_evaluation.batched import Together
from fwl_lab.readers.dynamic_evaluation.optimizers import MakeOptimizer
from fwl_lab.readers.dynamic_evaluation.optimizers import make_optimizer as make_optimizer
from fwl_lab.readers.dynamic_evaluation.parameters import adapt, select_statistics
from fwl_lab.readers.dynamic_evaluation.state import Copies, DocumentState, join, part
from fwl_lab.readers.static import StaticReader

UNTUNED_STEP = 1e-3  # a cautious step of plain gradient descent, for models nobody has tuned
LOGITS_AT_ONCE = 2**26  # numbers; bounds the memory of the logits of documents that are read together
# Numbers in the copies of one matrix. A product of weights this large shares nothing with another's on a CPU, and
# tensors past the largest that its allocator keeps are asked of the system anew each time.
WEIGHTS_AT_ONCE = {"cpu": 2**23}
log = logging.getLogger("fwl_lab")


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
        documents for this model and are kept in its provenance; they were tuned for all parameters, and smaller
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
        # With LoRA this is a model of its own over the same weights; otherwise it is the model.
        self.adapted, self.slow = adapt(model, parameters)
        self.tuned: dict[str, Any] = {}
        if optimizer is None:
            self.tuned = model.provenance.get("dynamic_evaluation", {"rule": "sgd", "lr": UNTUNED_STEP, "tuned": False})
            statistics = select_statistics(model.gradient_statistics, model, self.slow)
            optimizer = make_optimizer(self.tuned, statistics)
            if "tuned" in self.tuned:
                log.warning("no dynamic-evaluation rule was tuned for this model; SGD with step %g", UNTUNED_STEP)
        self.make_optimizer = optimizer
        super().__init__(model, step_scale=step_scale)

    def _start(self) -> None:
        self.copies = Copies(self.slow, self.make_optimizer)
        self.fixed = {n: p.detach() for n, p in self.adapted.named_parameters() if n not in self.slow}
        # Where nothing will be learned, all documents are read together, bit for bit as StaticReader reads them.
        self.still = StaticReader(self.model) if self.step_scale == 0 else None

    def _carry(self) -> None:
        self.copies.carry()
        if self.still is not None:
            self.still.context = Context.empty(len(self.last), self.model.device)

    def _expand(self, rows: int) -> None:
        self.copies.expand(rows)
        if self.still is not None:
            self.still._expand(rows)

    @cached_property
    def _together(self) -> Together:
        return Together(self.adapted)

    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        if self.still is not None:
            return self.still._read(inputs, labels, weights)
        dtype = torch.promote_types(self.model.dtype, torch.float32)
        nll = torch.zeros(labels.shape, dtype=dtype, device=labels.device)
        columns = [row.nonzero()[:, 0] for row in weights != 0]
        while any(map(len, columns)):
            # Each document goes on by one piece: to the end of its segment, or of what there is.
            pieces = {
                row: min(len(left), self.segment - self.copies.documents[row].inputs.shape[1])
                for row, left in enumerate(columns)
                if len(left)
            }
            learned = False
            for rows in self._groups(pieces):
                at = torch.stack([columns[row][: pieces[row]] for row in rows])  # (len(rows), n)
                picked = (torch.tensor(rows, device=at.device)[:, None], at)
                nll[picked], learned_now = self._advance(rows, inputs[picked], labels[picked], weights[picked])
                learned |= learned_now
            columns = [left[pieces.get(row, 0) :] for row, left in enumerate(columns)]
            if learned and self.learning and self._observer is not None:
                self._observer.updated(torch.cat([d.now.seen for d in self.copies.documents]), self.fast_weights)
        return nll

    def _groups(self, pieces: dict[int, int]) -> Iterator[list[int]]:
        """Rows that can be read together, given how many tokens each is to read."""
        places: dict[tuple[int, ...], list[int]] = {}
        for row, count in pieces.items():
            places.setdefault((count, *self.copies.documents[row].place(self.model.rotary)), []).append(row)
        largest = max(p.numel() for p in self.slow.values())
        logits = LOGITS_AT_ONCE // (self.segment * self.model.vocab_size)
        weights = WEIGHTS_AT_ONCE.get(self.model.device.type, largest * len(pieces)) // largest
        at_once = max(1, min(logits, weights))
        for rows in places.values():
            yield from (rows[start : start + at_once] for start in range(0, len(rows), at_once))

    def _advance(self, rows: list[int], inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, bool]:
        """NLL (B, n) of the next tokens (B, n) of the documents in `rows`, and whether that completed a segment."""
        documents = [self.copies.documents[row] for row in rows]
        begun = documents[0].inputs.shape[1]
        complete = begun + inputs.shape[1] == self.segment
        nll: Tensor | None = None
        if self._observer is not None:
            self._observer.expected(inputs.shape[1], partial(self._expected, rows, inputs, {}))
        if begun or not complete:
            leaves, now = self.copies.leaves(rows), join([d.now for d in documents])
            nll, now = self._call(leaves, inputs, now, labels)
            for index, document in enumerate(documents):
                document.now = part(now, index)
        for index, document in enumerate(documents):
            document.extend(*(x[index : index + 1] for x in (inputs, labels, weights)))
        if complete:
            whole = self._learn(rows, documents)
            nll = whole if nll is None else nll
        assert nll is not None
        return nll, complete

    def _expected(self, rows: list[int], inputs: Tensor, found: dict[str, Tensor], places: slice) -> Tensor:
        """Logits (B, n, V) in some places of the next tokens; all are computed when the first are asked for."""
        if not found:
            now = join([self.copies.documents[row].now for row in rows])
            found["logits"] = self._call(self.copies.leaves(rows), inputs, now, None)[0].detach()
        return found["logits"][:, places]

    def _call(
        self, leaves: dict[str, Tensor], ids: Tensor, context: Context, labels: Tensor | None
    ) -> tuple[Tensor, Context]:
        """What the model says of tokens (B, T) with the weights (B, ...) of as many documents."""
        if len(ids) > 1:
            return self._together.read(leaves, self.fixed, ids, context, labels)
        own = self.fixed | {name: leaf.squeeze(0) for name, leaf in leaves.items()}
        return functional_call(self.adapted, own, (ids, context, labels))

    def _learn(self, rows: list[int], documents: list[DocumentState]) -> Tensor:
        """One step along the gradient of each segment's mean loss; the NLL (B, segment) before it."""
        learning = self.step_scale != 0
        with torch.set_grad_enabled(learning):
            leaves, before = self.copies.leaves(rows), join([d.before for d in documents])
            ids, labels, weights = (
                torch.cat([getattr(d, name) for d in documents]) for name in ("inputs", "labels", "token_weights")
            )
            nll, context = self._call(leaves, ids, before, labels)
            loss = (nll * weights).sum() / self.segment
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True) if learning else ()
        context = detach(context)
        for index, document in enumerate(documents):
            if learning:
                self._step(document, [None if g is None else g[index].contiguous() for g in gradients])
            document.end_segment(part(context, index))
        return nll.detach()

    def _step(self, document: DocumentState, gradients: Sequence[Tensor | None]) -> None:
        document.step(gradients, self.step_scale)

    def _logits(self, last: Tensor) -> Tensor:
        if self.still is not None:
            return self.still._logits(last)
        found: dict[int, Tensor] = {}
        for rows in self._groups(dict.fromkeys(range(len(last)), 1)):
            context = join([self.copies.documents[row].now for row in rows])
            logits, _ = self._call(self.copies.leaves(rows), last[rows], context, None)
            found |= dict(zip(rows, logits[:, -1], strict=True))
        return torch.stack([found[row] for row in range(len(last))])

    def fork(self) -> Self:
        twin = super().fork()
        twin.copies = self.copies.fork()
        twin.still = None if self.still is None else self.still.fork()
        return twin

    def fast_weights(self) -> dict[str, Tensor]:
        return {name: self.copies.stack[name] - slow for name, slow in self.slow_weights().items()}

    def slow_weights(self) -> dict[str, Tensor]:
        return {name: parameter.detach() for name, parameter in self.slow.items()}

    @property
    def update_every(self) -> int:
        return self.segment

    def configuration(self) -> dict[str, Any]:
        optimizer = self.copies.documents[0].optimizer
        settings = {k: list(v) if isinstance(v, tuple) else v for k, v in optimizer.param_groups[0].items()}
        values = {
            name: value
            for name, value in settings.items()
            if all(isinstance(x, int | float | str) for x in (value if isinstance(value, list) else [value]))
        }
        # A subset is named in full; what "all" are, the model knows.
        names = {} if self.parameters == "all" else {"adapted": list(self.slow)}
        return super().configuration() | {
            "segment": self.segment, "parameters": self.parameters, **names,
            "optimizer": type(optimizer).__name__, **values,
        }  # fmt: skip

    def _tensors(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {"segment": torch.tensor(self.segment)}
        if self.still is not None:
            tensors |= self.still._tensors()
        for row, document in enumerate(self.copies.documents):
            tensors |= {f"{row}.{name}": tensor for name, tensor in document.tensors().items()}
        return tensors

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        if int(tensors.get("segment", torch.tensor(self.segment))) != self.segment:
            theirs = int(tensors["segment"])
            raise ValueError(f"the state was saved with segments of {theirs} tokens, not {self.segment}.")
        # A state that has learned goes on as it is, though this reader may learn no more.
        self.still = StaticReader(self.model) if "context.seen" in tensors else None
        if self.still is not None:
            self.still._restore(tensors)
        for row, document in enumerate(self.copies.documents):
            start = f"{row}."
            document.restore({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)})
