"""Define a document, and the hash that tells one corpus from another."""

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple


class Document(NamedTuple):
    """A text that is read from its first to its last token without a break.

    Attributes
    ----------
    name : str
        Name, unique in its corpus, for example a relative path.
    text : str
        Whole text; nothing is stripped or normalised.
    """

    name: str
    text: str


def corpus_hash(documents: Iterable[Document]) -> str:
    """Return the SHA-256 (first 16 hex digits) of names and texts, in order; figures of equal hashes are comparable."""
    digest = hashlib.sha256()
    for document in documents:
        for part in document:
            data = part.encode("utf-8", "surrogatepass")
            digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()[:16]


def check_text(text: str, name: str = "text") -> str:
    """Return `text`, or raise a ValueError where it is empty or holds a lone surrogate (half of a UTF-16 pair)."""
    if not text:
        raise ValueError(f"{name} is empty: a document needs at least one character; leave it out or give it text.")
    surrogate = re.search("[\ud800-\udfff]", text)
    if surrogate:
        raise ValueError(
            f"{name} holds the lone surrogate U+{ord(surrogate.group()):04X} at character {surrogate.start()}, "
            "which is no Unicode text and cannot be encoded; decode the file with the right encoding, or drop it."
        )
    return text
