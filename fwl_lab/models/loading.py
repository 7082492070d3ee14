"""Load models from folders and from the hub: safetensors only, no pickle, no remote code.

A folder holds a Hugging Face model and tokenizer and, beside them,

- `fast_weights.safetensors`: the block, and those weights of the body that were trained with it;
- `control.safetensors`: the same of its slow control (same size, same training, no fast weights), where there is one;
- `tuned_rule.json`: the rule of dynamic evaluation tuned for the model (`model.tuned_rule`), where there is one;
- `gradient_statistics.safetensors`: what the RMS rules of dynamic evaluation divide by, where such a rule was tuned;
- `token_counts.safetensors`: how often each token occurs in the training documents;
- `provenance.json`: a record of how the model was trained, tuned and measured, from which nothing is computed.

Folders written before `tuned_rule.json` existed have the rule in `provenance.json`, under the key
"dynamic_evaluation"; loading makes it the model's `tuned_rule` and keeps the record under the key "tuning".
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from fwl_lab.fast_weights import UpdateRule
from fwl_lab.models.attach import attach_fast_weights
from fwl_lab.models.devices import choose_device
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.saving import BLOCK, CONTROL, COUNTS_FILE, PROVENANCE_FILE, STATISTICS_FILE, TUNED_RULE_FILE
from fwl_lab.models.tuned_rule import GradientStatistics, TunedRule
from fwl_lab.ops.tensor_files import check_finite, read_tensors

BUNDLED = Path(__file__).parent.parent / "assets" / "bundled"
OLD_RULE_KEY, TUNING_KEY = "dynamic_evaluation", "tuning"  # in provenance; see above


def load_model(
    name: str | Path = "bundled",
    device: str | torch.device = "auto",
    dtype: torch.dtype | None = None,
    *,
    block: str = BLOCK,
) -> LanguageModel:
    """Load a language model, with its fast-weight block where it has one.

    Parameters
    ----------
    name : str or path
        "bundled", a folder written by `model.save` or by Hugging Face, or a name on the hub (needs a network).
    device : str
        "auto" is a GPU where there is one.
    dtype : torch.dtype, optional
        None: float32. The block is float32 or wider whatever this is.
    block : str
        "fast_weights", or "control" for the slow control that lies beside it.

    Raises
    ------
    FileNotFoundError
        No such folder, or no model in it.
    ValueError
        Weights that are not in safetensors, damaged, of another model, or not finite; a damaged JSON file; an
        unknown device; a hub name that cannot be reached.
    """
    device = choose_device(device)
    folder = BUNDLED if str(name) == "bundled" else Path(name)
    local = folder.is_dir()
    if local:
        _check_folder(folder)
    elif str(name) == "bundled" or folder.is_absolute() or str(name).startswith((".", "~")) or folder.is_file():
        raise FileNotFoundError(f"{str(name)!r} is not a folder; expected 'bundled', a model's folder or a hub name.")
    source = str(folder if local else name)
    network = _load_network(source, dtype or torch.float32, local)
    try:
        found = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        # Some families make an empty tokenizer, with a BOS of its own, where there is none.
        tokenizer = found if found("a", add_special_tokens=False)["input_ids"] else None
    except (OSError, ValueError):
        tokenizer = None  # a model can be read by token ids; encode() says what is missing
    model = LanguageModel(network, tokenizer)
    if local:
        path = folder / f"{block}.safetensors"
        if path.exists():
            model = _load_block(model, path)
        elif block != BLOCK:
            raise FileNotFoundError(f"{str(folder)!r} holds no {path.name}; its blocks are {_blocks(folder)}.")
        _load_facts(model, folder, device)
        if model.block is not None:
            model.base.inherit(model)
    for part in (model, model.base):
        part.to(device)
    return model


def _load_facts(model: LanguageModel, folder: Path, device: torch.device) -> None:
    """Give a model what lies beside its weights: provenance, tuned rule, token counts, gradient statistics."""
    model.provenance = _read_json(folder / PROVENANCE_FILE) or {}
    facts, place = _read_json(folder / TUNED_RULE_FILE), folder / TUNED_RULE_FILE
    old = model.provenance.get(OLD_RULE_KEY)
    if facts is None and isinstance(old, dict):
        facts, place = old, folder / PROVENANCE_FILE
        model.provenance[TUNING_KEY] = model.provenance.pop(OLD_RULE_KEY)
    if facts is not None:
        try:
            model.tuned_rule = TunedRule.from_facts(facts)
        except ValueError as error:
            raise ValueError(f"{str(place)!r} holds no rule of dynamic evaluation: {error}") from error
    if (folder / COUNTS_FILE).exists():
        model.token_counts = read_tensors(folder / COUNTS_FILE)[0]["token_counts"].numpy()
    if (folder / STATISTICS_FILE).exists():
        tensors, _ = read_tensors(folder / STATISTICS_FILE, device)
        model.gradient_statistics = GradientStatistics.from_tensors(tensors)


def _read_json(path: Path) -> dict[str, Any] | None:
    """Read a JSON object; None where there is no such file."""
    if not path.exists():
        return None
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged or no JSON: {error}") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{str(path)!r} holds a {type(facts).__name__}; expected a JSON object.")
    return facts


def _blocks(folder: Path) -> str:
    """Return the names of the blocks that a folder holds, for an error message."""
    return ", ".join(p.stem for p in (folder / f"{n}.safetensors" for n in (BLOCK, CONTROL)) if p.exists()) or "none"


def _check_folder(folder: Path) -> None:
    """Raise an error unless a folder holds a configuration and whole safetensors files."""
    if not (folder / "config.json").exists():
        raise FileNotFoundError(f"{str(folder)!r} holds no config.json; expected a folder written by model.save().")
    weights = sorted(folder.glob("model*.safetensors"))
    if not weights:
        other = ", ".join(p.name for p in folder.glob("*.bin")) or "none"
        raise ValueError(
            f"{str(folder)!r} holds no model*.safetensors (other weights: {other}). Weights load from safetensors "
            "only; convert them with save_pretrained of a recent transformers."
        )
    for path in weights:
        read_tensors(path, header_only=True)


def _load_network(source: str, dtype: torch.dtype, local: bool) -> PreTrainedModel:
    """Load the Hugging Face network of a folder (`local`) or hub name, with all weights there and finite."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # loading is short, and a bar would stand in every notebook
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=local,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported below, by name
        )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        local_hint = "Is it damaged, or of another model?"
        hub_hint = "Check the name and the network, or give the folder of a model on disk."
        hint = local_hint if local else hub_hint
        raise ValueError(f"could not load the model {source!r}: {error} {hint}") from error
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    network, report = loaded
    if local:
        _restore_bias(network, report, Path(source))
    for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report.get(key):
            names = ", ".join(sorted(map(str, report[key]))[:3])
            raise ValueError(
                f"the weights in {source!r} do not fit its configuration: {key.replace('_', ' ')} {names}"
                f"{' ...' if len(report[key]) > 3 else ''}. The file is of another model, or incomplete."
            )
    check_finite(dict(network.named_parameters()), source)
    return network


def _restore_bias(network: PreTrainedModel, report: dict[str, Any], folder: Path) -> None:
    """Load the unembedding's bias, which no configuration mentions, and remove it from the report."""
    head = network.get_output_embeddings()
    name = next(f"{name}.bias" for name, module in network.named_modules() if module is head)
    if name not in report["unexpected_keys"] or head.bias is not None:
        return
    for path in folder.glob("model*.safetensors"):
        bias = read_tensors(path)[0].get(name)
        if bias is not None and bias.shape == head.weight.shape[:1]:
            head.bias = nn.Parameter(bias.to(head.weight.dtype))
            report["unexpected_keys"] = set(report["unexpected_keys"]) - {name}


def _load_block(base: LanguageModel, path: Path) -> LanguageModel:
    """Load a block and the weights of the body that were trained with it, on top of a base."""
    tensors, metadata = read_tensors(path)
    check_finite(tensors, str(path))
    if "fast_weights" not in metadata:
        raise ValueError(f"{str(path)!r} says nothing of a fast-weight block; expected a file written by model.save().")
    facts = json.loads(metadata["fast_weights"])
    rule = UpdateRule(**facts["rule"] | {"steps": tuple(map(tuple, facts["rule"]["steps"]))})
    body = {n.removeprefix("network."): t for n, t in tensors.items() if n.startswith("network.")}
    model = attach_fast_weights(base, facts["size"], rule, share_body=not body)
    assert model.block is not None
    own = {n.removeprefix("block."): t for n, t in tensors.items() if not n.startswith("network.")}
    try:
        model.block.load_state_dict(own)
        unknown = model.network.load_state_dict(body, strict=False).unexpected_keys
    except RuntimeError as error:
        raise ValueError(f"{str(path)!r} does not fit the model beside it: {error}") from error
    if unknown:
        raise ValueError(f"{str(path)!r} holds weights the model beside it does not have: {', '.join(unknown[:3])}.")
    return model
