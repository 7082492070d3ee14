"""What a recorder, receipts and an audit would have added to a made-up reading; for `fwl_lab.testing`. No torch.

Symbols: N tokens, U updates, V vocabulary, p the probability of the token that came.
"""

import numpy as np

from . import trace as schema

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]

TOP = 10  # alternatives, as a Recorder keeps
_EXPONENTS = np.linspace(0.8, 1.6, 7)  # of Zipf's law: how flat or peaked an expectation is
_ORDERS = 16  # in which an adapting reader may expect the same alternatives


def alternatives(
    rng: np.random.Generator, nll: np.ndarray, token_id: np.ndarray, vocab: int, adapts: np.ndarray
) -> Variables:
    """What readers expected in each place: a whole distribution over V, of which the likeliest are listed.

    All tokens but the one that came share 1 − p by Zipf's law, so that p, its rank and the list agree with the NLL.

    Parameters
    ----------
    nll : (readers, N) nats
    token_id : (N,) int
    adapts : (readers,) bool
        The others expect the same alternatives in the same order.
    """
    readers, count = nll.shape
    top, others = min(TOP, vocab), vocab - 1
    zipf = np.arange(1, others + 1, dtype=np.float64) ** -_EXPONENTS[:, None]
    zipf /= zipf.sum(1, keepdims=True)
    shape = rng.integers(len(_EXPONENTS), size=(count,))
    # Neighbours of the token on a shuffled ring are different from it and from each other.
    ring = rng.permutation(vocab)
    place = np.argsort(ring)[token_id]
    near = min(TOP + 3, others)
    first = rng.integers(max(others, 1), size=(count,))[:, None]
    candidates = ring[(place[:, None] + 1 + (first + np.arange(near)) % max(others, 1)) % vocab]  # (N, near)
    orders = (np.arange(near) + rng.normal(0, 2.0, (_ORDERS, near))).argsort(axis=1)
    orders[0] = np.arange(near)

    ranks = np.empty((readers, count), dtype=np.int32)
    ids = np.empty((readers, count, top), dtype=np.int32)
    log_probs = np.empty((readers, count, top), dtype=np.float32)
    slot = np.arange(top)
    for row in range(readers):
        if not others:
            ranks[row], ids[row], log_probs[row] = 0, token_id[:, None], -nll[row, :, None]
            continue
        rest = -np.expm1(-nll[row])  # 1 − p
        for index, law in enumerate(zipf):
            at = shape == index
            odds = np.exp(-nll[row, at]) / rest[at]
            ranks[row, at] = np.searchsorted(-law, -odds)  # how many are likelier
        order = orders[rng.integers(_ORDERS if adapts[row] else 1, size=(count,))]
        listed = np.take_along_axis(candidates, order, 1)
        own = slot == ranks[row, :, None]
        source = np.minimum(slot - (slot > ranks[row, :, None]), near - 1)
        ids[row] = np.where(own, token_id[:, None], np.take_along_axis(listed, source, 1))
        expected = np.log(rest)[:, None] + np.log(zipf)[shape[:, None], source]
        log_probs[row] = np.where(own, -nll[row, :, None], expected)
    dims = (schema.READER, schema.TOKEN)
    return {
        schema.LABEL_RANK: (dims, ranks),
        schema.TOP_ID: ((*dims, schema.TOP), ids),
        schema.TOP_LOG_PROB: ((*dims, schema.TOP), log_probs),
    }
