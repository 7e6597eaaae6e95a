"""Whether there is a CUDA device, without torch where there is none."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from featurecache.features import accelerators
from featurecache.features.accelerators import has_cuda

CODE = (
    "import sys; from featurecache.features.accelerators import has_cuda; "
    "print(has_cuda(), 'torch' in sys.modules)"
)


def test_it_says_what_torch_says() -> None:
    assert has_cuda() == torch.cuda.is_available()
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    said, imported = out.stdout.split()
    assert said == str(torch.cuda.is_available())
    if sys.platform == "linux" and not accelerators._has_driver():
        assert imported == "False"


def test_a_driver_is_asked_through_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert has_cuda()  # torch is imported here, so it is asked whatever the driver


def test_other_builds_of_torch_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "_is_built_for_hip", lambda: True)
    accelerators._has_driver.cache_clear()
    assert accelerators._has_driver()
    accelerators._has_driver.cache_clear()


def test_this_build_of_torch() -> None:
    assert accelerators._is_built_for_hip() == (torch.version.hip is not None)
