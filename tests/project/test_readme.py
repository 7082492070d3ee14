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


def _tree() -> set[str]:
    """Folders that the tree names, by its indentation."""
    (tree,) = _blocks("text")
    found, folders = set(), [""]
    for line in tree.splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        assert name.endswith("/"), line
        folders[depth + 1 :] = [folders[depth] + name]
        found.add(folders[-1].rstrip("/"))
    return found


def test_the_tree_is_the_tree():
    kinds = {".py", ".ipynb", ".css", ".js"}
    there = {
        path.parent.relative_to(ROOT).as_posix()
        for folder in ("fwl_lab", "widgets", "notebooks")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kinds and ".ipynb_checkpoints" not in path.parts
    }
    named = _tree()
    assert len(there) > 20
    assert there - named == set(), "folders that the README's tree leaves out"
    assert {name for name in named if not (ROOT / name).is_dir()} == set(), "folders that are in the tree only"


def test_every_notebook_is_described():
    rows = [line.split("|")[1] for line in README.splitlines() if line.startswith("| `")]
    described = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")} - described == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_path_that_is_named_exists(path):
    """Paths of this project in code: in backticks, in commands, in links."""
    tops = "fwl_lab|widgets|notebooks|tests|docs"
    named = re.findall(rf"(?<![\w/.-])(?:{tops})/[\w./<>*-]*", path.read_text(encoding="utf-8"))
    named = [name.rstrip(".") for name in named if not set("<>*") & set(name)]
    assert named or path.parent != ROOT
    assert [name for name in named if not (ROOT / name).exists()] == []


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
    direct = "widgets.report notebooks/04_compare_readers"
    calls += [("evaluate", line) for line in README.splitlines() if direct in line]
    assert len(calls) >= 6
    for target, arguments in calls:
        known = notebook_parameters(ROOT / "notebooks" / f"{given[target]}.ipynb")
        assert set(re.findall(r"-p (\w+)", arguments)) <= set(known)
