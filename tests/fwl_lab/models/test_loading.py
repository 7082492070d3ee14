"""Models written to folders and read again; folders and files that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fwl_lab import (
    FastWeightReader,
    LanguageModel,
    StaticReader,
    TunedRule,
    UpdateRule,
    attach_fast_weights,
    load_model,
    make_readers,
)
from fwl_lab.models.saving import BLOCK_FILE
from fwl_lab.ops.tensor_files import write_tensors
from tests.helpers.models import (
    DOCUMENTS,
    FAMILIES,
    fill_block,
    make_block_model,
    make_model,
    make_network,
    make_text_model,
    make_tokens,
)

TOKENS = make_tokens(1, 40)


def save(model: LanguageModel, folder: Path, **arguments: Any) -> Path:
    model.save(folder, **arguments)
    return folder


def rewrite(path: Path, change: Any) -> None:
    """Write a safetensors file again with `change(tensors)` made to its tensors, metadata kept."""
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_comes_back_bit_for_bit(family: str, tmp_path: Path) -> None:
    model = make_model(family)
    loaded = load_model(save(model, tmp_path / "model"), device="cpu")
    assert loaded.weight_hash() == model.weight_hash()
    assert torch.equal(StaticReader(loaded).read(TOKENS).nll, StaticReader(model).read(TOKENS).nll)
    assert loaded.block is None and loaded.tokenizer is None
    with pytest.raises(ValueError, match="this model has no tokenizer"):
        loaded.encode("text")


def test_tokenizer_provenance_and_counts_come_back(tmp_path: Path) -> None:
    model = make_text_model()
    model.provenance = {"name": "tiny", "training": [{"mode": "base"}]}
    model.token_counts = torch.arange(model.vocab_size).numpy()
    loaded = load_model(save(model, tmp_path / "deep" / "model"))
    text = "".join(document.text for document in DOCUMENTS) + "<|endoftext|>\x00🙂"
    assert torch.equal(loaded.encode(text), model.encode(text))
    assert loaded.provenance == model.provenance and loaded.name == "tiny"
    assert loaded.token_counts.tolist() == list(range(model.vocab_size))
    assert loaded.bos == model.bos


@pytest.mark.parametrize(
    "rule", [TunedRule("sgd", lr=0.5), TunedRule("rms_2019", 1e-4, 0.003, 1e-3, segment=32, documents="naïve 東京")]
)
def test_the_tuned_rule_comes_back_to_the_model_and_its_base(rule: TunedRule, tmp_path: Path) -> None:
    model = make_block_model("mistral")
    model.tuned_rule = rule
    assert model.base.tuned_rule == attach_fast_weights(model.base).tuned_rule == rule
    loaded = load_model(save(model, tmp_path))
    assert loaded.tuned_rule == loaded.base.tuned_rule == rule and "rule" not in str(loaded.provenance)
    loaded.tuned_rule = None
    assert loaded.base.tuned_rule is None
    assert load_model(save(loaded, tmp_path)).tuned_rule is None  # the earlier model's file is gone


def test_a_rule_in_the_provenance_of_an_older_folder_becomes_the_tuned_rule(tmp_path: Path) -> None:
    facts = {"rule": "rms_2018", "lr": 0.1, "decay": 0.0, "eps": 1e-3, "segment": 32, "nats": 2.5, "trials": []}
    path = save(make_model("mistral"), tmp_path) / "provenance.json"
    path.write_text(json.dumps({"name": "old", "dynamic_evaluation": facts}))
    loaded = load_model(tmp_path)
    assert loaded.tuned_rule == TunedRule("rms_2018", lr=0.1, eps=1e-3, segment=32)
    assert loaded.provenance == {"name": "old", "tuning": facts}
    again = load_model(save(loaded, tmp_path / "again"))
    assert (again.tuned_rule, again.provenance) == (loaded.tuned_rule, loaded.provenance)
    loaded.tuned_rule = None
    assert load_model(save(loaded, tmp_path)).tuned_rule is None  # the record in the provenance is not obeyed again


def test_the_bundled_model_has_its_rule() -> None:
    rule = load_model("bundled", device="cpu").base.tuned_rule
    assert rule is not None and rule.hyperparameters() == {"rule": "sgd", "lr": 0.05, "decay": 0.003}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged or no JSON"),
        ("[1]", "holds a list; expected a JSON object"),
        ("{}", "a tuned rule needs rule and lr; given were no facts"),
        ('{"rule": "adam", "lr": 1}', "rule is 'adam'; expected one of sgd, rms_2018, rms_2019, gpt2"),
        ('{"rule": "sgd", "lr": "fast"}', "lr is 'fast': expected a finite number"),
    ],
)
def test_a_tuned_rule_that_is_none(text: str, message: str, tmp_path: Path) -> None:
    save(make_model("mistral"), tmp_path)
    (tmp_path / "tuned_rule.json").write_text(text)
    with pytest.raises(ValueError, match=rf"tuned_rule\.json' .*{message}"):
        load_model(tmp_path)


@pytest.mark.parametrize("family", ["mistral", "gpt2", "llama"])
@pytest.mark.parametrize("share_body", [True, False])
def test_a_block_comes_back_with_the_body_it_changed_and_its_base(
    family: str, share_body: bool, tmp_path: Path
) -> None:
    model = make_block_model(family, inner_batch=7, decay=0.25, share_body=share_body)
    if not share_body:
        with torch.no_grad():
            model.network.get_input_embeddings().weight.mul_(1.5)
            last = [p for n, p in model.network.named_parameters() if ".1." in n]
            for parameter in last:
                parameter.add_(0.1)
    loaded = load_model(save(model, tmp_path))
    assert (loaded.weight_hash(), loaded.base.weight_hash()) == (model.weight_hash(), model.base.weight_hash())
    assert loaded.block is not None and loaded.block.rule == UpdateRule(inner_batch=7, decay=0.25)
    for kind in (FastWeightReader, StaticReader):
        assert torch.equal(kind(loaded).read(TOKENS).nll, kind(model).read(TOKENS).nll)
    assert torch.equal(StaticReader(loaded.base).read(TOKENS).nll, StaticReader(model.base).read(TOKENS).nll)
    names = set(load_file(tmp_path / BLOCK_FILE))
    changed = {name for name in names if name.startswith("network.")}
    assert bool(changed) != share_body
    assert len(changed) < len(model.network.state_dict()) - 2  # what did not change is not stored twice


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    model = make_block_model("mistral", share_body=False)
    loaded = load_model(save(model, tmp_path, dtype=torch.bfloat16))
    stored = load_file(tmp_path / "model.safetensors")
    assert {t.dtype for t in stored.values() if t.ndim > 1} == {torch.bfloat16}
    assert {t.dtype for t in stored.values() if t.ndim < 2} == {torch.float32}
    for name, parameter in loaded.named_parameters():
        expected = model.get_parameter(name).detach()
        expected = expected.bfloat16().float() if expected.ndim > 1 else expected
        assert parameter.dtype == torch.float32 and torch.equal(parameter, expected), name
    assert load_model(save(loaded, tmp_path / "again")).weight_hash() == loaded.weight_hash()


def test_a_window_of_its_own_comes_back(tmp_path: Path) -> None:
    for family in ("mistral", "llama", "gpt2"):
        model = attach_fast_weights(LanguageModel(make_network(family), window=10))
        loaded = load_model(save(fill_block(model), tmp_path / family))
        assert (loaded.window, loaded.base.window) == (10, 10)


def test_dtype_is_the_body_s_and_the_block_stays_wide(tmp_path: Path) -> None:
    save(make_block_model("llama"), tmp_path)
    half, double = (load_model(tmp_path, dtype=dtype) for dtype in (torch.bfloat16, torch.float64))
    assert half.block is not None and double.block is not None
    assert (half.dtype, half.block.W1.dtype) == (torch.bfloat16, torch.float32)
    assert (double.dtype, double.block.W1.dtype) == (torch.float64, torch.float64)
    nll = FastWeightReader(half).read(TOKENS).nll
    exact = FastWeightReader(double).read(TOKENS).nll
    assert nll.dtype == torch.float32 and 0 < float((nll - exact).abs().mean()) < 0.5


# -- what must be refused -----------------------------------------------------------------------------------------


def test_places_without_a_model(tmp_path: Path) -> None:
    for missing in (tmp_path / "nothing", "./nothing", "~/nothing"):
        with pytest.raises(FileNotFoundError, match="is not a folder; expected 'bundled', a model's folder or a hub"):
            load_model(missing)
    with pytest.raises(FileNotFoundError, match=r"holds no config\.json; expected a folder written by model\.save"):
        load_model(tmp_path)
    file = tmp_path / "file.safetensors"
    write_tensors({"x": torch.ones(1)}, file)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        load_model(file)


def test_a_hub_name_without_a_network() -> None:
    with pytest.raises(
        ValueError, match=r"(?s)could not load the model 'nobody/nothing-at-all'.*the name and the network"
    ):
        load_model("nobody/nothing-at-all")


def test_an_unknown_device(tmp_path: Path) -> None:
    for device in ("quantum", "cuda:77", "cpu:x"):
        with pytest.raises(ValueError, match=f"device '{device}' is not usable here; expected one of auto, cpu"):
            load_model(tmp_path, device=device)


def test_pickles_are_refused(tmp_path: Path) -> None:
    save(make_model("mistral"), tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"other weights: pytorch_model\.bin\)\. Weights load from safetensors only"):
        load_model(tmp_path)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("file", ["model.safetensors", BLOCK_FILE])
def test_weights_that_are_not_finite(file: str, value: float, tmp_path: Path) -> None:
    save(make_block_model("mistral"), tmp_path)
    name = "model.norm.weight" if file.startswith("model") else "block.W1"
    rewrite(tmp_path / file, lambda tensors: tensors[name].view(-1)[:2].fill_(value))
    with pytest.raises(ValueError, match=rf"2 weights of {name} in '.*' are not finite"):
        load_model(tmp_path)


@pytest.mark.parametrize("file", ["model.safetensors", BLOCK_FILE, "token_counts.safetensors"])
def test_damaged_files(file: str, tmp_path: Path) -> None:
    model = make_block_model("mistral")
    model.token_counts = torch.arange(model.vocab_size).numpy()
    path = save(model, tmp_path) / file
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:4], b"", b"not tensors at all, but text\n" * 20):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{file}' is damaged or no safetensors file"):
            load_model(tmp_path)


def test_foreign_weights(tmp_path: Path) -> None:
    def drop(tensors: dict) -> None:
        del tensors["model.layers.1.mlp.up_proj.weight"]

    def add(tensors: dict) -> None:
        tensors["model.layers.7.mlp.up_proj.weight"] = torch.ones(3, 3)

    def reshape(tensors: dict) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] = torch.ones(3, 3)

    def replace(tensors: dict) -> None:
        tensors.clear()
        tensors["something.else"] = torch.ones(3)

    for number, (change, message) in enumerate(
        (
            (drop, "missing keys"),
            (add, "unexpected keys"),
            (reshape, r"mismatched keys .*layers\.1\.mlp\.up_proj"),
            (replace, "missing keys"),
        )
    ):
        folder = save(make_model("mistral"), tmp_path / str(number))
        rewrite(folder / "model.safetensors", change)
        with pytest.raises(ValueError, match=message):
            load_model(folder)


def test_foreign_blocks(tmp_path: Path) -> None:
    def drop(tensors: dict) -> None:
        del tensors["block.W2"]

    def reshape(tensors: dict) -> None:
        tensors["block.W1"] = torch.ones(4, 3)

    def add(tensors: dict) -> None:
        tensors["network.model.layers.9.weight"] = torch.ones(4, 3)

    def rename(tensors: dict) -> None:
        tensors["other.W1"] = torch.ones(4, 3)

    for number, (change, message) in enumerate(
        ((drop, "W2"), (reshape, "W1"), (add, r"layers\.9"), (rename, r"other\.W1"))
    ):
        folder = save(make_block_model("mistral"), tmp_path / str(number))
        rewrite(folder / BLOCK_FILE, change)
        with pytest.raises(ValueError, match=message):
            load_model(folder)
    folder = save(make_block_model("mistral"), tmp_path / "plain")
    save_file({"x": torch.ones(1)}, folder / BLOCK_FILE)
    with pytest.raises(ValueError, match="says nothing of a fast-weight block"):
        load_model(folder)


def test_a_configuration_that_is_none(tmp_path: Path) -> None:
    save(make_model("mistral"), tmp_path)
    for text in ("{", json.dumps({"model_type": "no such family"}), "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ValueError, match="could not load the model"):
            load_model(tmp_path)


def test_unknown_readers() -> None:
    model = make_block_model("mistral")
    with pytest.raises(ValueError, match="unknown reader 'oracle'; expected some of base, static"):
        make_readers(model, ["base", "oracle"])
    with pytest.raises(ValueError, match="no fast-weight block"):
        make_readers(model.base, ["base", "fwl"])
    readers = make_readers(model, ["fwl", "base"])
    assert list(readers) == ["fwl", "base"] and readers["base"].model is model.base
