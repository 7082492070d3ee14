"""What reading costs: operations as executed, and memory beyond the model."""

import torch
from torch import Tensor

from fwl_lab.profiling.flops import count_flops
from fwl_lab.profiling.memory import held_at_most
from fwl_lab.readers import Reader

COUNTED = 256  # tokens


def cost_of_reading(reader: Reader, ids: Tensor) -> tuple[float, int | None]:
    """Let a fresh reader of the same kind read the beginning of a document.

    Parameters
    ----------
    reader : Reader
        Stays as it is.
    ids : (T,) long
        Its window's worth is read first where there is so much; what is counted are the 256 tokens after it (half a
        window where that is more, so that windows of absolute positions are counted with what they read again).

    Returns
    -------
    flops_per_token : float
        Of matrix products and attention.
    peak_bytes : int or None
        Most bytes held during all of this above what was held before, what the reader keeps included; on a CPU of
        the process, None where the system does not tell.
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
