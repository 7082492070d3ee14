"""What all tests share: no network, one thread, one seed."""

import gc
import os

# Before anything imports these libraries, which read their switches once; a test's own processes inherit them.
# One thread: the matrices are too small to share, and a sum's order then does not depend on the machine.
os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import random
import sys

import pytest
from hypothesis import settings

# No deadline: a slow machine is not a defect. The same examples each time: a failure in CI is one at home.
settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections of garbage: each reading that is measured makes one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed() -> int:
    """Seed the global generators before each test, so that its numbers do not depend on the tests before it.

    NumPy's is left out: the linter (NPY002) asks for a generator of one's own.
    """
    value = 0
    random.seed(value)
    # Only where it is loaded: the tests of what must work without torch stay without it.
    if torch := sys.modules.get("torch"):
        torch.manual_seed(value)
    return value
