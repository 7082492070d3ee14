"""Count the floating-point operations of matrix products and attention as they are executed."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _product(_self: torch.Size, a: torch.Size, b: torch.Size, *_: object, **__: object) -> int:
    """Count `self += a @ b`, a (..., m, k) and b (..., k, n), or b (k,)."""
    return 2 * a.numel() * (b[-1] if len(b) > 1 else 1)


def _vector_product(a: torch.Size, _b: torch.Size, *_: object, **__: object) -> int:
    """Count a (m, k) or (k,) times a vector (k,)."""
    return 2 * a.numel()


def _attention(query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(
    gradient: torch.Size, query: torch.Size, key: torch.Size, value: torch.Size, *_: object, **__: object
) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


_aten = torch.ops.aten
# Operations that torch's counter leaves out. Passed to each counter instead of registered once for the process, since
# another library may register the same.
FORMULAS = {
    _aten.addmm_: _product,
    _aten.baddbmm_: _product,
    _aten.addmv: _product,
    _aten.addmv_: _product,
    _aten.mv: _vector_product,
    _aten.dot: _vector_product,
    _aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(function: Callable[[], object]) -> int:
    """Return the operations that a call executes in matrix products and attention, backward passes included."""
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
        function()
    return int(counter.get_total_flops())
