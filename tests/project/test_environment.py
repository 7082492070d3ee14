"""pyproject.toml (ranges), requirements.lock (pins), environment.yml (conda) and the Makefile say the same thing."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
LOCK = ROOT / "requirements.lock"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONDA = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
DIRECT = [
    Requirement(line)
    for line in (
        *PROJECT["project"]["dependencies"],
        *PROJECT["project"]["optional-dependencies"]["dev"],
        *PROJECT["build-system"]["requires"],
    )
]
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {"linux": ("posix", "Linux"), "darwin": ("posix", "Darwin"), "win32": ("nt", "Windows")}


def lock_lines() -> list[str]:
    lines = (line.strip() for line in LOCK.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def pins(environment: dict[str, str] | None = None) -> dict[str, Version]:
    """Return the version of each package that the lock installs in `environment`; None: in any."""
    return {
        canonicalize_name(r.name): Version(next(iter(r.specifier)).version)
        for r in map(Requirement, lock_lines())
        if environment is None or r.marker is None or r.marker.evaluate(environment)
    }


def describe_environment(python: str, platform: str) -> dict[str, str]:
    """Return the marker variables of that Python on that platform, the machine's own for the rest."""
    os_name, platform_system = PLATFORMS[platform]
    return {key: str(value) for key, value in default_environment().items()} | {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": platform,
        "os_name": os_name,
        "platform_system": platform_system,
    }


def is_gpu_library(name: str) -> bool:
    """Whether torch's own metadata pins this package, on the machines that have a GPU build of torch."""
    return name.startswith(("nvidia-", "cuda-")) or name == "triton"


def test_lock_holds_only_plain_pins() -> None:
    """One exact public version a line: no index, file, link, local build (`+cpu`) or option."""
    pin = re.compile(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*( ; [^+/]+)?")
    lines = lock_lines()
    assert [line for line in lines if not pin.fullmatch(line)] == []
    names = [canonicalize_name(Requirement(line).name) for line in lines]
    assert names == sorted(set(names))
    # Pinned here they would be forced on machines without a GPU.
    assert [name for name in names if is_gpu_library(name)] == []


@pytest.mark.parametrize("requirement", DIRECT, ids=lambda r: r.name)
def test_pin_satisfies_range(requirement: Requirement) -> None:
    pinned = pins()
    assert canonicalize_name(requirement.name) in pinned, f"add {requirement.name} to {LOCK.name}"
    version = pinned[canonicalize_name(requirement.name)]
    assert version in requirement.specifier, f"{LOCK.name} has {version}, {requirement} is asked for"


def test_torch_pin() -> None:
    assert pins()["torch"] == Version("2.13.0")


def needed(name: str, extra: str, described: dict[str, str]) -> Iterator[Requirement]:
    """Yield what the installed package `name` asks for under `extra` in the described environment."""
    for line in importlib.metadata.requires(name) or []:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(described | {"extra": extra}):
            yield requirement


@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_lock_is_closed(python: str, platform: str) -> None:
    """Everything the dependencies ask for, and what that asks for, is in the lock at a version that satisfies it."""
    described = describe_environment(python, platform)
    pinned = pins(described)
    waiting = [(canonicalize_name(r.name), extra) for r in DIRECT for extra in ("", *r.extras)]
    seen: set[tuple[str, str]] = set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        assert name in pinned, f"{name} is needed on {platform} with Python {python}, but not in {LOCK.name}"
        try:
            requirements = list(needed(name, extra, described))
        except importlib.metadata.PackageNotFoundError:
            # Of another platform or Python than this one: what it needs in turn is not known here.
            continue
        for requirement in requirements:
            child = canonicalize_name(requirement.name)
            if is_gpu_library(child):
                continue
            if child in pinned:
                assert requirement.specifier.contains(pinned[child], prereleases=True), f"{name} needs {requirement}"
            waiting += [(child, wanted) for wanted in ("", *requirement.extras)]


@pytest.mark.parametrize("python", PYTHONS)
def test_locked_versions_serve_first_patch_release(python: str) -> None:
    """No pin asks for a later patch release (3.11.5, say) than a distribution may have."""
    refused = []
    for name in pins():
        try:
            wanted = importlib.metadata.metadata(name).json.get("requires_python", "")
        except importlib.metadata.PackageNotFoundError:
            continue
        if not SpecifierSet(str(wanted)).contains(f"{python}.0"):
            refused.append((name, wanted))
    assert refused == []


def test_conda_environment_uses_same_python_and_lock() -> None:
    (python,) = (entry for entry in CONDA["dependencies"] if isinstance(entry, str) and entry.startswith("python="))
    version = python.removeprefix("python=")
    assert Version(version) in SpecifierSet(PROJECT["project"]["requires-python"])
    assert version in PYTHONS
    (pip,) = (entry["pip"] for entry in CONDA["dependencies"] if isinstance(entry, dict))
    assert pip == [f"-r {LOCK.name}", "-e ."]
    assert CONDA["name"] == PROJECT["project"]["name"]


def test_makefile_uses_same_python_and_lock() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.findall(r"^LOCK\s*:?=\s*(\S+)$", makefile, flags=re.MULTILINE) == [LOCK.name]
    assert "--requirement $(LOCK)" in makefile
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"({oldest.replace('.', ', ')})" in makefile
    assert PYTHONS[0] == oldest


def test_notebooks_run_in_this_environment(tmp_path: Path) -> None:
    """With an empty home, the kernel called python3 is the interpreter that runs these tests."""
    start = (
        "import json; from jupyter_client import KernelManager; m = KernelManager(kernel_name='python3');"
        "print(json.dumps(m.format_kernel_cmd()))"
    )
    kept = {key: value for key, value in os.environ.items() if key not in {"JUPYTER_PATH", "JUPYTER_DATA_DIR"}}
    done = subprocess.run(
        [sys.executable, "-c", start],
        env=kept | {"HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    command = json.loads(done.stdout)
    assert Path(command[0]) == Path(sys.executable)
    assert "ipykernel_launcher" in command
