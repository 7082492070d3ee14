"""Statistics of training gradients, which the RMS rules divide by."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from fwl_lab.corpora.documents import Document
from fwl_lab.models.language_model import LanguageModel
from fwl_lab.models.tuned_rule import GradientStatistics
from fwl_lab.readers.dynamic_evaluation.optimizers import DynamicEvaluationSGD
from fwl_lab.readers.dynamic_evaluation.reader import DynamicEvaluationReader


def gradient_statistics(
    model: LanguageModel,
    documents: Iterable[Document],
    *,
    segment: int = 64,
    batches: int = 200,
    parameters: str = "all",
) -> GradientStatistics:
    """Measure the gradient of a segment's mean loss at θ₀, over the first segments of training documents.

    Each document gives equally many segments, `batches` in all (fewer where documents are too short). `parameters`:
    as for the reader that is to use them.
    """
    reader = _GradientReader(model, segment, parameters)
    return GradientStatistics.from_gradients(_segment_gradients(reader, list(documents), batches))


class _GradientReader(DynamicEvaluationReader):
    """Reads by segments and hands each segment's gradient over instead of following it."""

    def __init__(self, model: LanguageModel, segment: int, parameters: str) -> None:
        self.caught: list[list[Tensor]] = []
        super().__init__(model, lambda parameters: DynamicEvaluationSGD(parameters, 0.0), segment, parameters)

    def _update(
        self, place: int, weights: dict[str, Tensor], optimizer: Optimizer, gradients: Sequence[Tensor | None]
    ) -> None:
        pairs = zip(weights.values(), gradients, strict=True)
        self.caught.append([torch.zeros_like(p) if g is None else g for p, g in pairs])


def _segment_gradients(reader: _GradientReader, documents: list[Document], batches: int) -> Iterator[list[Tensor]]:
    model, segment, each = reader.model, reader.segment, -(-batches // len(documents))
    for document in documents:
        ids = model.encode(document.text)[None, : each * segment].to(model.device)
        reader.reset()
        for piece in ids.split(segment, 1):
            reader.read(piece)
            yield from reader.caught
            batches -= len(reader.caught)
            reader.caught.clear()
            if batches <= 0:
                return
