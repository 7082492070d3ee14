"""The contract of all readers: score each token given all that was read before it, then learn from it.

A fresh reader has read BOS. The token that a reader has read last is held back as `last`: it enters the body only when
the next token is scored, with the weights of that time.

Symbols: B rows (documents side by side), T tokens of a call, V vocabulary.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fwl_lab.models.language_model import LanguageModel, require_model
from fwl_lab.ops.observer import Observer, Observers
from fwl_lab.ops.state import map_state
from fwl_lab.readers.arguments import check_call, check_finite, finite_number
from fwl_lab.readers.description import Description, model_of
from fwl_lab.readers.observe import observe_token_by_token, observes_its_own_step
from fwl_lab.readers.saved import read_reader, write_reader
from fwl_lab.readers.standing import Scores, Standing


class Reader(Description, ABC):
    """Reads documents token by token, in calls of any size, several documents side by side.

    A reader's scores are the same however a document is cut into calls, however documents are batched, and whatever
    padding (weight 0) follows them. Its model's weights never change. A kind of reader defines :meth:`initial_state`,
    :meth:`step` and :meth:`logits`, where it has fast weights :meth:`fast_weights` and :attr:`update_every`, and says
    of itself what `Description` lists; this class expands, forks, saves, restores and carries the state, and records.
    """

    _now: Standing

    def __init__(self, model: LanguageModel, *, step_scale: float = 1.0) -> None:
        require_model(model)
        self.model = model
        self.step_scale = finite_number(step_scale, "step_scale")
        self.learning = True  # False in a reader made by `without_learning`
        self._observers: list[Observer] = []
        self.reset()

    # -- what a kind of reader defines ----------------------------------------------------------------------------

    @abstractmethod
    def initial_state(self, rows: int) -> Any:
        """Return the state of `rows` documents of which nothing has been read.

        A NamedTuple of tensors whose first dimension is the row, of tuples and dicts of such, or of other such states.
        """

    @abstractmethod
    def step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        """Score the next tokens of each document, and learn from them where `self.learning`.

        Parameters
        ----------
        state : NamedTuple
            Of `initial_state`, or returned by this method; it stays as it is (but see `in_place`).
        inputs : (B, T) long
            The tokens before `labels`: BOS or the last token of the call before, then all labels but the last.
        labels : (B, T) long
            The tokens to be scored, and learned from once they are.
        weights : (B, T)
            Of each token's loss; 0 is padding: not attended, not learned from, not counted, its score ignored.

        Returns
        -------
        nll : (B, T) nats
        state : NamedTuple
        """

    @abstractmethod
    def logits(self, state: Any, last: Tensor) -> Tensor:
        """Return the logits (B, V), any unnormalised log-probabilities, of the token after `last` (B, 1)."""

    def fast_weights(self, state: Any = None) -> dict[str, Tensor]:
        """Return Δθ, what the documents have added to each parameter, (B, ...); empty where no weights change.

        state : None is where the reader stands.
        """
        return {}

    def slow_weights(self) -> dict[str, Tensor]:
        """Return θ₀ of the parameters that :meth:`fast_weights` names; zeros unless a kind says otherwise."""
        fresh = self.fast_weights(self.initial_state(1))
        return {name: torch.zeros_like(delta[0]) for name, delta in fresh.items()}

    def carried(self, state: Any) -> Any:
        """Return the state with which the next documents begin where fast weights are carried; here a fresh one."""
        return self.initial_state(len(self.last))

    @classmethod
    def from_configuration(cls, model: LanguageModel, configuration: Mapping[str, Any]) -> Self:
        """Make a reader of this kind over a model, set as a `configuration` says.

        `model` may have a block that the reader did without: the key "block" says so. A kind whose constructor takes
        more than the step scale overrides this.

        Raises
        ------
        ValueError
            The model has no block and the reader had one.
        """
        return cls(model_of(model, configuration), step_scale=configuration["step_scale"])

    def observe(
        self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor, observer: Observer
    ) -> tuple[Tensor, Any]:
        """Do as :meth:`step` does, and tell an observer what was expected before each token, and of each update.

        This goes through the tokens a second time one by one, by :meth:`logits` and :meth:`step`, which is right for
        any kind; one that can tell more cheaply overrides it, and must tell the same.
        """
        return observe_token_by_token(self, state, inputs, labels, weights, observer)

    @property
    def in_place(self) -> bool:
        """Whether :meth:`step` writes into the state that it is given.

        A fork of such a reader copies the state, and a call that was interrupted leaves it broken until it is reset.
        """
        return False

    # -- the contract ---------------------------------------------------------------------------------------------

    @property
    def state(self) -> Any:
        """State of the reader's kind, where it stands now."""
        return self._now.state

    @state.setter
    def state(self, state: Any) -> None:
        self._now = self._now._replace(state=state)

    @property
    def last(self) -> Tensor:
        """Last token of each row, (B, 1) long, which the body has not seen yet."""
        return self._now.last

    @property
    def seen(self) -> Tensor:
        """Tokens read in each document, (B,) long, padding not counted."""
        return self._now.seen

    def reset(self, *, carry: bool = False) -> None:
        """Begin new documents; BOS has been read again.

        carry: the fast weights of the documents before stay (the context never does). False: all is forgotten.
        """
        if carry:
            self._require_whole()
        rows = len(self.last) if carry else 1
        state = self.carried(self.state) if carry else self.initial_state(1)
        self._now = Standing.begin(state, rows, self.model.bos, self.model.device)
        self._interrupted = False

    @torch.no_grad()
    def read(self, tokens: Tensor, weights: Tensor | None = None) -> Scores:
        """Score the next tokens of each document, and learn from them.

        A call is atomic: one that raises, or is interrupted, leaves the reader where it stood (one whose kind is
        `in_place` says so until it is reset).

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
        RuntimeError
            An earlier call was interrupted while weights were being changed in place.
        """
        self._require_whole()
        weights = check_call(tokens, weights, self.model.vocab_size, None if self._now.may_expand else len(self.last))
        tokens, weights = tokens.to(self.model.device, torch.long), weights.to(self.model.device)
        now = self._now if len(tokens) == len(self.last) else self._now.expand(len(tokens))
        if not tokens.shape[1]:
            self._now = now
            dtype = torch.promote_types(self.model.dtype, torch.float32)
            return Scores(torch.zeros(tokens.shape, dtype=dtype, device=self.model.device))
        valid = weights != 0
        labels = tokens.masked_fill(~valid, 0)
        # The input that scores a token is the real token before it, or what was held back of the call before.
        order = torch.where(valid, torch.arange(1, tokens.shape[1] + 1, device=tokens.device), 0).cummax(1).values
        history = torch.cat([now.last, labels], 1)
        inputs = torch.cat([now.last, history.gather(1, order[:, :-1])], 1)
        self._interrupted = self.in_place
        nll, state = self._step(now.state, inputs, labels, weights)
        if nll.shape != labels.shape:
            raise ValueError(
                f"{type(self).__name__}.step returned scores {tuple(nll.shape)}; expected {tuple(labels.shape)}, one "
                "for each label."
            )
        nll = nll.where(valid, 0.0)
        check_finite(nll, lambda: self.fast_weights(state))
        self._now = Standing(state, history.gather(1, order[:, -1:]), now.seen + valid.sum(1), False)
        self._interrupted = False
        return Scores(nll)

    def _step(self, state: Any, inputs: Tensor, labels: Tensor, weights: Tensor) -> tuple[Tensor, Any]:
        if not self._observers:
            return self.step(state, inputs, labels, weights)
        observe = self.observe if observes_its_own_step(type(self)) else partial(observe_token_by_token, self)
        return observe(state, inputs, labels, weights, Observers(self._observers))

    @torch.no_grad()
    def next_log_probs(self) -> Tensor:
        """Return what each document is expected to go on with: log-probabilities (B, V), nats. Changes no state."""
        self._require_whole()
        logits = self.logits(self.state, self.last)
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)

    def fork(self) -> Self:
        """Return a reader that has read the same and goes its own way."""
        self._require_whole()
        twin = copy.copy(self)
        twin._observers = []
        if self.in_place:  # other states are replaced and never changed
            twin.state = map_state(Tensor.clone, self.state)
        return twin

    def without_learning(self) -> Self:
        """Return a fork that reads on with what has been learned so far, and learns no more.

        What it reads enters its context and is scored by the fast weights (and the cache) as they are now; they stay
        so until :meth:`reset`. Its first prediction is this reader's.
        """
        twin = self.fork()
        twin.learning = False
        return twin

    def with_step_scale(self, scale: float) -> Self:
        """Return a fresh reader of the same kind whose updates are multiplied by `scale`; 0 reads as StaticReader."""
        twin = copy.copy(self)
        twin._observers = []
        twin.step_scale, twin.learning = finite_number(scale, "step_scale"), True
        twin.reset()
        return twin

    def state_dict(self) -> dict[str, Tensor]:
        """Return all that was read, as a flat dict of tensors."""
        self._require_whole()
        return self._now.to_tensors()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Go on where another reader of the same kind and model stood; a state that is refused changes nothing."""
        missing = [name for name in ("last", "seen", "fresh") if name not in tensors]
        if missing:
            raise ValueError(
                f"this is no reader's state, or one of an older version: {missing[0]!r} is missing; expected what "
                "state_dict() returned."
            )
        like = self._like(tensors, len(tensors["last"]))
        self._now = Standing.from_tensors(like, tensors, self.model.device)
        self._interrupted = False

    def _like(self, tensors: Mapping[str, Tensor], rows: int) -> Any:
        """Return any state of the kind that a state dict holds; a kind with several says which."""
        return self.initial_state(rows)

    def save(self, path: str | Path) -> None:
        """Write all that was read to a safetensors file, from which :meth:`load` goes on, in another process too.

        The file holds either what it held before or all of the new state, even if the process is killed. On the CPU a
        reader that goes on from it gives bitwise the scores of one that was never stopped, for the same sequence of
        calls and number of threads.
        """
        write_reader(self.state_dict(), self.configuration(), self.model.weight_hash(), Path(path))

    def load(self, path: str | Path) -> None:
        """Go on where the reader stood that wrote `path`.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            The file is damaged, no reader's, of another model, or of a reader that was set otherwise; says in what.
        """
        self.load_state_dict(read_reader(Path(path), self.configuration(), self.model.weight_hash()))

    @contextmanager
    def observed(self, observer: Observer) -> Iterator[None]:
        """Inside, `observer` sees what is read and learned."""
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def _require_whole(self) -> None:
        if self._interrupted:
            raise RuntimeError(
                "a call of this reader was interrupted while it was changing its weights, so that they are of no "
                "point of the document any more; reset() it, or go on from a fork or a saved state."
            )
