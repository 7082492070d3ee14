"""Call parts of a module with other weights in the place of its own, without touching the module.

`torch.func.functional_call` swaps parameters inside the module while it runs, so two threads that call one module
disturb each other. :class:`FunctionalCalls` therefore works on a structural copy: modules of its own over the same
tensors.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

Module = TypeVar("Module", bound=nn.Module)
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def structural_copy(module: Module, *, keep: Iterable[object] = ()) -> Module:
    """Return a copy of a module and its submodules over the same parameters in memory.

    Modules of the copy can be replaced, hooked or given other weights, unseen by the original. Parameters that are
    tied stay tied, and require no gradient. Buffers are copied, since some modules change theirs in place.

    Parameters
    ----------
    module : nn.Module
    keep : iterable of objects
        Attributes, at any depth, that both hold by reference (a tokenizer, another model).
    """
    memo: dict[int, object] = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in module.parameters()}
    return copy.deepcopy(module, memo | {id(kept): kept for kept in keep})


class FunctionalCalls(Generic[Module]):
    """Calls parts of a module with other weights in the place of its own.

    Make one for each reader or other user: calls through one object wait for each other, whatever their threads; those
    through two objects run at the same time.

    Parameters
    ----------
    module : nn.Module
        Stays as it is, also while a call runs.
    keep : iterable of objects
        See :func:`structural_copy`.

    Attributes
    ----------
    module : nn.Module
        The copy; its modules may be replaced by others of the same parameters' names.
    """

    def __init__(self, module: Module, *, keep: Iterable[object] = ()) -> None:
        self.module = structural_copy(module, keep=keep)
        self._called = _Called(self.module)
        self._names = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        self._lock = threading.RLock()

    def __call__(
        self,
        weights: Mapping[str, Tensor],
        part: Callable[Concatenate[Module, Arguments], Result],
        *arguments: Arguments.args,
        **named: Arguments.kwargs,
    ) -> Result:
        """Call `part(module, *arguments, **named)` on the copy, with `weights` put in; gradients flow to these.

        Parameters
        ----------
        weights : mapping of Tensor
            By the names of `module.named_parameters()`; one name of tied parameters is enough for all of them. What is
            not named keeps the module's own weights.
        part : callable
            Takes the module first: a method of its class, such as `nn.Linear.forward`, or a function.

        Raises
        ------
        ValueError
            The module has no parameter of a given name.
        """
        unknown = weights.keys() - self._names
        if unknown:
            raise ValueError(
                f"{type(self.module).__name__} has no parameter {min(unknown)!r}; expected names of named_parameters()."
            )
        with self._lock:
            swapped = {f"module.{name}": weight for name, weight in weights.items()}
            result: Result = torch.func.functional_call(self._called, swapped, (part, *arguments), dict(named))
        return result


class _Called(nn.Module):
    """The module whose `forward`, which is what `functional_call` runs, is any part of another."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, part: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return part(self.module, *arguments, **named)
