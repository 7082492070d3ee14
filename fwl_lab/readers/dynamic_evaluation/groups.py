"""Group the documents that dynamic evaluation reads together: those at equal places, limited by memory."""

from collections.abc import Iterator, Mapping, Sequence

from fwl_lab.readers.dynamic_evaluation.state import DocumentState

LOGITS_TOGETHER = 2**26  # elements; limits the memory of the logits of documents that are read together
# Elements in the copies of one matrix, by device. On a CPU, batching products of weights this large saves nothing, and
# tensors larger than those its allocator keeps are requested from the system anew each time.
WEIGHTS_TOGETHER = {"cpu": 2**23}


def most_together(documents: int, logits: int, largest: int, device: str) -> int:
    """Return the largest number of documents that are read together, at least 1.

    Parameters
    ----------
    documents : int
        Number of documents in all.
    logits : int
        Elements in one document's logits of a segment.
    largest : int
        Elements in the largest of the adapted parameters.
    device : str
        Type of the device: "cpu", "cuda", ...
    """
    weights = WEIGHTS_TOGETHER.get(device, largest * documents) // largest
    return max(1, min(LOGITS_TOGETHER // logits, weights))


def groups(
    documents: Sequence[DocumentState], pieces: Mapping[int, int], rotary: bool, most: int
) -> Iterator[list[int]]:
    """Yield lists of rows whose next tokens can be read together.

    Parameters
    ----------
    documents : sequence of DocumentState
        Of every row.
    pieces : mapping from row to int
        Number of tokens that the document reads next; rows that are not named read none.
    rotary : bool
        Whether the model has rotary positions; see `DocumentState.place`.
    most : int
        Most rows in a list.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for row, count in pieces.items():
        places.setdefault((count, *documents[row].place(rotary)), []).append(row)
    for rows in places.values():
        yield from (rows[start : start + most] for start in range(0, len(rows), most))
