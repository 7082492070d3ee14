"""The worked example of CONTRIBUTING is the code that is tested."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_reader_in_contributing_is_the_one_that_is_tested() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text[text.index("## Add a reader") : text.index("## Add a figure")]
    (shown,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    tested = (ROOT / "tests" / "helpers" / "bigram.py").read_text(encoding="utf-8")
    assert textwrap.dedent(shown).strip() == tested[tested.index("class BigramState") :].strip()
    for path in re.findall(r"`((?:fwl_lab|tests)/[\w/]+(?:\.py|/))`", section):
        assert (ROOT / path).exists(), path
