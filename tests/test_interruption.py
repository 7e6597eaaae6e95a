"""A command that a signal stops: its exit code, its last line, and what it keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from featurecache.stages.cache.verify import verify

INTERRUPTED = "interrupted; committed work is kept. Rerun the command to resume.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "workers"), [(signal.SIGINT, 130, 1), (signal.SIGTERM, 143, 1)]
)
def test_stopped_it_keeps_what_was_committed(
    tmp_path: Path, number: signal.Signals, code: int, workers: int
) -> None:
    # Enough to do that it can't be finished in the time; the numbers as pictures are cheap.
    rng = np.random.default_rng(0)
    for n in range(300):
        path = tmp_path / f"images/{n % 2}/{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    words = [
        sys.executable,
        "-m",
        "featurecache",
        "featurize",
        "--backbone",
        "efficientnet_lite0",
        "--input-size",
        "32",
        "--engine",
        "torch-cpu",
    ]
    words += ["--data", "images", "--cache", "c", "--workers", str(workers), "--shard-rows", "1"]
    with subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as running:  # fmt: skip
        until = time.monotonic() + 60
        # The records, beside space.json: three shards are committed.
        while len(list(tmp_path.glob("c/spaces/*/*.json"))) < 4 and time.monotonic() < until:
            time.sleep(0.02)
        if number == signal.SIGINT:
            os.killpg(running.pid, number)  # as a terminal does: to the workers too
        else:
            running.send_signal(number)
        out, err = running.communicate(timeout=60)
    assert running.returncode == code
    assert out == "" and "Traceback" not in err
    if number == signal.SIGINT:
        assert INTERRUPTED in err
    found = verify(tmp_path / "c")
    assert found.bad == [] and 3 <= found.rows < 300


@pytest.mark.parametrize(
    ("number", "code", "message"), [("SIGTERM", 143, ""), ("SIGINT", 130, INTERRUPTED)]
)
def test_a_signal_in_a_finaliser_ends_the_command_too(number: str, code: int, message: str) -> None:
    """What is raised there is printed and forgotten by Python; imports have such places."""
    program = (
        "import os, signal, time\n"
        "from featurecache import cli\n"
        f"signal.signal(signal.{number}, cli._stop)\n"
        "class Finalised:\n"
        f"    def __del__(self): os.kill(os.getpid(), signal.{number})\n"
        "Finalised()\n"
        "time.sleep(30)\n"
    )
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (code, message)
    assert time.monotonic() - began < 20


def test_a_signal_while_the_program_is_imported_is_reported_too(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("from signal import *\nraise_signal(SIGINT)\n")
    ended = subprocess.run(
        [sys.executable, "-m", "featurecache", "--help"], capture_output=True, text=True,
        timeout=60, env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", INTERRUPTED)


@pytest.mark.parametrize("second", ["raise_signal(SIGINT)", "alarm(0); raise_signal(SIGALRM)"])
def test_a_cleanup_that_is_cut_short_says_that_work_is_kept(second: str) -> None:
    program = (
        "import sys\n"
        "from signal import *\n"
        "from featurecache import cli\n"
        "def command(**_):\n"
        "    try: raise_signal(SIGINT)\n"
        f"    finally: {second}\n"
        "sys.argv = ['featurecache', 'ls', '--quiet']\n"
        "cli.cli.main = command\n"
        "cli.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (130, INTERRUPTED)


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("sys.exit(3)", 3),
        ("sys.exit()", 0),
        ("sys.exit('bad')", 1),
        ("1 / 0", 1),
        ("raise KeyboardInterrupt", 130),
    ],
)
def test_the_program_ends_without_freeing_its_objects(end: str, code: int) -> None:
    program = (
        "import atexit, sys\n"
        "from featurecache import __main__, cli\n"
        "class Object:\n"
        "    def __del__(self): print('freed')\n"
        "def command():\n"
        "    global kept\n"
        "    kept = Object()\n"
        "    atexit.register(print, 'at exit', end='')\n"
        f"    {end}\n"
        "cli.main = command\n"
        "__main__.main()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stdout) == (code, "at exit")
    assert ended.stderr.endswith({"sys.exit('bad')": "bad\n", "1 / 0": "by zero\n"}.get(end, ""))
