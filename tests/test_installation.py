"""What pyproject.toml, constraints.txt and the README say about installing is the same."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_uv_and_pip_take_the_same_versions() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert PROJECT["tool"]["uv"]["constraint-dependencies"] == pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+(; python_version (<|>=) '3\.\d+')?", p) for p in pins)


def test_the_versions_of_python_are_those_that_the_metadata_lists() -> None:
    project = PROJECT["project"]
    minors = [
        int(found[1])
        for classifier in project["classifiers"]
        if (found := re.fullmatch(r"Programming Language :: Python :: 3\.(\d+)", classifier))
    ]
    assert minors == list(range(minors[0], minors[-1] + 1))
    assert project["requires-python"] == f">=3.{minors[0]},<3.{minors[-1] + 1}"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"Python 3.{minors[0]} to 3.{minors[-1]}" in readme


@pytest.mark.slow
def test_a_missing_libgl_is_one_line_with_the_fix(tmp_path: Path) -> None:
    """What Linux says of the build of OpenCV with windows, on a server without libGL."""
    reason = "libGL.so.1: cannot open shared object file: No such file or directory"
    (tmp_path / "cv2.py").write_text(f"raise ImportError({reason!r})")
    command = ["policies", "preview", "mild", "--data", "digits", "--out", "sheet.png"]
    done = subprocess.run(
        [sys.executable, "-m", "featurecache", *command],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode in (1, 2)
    assert done.stderr.count("\n") == 1 and "needs libGL" in done.stderr
    build = f"opencv-python-headless=={importlib.metadata.version('opencv-python-headless')}"
    assert f"{sys.executable} -m pip install --force-reinstall --no-deps {build}" in done.stderr
