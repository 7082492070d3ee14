"""States that go in and come out: NamedTuples of tensors, of tuples of tensors and of dicts of tensors.

The first dimension of every tensor is the row (document) of the batch. These few functions are all that copying,
detaching, saving and re-using a state needs.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple)


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """The state with `function` applied to every tensor."""
    return type(state)(*(_map(function, field) for field in state))


def _map(function: Callable[[Tensor], Tensor], field: Any) -> Any:
    if isinstance(field, Tensor):
        return function(field)
    if isinstance(field, dict):
        return {name: function(value) for name, value in field.items()}
    return tuple(map(function, field))


def detach(state: State) -> State:
    """The state cut off from the graph that made it."""
    return map_state(Tensor.detach, state)


def expand_rows(state: State, rows: int) -> State:
    """The state of one document as that of `rows` equal ones."""
    return map_state(lambda x: x.expand(rows, *x.shape[1:]).contiguous(), state)


def to_tensors(state: tuple, prefix: str = "") -> dict[str, Tensor]:
    """The state as a flat dict, for safetensors: names such as `keys.0` or `delta.W1`."""
    tensors = {}
    for name, field in zip(type(state)._fields, state, strict=True):  # type: ignore[attr-defined]
        if isinstance(field, Tensor):
            tensors[prefix + name] = field
        else:
            items = field.items() if isinstance(field, dict) else enumerate(field)
            tensors |= {f"{prefix}{name}.{key}": value for key, value in items}
    return {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}


def from_tensors(like: State, tensors: dict[str, Tensor], prefix: str = "") -> State:
    """The inverse of :func:`to_tensors`; `like` is any state of the kind wanted, for its field types and device.

    Raises
    ------
    ValueError
        A tensor of the state is not among `tensors`, or a dict of them is of other names or shapes.
    """
    fields: list[Any] = []
    device = next(field.device for field in like if isinstance(field, Tensor))
    tensors = {key: value.to(device).clone() for key, value in tensors.items() if key.startswith(prefix)}
    for name, field in zip(type(like)._fields, like, strict=True):  # type: ignore[attr-defined]
        start = f"{prefix}{name}"
        parts = {key.removeprefix(f"{start}."): value for key, value in tensors.items() if key.startswith(f"{start}.")}
        if isinstance(field, Tensor):
            if start not in tensors:
                raise ValueError(f"{start!r} is missing from a saved state; it was saved by another kind of reader.")
            fields.append(tensors[start])
        elif isinstance(field, dict):
            theirs, ours = ({n: tuple(x.shape[1:]) for n, x in group.items()} for group in (parts, field))
            if ours and not theirs:
                raise ValueError(f"{start!r} is missing from a saved state; it was saved by another kind of reader.")
            if theirs != ours:
                raise ValueError(f"{start!r} of a saved state holds {theirs}; expected {ours}, as this reader has it.")
            fields.append({name: parts[name] for name in field})  # a file's order is its own; sums follow this one
        else:
            fields.append(tuple(parts[str(index)] for index in range(len(parts))))
    return type(like)(*fields)


def equal_rows(values: Tensor) -> bool:
    """Whether every row holds the same."""
    return bool(torch.equal(values, values[:1].expand_as(values)))
