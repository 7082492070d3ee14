"""Make the readers of a pad as its settings say, and tell what each of them takes of the settings."""

from collections.abc import Mapping
from typing import Any, Final

from fwl_lab.trace.lookup import ReaderFacts
from widgets import theme

#: Settings of a pad that change how readers read, by their keys in a reader's configuration.
SETTINGS: Final = ("step_scale", "inner_batch", "segment")
#: Of these, what a reader that was handed in as an object takes.
_OWN_SETTINGS: Final = ("step_scale",)


class PadReaders:
    """Readers that a pad offers, from the cheapest on, and the reading that each has under way.

    Parameters
    ----------
    model : LanguageModel
    own : mapping from name to Reader
        Beside those that `fwl_lab.make_readers` makes; a name of theirs replaces it.

    Attributes
    ----------
    facts : dict
        `ReaderFacts` by name.
    takes : dict
        By name the settings that change how the reader reads.
    chosen : list of str
        Names that a pad begins with.
    """

    def __init__(self, model: Any, own: Mapping[str, Any]) -> None:
        from fwl_lab.readers.named import USUAL, available, make_readers

        self.model, self.own = model, dict(own)
        configured = {name: reader.configuration() for name, reader in self.own.items()}
        for name in available(model):  # one by one: a reader may hold a copy of the model's weights
            if name not in self.own:
                configured[name] = make_readers(model, [name])[name].configuration()
        facts = {name: ReaderFacts.of(name, one) for name, one in configured.items()}
        later = [name for name in self.own if name not in available(model)]
        order = sorted(facts, key=lambda name: (name in later, _cost(facts[name])))
        self.facts = {name: facts[name] for name in order}
        self.takes = {name: _OWN_SETTINGS if name in self.own else _settings(facts[name]) for name in order}
        # A block that does not adapt says little beside the base and the same block that does.
        telling = [name for name in USUAL if name in facts and (facts[name].adapts or not facts[name].block)]
        self.chosen = [name for name in order if name in self.own or name in telling]
        self._readings: dict[str, tuple[Any, Any]] = {}

    def styles(self) -> dict[str, dict[str, Any]]:
        """Return how each reader is shown, whether it adapts, and the settings it takes: for the page."""
        return {
            name: style._asdict() | {"adapts": self.facts[name].adapts, "takes": list(self.takes[name])}
            for name, style in theme.styles(self.facts).items()
        }

    def reading(self, name: str, settings: Mapping[str, Any]) -> Any:
        """Return the `LiveReading` that goes on from the last text, or a new one where the reader is set otherwise."""
        from fwl_lab.inference.incremental import LiveReading

        key = {setting: settings[setting] for setting in self.takes[name]}
        if name not in self._readings or self._readings[name][0] != key:
            self._readings[name] = key, LiveReading(self._make(name, key))
        return self._readings[name][1]

    def reader(self, name: str) -> Any:
        """Return the reader whose reading is under way."""
        return self._readings[name][1].reader

    def drop(self, name: str) -> None:
        """Forget a reading that has failed, so that the next one begins anew."""
        self._readings.pop(name)

    def close(self) -> None:
        """Let go of the model and of all readings."""
        self._readings.clear()
        self.own, self.model = {}, None

    def _make(self, name: str, changes: Mapping[str, Any]) -> Any:
        from fwl_lab.readers.rebuild import from_configuration

        if name in self.own:
            return self.own[name].with_step_scale(float(changes["step_scale"]))
        configuration = {**self.facts[name].configuration, **changes}
        if "inner_batch" in changes and changes["inner_batch"] is None:
            # Where no inner batch is ever complete, nothing is capped or forgotten.
            configuration |= {"cap": None, "decay": 0.0}
        return from_configuration(self.model, configuration)


def _settings(facts: ReaderFacts) -> tuple[str, ...]:
    """Return the settings that a reader takes: those of its updates, where it has any."""
    if facts.update_every is None:
        return ()
    return tuple(name for name in SETTINGS if name in facts.configuration)


def _cost(facts: ReaderFacts) -> int:
    """Return the place of a reader in the order of costs: what is known soon is shown soon."""
    if not facts.adapts:
        return int(facts.block)
    if facts.every_token:
        return 2
    return 4 if facts.stepwise else 3
