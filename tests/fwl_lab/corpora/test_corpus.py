"""Corpora: what they hold, how they are split, and what is said of bad input."""

import logging
import sys
import sysconfig
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fwl_lab import Document, corpus_hash, huggingface_corpus, stdlib_corpus, text_corpus, wikitext_corpus
from fwl_lab.corpora.documents import check_text
from fwl_lab.corpora.sources import SPLITS, _stdlib_documents, stdlib_near_duplicates, stdlib_split

# -- the standard library -----------------------------------------------------------------------------------------


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A made-up standard library without a `test` folder."""
    root = tmp_path / "python3.99"
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(root)})
    for index in range(60):
        path = root / ("package" if index % 2 else ".") / f"module{index}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"value_{index}_{line} = {index * 1000 + line}\n" for line in range(6)))
    for cache in (_stdlib_documents, stdlib_near_duplicates):
        cache.cache_clear()
    yield root
    for cache in (_stdlib_documents, stdlib_near_duplicates):
        cache.cache_clear()


def names_by_split() -> dict[str, list[str]]:
    return {split: [document.name for document in stdlib_corpus(split)] for split in SPLITS}


def test_splits_are_disjoint_sorted_and_complete(library: Path) -> None:
    names = names_by_split()
    assert all(listed == sorted(listed) and listed for listed in names.values())
    everything = [name for listed in names.values() for name in listed]
    assert sorted(everything) == sorted(path.relative_to(library).as_posix() for path in library.rglob("*.py"))
    assert len(set(everything)) == 60
    text = stdlib_corpus("train")[0]
    assert text.text == (library / text.name).read_text()


def test_a_split_follows_from_the_name_alone(library: Path) -> None:
    before = names_by_split()
    (library / "package" / "module1.py").write_text("something_else = 'entirely and at length'\n")
    (library / "added.py").write_text("another_module = 'that was not there before'\n")
    _stdlib_documents.cache_clear()
    stdlib_near_duplicates.cache_clear()
    after = names_by_split()
    for split in SPLITS:
        assert set(after[split]) - set(before[split]) <= {"added.py"}
        assert set(before[split]) <= set(after[split])
    # The same on every machine and for ever: figures are reported on these.
    known = {"json/decoder.py": "test", "argparse.py": "train", "contextlib.py": "validation", "a/ü.py": "train"}
    assert {name: stdlib_split(name) for name in known} == known
    shares = [sum(stdlib_split(f"{i}.py") == split for i in range(5000)) / 5000 for split in SPLITS]
    assert shares == pytest.approx([0.84, 0.08, 0.08], abs=0.015)


def test_near_duplicates_of_training_files_leave_the_other_splits(
    library: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held_out = [name for split in ("validation", "test") for name in names_by_split()[split]]
    copied, half, trained = held_out[0], held_out[-1], names_by_split()["train"][0]
    lines = (library / trained).read_text().splitlines()
    assert all(len(line) <= 20 for line in lines)
    long = [f"{line}  # long enough to count" for line in lines]
    (library / trained).write_text("\n".join(long))
    # Of the long lines 4 in 6, and 3 in 6, are training lines; short lines do not count.
    (library / copied).write_text(
        "\n".join([*long[:4], "own = 'a line of its own, long'", "other = 'one more, also long'"])
    )
    own = [f"own_{i} = 'a line of its own, long'" for i in range(3)]
    (library / half).write_text("\n".join([*long[:3], *own, *lines]))
    _stdlib_documents.cache_clear()
    stdlib_near_duplicates.cache_clear()
    with caplog.at_level(logging.INFO, logger="fwl_lab"):
        names = names_by_split()
    left = [name for listed in names.values() for name in listed]
    assert copied not in left and half in left and trained in names["train"]
    assert stdlib_near_duplicates(stdlib_split(copied)) == (copied,) and stdlib_near_duplicates("train") == ()
    assert f"1 near-duplicates of training files left out of '{stdlib_split(copied)}'" in caplog.text


def test_what_differs_from_machine_to_machine_is_skipped(library: Path) -> None:
    expected = corpus_hash(document for split in SPLITS for document in stdlib_corpus(split))
    (library / "empty.py").write_text(" \n\n")
    (library / "latin1.py").write_bytes(b"name = 'caf\xe9'\n")
    (library / "notes.txt").write_text("no Python\n")
    for folder in ("site-packages", "dist-packages", "config-3.99-x86_64-linux-gnu"):
        (library / folder).mkdir()
        (library / folder / "installed.py").write_text("installed = True\n")
    (library / "_sysconfigdata__linux.py").write_text("build_time_vars = {}\n")
    _stdlib_documents.cache_clear()
    stdlib_near_duplicates.cache_clear()
    assert corpus_hash(document for split in SPLITS for document in stdlib_corpus(split)) == expected


def test_the_running_library_is_there() -> None:
    documents = stdlib_corpus("validation")
    assert len(documents) > 20 and all(document.text.strip() for document in documents)
    assert stdlib_corpus("validation") == documents
    with pytest.raises(ValueError, match="split is 'dev'; expected one of train, validation, test"):
        stdlib_corpus("dev")


# -- text files ---------------------------------------------------------------------------------------------------


def test_text_files_are_read_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes("zwei\r\nnaïve 🙂\x00 \n".encode())
    (tmp_path / "one.txt").write_text("one")
    (tmp_path / "three.md").write_text("three")
    assert text_corpus(tmp_path) == [Document("b/two.txt", "zwei\r\nnaïve 🙂\x00 \n"), Document("one.txt", "one")]
    assert text_corpus(str(tmp_path / "one.txt")) == [Document("one.txt", "one")]
    assert text_corpus(tmp_path, "*.md") == [Document("three.md", "three")]


def test_bad_text_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder '.*nowhere'; give the path of a text file"):
        text_corpus(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"No file under '.*' matches '\*\*/\*\.txt'; pass pattern"):
        text_corpus(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9 au lait")
    with pytest.raises(ValueError, match=r"bad\.txt' is not UTF-8: byte 3 is 0xe9 .*; convert it first"):
        text_corpus(tmp_path)
    (tmp_path / "bad.txt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"the file '.*bad\.txt' is empty: a document needs at least one character"):
        text_corpus(tmp_path / "bad.txt")


def test_lone_surrogates_are_named_by_position() -> None:
    assert check_text("🙂 is a pair in UTF-16, and fine") == "🙂 is a pair in UTF-16, and fine"
    with pytest.raises(ValueError, match=r"^here holds the lone surrogate U\+D83D at character 2, which is no Unicode"):
        check_text("ab\ud83d", "here")


# -- WikiText -----------------------------------------------------------------------------------------------------

LOBSTER = """ = Lobster = \n \n A lobster is = not = a title . \n \n = = Description = = \n \n Long .
 \n = = = Claws = = = \n \n Two . \n = Total = \n 7 = 3 + 4 = 7 \n \n"""
VALID = " \n" + LOBSTER + " = 1 + 1 = 2 = \n \n A sum . \n \n = Lobster = \n \n Another one . \n"


def test_wikitext_is_cut_at_titles_alone(tmp_path: Path) -> None:
    path = tmp_path / "wiki.valid.tokens"
    path.write_text(VALID)
    documents = wikitext_corpus(path)
    assert [document.name for document in documents] == ["1 + 1 = 2", "Lobster", "Lobster (2)"]
    assert documents[1].text == LOBSTER
    assert documents[2].text == " = Lobster = \n \n Another one . \n"
    assert sum(len(document.text) for document in documents) == len(VALID) - 2  # all but the first empty line


def test_files_that_are_not_wikitext(tmp_path: Path) -> None:
    path = tmp_path / "plain.txt"
    path.write_text("= Title =\n\nno spaces around the line\n")
    with pytest.raises(ValueError, match="has no line ' = Title = ': not a WikiText file; use text_corpus"):
        wikitext_corpus(path)
    for missing in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"There is no file .*; give one WikiText file"):
            wikitext_corpus(missing)


# -- the hub ------------------------------------------------------------------------------------------------------


class FakeRows(list):
    """What `datasets.load_dataset` returns, as far as it is used."""

    column_names = ("text", "label")


def fake_datasets(monkeypatch: pytest.MonkeyPatch, load_dataset: Any) -> None:
    module = types.ModuleType("datasets")
    module.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)


def test_hub_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"needs the package `datasets`: pip install -e '\.\[hub\]'"):
        huggingface_corpus("someone/texts")


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route to host")

    fake_datasets(monkeypatch, load_dataset)
    message = r"Could not load the data set 'a/b' \(config 'c', split 'train'\).*no route to host.*use text_corpus"
    with pytest.raises(ValueError, match=message):
        huggingface_corpus("a/b", "c", "train")


def test_rows_of_the_hub_are_documents(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*arguments: Any, **keywords: Any) -> FakeRows:
        asked.append((arguments, keywords))
        return FakeRows({"text": text, "label": index} for index, text in enumerate(["one", "", None, *"abcdefgh"]))

    fake_datasets(monkeypatch, load_dataset)
    documents = huggingface_corpus("a/b", "c", "train")
    assert asked == [(("a/b", "c"), {"split": "train"})]
    assert documents[:2] == [Document("a/b/train/00", "one"), Document("a/b/train/03", "a")]
    assert len(documents) == 9 and documents == sorted(documents)
    with pytest.raises(ValueError, match="'a/b' has no column 'body'; it has text, label"):
        huggingface_corpus("a/b", text_column="body")
    with pytest.raises(ValueError, match="column 'label' of 'a/b' holds int, not text"):
        huggingface_corpus("a/b", text_column="label")


# -- the hash -----------------------------------------------------------------------------------------------------


def test_the_hash_minds_names_texts_order_and_their_borders() -> None:
    corpora = [
        [Document("a", "b"), Document("c", "d")],
        [Document("c", "d"), Document("a", "b")],
        [Document("a", "b")],
        [Document("ab", ""), Document("c", "d")],
        [Document("a", "bc"), Document("", "d")],
        [Document("a", "b"), Document("c", "D")],
        [Document("A", "b"), Document("c", "d")],
        [],
    ]
    hashes = [corpus_hash(corpus) for corpus in corpora]
    assert len(set(hashes)) == len(corpora)
    assert corpus_hash(iter(corpora[0])) == hashes[0] and len(hashes[0]) == 16
