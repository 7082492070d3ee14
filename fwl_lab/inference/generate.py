"""Adaptive generation: the model writes with the weights that its reading, and by choice its writing, has given it."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers import Reader


@dataclass(frozen=True)
class Generation:
    """What a reader wrote.

    Attributes
    ----------
    tokens : (B, N) long, on the CPU
        An end-of-text token that stopped a row is the row's last; what follows it is filled with the same token.
    log_probs : (B, N) float, nats
        Of each token given all before it, as the reader scored it (temperature 1, nothing cut off); 0 past the end.
    lengths : (B,) long
        Tokens that each row wrote, the end-of-text token included.
    reader : Reader
        Having read the prompt and what was written: the reader given, or where it was not to learn from its own
        words a frozen fork of it.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    reader: Reader

    @property
    def texts(self) -> list[str]:
        """What each row wrote, its end-of-text token left out."""
        model, end = self.reader.model, end_of_text(self.reader.model)
        rows = [row[:n] for row, n in zip(self.tokens, self.lengths.tolist(), strict=True)]
        return [model.decode(row[:-1] if len(row) and int(row[-1]) == end else row) for row in rows]

    @property
    def text(self) -> str:
        """What the only row wrote. Raises ValueError where there are several; see `texts`."""
        if len(self.tokens) != 1:
            raise ValueError(f"{len(self.tokens)} texts were written side by side; expected one, or see `texts`.")
        return self.texts[0]


def end_of_text(model: LanguageModel) -> int | None:
    """The tokenizer's end-of-text token, if it has one that the model knows."""
    token = getattr(model.tokenizer, "eos_token_id", None)
    return token if isinstance(token, int) and 0 <= token < model.vocab_size else None


def generate(
    reader: Reader,
    prompt: str | Tensor,
    max_new_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    *,
    learn: bool = True,
    stop: bool = True,
) -> Generation:
    """Let a reader read a prompt and write on, learning as it goes.

    It goes on from where the reader stands, and moves it: pass `reader.fork()` to keep the reader as it is. With
    `learn` the reader has afterwards read prompt and text, one token a call, as if both had been given to it.

    Parameters
    ----------
    reader : Reader
    prompt : str, or long tensor (T,) or (B, T)
        Read, and learned from, before anything is written. Empty: nothing; for as many rows as the reader has.
    max_new_tokens : int
        At most this many tokens for each row.
    temperature : float
        Log-probabilities are divided by it; 0 takes the likeliest token each time.
    top_p : float
        0 < top_p <= 1: tokens are drawn from the smallest set of likeliest ones that together reach this probability
        (Holtzman et al. 2020), at the temperature given.
    seed : int
        Row b draws with a generator of its own, seeded `seed` + b: its text does not depend on the other rows.
    learn : bool
        Whether the reader learns from what it writes as from what it reads. False: its own words are context alone;
        they are read by a frozen fork (`result.reader`), and the reader given stays at the end of the prompt.
    stop : bool
        Whether a row ends with the tokenizer's end-of-text token, where there is one; it is read like any other.

    Raises
    ------
    ValueError
        No reader; a number outside its range, or no number; a prompt that is no text, or no tokens of this reader's
        model and rows.
    """
    if not isinstance(reader, Reader):
        raise ValueError(f"reader is a {type(reader).__name__}; expected a reader, such as StaticReader(model).")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number, at least 1.")
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; expected a finite number, at least 0 (the likeliest token).")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p!r}; expected a probability above 0 and at most 1 (all tokens).")
    if not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}; expected a whole number.")
    tokens = _prompt_tokens(reader, prompt)
    reader.read(tokens)
    writer = reader if learn else reader.without_learning()
    generators = [torch.Generator().manual_seed(seed + row) for row in range(len(tokens))]
    end = end_of_text(reader.model) if stop else None
    alive, written, log_probs = torch.ones(len(tokens), 1, dtype=torch.bool), [], []
    for _ in range(max_new_tokens):
        token = _choose(writer.next_log_probs(), temperature, top_p, generators)
        if end is not None:
            token = token.where(alive, end)
        # A row that has ended is padding: not read, not learned from, scored 0.
        log_probs.append(-writer.read(token, alive.float()).nll.cpu())
        written.append((token, alive))
        alive = alive & (token != end) if end is not None else alive
        if not bool(alive.any()):
            break
    lengths = torch.cat([was for _, was in written], 1).sum(1)
    return Generation(torch.cat([token for token, _ in written], 1), torch.cat(log_probs, 1), lengths, writer)


def _prompt_tokens(reader: Reader, prompt: str | Tensor) -> Tensor:
    """(B, T) long; what else is wrong with them `Reader.read` says."""
    rows = len(reader.last)
    if isinstance(prompt, str):
        ids = reader.model.encode(prompt) if prompt else torch.zeros(0, dtype=torch.long)
        return ids.expand(rows, -1)
    if not isinstance(prompt, Tensor) or prompt.ndim not in (1, 2) or prompt.is_floating_point():
        shape = tuple(prompt.shape) if isinstance(prompt, Tensor) else type(prompt).__name__
        raise ValueError(f"prompt is {shape}; expected text, or a long tensor (tokens,) or (documents, tokens).")
    tokens = prompt.expand(rows, -1) if prompt.ndim == 1 else prompt
    if not len(tokens):
        raise ValueError("prompt holds no documents; expected at least one row.")
    return tokens.long()


def _choose(log_probs: Tensor, temperature: float, top_p: float, generators: list[torch.Generator]) -> Tensor:
    """The next token of each row, (B, 1), from log-probabilities (B, V)."""
    if temperature == 0:
        return log_probs.argmax(1, keepdim=True).cpu()
    # On the CPU in float64, so that a seed means the same draws on every device.
    scaled = log_probs.cpu().double()
    scaled = (scaled - scaled.amax(1, keepdim=True)) / temperature
    likely = scaled.softmax(1).sort(stable=True, dim=1, descending=True)
    total = likely.values.cumsum(1)
    # A token is in the set while those before it fall short of top_p; the first always is.
    size = 1 + (total[:, :-1] < top_p).sum(1, keepdim=True)
    draw = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    place = (total <= draw * total.gather(1, size - 1)).sum(1, keepdim=True)
    return likely.indices.gather(1, place.minimum(size - 1))
