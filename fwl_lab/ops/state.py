"""States that go in and come out: NamedTuples of tensors, of tuples and dicts of tensors, and of other such states.

The first dimension of every tensor is the row (document) of the batch, except below :class:`Rows`, a tuple with an
entry a row. These few functions are all that copying, selecting, joining, detaching and saving a state needs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

State = TypeVar("State", bound=tuple)


class Rows(tuple):
    """A state's entries row by row, where rows differ too much to be stacked: each a state of one row."""


def map_state(function: Callable[[Tensor], Tensor], state: State) -> State:
    """Return the state with `function` applied to every tensor."""
    if isinstance(state, Tensor):
        return function(state)
    if isinstance(state, dict):
        return {name: map_state(function, value) for name, value in state.items()}
    return _remake(state, (map_state(function, field) for field in state))


def detach(state: State) -> State:
    """Return the state cut off from the graph that made it."""
    return map_state(Tensor.detach, state)


def expand_rows(state: State, rows: int) -> State:
    """Return the state of one document as that of `rows` equal ones."""
    if isinstance(state, Tensor):
        return state.expand(rows, *state.shape[1:]).contiguous()
    if isinstance(state, Rows):
        (one,) = state
        return Rows([one] * rows)  # type: ignore[return-value]
    if isinstance(state, dict):
        return {name: expand_rows(value, rows) for name, value in state.items()}
    return _remake(state, (expand_rows(field, rows) for field in state))


def select_rows(state: State, rows: slice | Tensor) -> State:
    """Return some rows of a state: a slice, an index (long) or a mask (bool)."""
    if isinstance(state, Tensor):
        return state[rows]
    if isinstance(state, Rows):
        places = torch.arange(len(state))[rows.cpu() if isinstance(rows, Tensor) else rows].tolist()
        return Rows(state[place] for place in places)  # type: ignore[return-value]
    if isinstance(state, dict):
        return {name: select_rows(value, rows) for name, value in state.items()}
    return _remake(state, (select_rows(field, rows) for field in state))


def concatenate_rows(states: Sequence[State]) -> State:
    """Return states of equal shapes, rows aside, as one batch, in their order; of a single one without a copy."""
    first = states[0]
    if len(states) == 1:
        return first
    if isinstance(first, Tensor):
        return torch.cat(list(states))
    if isinstance(first, Rows):
        return Rows(entry for state in states for entry in state)  # type: ignore[return-value]
    if isinstance(first, dict):
        return {name: concatenate_rows([s[name] for s in states]) for name in first}
    return _remake(first, (concatenate_rows(list(fields)) for fields in zip(*states, strict=True)))


def to_tensors(state: tuple, prefix: str = "") -> dict[str, Tensor]:
    """Return the state as a flat dict, for safetensors: names such as `keys.0`, `delta.W1` or `context.seen`."""
    return {prefix + name: tensor.detach().clone().contiguous() for name, tensor in _leaves(state, "")}


def from_tensors(like: State, tensors: Mapping[str, Tensor], prefix: str = "") -> State:
    """Return the state that :func:`to_tensors` made flat.

    Parameters
    ----------
    like : State
        Any state of the kind wanted, for its field types and device. Plain tuples may have another length; a dict that
        is empty here may hold anything.
    tensors : mapping
        Those whose names do not begin with `prefix` are left alone.

    Raises
    ------
    ValueError
        A tensor of the state is not among `tensors`, or a dict of them is of other names or shapes.
    """
    device = next(tensor.device for _, tensor in _leaves(like, ""))
    own = {name: tensor.to(device).clone() for name, tensor in tensors.items() if name.startswith(prefix)}
    restored: State = _restore(like, own, prefix.removesuffix("."))
    return restored


def equal_rows(values: Tensor) -> bool:
    """Return whether every row holds the same."""
    return bool(torch.equal(values, values[:1].expand_as(values)))


def _remake(like: State, fields: Iterator[Any]) -> State:
    """Return a tuple, or NamedTuple, of the kind of `like`."""
    return type(like)(*fields) if hasattr(like, "_fields") else type(like)(fields)


def _items(state: Any) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a state, or the entries of a dict or tuple, by name."""
    if isinstance(state, dict):
        yield from state.items()
    else:
        names = getattr(state, "_fields", map(str, range(len(state))))
        yield from zip(names, state, strict=True)


def _leaves(state: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of a state with its dotted name."""
    if isinstance(state, Tensor):
        yield name, state
        return
    for key, value in _items(state):
        yield from _leaves(value, f"{name}.{key}" if name else key)


def _restore(like: Any, tensors: dict[str, Tensor], name: str) -> Any:
    start = f"{name}." if name else ""
    if isinstance(like, Tensor):
        if name not in tensors:
            raise ValueError(f"{name!r} is missing from a saved state; it was saved by another kind of reader.")
        return tensors[name]
    inside = {key.removeprefix(start): value for key, value in tensors.items() if key.startswith(start)}
    if isinstance(like, dict):
        theirs, ours = ({n: tuple(x.shape[1:]) for n, x in group.items()} for group in (inside, like))
        if ours and not theirs:
            raise ValueError(f"{name!r} is missing from a saved state; it was saved by another kind of reader.")
        if ours and theirs != ours:
            odd = sorted(key for key in theirs | ours if theirs.get(key) != ours.get(key))
            raise ValueError(
                f"{name!r} of a saved state holds {len(theirs)} tensors, this reader {len(ours)}, and {odd[0]!r} is "
                f"{theirs.get(odd[0])} where {ours.get(odd[0])} was expected; it was saved by a reader set otherwise."
            )
        return {key: inside[key] for key in like or inside}  # a file's order is its own; sums follow this one
    if hasattr(like, "_fields"):
        return _remake(like, (_restore(value, tensors, start + key) for key, value in _items(like)))
    if isinstance(like, Rows):
        return Rows(_restore(value, tensors, start + key) for key, value in _items(like))
    return tuple(inside[str(index)] for index in range(len(inside)))
