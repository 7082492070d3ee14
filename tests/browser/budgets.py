"""Budgets: what was measured beside what it may be."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Budget:
    """A measured `value` and its `limit`, both in `unit`."""

    name: str
    value: float
    limit: float
    unit: str
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Whether the value is on the right side of the limit."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def __str__(self) -> str:
        sign = "≥" if self.at_least else "≤"
        verdict = "" if self.kept else "  EXCEEDED"
        return f"{self.name:<56} {self.value:>10.4g}  {sign} {self.limit:<8g} {self.unit}{verdict}"


def write_budgets(budgets: list[Budget], path: Path) -> None:
    """Write them as JSON, a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [asdict(budget) | {"kept": budget.kept} for budget in budgets]
    path.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
