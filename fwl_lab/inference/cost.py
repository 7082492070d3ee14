"""Measure what a reading costs: floating-point operations as executed, and memory beyond the model."""

import torch
from torch import Tensor

from fwl_lab.profiling.flops import count_flops
from fwl_lab.profiling.memory import held_at_most
from fwl_lab.readers.base import Reader

COUNTED = 256  # tokens whose operations are counted


def cost_of_reading(reader: Reader, ids: Tensor) -> tuple[float, int | None]:
    """Measure operations and memory of a reset fork of a reader on the beginning of a document.

    Parameters
    ----------
    reader : Reader
        Unchanged.
    ids : (T,) long
        Tokens of the document. Up to one window of them, in whole updates, is read first. The operations of the next
        256 tokens are counted, or of half a window where that is more, so that the tokens which a model with absolute
        positions reads again at the start of each window are counted too.

    Returns
    -------
    flops_per_token : float
        Floating-point operations of matrix products and attention.
    peak_bytes : int or None
        Most bytes in use during both readings, minus those in use before; it includes the reader's own state. On a CPU
        it is measured of the whole process; None where the system does not report it.
    """
    counted = min(len(ids), max(COUNTED, reader.model.window // 2))
    before = min(reader.model.window, len(ids) - counted)
    if reader.update_every is not None:
        before -= before % reader.update_every
    ids = ids[None, : before + counted].to(reader.model.device)
    twin = reader.fork()
    with held_at_most(reader.model.device) as peak:
        twin.reset()
        if before:
            twin.read(ids[:, :before])
        flops = count_flops(lambda: twin.read(ids[:, before:]))
        if reader.model.device.type == "cuda":
            torch.cuda.synchronize(reader.model.device)
        return flops / counted, peak()
