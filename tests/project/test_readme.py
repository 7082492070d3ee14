"""The README keeps its word: its examples run, its tree is the tree, its links and commands exist."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fwl_lab
from fwl_lab import TunedRule, UpdateRule, attach_fast_weights, open_trace
from tests.helpers.models import TEXTS, fill_block, make_text_model
from widgets.report.run import notebook_parameters

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "fwl_lab" / "fast_weights" / "README.md"]


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_the_python_examples_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_texts").mkdir()
    for index, text in enumerate(TEXTS):
        Path("my_texts", f"{index}.txt").write_text(text, encoding="utf-8")
    model = fill_block(attach_fast_weights(make_text_model(), size=4, rule=UpdateRule(inner_batch=8)))
    model.provenance, model.tuned_rule = {"name": "small"}, TunedRule("sgd", lr=0.01)
    model.save("model")
    first, writing, evidence, second = _blocks("python")
    assert len([line for line in first.splitlines() if line.strip()]) <= 10
    names: dict = {}
    exec(first.replace('"bundled"', '"model"'), names)
    trace = open_trace("runs/mine/trace.zarr")
    exec(second.replace(".show()", ""), {})
    said = capsys.readouterr().out
    gain = float((trace.nll.sel(reader="base") - trace.nll.sel(reader="fwl")).mean())
    assert abs(gain) > 1e-6
    assert f"{gain:.4f}"[:-1] in said
    assert f"{float(np.mean(trace.nll.sel(reader='fwl')))} small {trace.attrs['corpus_hash']}" in said
    exec(writing, names)
    assert capsys.readouterr().out.rstrip("\n").endswith(names["written"].text.rstrip("\n"))
    exec(evidence, names)
    recorded, paid = names["recorded"], names["paid"]
    slow, fast = (float(recorded.nll.sel(reader=reader)[40]) for reader in ("static", "fwl"))
    assert float(paid.share.sum()) == pytest.approx(slow - fast, abs=1e-4)
    replayed = names["without"].nll.values
    assert (replayed[-1, :13] == recorded.nll.sel(reader="fwl").values[:13]).all()
    assert (replayed[-1] != replayed[2]).any()
    assert "certified" in capsys.readouterr().out
    other = fwl_lab.FastWeightReader(names["model"])
    other.load("reader.safetensors")
    assert torch.equal(other.next_log_probs(), names["reader"].next_log_probs())


def _files_in_tree() -> set[str]:
    """Paths that the tree names, by its indentation."""
    (tree,) = _blocks("text")
    found, folders = set(), [""]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in re.split(r"\s{2,}", line.strip())[:-1]:
            path = "".join(folders[1 : depth + 1]) + name
            if name.endswith("/"):
                folders[depth + 1 :] = [name]
            found.add(path)
    return found


def test_the_tree_is_the_tree():
    named = _files_in_tree()
    kinds = ("*.py", "*.ipynb", "*.css", "*.js")
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fwl_lab", "widgets", "notebooks")
        for kind in kinds
        for path in (ROOT / folder).rglob(kind)
        if ".ipynb_checkpoints" not in path.parts
    }
    assert len(there) > 30
    assert there - named == set(), "files that the README's tree leaves out"
    inside = {name for name in named if name.startswith(("fwl_lab/", "widgets/", "notebooks/")) and name[-1] != "/"}
    assert {name for name in inside if not (ROOT / name).exists()} == set(), "files that are in the tree only"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(path):
    links = re.findall(r"(?<!!)\[[^\]]*\]\(([^)]+)\)", path.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


def test_commands_are_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for path in DOCUMENTS:
        # In code only: "make" is a word too.
        code = " ".join(re.findall(r"`[^`]+`", path.read_text(encoding="utf-8").replace("```", "`")))
        for target in re.findall(r"\bmake ([a-z][a-z-]+)", code):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"
    assert {"demo", "test", "evaluate", "wikitext"} <= set(re.findall(r"\bmake ([a-z-]+)", README))


def test_every_parameter_that_the_readme_sets_exists():
    given = {
        "demo": "00_quickstart",
        "evaluate": "04_compare_readers",
        "wikitext": "04_compare_readers",
        "long": "long_document",
        "train": "train",
        "tune": "tune",
    }
    calls = re.findall(r"make ([a-z]+)[^`\n]*?=\"([^\"]*)\"", README)
    direct = "widgets.report.render notebooks/04_compare_readers"
    calls += [("evaluate", line) for line in README.splitlines() if direct in line]
    assert len(calls) >= 6
    for target, arguments in calls:
        known = notebook_parameters(ROOT / "notebooks" / f"{given[target]}.ipynb")
        assert set(re.findall(r"-p (\w+)", arguments)) <= set(known)
