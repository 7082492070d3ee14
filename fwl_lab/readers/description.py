"""What a reader says of itself, so that nobody guesses it from a name or a class."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from fwl_lab.models.language_model import LanguageModel


class Description:
    """The part of a reader that describes it: facts of its kind, and its settings.

    Attributes
    ----------
    label : str
        What the kind is called in a picture.
    adapts : bool
        Whether what it has read changes its later scores other than through the model's context.
    every_token : bool
        Whether each token makes an update of its own, so that Δθ also moves between the updates of the grid.
    learns : "block", "model" or None
        Whose parameters its updates are gradient steps of: a fast-weight block's, token by token, or the whole
        model's, segment by segment. Receipts and surgery ask this of `FastWeightReader` and
        `DynamicEvaluationReader`, whose parts they use; leave it None elsewhere. A subclass does not inherit it: what
        it changes may be the updates.
    model : LanguageModel
    step_scale : float
        Multiplies every update.
    learning : bool
        False in a frozen fork, which learns no more.
    """

    label: ClassVar[str] = ""
    adapts: ClassVar[bool] = True
    every_token: ClassVar[bool] = False
    learns: ClassVar[Literal["block", "model"] | None] = None
    model: LanguageModel
    step_scale: float
    learning: bool

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.learns = vars(cls).get("learns")

    @property
    def update_every(self) -> int | None:
        """Tokens between two updates of the fast weights, counted from a document's start; None: it has none."""
        return None

    @property
    def forgets(self) -> bool:
        """Whether a decay or a cap may take something from Δθ when an update is complete."""
        return False

    @property
    def factors(self) -> bool:
        """Whether observers are told the factors of each token's update, and these add up to Δθ."""
        return False

    def settings(self) -> dict[str, Any]:
        """Return what this kind's constructor was given beside the model and the step scale, as JSON values."""
        return {}

    def configuration(self) -> dict[str, Any]:
        """Return what tells this reader from others, as JSON values; every trace keeps it.

        Beside the settings: what kind of reader it is, what it is called, whether it adapts, how often, and whether
        Δθ is known at every token. Views, receipts and replays ask these, and never for a name or a class.
        """
        return {
            "kind": type(self).__name__, "label": self.label or type(self).__name__.removesuffix("Reader"),
            "adapts": self.adapts, "update_every": self.update_every, "every_token": self.every_token,
            "forgets": self.forgets, "learns": self.learns, "block": self.model.block is not None,
            "window": self.model.window, "step_scale": self.step_scale, "learning": self.learning,
        } | self.settings()  # fmt: skip


def model_of(model: LanguageModel, configuration: Mapping[str, Any]) -> LanguageModel:
    """Return the model that a reader of this configuration reads with: `model`, or its base where it had no block.

    Raises
    ------
    ValueError
        The reader had a block, and the model has none.
    """
    if not configuration.get("block"):
        return model.base
    if model.block is None:
        raise ValueError(
            "the reader read with a fast-weight block, and the model has none; expected the one that read."
        )
    return model
