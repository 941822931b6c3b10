"""Shared fixtures: one thread, no hub, and the folder of real data where there is one."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "BALLAST_CACHE" not in os.environ:
    os.environ["BALLAST_CACHE"] = tempfile.mkdtemp(prefix="ballast-cache-")
    atexit.register(shutil.rmtree, os.environ["BALLAST_CACHE"], ignore_errors=True)
os.environ.setdefault("CUDA_VISIBLE_DEVICES", os.environ.get("BALLAST_TEST_CUDA", ""))


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with ``data/`` and ``models/`` named by BALLAST_REAL_DATA; skips where there is none."""
    folder = os.environ.get("BALLAST_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("BALLAST_REAL_DATA names no folder of real data sets and models")
    return Path(folder)
