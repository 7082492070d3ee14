"""Training: resumed runs, what each mode learns and leaves alone, batches, checkpoints."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from fwl_lab import (
    Document,
    FastWeightReader,
    LanguageModel,
    StaticReader,
    TrainingConfig,
    UpdateRule,
    attach_fast_weights,
    train,
)
from fwl_lab.models import from_scratch
from fwl_lab.ops.state import to_tensors
from fwl_lab.ops.tensor_files import read_tensors, write_tensors
from fwl_lab.training.batches import DocumentBatches, PackedBatches
from fwl_lab.training.run import Run
from tests.helpers.models import DOCUMENTS, INNER_BATCH, fill_block, make_text_model

Mode = Literal["base", "retrofit", "joint", "slow-control"]
MODES: tuple[Mode, ...] = ("base", "retrofit", "joint", "slow-control")
CONFIG = TrainingConfig(steps=7, rows=2, tokens=13, learning_rate=1e-2, step_size_learning_rate=1e-2, warmup=2)
# Longer than a step's tokens, so that state is carried, and of unlike length, so that rows stand apart.
TEXTS = [DOCUMENTS[0].text * 2, DOCUMENTS[1].text, DOCUMENTS[3].text, "x"]
CORPUS = [Document(str(index), text) for index, text in enumerate(TEXTS)]


def new_model(
    mode: Mode, family: str = "mistral", *, size: int = 4, inner_batch: int = INNER_BATCH, **settings: Any
) -> LanguageModel:
    """A model as a run of this mode starts with: a block that adapts already, but in mode base."""
    model = make_text_model(family, **settings)
    if mode == "base":
        return model
    rule = UpdateRule(inner_batch=inner_batch)
    return fill_block(attach_fast_weights(model, size, rule, share_body=mode != "joint"), scale=0.005)


def weights(model: LanguageModel) -> dict[str, Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the next run be stopped by hand after so many steps."""
    advance, steps = Run.advance, itertools.count()

    def stop(run: Run) -> int:
        if next(steps) == after:
            monkeypatch.setattr(Run, "advance", advance)
            raise KeyboardInterrupt
        return advance(run)

    monkeypatch.setattr(Run, "advance", stop)


@pytest.mark.parametrize("family", ["mistral", "gpt2"])
@pytest.mark.parametrize("mode", MODES)
def test_resumed_is_uninterrupted_bitwise(
    mode: Mode, family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = dataclasses.replace(CONFIG, mode=mode)
    settings: dict[str, Any] = {"resid_pdrop": 0.1} if family == "gpt2" else {"attention_dropout": 0.1}
    whole, resumed = new_model(mode, family, **settings), new_model(mode, family, **settings)
    start = weights(whole)
    train(whole, CORPUS, config, progress=False)
    interrupt(monkeypatch, after=5)
    with pytest.raises(KeyboardInterrupt):
        train(resumed, CORPUS, config, folder=tmp_path, checkpoint_every=2, progress=False)
    other = new_model(mode, family, **settings)  # another process has other weights in memory
    with torch.no_grad():
        for parameter in other.parameters() if mode in ("base", "joint") else ():
            parameter.add_(1.0)
    torch.manual_seed(77)
    train(other, CORPUS, config, folder=tmp_path, checkpoint_every=2, progress=False)
    for name, value in weights(other).items():
        assert torch.equal(value, whole.get_parameter(name)), name
    assert any(not torch.equal(value, start[name]) for name, value in weights(other).items())


@pytest.mark.parametrize("mode", MODES)
def test_each_mode_learns_its_own_and_leaves_the_rest_alone(mode: Mode) -> None:
    model = new_model(mode)
    before, base = weights(model), model.base.weight_hash()
    train(model, CORPUS, dataclasses.replace(CONFIG, mode=mode), progress=False)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    block = {name for name in before if name.startswith("block.")}
    expected = {
        "base": set(before),
        "retrofit": block,
        "joint": set(before),
        "slow-control": block - {"block.steps"},
    }[mode]
    assert moved == expected
    assert (model.base.weight_hash() == base) == (mode != "base")
    assert not model.training and all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("mode", "last_layers"), [("joint", 0), ("retrofit", 1), ("slow-control", -1)])
def test_a_body_shared_with_the_base_is_not_trained(mode: Mode, last_layers: int) -> None:
    config = dataclasses.replace(CONFIG, mode=mode, last_layers=last_layers)
    with pytest.raises(
        ValueError, match=r"the base would change too\. Use attach_fast_weights\(\.\.\., share_body=False"
    ):
        train(new_model("retrofit"), CORPUS, config, progress=False)


def test_last_layers_learn_with_the_block() -> None:
    model = attach_fast_weights(make_text_model(), 4, UpdateRule(inner_batch=INNER_BATCH), share_body=False)
    fill_block(model, scale=0.005)
    before, base = weights(model), model.base.weight_hash()
    train(model, CORPUS, dataclasses.replace(CONFIG, mode="retrofit", last_layers=1), progress=False)
    moved = {name for name, value in weights(model).items() if not torch.equal(value, before[name])}
    assert {name for name in before if "layers.1." in name} <= moved
    assert not {name for name in moved if "layers.0." in name or "embed" in name}
    assert {name for name in before if name.startswith("block.")} <= moved
    assert model.base.weight_hash() == base


@pytest.mark.parametrize("mode", MODES)
def test_the_loss_falls(mode: Mode) -> None:
    config = dataclasses.replace(CONFIG, mode=mode, steps=40, tokens=16)
    model = new_model(mode)
    kind = FastWeightReader if mode in ("retrofit", "joint") else StaticReader
    ids = model.encode(TEXTS[0])[None]
    before = float(kind(model).read(ids).nll.mean())
    curve = train(model, CORPUS, config, progress=False)
    assert [point["step"] for point in curve] == [20, 40]
    assert [point["tokens"] for point in curve] == [20 * 32, 40 * 32]
    assert curve[0]["loss"] > curve[1]["loss"] > 0
    # The curve speaks of what a reader does with the document.
    assert float(kind(model).read(ids).nll.mean()) < before - 0.5


def test_the_first_loss_is_that_of_a_reader() -> None:
    """State is kept through the document: the mean loss of a run that learns nothing is the reader's own."""
    model = new_model("retrofit")
    config = dataclasses.replace(CONFIG, steps=20, rows=1, learning_rate=1e-30, step_size_learning_rate=1e-30)
    document = Document("long", "".join(TEXTS) * 3)
    curve = train(model, [document], config, progress=False)
    nll = FastWeightReader(model).read(model.encode(document.text)[None]).nll[0]
    assert len(nll) > 20 * config.tokens
    assert curve[0]["loss"] == pytest.approx(float(nll[: 20 * config.tokens].mean()), abs=1e-4)


@pytest.mark.parametrize("mode", ["retrofit", "joint"])
def test_the_state_stays_float32_under_bfloat16(mode: Mode) -> None:
    run = Run(new_model(mode), CORPUS, dataclasses.replace(CONFIG, mode=mode, precision="bfloat16"))
    run.advance()
    assert run.state is not None
    kinds = {name: value.dtype for name, value in to_tensors(run.state).items() if value.is_floating_point()}
    assert kinds and set(kinds.values()) == {torch.float32}, kinds
    assert any(bool(value.any()) for value in run.state.fast_weights().values())
    assert {parameter.dtype for parameter in run.learning.values()} == {torch.float32}


# -- checkpoints --------------------------------------------------------------------------------------------------


def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, mode="retrofit", steps=2)
    train(new_model("retrofit"), CORPUS, config, folder=tmp_path, progress=False)
    other = dataclasses.replace(config, seed=1, learning_rate=1e-4)
    with pytest.raises(ValueError, match="is a checkpoint of another run: learning_rate, seed differ"):
        train(new_model("retrofit"), CORPUS, other, folder=tmp_path, progress=False)
    path = tmp_path / "checkpoint.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    with pytest.raises(ValueError, match="is damaged or no safetensors file"):
        train(new_model("retrofit"), CORPUS, config, folder=tmp_path, progress=False)
    write_tensors({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="is no checkpoint of a training run"):
        train(new_model("retrofit"), CORPUS, config, folder=tmp_path, progress=False)


@pytest.mark.parametrize("mode", MODES)
def test_a_checkpoint_of_other_documents_rule_size_or_base_is_refused(mode: Mode, tmp_path: Path) -> None:
    config = dataclasses.replace(CONFIG, mode=mode, steps=2)
    train(new_model(mode), CORPUS, config, folder=tmp_path, progress=False)
    others = [(new_model(mode), [*CORPUS[:-1], Document("3", "y")], "documents")]
    if mode != "base":
        others += [
            (new_model(mode, inner_batch=INNER_BATCH + 1), CORPUS, "rule"),
            (new_model(mode, size=5), CORPUS, "block size"),
            (new_model(mode, seed=5), CORPUS, "base"),
            (new_model(mode, size=5, seed=5), CORPUS, "block size, base"),
        ]
    for model, documents, name in others:
        before = weights(model)
        with pytest.raises(ValueError, match=f"is a checkpoint of another run: {name} differ; resume it with"):
            train(model, documents, config, folder=tmp_path, progress=False)
        assert all(torch.equal(value, before[name]) for name, value in weights(model).items())


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, mode="retrofit", steps=4)
    path = tmp_path / "checkpoint.safetensors"

    def half_a_file(tensors: dict[str, Tensor], target: Path, _metadata: object) -> None:
        Path(target).write_bytes(b"half of it")
        raise OSError("no space left on device")

    train(new_model("retrofit"), CORPUS, config, folder=tmp_path, progress=False)
    whole = path.read_bytes()
    tensors, metadata = read_tensors(path)
    assert "weights.block.W1" in tensors and "optimizer.block.W1.exp_avg" in tensors and "run" in metadata
    with monkeypatch.context() as patch:
        patch.setattr("fwl_lab.ops.tensor_files.save_file", half_a_file)
        with pytest.raises(OSError, match="no space left"):
            write_tensors({"x": torch.ones(1)}, path)
    assert path.read_bytes() == whole
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.safetensors", "curve.json"]


def test_a_finished_run_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(CONFIG, mode="base", steps=20)
    model, again = new_model("base"), new_model("base")
    curve = train(model, CORPUS, config, folder=tmp_path, progress=False)
    monkeypatch.delattr(Run, "advance")
    assert train(again, CORPUS, config, folder=tmp_path, progress=False) == curve
    assert again.weight_hash() == model.weight_hash()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    model = new_model("retrofit")
    with torch.no_grad():
        model.block.steps.fill_(1e30)
    with pytest.raises(FloatingPointError, match="the loss of step 0 is nan; lower the learning rates"):
        train(model, CORPUS, CONFIG, progress=False)


def test_bad_configurations() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"mode": "fast"}, "mode is 'fast'; expected one of base, retrofit, joint, slow-control"),
        ({"precision": "float16"}, "precision is 'float16'; expected 'float32' or 'bfloat16'"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"rows": 0}, "rows is 0"),
        ({"tokens": -1}, "tokens is -1"),
        ({"last_layers": -2}, "last_layers is -2; expected at least -1"),
        ({"warmup": -1}, "warmup is -1; expected at least 0"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1; expected at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; expected more than 0"),
        ({"step_size_learning_rate": float("nan")}, "step_size_learning_rate is nan; expected more than 0"),
        ({"clip": 0.0}, "clip is 0.0; expected more than 0"),
    ]
    for settings, message in cases:
        with pytest.raises(ValueError, match=message):
            TrainingConfig(**settings)
    with pytest.raises(ValueError, match="mode 'retrofit' needs a model with a fast-weight block"):
        train(new_model("base"), CORPUS, CONFIG, progress=False)
    with pytest.raises(ValueError, match="mode 'base' trains a model without a fast-weight block"):
        train(new_model("retrofit"), CORPUS, dataclasses.replace(CONFIG, mode="base"), progress=False)
    with pytest.raises(ValueError, match="checkpoint_every is 0; expected at least 1"):
        train(new_model("retrofit"), CORPUS, CONFIG, checkpoint_every=0, progress=False)
    own_body = attach_fast_weights(make_text_model(), 4, UpdateRule(inner_batch=INNER_BATCH), share_body=False)
    with pytest.raises(ValueError, match="last_layers is 3, but the model has 2 layers"):
        train(own_body, CORPUS, dataclasses.replace(CONFIG, last_layers=3), progress=False)
    with pytest.raises(ValueError, match="fewer than 2 rows"):
        train(new_model("base"), CORPUS, dataclasses.replace(CONFIG, mode="base", tokens=10_000), progress=False)


def test_the_learning_rate_rises_and_falls() -> None:
    config = TrainingConfig(steps=100, warmup=10)
    rates = [config.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[55] == pytest.approx(0.55) and rates[-1] == pytest.approx(0.1, abs=0.001)


# -- batches ------------------------------------------------------------------------------------------------------

IDS = [np.arange(1, 1 + length) + 100 * index for index, length in enumerate((23, 7, 40, 1, 12))]


def packed(seed: int = 0) -> PackedBatches:
    return PackedBatches(IDS, 0, rows=2, tokens=8, seed=seed)


def by_document(seed: int = 0, longest: int | None = None) -> DocumentBatches:
    return DocumentBatches(IDS, 0, rows=2, tokens=8, seed=seed, longest=longest)


@pytest.mark.parametrize("make", [packed, by_document])
def test_batches_are_a_function_of_the_step(make: Any) -> None:
    straight = make()
    expected = [straight[step] for step in range(25)]
    other = make()
    for step in (24, 3, 0, 17, 3, 9):
        for ours, theirs in zip(other[step], expected[step], strict=True):
            assert torch.equal(ours, theirs)
    seeded = make(1)
    assert any(not torch.equal(seeded[step].inputs, expected[step].inputs) for step in range(5))


def test_packed_batches_see_every_window_once_an_epoch() -> None:
    batches = packed()
    stream = sum(len(ids) + 1 for ids in IDS)
    steps = (stream - 1) // 8 // 2
    for epoch in range(3):
        labels = [batches[epoch * steps + step] for step in range(steps)]
        seen = torch.cat([batch.labels.flatten() for batch in labels])
        real = seen[seen != 0]
        assert len(real) == len(real.unique())  # no token twice
        assert len(real) >= stream - 8 * 2 - len(IDS)
        for batch in labels:
            assert torch.equal(batch.inputs[:, 1:], batch.labels[:, :-1])
            assert bool(batch.valid.all()) and bool(batch.fresh.all())


@pytest.mark.parametrize("longest", [None, 10])
def test_document_batches_go_on_where_a_row_ended(longest: int | None) -> None:
    batches = by_document(longest=longest)
    read: list[list[int]] = []
    rows: list[list[int]] = [[], []]
    for step in range(40):
        batch = batches[step]
        for b in range(2):
            if batch.fresh[b]:
                read.append(rows[b])
                rows[b] = []
                assert int(batch.inputs[b, 0]) == 0  # BOS
            labels = batch.labels[b, batch.valid[b]].tolist()
            assert batch.inputs[b, batch.valid[b]].tolist()[1:] == labels[:-1]
            if not batch.fresh[b]:
                assert int(batch.inputs[b, 0]) == rows[b][-1]
            rows[b] += labels
    whole = [ids[:longest].tolist() for ids in IDS]
    finished = [document for document in read if document]
    assert all(document in whole for document in finished)
    assert all(document in finished for document in whole)  # every document is read, to its end
    # Documents come in turn, in an order of each epoch: no document is an epoch ahead.
    counts = [finished.count(document) for document in whole]
    assert max(counts) - min(counts) <= 2 and min(counts) > 1


def test_a_new_model_has_at_least_its_tokenizers_tokens() -> None:
    with pytest.raises(ValueError, match="vocab_size is 10; expected at least 257: all bytes"):
        from_scratch.new_model(CORPUS, vocab_size=10)
