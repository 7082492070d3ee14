"""The layout keeps its rules, and each rule is broken by a module in the wrong place."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.project import house_files as files
from tests.project import house_imports as imports
from tests.project.source import PACKAGES, modules

ROOT = Path(__file__).parents[2]
Check = Callable[[Path], list[str]]

#: The layout keeps its rules while each of these finds nothing.
CHECKS = (
    imports.wrong_direction,
    imports.module_circles,
    imports.room_circles,
    imports.torch_named,
    imports.torch_loaded,
    imports.drawing_in_library,
    files.full_folders,
    files.long_files,
    files.too_many_literals,
    files.decisions_by_kind,
    files.decoded_elsewhere,
    files.undescribed_folders,
    files.stale_names,
)

#: A small house in order, by path. Its torch is a file, so that importing it takes no time.
ORDERLY = {
    "torch.py": "",
    "plotly.py": "",
    "fwl_lab/__init__.py": '"""A library."""\nimport lazy_loader\n'
    "__getattr__, _, _ = lazy_loader.attach(__name__, submod_attrs={'models.model': ['Model']})\n",
    "fwl_lab/ops/__init__.py": '"""Operations."""\n',
    "fwl_lab/ops/norms.py": "import torch\n",
    "fwl_lab/trace/__init__.py": '"""Traces."""\n',
    "fwl_lab/trace/schema.py": "READERS = 'readers'\nSTATIC = 'static'\n",
    "fwl_lab/trace/configurations.py": "import json\n\n\n"
    "def decode_configurations(text):\n    return json.loads(text)\n",
    "fwl_lab/trace/lookup.py": "from fwl_lab.trace import schema\n"
    "from fwl_lab.trace.configurations import decode_configurations\n\n\n"
    "def reader_configurations(trace):\n    return decode_configurations(trace.attrs[schema.READERS])\n",
    "fwl_lab/analysis/__init__.py": '"""Analysis."""\n\nfrom fwl_lab.analysis.gains import gain\n',
    "fwl_lab/analysis/gains.py": "from fwl_lab.trace.schema import STATIC\n\n\ndef gain():\n    return STATIC\n",
    "fwl_lab/models/__init__.py": '"""Models."""\n',
    "fwl_lab/models/model.py": "from ..ops import norms\n\n\nclass Model:\n    norm = norms\n",
    "fwl_lab/readers/__init__.py": '"""Readers."""\n',
    "fwl_lab/readers/base.py": "from fwl_lab.models.model import Model\n\n\nclass Reader:\n    model: Model\n",
    "fwl_lab/readers/fast.py": "from fwl_lab.readers.base import Reader\n\n\nclass FastReader(Reader):\n"
    "    def like(self, other):\n        return isinstance(other, FastReader)\n",
    "fwl_lab/audit/__init__.py": '"""Audits."""\n',
    "fwl_lab/audit/certificate.py": "",
    "fwl_lab/audit/certify.py": "from fwl_lab.readers.base import Reader\n\n\n"
    "def certify(reader):\n    return isinstance(reader, Reader)\n",
    "fwl_lab/testing/__init__.py": '"""Made-up traces."""\n',
    "fwl_lab/testing/traces.py": "from fwl_lab.audit import certificate\n",
    "widgets/__init__.py": '"""Views."""\n',
    "widgets/theme.py": "import plotly\n",
    "widgets/core/__init__.py": '"""What views share."""\n',
    "widgets/core/js/common.js": "export const text = 1;\n",
    "widgets/views/__init__.py": '"""Views."""\n',
    "widgets/views/pad.py": "from fwl_lab.analysis import gain\n\n\ndef read():\n"
    "    from fwl_lab.readers.base import Reader\n\n    return Reader, gain\n",
    "README.md": "`fwl_lab.Model` is a model, `fwl_lab.analysis.gains.gain` a gain.\n",
}


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_house_is_in_order(check: Check) -> None:
    assert len(modules(ROOT)) > 100
    assert check(ROOT) == []


def test_configurations_are_decoded_in_one_place() -> None:
    assert len(files.configurations_decoded(ROOT)) == 1


def test_a_small_house_in_order_breaks_no_rule(tmp_path: Path) -> None:
    build(tmp_path, ORDERLY)
    assert {check.__name__: check(tmp_path) for check in CHECKS} == {c.__name__: [] for c in CHECKS}


READS_MODEL = "def read():\n    from fwl_lab.models import model\n\n    return model\n"
IN_TYPES = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from fwl_lab.readers.base import Reader\n"
DECODES = "import json\n\n\ndef read(trace):\n    text = trace.attrs['readers']\n    return json.loads(text)\n"


@pytest.mark.parametrize(
    ("rule", "added", "found"),
    [
        ("wrong_direction", {"fwl_lab/trace/bad.py": READS_MODEL},
         "fwl_lab.trace.bad imports fwl_lab.models.model"),
        ("wrong_direction", {"fwl_lab/models/bad.py": IN_TYPES}, "fwl_lab.models.bad imports fwl_lab.readers.base"),
        ("wrong_direction", {"fwl_lab/ops/bad.py": "import fwl_lab.trace.schema\n"},
         "fwl_lab.ops.bad imports fwl_lab.trace.schema"),
        ("wrong_direction", {"fwl_lab/ops/bad.py": "from ..trace import schema\n"},
         "fwl_lab.ops.bad imports fwl_lab.trace.schema"),
        ("wrong_direction", {"fwl_lab/trace/bad.py": "from fwl_lab import Model\n"},
         "fwl_lab.trace.bad imports fwl_lab, whose names come from any room; name the module"),
        ("wrong_direction", {"fwl_lab/testing/bad.py": "import fwl_lab.audit.certify\n"},
         "fwl_lab.testing.bad imports fwl_lab.audit.certify"),
        ("wrong_direction", {"fwl_lab/readers/bad.py": "from importlib import import_module\n\n"
                                 "audit = import_module('fwl_lab.audit.certify')\n"},
         "fwl_lab.readers.bad imports fwl_lab.audit.certify"),
        ("wrong_direction", {"widgets/core/bad.py": "import widgets.views.pad\n"},
         "widgets.core.bad imports widgets.views.pad"),
        ("wrong_direction", {"widgets/theme.py": "import widgets.core\n"}, "widgets.theme imports widgets.core"),
        ("wrong_direction", {"fwl_lab/bad.py": ""}, "fwl_lab.bad lies in no room of the table"),
        ("wrong_direction", {"fwl_lab/utils/deep/bad.py": ""}, "fwl_lab.utils.deep.bad lies in no room of the table"),
        ("module_circles", {"fwl_lab/trace/schema.py": "def f():\n    from fwl_lab.trace import lookup\n"},
         "fwl_lab.trace.lookup - fwl_lab.trace.schema"),
        ("module_circles", {"fwl_lab/models/model.py": IN_TYPES}, "fwl_lab.models.model - fwl_lab.readers.base"),
        ("module_circles", {"fwl_lab/analysis/gains.py": "from fwl_lab.analysis import gain\n"},
         "fwl_lab.analysis - fwl_lab.analysis.gains"),
        ("module_circles", {"fwl_lab/ops/norms.py": "import fwl_lab.ops.a\n",
                            "fwl_lab/ops/a.py": "from . import b\n",
                            "fwl_lab/ops/b.py": "import fwl_lab.ops.norms\n"},
         "fwl_lab.ops.a - fwl_lab.ops.b - fwl_lab.ops.norms"),
        ("room_circles", {"fwl_lab/ops/bad.py": "import fwl_lab.models.other\n"}, "fwl_lab.models - fwl_lab.ops"),
        ("torch_named", {"fwl_lab/analysis/bad.py": "def f():\n    import torch.nn\n"},
         "fwl_lab.analysis.bad imports torch.nn"),
        ("torch_named", {"widgets/views/bad.py": "from safetensors import safe_open\n"},
         "widgets.views.bad imports safetensors"),
        ("torch_named", {"fwl_lab/audit/certificate.py": "import torch\n"}, "fwl_lab.audit.certificate imports torch"),
        ("torch_loaded", {"fwl_lab/analysis/bad.py": "import fwl_lab.ops.norms\n"}, "fwl_lab.analysis.bad loads torch"),
        ("torch_loaded", {"widgets/views/deep/bad.py": "import fwl_lab.models.model\n"},
         "widgets.views.deep.bad loads torch"),
        ("torch_loaded", {"widgets/core/bad.py": "1 / 0\n"},
         "widgets.core.bad cannot be imported: ZeroDivisionError('division by zero')"),
        ("drawing_in_library", {"fwl_lab/models/bad.py": "def f():\n    import plotly.express\n"},
         "fwl_lab.models.bad imports plotly.express"),
        ("drawing_in_library", {"fwl_lab/models/bad.py": "from widgets import theme\n"},
         "fwl_lab.models.bad imports widgets"),
        ("full_folders", {f"fwl_lab/ops/m{index}.py": "" for index in range(11)}, "fwl_lab/ops: 12 .py files"),
        ("full_folders", {f"widgets/core/js/m{index}.js": "" for index in range(11)}, "widgets/core/js: 12 .js files"),
        ("long_files", {"fwl_lab/ops/norms.py": "\n" * 331}, "fwl_lab/ops/norms.py: 331 lines"),
        ("long_files", {"widgets/core/js/common.js": "\n" * 400}, "widgets/core/js/common.js: 400 lines"),
        ("too_many_literals", {"widgets/views/bad.py": "a = ['fwl'] * 1\n" * 20}, "widgets/views/bad.py:20 'fwl'"),
        ("too_many_literals", {"widgets/core/js/common.js": "is(`fwl`);\n" * 20}, "widgets/core/js/common.js:7 `fwl`"),
        ("undescribed_folders", {"fwl_lab/ops/__init__.py": ""}, "fwl_lab/ops"),
        ("undescribed_folders", {"widgets/views/deep/view.py": ""}, "widgets/views/deep"),
        ("decoded_elsewhere", {"widgets/views/bad.py": DECODES}, "widgets/views/bad.py read"),
        ("decoded_elsewhere", {"widgets/core/bad.py": "from fwl_lab.trace.configurations import decode_configurations\n"
                               "found = decode_configurations('{}')\n"}, "widgets/core/bad.py at the top"),
        ("decoded_elsewhere", {"fwl_lab/trace/schema.py": DECODES}, "fwl_lab/trace/schema.py read"),
        ("decoded_elsewhere", {"widgets/views/bad.py": DECODES.replace("attrs['readers']", "attrs.get('readers')")},
         "widgets/views/bad.py read"),
        ("stale_names", {"widgets/theme.py": "# fwl_lab.trace.colours\n"}, "widgets/theme.py:1 fwl_lab.trace.colours"),
        ("stale_names", {"README.md": "`fwl_lab.scoring.score`"}, "README.md:1 fwl_lab.scoring.score"),
    ],
)  # fmt: skip
def test_a_module_in_the_wrong_place_is_found(tmp_path: Path, rule: str, added: dict[str, str], found: str) -> None:
    (check,) = (check for check in CHECKS if check.__name__ == rule)
    assert found in check(build(tmp_path, ORDERLY | added))


@pytest.mark.parametrize(
    "code",
    [
        "isinstance(reader, FastReader)",
        "isinstance(reader, (int, readers.FastReader))",
        "isinstance(reader, FastReader | StaticReader)",
        "issubclass(kind, FastReader)",
        "type(reader) is FastReader",
        "reader.__class__ == FastReader",
        "type(reader) in (FastReader, StaticReader)",
        "type(reader).__name__ == name",
        "facts['kind'] == 'FastReader'",
        "facts['kind'] in {'FastReader', 'other'}",
        "{FastReader: 1, StaticReader: 2}[type(reader)]",
        "{'FastReader': 1}.get(kind)",
    ],
)
def test_a_decision_by_kind_is_found_outside_the_readers_only(tmp_path: Path, code: str) -> None:
    where = {
        "fwl_lab/audit/bad.py": f"def f(reader):\n    return {code}\n",
        "fwl_lab/readers/good.py": f"good = {code}\n",
    }
    (found,) = files.decisions_by_kind(build(tmp_path, ORDERLY | where))
    assert found.startswith("fwl_lab/audit/bad.py:2 ")


def test_a_match_by_kind_is_found(tmp_path: Path) -> None:
    code = "match reader:\n    case FastReader():\n        pass\n"
    assert files.decisions_by_kind(build(tmp_path, ORDERLY | {"fwl_lab/audit/bad.py": code})) != []


def test_what_only_names_a_reader_is_no_decision(tmp_path: Path) -> None:
    code = "isinstance(reader, Reader)\nmade = FastReader(model)\nkinds = ['FastReader']\nchosen = name == 'fwl'\n"
    assert files.decisions_by_kind(build(tmp_path, ORDERLY | {"fwl_lab/audit/good.py": code})) == []


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """This project's own packages, in a folder of their own."""
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("assets"))
    return tmp_path


def test_one_module_in_the_wrong_room_of_this_house_is_found(copied: Path) -> None:
    elsewhere = (files.stale_names, imports.torch_loaded)
    kept = {check: set(check(ROOT)) for check in CHECKS if check not in elsewhere}
    build(copied, {"fwl_lab/trace/bad.py": "from fwl_lab.models.language_model import LanguageModel\n"})
    added = {check.__name__: set(check(copied)) - before for check, before in kept.items()}
    assert added.pop("wrong_direction") == {"fwl_lab.trace.bad imports fwl_lab.models.language_model"}
    assert not any(added.values())
    assert "fwl_lab.trace.bad loads torch" in imports.torch_loaded(copied)


def test_a_file_moved_out_of_its_room_is_found(copied: Path) -> None:
    (copied / "fwl_lab" / "readers" / "base.py").rename(copied / "fwl_lab" / "trace" / "base.py")
    against = [one for one in imports.wrong_direction(copied) if one.startswith("fwl_lab.trace.base imports")]
    assert "fwl_lab.trace.base imports fwl_lab.models.language_model" in against
    (copied / "fwl_lab" / "analysis" / "gains.py").rename(copied / "fwl_lab" / "gains.py")
    assert "fwl_lab.gains lies in no room of the table" in imports.wrong_direction(copied)
