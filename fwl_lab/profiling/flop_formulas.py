"""Floating-point operations of reading and of training, twice: by formula, and counted as they are executed.

A multiply-add is two operations. What is no product of matrices (norms, softmax, optimizer steps) is not counted; it
is a small part of the work.

===== ============================================================================
T     tokens of one document, read in one call from its start
P     numbers in the body's matrices, embeddings not counted
A     multiply-adds of one query with one key, all layers: layers · heads · head width
V·D   numbers in the unembedding U
D·H   numbers in W1, and in W2, of the block; S = D when attached
L     tokens computed together in the block: an inner batch
===== ============================================================================

The README of `fast_weights` writes the formulas out.
"""

from collections.abc import Iterator
from typing import NamedTuple

from torch import nn

from fwl_lab.fast_weights.scan import LONGEST
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.ops.cross_entropy import LOGITS_AT_ONCE
from fwl_lab.ops.linear_attention import CHUNK
from fwl_lab.ops.recompute import FEWEST

SEGMENT = 64  # tokens between two steps of dynamic evaluation, as DynamicEvaluationReader has it
STATIC, FWL, DYNAMIC = "static", "fwl", "dynamic-evaluation"
FWL_TRAINING, PLAIN_TRAINING = "fwl-training", "plain-training"
FROZEN = "-frozen-head"  # behind either: block alone learns, as in a retrofit; else the unembedding learns too
READING = (STATIC, FWL, DYNAMIC)


class Work(NamedTuple):
    """Products that a token takes part in, in block and head.

    Attributes
    ----------
    unembedding : with U, V·D multiply-adds each
    streamed : the same where the scores are differentiated and T·V logits are too many to be held (None: never)
    dense : with W1 or W2 or a matrix of their shape, D·H each
    narrow, wide : inside an inner batch, L·D and L·H each
    carried : those of `dense` that the last inner batch does not need, since no later one uses its state
    again : whether the block's forward pass is computed once more where it is kept in checkpoints
    """

    unembedding: int
    streamed: int | None = None
    dense: int = 0
    narrow: int = 0
    wide: int = 0
    carried: int = 0
    again: bool = False


# Every count of products is here and nowhere else; the README of `fast_weights` says which they are.
_FORWARD = Work(3, dense=6, narrow=2, wide=2)
_TRAINING = Work(7, dense=16, narrow=4, wide=5, carried=3, again=True)
_PLAIN = Work(6, dense=16, narrow=4, wide=5, carried=3)
WORK = {
    STATIC: Work(1),
    FWL: _FORWARD,
    DYNAMIC: Work(3),
    FWL_TRAINING: _TRAINING._replace(unembedding=10, streamed=11),
    FWL_TRAINING + FROZEN: _TRAINING,
    PLAIN_TRAINING: _PLAIN._replace(unembedding=9),
    PLAIN_TRAINING + FROZEN: _PLAIN,
}


class Pass(NamedTuple):
    """One call of the body: queries over keys, and whether a gradient runs back through it."""

    queries: int
    keys: int
    gradient: bool


def flops_per_token(model: LanguageModel, what: str, tokens: int) -> float:
    """Floating-point operations per token by formula.

    Parameters
    ----------
    model : LanguageModel
        With a block, in its attached shape, where `what` needs one.
    what : str
        "static" (`model.base`), "fwl" or "dynamic-evaluation" (segments of 64, all weights): a document read in one
        call by a fresh reader. "fwl-training" or "plain-training": block and head, forward and backward, given the
        body's hidden states; both learn, or with "-frozen-head" behind it the block alone.
    tokens : int
        T.

    Raises
    ------
    ValueError
        Unknown `what`, no tokens, no block where one is needed, or inner batches of many hundred tokens.
    """
    if what not in WORK:
        raise ValueError(f"what is {what!r}; expected one of {', '.join(WORK)}.")
    if tokens < 1:
        raise ValueError(f"tokens is {tokens}; expected at least 1.")
    return 2 * (_body(model, what, tokens) + _block_and_head(model, what, tokens)) / tokens


def _body(model: LanguageModel, what: str, tokens: int) -> int:
    """Multiply-adds of the body."""
    if what not in READING:
        return 0
    body, config = model.network.base_model, model.network.config
    matrices = sum(
        p.numel()
        for module in body.modules()
        if not isinstance(module, nn.Embedding)
        for p in module.parameters(recurse=False)
        if p.ndim == 2
    )
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    pair = config.num_hidden_layers * heads * width
    total = 0
    for queries, keys, gradient in _passes(model, tokens, SEGMENT if what == DYNAMIC else tokens):
        gradient &= what == DYNAMIC
        # Backward: one product for the input's gradient and one for the matrix'. Attention makes five there, since
        # its kernel keeps no scores and makes them again.
        total += matrices * queries * (3 if gradient else 1) + pair * queries * keys * (2 + 5 * gradient)
    return total


def _passes(model: LanguageModel, tokens: int, call: int) -> Iterator[Pass]:
    """What the body is called with to read `tokens` tokens, `call` at a time; see `windows.read_body`."""
    window, half = model.window, model.window // 2
    start = seen = 0
    while seen < tokens:
        end = min(tokens, (seen // call + 1) * call)
        whole = end % call == 0
        for _ in range(-(-(end - seen) // window)):
            stop = min(end, seen + window)
            while seen < stop:
                if model.rotary:
                    new = stop - seen
                    yield Pass(new, min(seen, window - 1) + new, whole)
                else:
                    new = min(stop, (seen // half + 1) * half) - seen
                    begin = max(0, seen // half - 1) * half
                    if begin > start:  # a new window: what it begins with is read again
                        start = begin
                        yield Pass(seen - start, seen - start, False)
                    yield Pass(new, seen - start + new, whole)
                seen += new


def _block_and_head(model: LanguageModel, what: str, tokens: int) -> int:
    """Multiply-adds of block and head."""
    work, head = WORK[what], model.unembedding.weight.numel()
    if what == DYNAMIC:  # what follows the last whole segment is scored and not learned from
        return head * (WORK[STATIC].unembedding * tokens + 2 * (tokens // SEGMENT * SEGMENT))
    if not work.dense:
        return work.unembedding * head * tokens
    if model.block is None:
        raise ValueError(f"the model has no fast-weight block, which {what!r} needs; see attach_fast_weights.")
    hidden, width = model.block.W1.shape
    inner = min(model.block.rule.inner_batch or tokens, tokens)
    if inner > min(LONGEST, CHUNK + 2 * hidden * width / (hidden + width)):
        raise ValueError(f"inner batches of {inner} tokens are computed in pieces, which the formula leaves out.")
    lengths = [min(inner, tokens - start) for start in range(0, tokens, inner)]
    products = work.unembedding
    if work.streamed is not None and tokens * model.vocab_size > LOGITS_AT_ONCE:
        products = work.streamed
    total = products * head * tokens
    for part in [work, _FORWARD] if work.again and len(lengths) >= FEWEST else [work]:
        total += part.dense * hidden * width * tokens
        total += sum(length**2 for length in lengths) * (part.narrow * width + part.wide * hidden)
    return total - work.carried * hidden * width * lengths[-1]
