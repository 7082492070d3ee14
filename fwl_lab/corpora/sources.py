"""Read documents from Python's standard library, text files, WikiText, or a data set of the Hugging Face hub.

Every corpus is a list of :class:`Document`, sorted by name. Figures are comparable only where the
:func:`corpus_hash`, which every trace keeps, is the same.
"""

import hashlib
import logging
import re
import sysconfig
from functools import lru_cache
from pathlib import Path

from fwl_lab.corpora.documents import Document, check_text

SPLITS = ("train", "validation", "test")
LINE_LENGTH = 20  # characters; shorter lines ("else:", "return None") are no sign of copying

log = logging.getLogger("fwl_lab")


def stdlib_corpus(split: str = "validation") -> list[Document]:
    """Return one split of the running Python's standard library, a document for each file.

    A file's split follows from a hash of its relative path alone (84 % train, 8 % validation, 8 % test), so it is the
    same on every machine. Empty and undecodable files, installed packages and files written by the build of one
    machine are skipped. Files that mostly repeat the training split (see :func:`stdlib_near_duplicates`) are left out
    of the other two splits; their number is logged to the logger ``fwl_lab``.

    Parameters
    ----------
    split : {"train", "validation", "test"}
        Part of the library.

    Returns
    -------
    list of Document
        Sorted by name: POSIX paths relative to the library's folder.

    Raises
    ------
    ValueError
        An unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; expected one of {', '.join(SPLITS)}.")
    repeats = set(stdlib_near_duplicates(split))
    if repeats:
        log.info("stdlib_corpus: %d near-duplicates of training files left out of %r", len(repeats), split)
    return [d for d in _stdlib_documents() if stdlib_split(d.name) == split and d.name not in repeats]


def stdlib_split(name: str) -> str:
    """Return the split of one file of the standard library, from a hash of its relative POSIX path."""
    bucket = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % 100
    return "train" if bucket < 84 else "validation" if bucket < 92 else "test"


@lru_cache
def stdlib_near_duplicates(split: str) -> tuple[str, ...]:
    """Return the names of files of a split whose lines are mostly lines of the training split too.

    More than half of the lines over 20 characters count as most. With such files, as ``encodings/cp*.py``, a held-out
    figure would partly measure what was memorised. The training split has none by definition.
    """
    if split == "train":
        return ()
    documents = _stdlib_documents()
    known = {line for d in documents if stdlib_split(d.name) == "train" for line in _long_lines(d.text)}
    return tuple(d.name for d in documents if stdlib_split(d.name) == split and _repeats(d.text, known))


def _long_lines(text: str) -> list[str]:
    return [line for line in map(str.strip, text.splitlines()) if len(line) > LINE_LENGTH]


def _repeats(text: str, known: set[str]) -> bool:
    lines = _long_lines(text)
    return sum(line in known for line in lines) > len(lines) / 2


@lru_cache
def _stdlib_documents() -> tuple[Document, ...]:
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for path in root.rglob("*.py"):
        parts = path.relative_to(root).parts
        # Packages installed later, and files that record one machine's build, differ from machine to machine.
        if {"site-packages", "dist-packages"} & set(parts) or parts[0].startswith(("config-", "_sysconfigdata")):
            continue
        try:
            text = path.read_bytes().decode("utf-8")
        except (UnicodeDecodeError, OSError):
            continue
        if text.strip():
            documents.append(Document("/".join(parts), text))
    return tuple(sorted(documents))


def text_corpus(path: str | Path, pattern: str = "**/*.txt") -> list[Document]:
    """Read a text file, or all files under a folder that match `pattern`, as UTF-8 documents.

    Raises
    ------
    FileNotFoundError
        No such path, or no file of the folder matches.
    ValueError
        A file is empty or not UTF-8 (which file, which byte).
    """
    path = Path(path)
    if path.is_file():
        return [_read_document(path, path.name)]
    if not path.is_dir():
        raise FileNotFoundError(f"There is no file or folder {str(path)!r}; give the path of a text file or a folder.")
    files = sorted(p for p in path.glob(pattern) if p.is_file())
    if not files:
        raise FileNotFoundError(
            f"No file under {str(path)!r} matches {pattern!r}; pass pattern=..., for example '**/*.md'."
        )
    return [_read_document(p, p.relative_to(path).as_posix()) for p in files]


def _read_document(path: Path, name: str) -> Document:
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{str(path)!r} is not UTF-8: byte {error.start} is 0x{data[error.start]:02x} ({error.reason}); "
            "convert it first, for example with `iconv -t UTF-8`."
        ) from error
    return Document(name, check_text(text, f"the file {str(path)!r}"))


def wikitext_corpus(path: str | Path) -> list[Document]:
    """Read the articles of one WikiText file (Merity et al. 2016), cut at their `` = Title = `` lines.

    A title line is a line `` = ... = `` with single equals signs between two empty lines, unlike section titles
    (`` = = Section = = ``) and lines of a table. Articles of the same title are numbered.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        The file has no title line, or is empty or not UTF-8.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}; give one WikiText file, such as wiki.valid.tokens.")
    (document,) = text_corpus(path)
    title = re.compile(r"(?:\A|(?<=\n \n)|(?<=\n\n)|(?<=\A\n)|(?<=\A \n)) = ((?!= )[^\n]*?[^=\s]) = \n(?= ?\n)")
    starts = list(title.finditer(document.text))
    if not starts:
        raise ValueError(f"{str(path)!r} has no line ' = Title = ': not a WikiText file; use text_corpus instead.")
    ends = [m.start() for m in starts[1:]] + [len(document.text)]
    seen: dict[str, int] = {}
    articles = []
    for match, end in zip(starts, ends, strict=True):
        name = match.group(1)
        seen[name] = seen.get(name, 0) + 1
        articles.append(
            Document(name if seen[name] == 1 else f"{name} ({seen[name]})", document.text[match.start() : end])
        )
    return sorted(articles)


def huggingface_corpus(
    name: str, config: str | None = None, split: str = "test", text_column: str = "text"
) -> list[Document]:
    """Read a data set of the Hugging Face hub, a document for each row; needs the extra ``[hub]`` and a network.

    Raises
    ------
    ValueError
        The package `datasets` is missing, the hub cannot be reached, or there is no such set or column.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("huggingface_corpus needs the package `datasets`: pip install -e '.[hub]'.") from error
    try:
        rows = datasets.load_dataset(name, config, split=split)
    except Exception as error:
        raise ValueError(
            f"Could not load the data set {name!r} (config {config!r}, split {split!r}) from the hub: {error}. "
            "Check the name and the network, or use text_corpus on files you have."
        ) from error
    if text_column not in rows.column_names:
        raise ValueError(f"{name!r} has no column {text_column!r}; it has {', '.join(rows.column_names)}.")
    texts = [row[text_column] for row in rows]
    other = next((type(text).__name__ for text in texts if not isinstance(text, str | None)), None)
    if other is not None:
        raise ValueError(f"column {text_column!r} of {name!r} holds {other}, not text; pass text_column=...")
    width = len(str(len(texts)))
    named = ((f"{name}/{split}/{i:0{width}d}", text) for i, text in enumerate(texts))
    return [Document(key, check_text(text, key)) for key, text in named if text]
