"""Models from folders and the hub, and back to folders: safetensors only, no pickle, no remote code.

A folder holds a Hugging Face model and tokenizer and, beside them,

- `fast_weights.safetensors`: the block, and those weights of the body that were trained with it;
- `control.safetensors`: the same of its slow control (same size, same training, no fast weights), where there is one;
- `provenance.json`: how the model came about, and what was measured and tuned on validation documents;
- `token_counts.safetensors`: how often each token occurs in the training documents;
- `gradient_statistics.safetensors`: what the RMS rules of dynamic evaluation divide by, where such a rule was tuned.
"""

import copy
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.utils import logging as transformers_logging

from .fast_weights import FastWeightBlock, UpdateRule
from .language_model import WINDOW_NAME, LanguageModel
from .optimizers import GradientStatistics

BUNDLED = Path(__file__).parent / "assets" / "bundled"
BLOCK, CONTROL = "fast_weights", "control"  # names of block files
BLOCK_FILE, PROVENANCE_FILE, COUNTS_FILE = f"{BLOCK}.safetensors", "provenance.json", "token_counts.safetensors"
STATISTICS_FILE = "gradient_statistics.safetensors"


def attach_fast_weights(
    model: LanguageModel | PreTrainedModel,
    size: int | None = None,
    rule: UpdateRule = UpdateRule(),
    *,
    share_body: bool = True,
    seed: int = 0,
) -> LanguageModel:
    """A language model with a new fast-weight block on top; until it is trained it is exactly the model given.

    Parameters
    ----------
    model : LanguageModel or a Hugging Face causal LM
    size : int, optional
        The block's inner width is 4·size. None: as wide as the model.
    rule : UpdateRule
    share_body : bool
        True: `result.base` and the result share one body, which training must leave alone (retrofit). False: the
        result gets a copy, so that the body can be trained too and `result.base` stays what it was.
    seed : int
        Of the first layer's random start.
    """
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model is {model!r:.80}; expected a LanguageModel, or a causal LM of Hugging Face.")
    if not isinstance(rule, UpdateRule):
        raise ValueError(f"rule is {rule!r:.80}; expected an UpdateRule, such as UpdateRule(inner_batch=64).")
    base = model if isinstance(model, LanguageModel) else LanguageModel(model)
    if base.block is not None:
        raise ValueError("the model has a fast-weight block already; attach one to `model.base` instead.")
    network = base.network if share_body else copy.deepcopy(base.network)
    inner = getattr(network.base_model, base.norm_name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = FastWeightBlock.attach(
            inner, network.get_output_embeddings(), inner.weight.shape[0] if size is None else size, rule
        )
    attached = LanguageModel(network, base.tokenizer, window=base.window, block=block, base=base)
    attached.inherit(base)
    return attached


def choose_device(device: str | torch.device = "auto") -> torch.device:
    """ "auto" is a GPU where there is one. Raises ValueError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        found = ", ".join(["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))])
        raise ValueError(f"device {str(device)!r} is not usable here; expected one of {found}.") from error
    return chosen


def available_devices() -> list[str]:
    """Devices that a model can be moved to here, "cpu" first."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


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
        Weights that are not in safetensors, damaged, of another model, or not finite; an unknown device; a hub name
        that cannot be reached.
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
        if (folder / PROVENANCE_FILE).exists():
            model.provenance = json.loads((folder / PROVENANCE_FILE).read_text())
        if (folder / COUNTS_FILE).exists():
            model.token_counts = read_tensors(folder / COUNTS_FILE)[0]["token_counts"].numpy()
        if (folder / STATISTICS_FILE).exists():
            tensors, _ = read_tensors(folder / STATISTICS_FILE, device)
            model.gradient_statistics = GradientStatistics.from_tensors(tensors)
        if model.block is not None:
            model.base.inherit(model)
    for part in (model, model.base):
        part.to(device)
    return model


def _blocks(folder: Path) -> str:
    return ", ".join(p.stem for p in (folder / f"{n}.safetensors" for n in (BLOCK, CONTROL)) if p.exists()) or "none"


def _check_folder(folder: Path) -> None:
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
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()  # a bar for the blink of an eye is noise in every notebook
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
    """Load the unembedding's bias, of which a configuration says nothing, and take it off the report."""
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


def save_model(
    model: LanguageModel, folder: str | Path, *, dtype: torch.dtype | None = None, block: str = BLOCK
) -> None:
    """Write a model to a folder that `load_model` reads.

    Parameters
    ----------
    dtype : torch.dtype, optional
        That matrices are stored in, for example bfloat16; vectors keep theirs. None: as they are.
    block : str
        Name of the block's file: "fast_weights", or "control" for a slow control beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    def stored(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", dtype if dtype and tensor.ndim > 1 else tensor.dtype).contiguous().clone()

    base = model.base
    weights = {name: stored(tensor) for name, tensor in base.network.state_dict().items()}
    for name in getattr(base.network, "_tied_weights_keys", None) or {}:
        if base.network.config.tie_word_embeddings:
            weights.pop(name, None)  # the same tensor under another name
    config = copy.deepcopy(base.network.config)
    setattr(config, WINDOW_NAME, base.window)
    config.save_pretrained(folder)
    write_tensors(weights, folder / "model.safetensors", {"format": "pt"})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(folder)
    _write_or_remove(
        folder / COUNTS_FILE,
        None if model.token_counts is None else {"token_counts": torch.as_tensor(model.token_counts)},
    )
    statistics = model.gradient_statistics
    _write_or_remove(folder / STATISTICS_FILE, None if statistics is None else statistics.to_tensors())
    (folder / PROVENANCE_FILE).write_text(json.dumps(model.provenance, indent=1) + "\n")
    if model.block is None:
        for name in (BLOCK, CONTROL):  # a block that lay here was trained on the model that has just been replaced
            (folder / f"{name}.safetensors").unlink(missing_ok=True)
    else:
        tensors = {f"block.{n}": stored(t) for n, t in model.block.state_dict().items()}
        if model.network is not base.network:
            ours, theirs = model.network.state_dict(), base.network.state_dict()
            changed = [n for n in ours if not torch.equal(ours[n], theirs[n])]
            tensors |= {f"network.{n}": stored(ours[n]) for n in changed if n in weights}
        facts: dict[str, Any] = {"size": model.block.size, "rule": dataclasses.asdict(model.block.rule)}
        write_tensors(tensors, folder / f"{block}.safetensors", {"fast_weights": json.dumps(facts)})


def _write_or_remove(path: Path, tensors: dict[str, Tensor] | None) -> None:
    """What another model left in the folder would be taken for this one's."""
    if tensors is None:
        path.unlink(missing_ok=True)
    else:
        write_tensors(tensors, path)


# -- safetensors --------------------------------------------------------------------------------------------------


def write_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file so that `path` holds either what it held or all of the new one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        save_file(tensors, aside, metadata)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def read_tensors(
    path: str | Path, device: str | torch.device = "cpu", *, header_only: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file. Raises ValueError where it is damaged or no such file."""
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            names = [] if header_only else list(file.keys())
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(
            f"{str(path)!r} is damaged or no safetensors file ({error}); copy it again, or train it anew."
        ) from error


def check_finite(tensors: dict[str, Tensor], source: str) -> None:
    """Raise ValueError where a weight is NaN or infinite, saying which."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise ValueError(f"{count} weights of {name} in {source!r} are not finite; the training run went wrong.")
