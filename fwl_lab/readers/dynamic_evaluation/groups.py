"""Which documents dynamic evaluation reads together: those that stand at the same place, as many as memory bears."""

from collections.abc import Iterator, Mapping, Sequence

from fwl_lab.readers.dynamic_evaluation.state import DocumentState

LOGITS_TOGETHER = 2**26  # numbers; bounds the memory of the logits of documents that are read together
# Numbers in the copies of one matrix. A product of weights this large shares nothing with another's on a CPU, and
# tensors past the largest that its allocator keeps are asked of the system anew each time.
WEIGHTS_TOGETHER = {"cpu": 2**23}


def most_together(documents: int, logits: int, largest: int, device: str) -> int:
    """Return how many documents are read together at most.

    Parameters
    ----------
    documents : int
        How many there are.
    logits : int
        Numbers in one document's logits of a segment.
    largest : int
        Numbers in the largest of the adapted parameters.
    device : str
        "cpu", "cuda", ...
    """
    weights = WEIGHTS_TOGETHER.get(device, largest * documents) // largest
    return max(1, min(LOGITS_TOGETHER // logits, weights))


def groups(
    documents: Sequence[DocumentState], pieces: Mapping[int, int], rotary: bool, most: int
) -> Iterator[list[int]]:
    """Yield rows whose next pieces can be read together, `most` at once.

    pieces : by row, how many tokens the document is to read next.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for row, count in pieces.items():
        places.setdefault((count, *documents[row].place(rotary)), []).append(row)
    for rows in places.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
