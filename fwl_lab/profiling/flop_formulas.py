"""Compute the floating-point operations of reading and training by formula, from a model's sizes.

A multiply-add is two operations. Only matrix products and attention count; norms, softmax and optimizer steps are a
small part of the work. `fwl_lab.profiling.flops` counts the operations that are executed.

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

from fwl_lab.fast_weights.scan import LONGEST_SPAN
from fwl_lab.models.anatomy import attention_width, body_matrix_size
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import SEGMENT
from fwl_lab.ops.cross_entropy import LOGITS_AT_ONCE
from fwl_lab.ops.linear_attention import CHUNK
from fwl_lab.ops.recompute import FEWEST_STEPS
from fwl_lab.trace import schema

# Names of what is measured: ways of reading, and training steps.
STATIC, FWL, DYNAMIC = schema.STATIC, schema.FWL, "dynamic-evaluation"
READING = (STATIC, FWL, DYNAMIC)
FWL_TRAINING, PLAIN_TRAINING = "fwl-training", "plain-training"
FROZEN = "-frozen-head"  # suffix of either: the block alone learns, as in a retrofit; else the unembedding learns too


class Work(NamedTuple):
    """Number of matrix products that each token takes part in, in block and head.

    Attributes
    ----------
    unembedding : int
        Products with U, V·D multiply-adds each.
    streamed : int or None
        Replaces `unembedding` where scores are differentiated and T·V logits are too many to be held; None: never.
    dense : int
        Products with W1, W2 or a matrix of their shape, D·H multiply-adds each.
    narrow, wide : int
        Products inside an inner batch, L·D and L·H multiply-adds each.
    carried : int
        Products of `dense` that the last inner batch does not need, since no later one uses its state.
    again : bool
        True where the block's forward pass is computed once more for the backward pass.
    """

    unembedding: int
    streamed: int | None = None
    dense: int = 0
    narrow: int = 0
    wide: int = 0
    carried: int = 0
    again: bool = False


# Every count of products is here and nowhere else; the README of `fast_weights` lists them.
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
    """One call of the body: its queries, the keys they see, and True where a gradient runs back through it."""

    queries: int
    keys: int
    gradient: bool


def flops_per_token(model: LanguageModel, what: str, tokens: int) -> float:
    """Return the floating-point operations per token by formula.

    Parameters
    ----------
    model : LanguageModel
        With a block, in its attached shape, where `what` needs one.
    what : str
        One of `WORK`. "static" (`model.base`), "fwl" or "dynamic-evaluation" (segments of 64, all weights): a document
        read in one call by a fresh reader. "fwl-training" or "plain-training": block and head, forward and backward,
        given the body's hidden states; both learn, or with the suffix "-frozen-head" the block alone.
    tokens : int
        Length of the document, T.

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
    """Return the multiply-adds of the body, P a token in its matrices and A a query and key in attention."""
    if what not in READING:
        return 0
    matrices, pair = body_matrix_size(model.network), attention_width(model.network)
    total = 0
    for queries, keys, gradient in _passes(model, tokens, SEGMENT if what == DYNAMIC else tokens):
        gradient &= what == DYNAMIC
        # Backward: one product for the gradient of the input and one for that of the matrix. Attention makes five,
        # since its kernel keeps no scores and computes them again.
        total += matrices * queries * (3 if gradient else 1) + pair * queries * keys * (2 + 5 * gradient)
    return total


def _passes(model: LanguageModel, tokens: int, call: int) -> Iterator[Pass]:
    """Yield the calls of the body that read `tokens` tokens, `call` at a time; see `fwl_lab.models.context`."""
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
                    if begin > start:  # a new window: its first tokens are read again
                        start = begin
                        yield Pass(seen - start, seen - start, False)
                    yield Pass(new, seen - start + new, whole)
                seen += new


def _block_and_head(model: LanguageModel, what: str, tokens: int) -> int:
    """Return the multiply-adds of block and head."""
    work, head = WORK[what], model.unembedding.weight.numel()
    if what == DYNAMIC:  # tokens after the last whole segment are scored and not learned from
        return head * (WORK[STATIC].unembedding * tokens + 2 * (tokens // SEGMENT * SEGMENT))
    if not work.dense:
        return work.unembedding * head * tokens
    if model.block is None:
        raise ValueError(f"the model has no fast-weight block, which {what!r} needs; see attach_fast_weights.")
    hidden, width = model.block.W1.shape
    inner = min(model.block.rule.inner_batch or tokens, tokens)
    if inner > min(LONGEST_SPAN, CHUNK + 2 * hidden * width / (hidden + width)):
        raise ValueError(f"inner batches of {inner} tokens are computed in pieces, which the formula leaves out.")
    lengths = [min(inner, tokens - start) for start in range(0, tokens, inner)]
    products = work.unembedding
    if work.streamed is not None and tokens * model.vocab_size > LOGITS_AT_ONCE:
        products = work.streamed
    total = products * head * tokens
    for part in [work, _FORWARD] if work.again and len(lengths) >= FEWEST_STEPS else [work]:
        total += part.dense * hidden * width * tokens
        total += sum(length**2 for length in lengths) * (part.narrow * width + part.wide * hidden)
    return total - work.carried * hidden * width * lengths[-1]
