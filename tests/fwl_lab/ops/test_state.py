"""States as NamedTuples: mapped, selected, joined, made flat and restored, nested ones too."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fwl_lab.ops.state import (
    Rows,
    concatenate_rows,
    detach,
    expand_rows,
    from_tensors,
    map_state,
    select_rows,
    to_tensors,
)


class Inner(NamedTuple):
    delta: dict[str, Tensor]
    seen: Tensor


class Outer(NamedTuple):
    keys: tuple[Tensor, ...]
    fast: Inner
    documents: Rows


def make_state(rows: int, slots: int = 2, seed: int = 0) -> Outer:
    g = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=g)

    delta = {"W1": random(rows, 3, 4), "block.b1": random(rows, 3)}
    documents = Rows(Inner({"lr": random(1, row + 1)}, torch.tensor([row])) for row in range(rows))
    return Outer((random(rows, slots), random(rows, slots)), Inner(delta, torch.arange(rows)), documents)


def leaves(state: Outer) -> list[Tensor]:
    return list(to_tensors(state).values())


def equal(first: Outer, second: Outer) -> bool:
    ours, theirs = to_tensors(first), to_tensors(second)
    return list(ours) == list(theirs) and all(torch.equal(x, theirs[name]) for name, x in ours.items())


def test_flat_names_and_back() -> None:
    state = make_state(2)
    flat = to_tensors(state, "state.")
    assert list(flat) == [
        "state.keys.0", "state.keys.1", "state.fast.delta.W1", "state.fast.delta.block.b1", "state.fast.seen",
        "state.documents.0.delta.lr", "state.documents.0.seen", "state.documents.1.delta.lr", "state.documents.1.seen",
    ]  # fmt: skip
    assert torch.equal(flat["state.fast.delta.W1"], state.fast.delta["W1"])
    assert flat["state.fast.seen"].data_ptr() != state.fast.seen.data_ptr()
    shuffled = dict(reversed(flat.items())) | {"other.seen": torch.zeros(1)}
    back = from_tensors(make_state(2, seed=1), shuffled, "state.")
    assert equal(back, state) and type(back.fast) is Inner and type(back.documents) is Rows


def test_remembered_positions_and_layers_may_differ_from_those_of_the_like() -> None:
    state = make_state(2, slots=7)
    like = make_state(2, slots=0)._replace(keys=())
    assert equal(from_tensors(like, to_tensors(state)), state)


def test_a_state_of_another_kind_is_refused() -> None:
    flat = to_tensors(make_state(2))
    with pytest.raises(ValueError, match=r"'fast\.seen' is missing"):
        from_tensors(make_state(2), {n: x for n, x in flat.items() if n != "fast.seen"})
    with pytest.raises(ValueError, match=r"'fast\.delta' is missing"):
        from_tensors(make_state(2), {n: x for n, x in flat.items() if "delta.W1" not in n and "b1" not in n})
    wider = flat | {"fast.delta.W1": torch.zeros(2, 3, 5)}
    with pytest.raises(ValueError, match=r"'W1' is \(3, 5\) where \(3, 4\) was expected"):
        from_tensors(make_state(2), wider)


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([2, 0]), torch.tensor([False, True, True])])
def test_select_takes_rows_everywhere(rows: slice | Tensor) -> None:
    state = make_state(3)
    order = torch.arange(3)[rows].tolist()
    chosen = select_rows(state, rows)
    assert chosen.fast.seen.tolist() == order
    assert torch.equal(chosen.keys[1], state.keys[1][order])
    assert torch.equal(chosen.fast.delta["W1"], state.fast.delta["W1"][order])
    assert [int(document.seen) for document in chosen.documents] == order


def test_concatenate_undoes_select() -> None:
    state = make_state(3)
    parts = [select_rows(state, torch.tensor([0])), select_rows(state, slice(1, 3))]
    assert equal(concatenate_rows(parts), state)
    assert concatenate_rows(parts[:1]) is parts[0]


def test_expand_repeats_one_document() -> None:
    one = make_state(1)
    many = expand_rows(one, 3)
    assert all(equal(select_rows(many, slice(row, row + 1))._replace(documents=one.documents), one) for row in range(3))
    assert many.fast.delta["W1"].is_contiguous() and many.documents == Rows([one.documents[0]] * 3)


def test_map_and_detach_reach_every_tensor() -> None:
    state = map_state(lambda x: x.float().requires_grad_(), make_state(2))
    doubled = map_state(lambda x: 2 * x, state)
    assert all(torch.equal(x, 2 * y) for x, y in zip(leaves(doubled), leaves(state), strict=True))
    tensors: list[Tensor] = []
    map_state(lambda x: tensors.append(x) or x, doubled)  # type: ignore[func-returns-value]
    assert len(tensors) == 9 and all(x.requires_grad for x in tensors)
    cut: list[Tensor] = []
    map_state(lambda x: cut.append(x) or x, detach(doubled))  # type: ignore[func-returns-value]
    assert not any(x.requires_grad for x in cut)
