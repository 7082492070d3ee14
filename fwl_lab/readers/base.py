"""The one idea behind every reader: it scores each token given all it has read before, then reads the token.

A fresh reader has read BOS. What a reader has read last is held back as `last`: it enters the body only when the
next token is scored, with the weights of that time.
"""

import copy
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.observer import Observer, Observers
from fwl_lab.ops.tensor_files import read_tensors, write_tensors


class Scores(NamedTuple):
    """What a reader says of the tokens it was given.

    Attributes
    ----------
    nll : (B, T) float, nats
        Of each token given all read before it; 0 where the weight is 0.
    """

    nll: Tensor


class Reader(ABC):
    """Reads documents token by token, in calls of any size, several documents side by side.

    A reader's scores are the same however a document is cut into calls, however documents are batched, and whatever
    padding (weight 0) follows them. Its model's weights never change.
    """

    def __init__(self, model: LanguageModel, *, step_scale: float = 1.0) -> None:
        require_model(model)
        if not isinstance(step_scale, int | float) or not math.isfinite(step_scale):
            raise ValueError(f"step_scale is {step_scale!r}; expected a finite number.")
        self.model = model
        self.last: Tensor  # (B, 1), read but not yet seen by the body
        self.step_scale = float(step_scale)
        self.learning = True  # False in a reader made by `without_learning`
        self._observers: list[Observer] = []
        self.reset()

    # -- what a kind of reader defines ----------------------------------------------------------------------------

    @abstractmethod
    def _start(self) -> None:
        """Forget all; one row."""

    @abstractmethod
    def _carry(self) -> None:
        """Forget the context, keep the fast weights."""

    @abstractmethod
    def _expand(self, rows: int) -> None:
        """Turn the fresh state of one row into that of `rows` rows."""

    @abstractmethod
    def _read(self, inputs: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        """NLL (B, T) of `labels`, having read `inputs` (the tokens before them); padding has weight 0."""

    @abstractmethod
    def _logits(self, last: Tensor) -> Tensor:
        """Logits (B, V) of the token that follows `last` (B, 1); changes no state."""

    @abstractmethod
    def _tensors(self) -> dict[str, Tensor]:
        """The state as a flat dict, for safetensors."""

    @abstractmethod
    def _restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `_tensors`."""

    def fast_weights(self) -> dict[str, Tensor]:
        """Δθ now: what the documents have added to each parameter, (B, ...). Empty where nothing adapts."""
        return {}

    def slow_weights(self) -> dict[str, Tensor]:
        """θ₀ of the parameters that :meth:`fast_weights` names."""
        return {}

    @property
    def update_every(self) -> int | None:
        """Tokens between two updates, counted from a document's start; None where nothing adapts."""
        return None

    def configuration(self) -> dict[str, Any]:
        """What tells this reader from others, as JSON values; kept in every trace."""
        return {
            "kind": type(self).__name__, "window": self.model.window, "step_scale": self.step_scale,
            "learning": self.learning,
        }  # fmt: skip

    # -- the contract ---------------------------------------------------------------------------------------------

    def reset(self, *, carry: bool = False) -> None:
        """Begin new documents; BOS has been read again.

        carry: the fast weights of the documents before stay (the context never does). False: all is forgotten.
        """
        rows = len(self.last) if carry else 1
        self.last = torch.full((rows, 1), self.model.bos, device=self.model.device)
        self._fresh = True
        if carry:
            self._carry()
        else:
            self._start()

    @torch.no_grad()
    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        """Score the next tokens of each document, and learn from them.

        Parameters
        ----------
        tokens : (B, T) long
        weights : (B, T), optional
            Of each token's loss in what is learned; 0 is padding: not attended, not learned from, not counted.

        Raises
        ------
        ValueError
            Tokens of another shape, outside the vocabulary, or of another number of rows than before.
        FloatingPointError
            A score is not finite; says which token and which parameter.
        """
        weights = self._check(tokens, weights)
        tokens, weights = tokens.to(self.model.device, torch.long), weights.to(self.model.device)
        if len(tokens) != len(self.last):
            self.last = self.last.expand(len(tokens), 1)
            self._expand(len(tokens))
        if not tokens.shape[1]:
            dtype = torch.promote_types(self.model.dtype, torch.float32)
            return Scores(torch.zeros(tokens.shape, dtype=dtype, device=self.model.device))
        self._fresh = False
        valid = weights != 0
        labels = tokens.masked_fill(~valid, 0)
        # The input that scores a token is the real token before it, or what was held back of the call before.
        order = torch.where(valid, torch.arange(1, tokens.shape[1] + 1, device=tokens.device), 0).cummax(1).values
        history = torch.cat([self.last, labels], 1)
        inputs = torch.cat([self.last, history.gather(1, order[:, :-1])], 1)
        nll = self._read(inputs, labels, weights).where(valid, 0.0)
        self.last = history.gather(1, order[:, -1:])
        self._check_finite(nll)
        return Scores(nll)

    @torch.no_grad()
    def next_log_probs(self) -> Tensor:
        """What each document is expected to go on with: log-probabilities (B, V), nats. Changes no state."""
        logits = self._logits(self.last)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def fork(self) -> Self:
        """A reader that has read the same and goes its own way."""
        twin = copy.copy(self)  # states are replaced, never changed in place
        twin._observers = []
        return twin

    def without_learning(self) -> Self:
        """A fork that reads on with what has been learned so far, and learns no more.

        What it reads enters its context and is scored by the fast weights (and the cache) as they are now; they stay
        so until :meth:`reset`. Its first prediction is this reader's.
        """
        twin = self.fork()
        twin._freeze()
        return twin

    def _freeze(self) -> None:
        """Learn no more. By default every update from here on is multiplied by 0."""
        self.learning, self.step_scale = False, 0.0

    def with_step_scale(self, scale: float) -> Self:
        """A fresh reader of the same kind whose every update is multiplied by `scale`; 0 reads as StaticReader does."""
        twin = self.fork()
        twin.step_scale, twin.learning = float(scale), True
        twin.reset()
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """All that was read, as a flat dict of tensors."""
        fresh = torch.tensor(self._fresh)  # whether it may still become that of several rows
        return {"last": self.last.clone().contiguous(), "fresh": fresh, **self._tensors()}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on where another reader of the same kind and model stood."""
        if "last" not in tensors:
            raise ValueError("this is no reader's state: 'last' is missing; expected what state_dict() returned.")
        twin, observers = self.fork(), self._observers  # a state that is refused costs nothing of what was read
        twin.reset()
        rows = len(tensors["last"])
        if rows > 1:
            twin._expand(rows)
        twin._restore(dict(tensors))
        twin.last = tensors["last"].to(self.model.device)
        twin._fresh = bool(tensors.get("fresh", False))
        self.__dict__.update(twin.__dict__ | {"_observers": observers})

    def save(self, path: str | Path) -> None:
        """Write all that was read to a safetensors file, from which :meth:`load` goes on, in another process too.

        The file holds either what it held before or all of the new state, even if the process is killed. On the CPU a
        reader that goes on from it gives bitwise the scores of one that was never stopped, for the same sequence of
        calls and number of threads.
        """
        facts = {"reader": json.dumps(self.configuration()), "model_hash": self.model.weight_hash()}
        write_tensors(self.state_dict(), Path(path), facts)

    def load(self, path: str | Path) -> None:
        """Go on where the reader stood that wrote `path`.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            The file is damaged, no reader's, of another model, or of a reader that was set otherwise; says in what.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"{str(path)!r} is no file; expected one written by a reader's save().")
        tensors, facts = read_tensors(path)
        if not {"reader", "model_hash"} <= facts.keys():
            raise ValueError(f"{str(path)!r} holds no reader's state; expected a file written by a reader's save().")
        if facts["model_hash"] != (own := self.model.weight_hash()):
            raise ValueError(
                f"{str(path)!r} was saved over a model with the hash {facts['model_hash']}, this reader's has {own}. "
                "Expected the same weights in the same dtype."
            )
        theirs, ours = json.loads(facts["reader"]), json.loads(json.dumps(self.configuration()))
        unlike = [name for name in theirs | ours if theirs.get(name) != ours.get(name)]
        unlike = ["kind"] if "kind" in unlike else unlike
        if unlike:
            said = "; ".join(f"{name} {theirs.get(name)}, this one's is {ours.get(name)}" for name in unlike)
            raise ValueError(f"{str(path)!r} was saved by a reader with {said}. Expected a reader set as that one was.")
        self.load_state_dict(tensors)

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Inside, `observer` sees what is read and learned."""
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    @property
    def _observer(self) -> Observer | None:
        return Observers(self._observers) if self._observers else None

    def _check(self, tokens: Tensor, weights: Tensor | None) -> Tensor:
        if not isinstance(tokens, Tensor) or tokens.ndim != 2 or tokens.is_floating_point():
            shape = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
            raise ValueError(
                f"tokens are {shape}; expected a long tensor (documents, tokens): use tokens[None] for one."
            )
        if weights is None:
            weights = torch.ones(tokens.shape, device=tokens.device)
        elif weights.shape != tokens.shape or not bool(weights.isfinite().all()):
            raise ValueError(
                f"weights are {tuple(weights.shape)}; expected finite numbers {tuple(tokens.shape)}, as tokens."
            )
        if len(tokens) != len(self.last) and not (self._fresh and len(self.last) == 1 and len(tokens)):
            raise ValueError(
                f"tokens hold {len(tokens)} documents, but this reader is reading {len(self.last)}; "
                "expected the same rows as before, or reset() first."
            )
        outside = ((tokens < 0) | (tokens >= self.model.vocab_size)) & (weights != 0)
        if bool(outside.any()):
            row, column = outside.nonzero()[0].tolist()
            raise ValueError(
                f"token {column} of document {row} is {int(tokens[row, column])}; expected 0 to "
                f"{self.model.vocab_size - 1}, the model's vocabulary, or a weight of 0."
            )
        return weights

    def _check_finite(self, nll: Tensor) -> None:
        if bool(nll.isfinite().all()):
            return
        row, column = (~nll.isfinite()).nonzero()[0].tolist()
        broken = [n for n, delta in self.fast_weights().items() if not bool(delta.isfinite().all())]
        raise FloatingPointError(
            f"the score of token {column} of this call in document {row} is {float(nll[row, column])}; "
            f"fast weights that are not finite: {', '.join(broken) or 'none'}. A smaller step or inner batch helps."
        )
