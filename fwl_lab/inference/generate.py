"""Generate text with a reader, whose fast weights adapt to the prompt and optionally to the generated text."""

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from fwl_lab.models.language_model import LanguageModel
from fwl_lab.readers.base import Reader


@dataclass(frozen=True)
class Generation:
    """Generated tokens, their log-probabilities, and the reader that generated them.

    Attributes
    ----------
    tokens : (B, N) long, on the CPU
        Generated tokens. A row that ended has its end-of-text token as its last, and is padded with that token.
    log_probs : (B, N) float, nats
        Log-probability of each token given all tokens before it, as the reader scored it (temperature 1, no top-p
        truncation); 0 in the padding.
    lengths : (B,) long
        Tokens generated in each row, the end-of-text token included.
    reader : Reader
        The reader after the prompt and the generated text: the reader passed in, or with ``learn=False`` a frozen
        fork of it.
    """

    tokens: Tensor
    log_probs: Tensor
    lengths: Tensor
    reader: Reader

    @property
    def texts(self) -> list[str]:
        """Text of each row, without its end-of-text token."""
        model, end = self.reader.model, end_of_text(self.reader.model)
        rows = [row[:n] for row, n in zip(self.tokens, self.lengths.tolist(), strict=True)]
        return [model.decode(row[:-1] if len(row) and int(row[-1]) == end else row) for row in rows]

    @property
    def text(self) -> str:
        """Text of the only row; ValueError where there are several rows (see `texts`)."""
        if len(self.tokens) != 1:
            raise ValueError(f"{len(self.tokens)} texts were written side by side; expected one, or see `texts`.")
        return self.texts[0]


def end_of_text(model: LanguageModel) -> int | None:
    """Return the id of the tokenizer's end-of-text token, or None where it has none within the model's vocabulary."""
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
    """Read a prompt with a reader and sample a continuation, token by token.

    The reader continues from its current state and its state advances; pass `reader.fork()` to keep the reader as it
    is. With `learn` its state afterwards is that of having read the prompt, and then the generated text one token a
    call.

    Parameters
    ----------
    reader : Reader
    prompt : str, or long tensor (T,) or (B, T)
        Read, and learned from, before anything is generated. A text, or (T,), is read by every row of the reader. It
        may be empty.
    max_new_tokens : int
        Most tokens to generate in each row.
    temperature : float
        Divides the log-probabilities; 0 takes the most likely token each time.
    top_p : float
        0 < top_p <= 1. Tokens are drawn from the smallest set of most likely ones whose probabilities, at the given
        temperature, sum to at least this (nucleus sampling; Holtzman et al. 2020).
    seed : int
        Row b draws from its own generator, seeded with `seed` + b, so that its text does not depend on other rows.
    learn : bool
        Whether the reader learns from the generated text as it does from the prompt. False: the generated text only
        enters the context; it is read by a frozen fork (`result.reader`), and the reader passed in stays at the end of
        the prompt.
    stop : bool
        Whether a row ends with the tokenizer's end-of-text token, if it has one. That token is read like any other.

    Returns
    -------
    Generation

    Raises
    ------
    ValueError
        `reader` is not a reader; a number has the wrong type or is out of range; or the prompt is neither text nor
        tokens of this reader's model and number of rows.
    """
    if not isinstance(reader, Reader):
        raise ValueError(f"reader is a {type(reader).__name__}; expected a reader, such as StaticReader(model).")
    if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens!r}; expected a whole number, at least 1.")
    if not isinstance(temperature, Real) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature!r}; expected a finite number, at least 0 (the likeliest token).")
    if not isinstance(top_p, Real) or not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p!r}; expected a probability above 0 and at most 1 (all tokens).")
    if isinstance(seed, bool) or not isinstance(seed, int) or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed!r}; expected a whole number of 64 bits.")
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
        # A row that has ended gets weight 0, which is padding: not read, not learned from, scored 0.
        log_probs.append(-writer.read(token, alive.float()).nll.cpu())
        written.append((token, alive))
        alive = alive & (token != end) if end is not None else alive
        if not bool(alive.any()):
            break
    lengths = torch.cat([was for _, was in written], 1).sum(1)
    return Generation(torch.cat([token for token, _ in written], 1), torch.cat(log_probs, 1), lengths, writer)


def _prompt_tokens(reader: Reader, prompt: str | Tensor) -> Tensor:
    """Return the prompt's tokens (B, T) long; `Reader.read` checks their values and number of rows.

    Raises
    ------
    ValueError
        The prompt is neither a text nor a tensor of integers of one or two dimensions, or has no rows.
    """
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
    """Return the next token of each row, (B, 1) long on the CPU, drawn from log-probabilities (B, V)."""
    if temperature == 0:
        return log_probs.argmax(1, keepdim=True).cpu()
    # On the CPU in float64, so that a seed gives the same draws on every device.
    scaled = log_probs.cpu().double()
    scaled = (scaled - scaled.amax(1, keepdim=True)) / temperature
    likely = scaled.softmax(1).sort(stable=True, dim=1, descending=True)
    total = likely.values.cumsum(1)
    # A token is in the set while the probabilities before it sum to less than top_p; the first always is.
    size = 1 + (total[:, :-1] < top_p).sum(1, keepdim=True)
    draw = torch.stack([torch.rand(1, generator=g, dtype=torch.float64) for g in generators])
    place = (total <= draw * total.gather(1, size - 1)).sum(1, keepdim=True)
    return likely.indices.gather(1, place.minimum(size - 1))
