"""A reader that is saved after every call survives `kill -9`: another process goes on with bitwise the same scores."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwl_lab import DynamicEvaluationReader, FastWeightReader, Reader, StaticReader, UpdateRule, attach_fast_weights
from tests.helpers.models import ADAPTING, INNER_BATCH, READERS, SEGMENT, make_block_model, make_model, make_tokens, sgd

NAMES = ("static", "fwl", "sgd", "rms", "cache")
# The fourth call is the one that is cut off: 27 tokens before it, in the middle of an inner batch and of a segment.
CALLS, STOPPED = (7, 11, 9, 20, 13), 3
assert sum(CALLS[:STOPPED]) % INNER_BATCH and sum(CALLS[:STOPPED]) % SEGMENT


def make_all() -> dict[str, Reader]:
    """Every reader over the same model, the same in every process."""
    model = make_block_model("mistral")
    return {name: READERS[name](model) for name in NAMES}


def read_call(reader: Reader, call: int) -> torch.Tensor:
    """NLL of one call; two rows, of which one has padding in the second call."""
    start, stop = sum(CALLS[:call]), sum(CALLS[: call + 1])
    weights = torch.ones(2, stop - start)
    weights[1, 6:] = float(call != 1)
    return reader.read(make_tokens(2, sum(CALLS))[:, start:stop], weights).nll


def hang() -> None:
    """Say so, and wait to be killed."""
    print("inside", flush=True)
    signal.pause()


def read_and_save(folder: Path, what: str = "", whose: str = "") -> None:
    """What a process does: go on from what is saved, save each reader after every call, and its scores beside.

    It hangs inside call STOPPED of the reader `whose`, where `what` is "read" or "save".
    """
    readers = make_all()
    done = {name: len(list(folder.glob(f"{name}.*.nll"))) for name in NAMES}
    for name, reader in readers.items():
        if done[name]:
            reader.load(folder / f"{name}.safetensors")
    for call in range(len(CALLS)):
        for name, reader in readers.items():
            if call < done[name]:
                continue
            last = call == STOPPED and name == whose
            if last and what == "read":  # the last layer has run, and nothing that follows it
                # Dynamic evaluation reads with modules of its own.
                reads = reader._calls.module if isinstance(reader, DynamicEvaluationReader) else reader.model
                reads.network.base_model.layers[-1].register_forward_hook(lambda *_: hang())
            nll = read_call(reader, call)
            if last and what == "save":  # the new state is written, and not yet in the old one's place
                Path.replace = lambda *_: hang()  # type: ignore[assignment, method-assign]
            reader.save(folder / f"{name}.safetensors")
            save_file({"nll": nll}, folder / f"{name}.{call}.nll")


def process(*arguments: Path | str) -> subprocess.Popen[str]:
    """`read_and_save` in a process of its own."""
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *sys.path])
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths})


@pytest.mark.parametrize(
    ("what", "whose"),
    [
        ("read", "fwl"),
        *(pytest.param(*w, marks=pytest.mark.slow) for w in (("read", "static"), ("read", "rms"), ("save", "cache"))),
    ],
)
def test_a_killed_process_is_gone_on_with_bitwise(what: str, whose: str, tmp_path: Path) -> None:
    assert torch.get_num_threads() == 1  # as in the processes: the order of sums depends on it
    with process(tmp_path, what, whose) as killed:
        assert killed.stdout is not None and killed.stdout.readline() == "inside\n"
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
    done = [len(list(tmp_path.glob(f"{name}.*.nll"))) for name in NAMES]
    assert done == [STOPPED + 1] * NAMES.index(whose) + [STOPPED] * (len(NAMES) - NAMES.index(whose))
    with process(tmp_path) as second:
        assert second.wait() == 0
    for name, reader in make_all().items():
        for call in range(len(CALLS)):  # this process is the one that nothing stopped
            saved = load_file(tmp_path / f"{name}.{call}.nll")["nll"]
            assert torch.equal(saved, read_call(reader, call)), f"{name}, call {call}"
        moved = reader.fast_weights()
        assert all(bool(delta.any()) for delta in moved.values()) and bool(moved) == (name in ADAPTING), name


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("sgd", "rms")])
def test_a_frozen_reader_is_saved_as_one(name: str, tmp_path: Path) -> None:
    reader, again = (READERS[name](make_block_model("mistral")) for _ in range(2))
    reader.read(make_tokens(1, 27))
    frozen = reader.without_learning()
    frozen.read(make_tokens(1, 9, seed=6))
    frozen.save(tmp_path / "frozen.safetensors")
    with pytest.raises(ValueError, match="learning False, this one's is True"):
        again.load(tmp_path / "frozen.safetensors")
    other = again.without_learning()
    other.load(tmp_path / "frozen.safetensors")
    following = make_tokens(1, 30, seed=7)
    assert torch.equal(other.read(following).nll, frozen.read(following).nll)


def test_a_fresh_reader_is_saved_as_one(tmp_path: Path) -> None:
    readers, tokens = make_all(), make_tokens(3, 20)
    for name, reader in make_all().items():
        reader.save(tmp_path / name)
        readers[name].load(tmp_path / name)
        assert torch.equal(readers[name].read(tokens).nll, reader.read(tokens).nll)  # it may become three rows


def test_what_was_saved_otherwise_is_refused(tmp_path: Path) -> None:
    model, other = make_block_model("mistral"), make_block_model("mistral", seed=4)
    path = tmp_path / "reader.safetensors"
    reader = DynamicEvaluationReader(model.base, sgd, SEGMENT)
    reader.read(make_tokens(1, 30))
    reader.save(path)
    hashes = f"the hash {model.base.weight_hash()}, this reader's has {other.base.weight_hash()}"
    cases: list[tuple[Reader, str]] = [
        (DynamicEvaluationReader(other.base, sgd, SEGMENT), hashes),
        (DynamicEvaluationReader(model.base, sgd, SEGMENT + 1), "segment 12, this one's is 13"),
        (DynamicEvaluationReader(model.base, sgd, SEGMENT).with_step_scale(0.5), "step_scale 1.0, this one's is 0.5"),
        (StaticReader(model.base), "kind DynamicEvaluationReader, this one's is StaticReader"),
    ]
    tokens = make_tokens(1, 20, seed=8)
    for refusing, message in cases:
        before = refusing.next_log_probs()
        with pytest.raises(ValueError, match=message):
            refusing.load(path)
        assert torch.equal(refusing.next_log_probs(), before)
    with pytest.raises(FileNotFoundError, match="expected one written by a reader's save"):
        reader.load(tmp_path / "nothing")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match="is damaged"):
        reader.load(path)
    save_file({"last": tokens}, path)
    with pytest.raises(ValueError, match="holds no reader's state"):
        reader.load(path)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


if __name__ == "__main__":
    torch.set_num_threads(1)
    read_and_save(Path(sys.argv[1]), *sys.argv[2:])


def test_a_state_of_another_shape_is_refused_and_costs_nothing() -> None:
    """It was read on with, silently wrong, or failed at the next read."""
    tokens, base = make_tokens(1, 20), make_model("mistral")
    some, every = (attach_fast_weights(base, 4, rule) for rule in (UpdateRule(steps=(("W1",),)), UpdateRule()))
    narrow = attach_fast_weights(base, 3, UpdateRule())
    reader = FastWeightReader(every)
    reader.read(tokens)
    before = reader.state_dict()
    for other in (some, narrow):
        theirs = FastWeightReader(other)
        theirs.read(tokens)
        with pytest.raises(ValueError, match="of a saved state holds"):
            reader.load_state_dict(theirs.state_dict())
    assert before.keys() == reader.state_dict().keys()
    assert all(torch.equal(before[name], value) for name, value in reader.state_dict().items())
