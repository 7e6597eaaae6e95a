"""What strangers named can be shown: it neither breaks lines nor drives the terminal."""

import contextlib
import json
import os
import re
import shlex
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from featurecache.commands import terminal
from featurecache.commands.progress import open_progress

HOSTILE = (
    "[red]x[/] [/] \x1b[31m\x1b]8;;http://a\x07 a\r\nb \u202egpj.exe\u2066 \udcff \x9b31m\u2028"
)


def test_hostile_names_are_shown_escaped(capsys):
    row = {"class": HOSTILE, "n": 1}
    terminal.table([row], title=HOSTILE)
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert out.count(r"[red]x[/] [/] \x1b[31m\x1b]8;;http://a\x07 a\r\nb \u202egpj.exe") == 2
    assert "\\udcff" in out and "\\x9b31m" in out


@pytest.mark.parametrize("text", ["café 猫 ネコ", "न\u200dक्ष", "👩\u200d🔬", r"a\b [x]", ""])
def test_names_that_people_write_stay(text):
    assert terminal.printable(text) == text


# ---- real terminals, pipes and code pages ----

SHOW = """
import time
from featurecache.commands import terminal
from featurecache.commands.progress import open_progress

show = open_progress({quiet})
for done in range(0, 5001, 500):
    show(done, 5000, "featurize (12,345 hits; bound by augment)")
    time.sleep(0.02)
terminal.table([{{"view": "spatial_2", "class": "na\\u00efve \\u732b", "rows": 5000}}], "a title")
"""
NARROW = 40


def on_terminal(code: str, columns: int, **environment: str) -> str:
    """What a terminal of this many columns is sent."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    told = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=told | {"TERM": "xterm-256color", "PYTHONIOENCODING": "utf-8"} | environment,
    )
    os.close(theirs)
    sent = b""
    with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as file:  # noqa: PTH123
        while piece := file.read(1 << 16):  # Linux ends it with an error
            sent += piece
    assert process.wait(60) == 0, sent
    return sent.decode("utf-8", "replace")


def frames(sent: str) -> list[str]:
    """The lines that were shown one after another, without what moves and colours."""
    return [
        re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", part) for part in re.split(r"[\r\n]+", sent) if part
    ]


def test_a_bar_has_rate_time_left_hits_and_the_bound():
    shown = frames(on_terminal(SHOW.format(quiet=False), 120))
    (last, *_) = [line for line in shown if "5000/5000" in line]
    assert "featurize (12,345 hits; bound by augment)" in last
    assert re.search(r"5000/5000 [\d,.]+/s \d:\d\d:\d\d", last)


def test_a_narrow_terminal_keeps_the_numbers():
    shown = frames(on_terminal(SHOW.format(quiet=False), NARROW))
    assert all(len(line) <= NARROW for line in shown)
    (last, *_) = [line for line in shown if "5000/5000" in line]
    assert last.startswith("featurize") and re.search(r"/s \d:\d\d:\d\d", last)
    assert any("spatial_2" in line for line in shown)


@pytest.mark.slow
@pytest.mark.parametrize("columns", [NARROW, 80])
def test_without_colour(columns):
    sent = on_terminal(SHOW.format(quiet=False), columns, NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", sent)  # bold may stay
    assert "5000/5000" in sent


def test_a_dumb_terminal_gets_lines():
    sent = on_terminal(SHOW.format(quiet=False), 80, TERM="dumb")
    assert "\x1b" not in sent
    assert "featurize (12,345 hits; bound by augment): 5,000 of 5,000" in sent


def test_quiet_shows_the_table_alone():
    sent = on_terminal(SHOW.format(quiet=True), 80)
    assert "featurize" not in sent and "spatial_2" in sent


def piped(code: str, encoding: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding=encoding,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        timeout=60,
        check=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "cp437", "ascii", "utf-8"])
def test_code_pages(encoding):
    """A table in a Windows code page: of plain lines where it has no others, its columns true."""
    ended = piped(SHOW.format(quiet=False), encoding)
    said = "featurize (12,345 hits; bound by augment): 5,000 of 5,000"
    assert ended.stderr.splitlines()[-1].startswith(said)
    lines = [line for line in ended.stdout.splitlines() if line[0] in "|+│┃┏┡└"]
    assert len(lines) == 5
    name = "naïve 猫".encode(encoding, "backslashreplace").decode(encoding)
    assert name in lines[3]
    narrower = 1 if encoding == "utf-8" else 0  # a Chinese character takes two columns
    assert {len(line) for line in lines} == {len(lines[0]), len(lines[0]) - narrower}
    assert encoding == "utf-8" or ended.stdout.count("|") == 2 * 4 + 2


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ["cp1252", "cp437"])
def test_the_program_on_a_code_page(tmp_path, encoding):
    folder = tmp_path / "train" / "猫 naïve"
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    words = [sys.executable, "-m", "featurecache", "inspect", "--data", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    plain, as_json = (
        subprocess.run(
            [*words, *more], capture_output=True, env=environment, timeout=60, check=True
        ).stdout.decode(encoding)
        for more in ([], ["--json"])
    )
    assert r"\u732b naïve" in plain and "unreadable files: 0" in plain
    assert "猫 naïve" in json.loads(as_json)["splits"]["train"]["counts"]
    refused = subprocess.run(
        [*words[:-1], "nowhere-猫"], capture_output=True, env=environment, timeout=60, check=False
    )
    assert refused.returncode == 2
    assert rb"nowhere-\u732b: no such file" in refused.stderr


WAIT = """
import sys, time
from featurecache.commands import terminal
from featurecache.commands.progress import open_progress

terminal.prepare_streams()
terminal.start_spinner()
time.sleep(0.6)
print("a note", file=sys.stderr)
time.sleep(0.6)
show = open_progress(False)
show(0, 2, "loading")
time.sleep(0.6)
show(2, 2, "loading")
print("the result", flush=True)
time.sleep(0.6)
"""


@pytest.mark.slow
def test_a_silent_terminal_has_a_spinner_until_the_result() -> None:
    sent = on_terminal(WAIT, 80)
    before, _, after = sent.partition("the result")
    first, _, second = before.partition("a note")
    second, _, bar = second.partition("loading")
    for part in (first, second):
        assert re.search(r"[|/\\-] working, \d s", part) and part.count("\x1b[K") >= 2
    assert first.endswith("\r\x1b[K") and "working" not in bar + after


def test_a_line_says_how_fast_it_goes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr("featurecache.commands.progress.time.monotonic", lambda: clock[0])
    monkeypatch.setattr("featurecache.commands.progress.can_redraw", lambda: False)
    show = open_progress(False)
    for clock[0], done, total, what in (
        (0.0, 0, 4, "training"), (40.0, 1, 4, "training"), (80.0, 2, 4, "training"),
        (84.0, 4, 4, "training"), (84.0, 0, 1200, "featurize"), (94.0, 1000, 1200, "featurize"),
    ):  # fmt: skip
        show(done, total, what)
    assert capsys.readouterr().err.splitlines() == [
        "training: 1 of 4, 40 s each, 120 s left", "training: 2 of 4, 40 s each, 80 s left",
        "training: 4 of 4, 21 s each", "featurize: 1,000 of 1,200, 100.0/s, 2 s left",
    ]  # fmt: skip


TABLES = """
from featurecache.commands import terminal

row = {"split": "held-out", "view": "none + spatial_1", "n": 12345, "top1": 0.71604}
row |= {"gap": -0.025, "interval": "0.7041-0.7282", "loss": 1.2345, "ece": 0.05432}
row |= {"path": "photos/" + 9 * "name-"}
terminal.table([row], "one row")
terminal.table([row | {"top1": None}, row | {"n": 1234567890}, row], "several")
"""


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 60, 80, 120])
@pytest.mark.parametrize("kind", ["xterm-256color", "dumb"])
def test_no_number_is_broken_on_a_narrow_terminal(columns, kind):
    """Columns that find no room go into a table below, a single row into a list."""
    lines = on_terminal(TABLES, columns, TERM=kind).replace("\r", "").split("\n")
    lines = [re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", line) for line in lines]
    assert all(len(line) <= columns for line in lines)
    cells = [cell.strip() for line in lines for cell in re.split("[│┃]", line)]
    whole = {"12,345", "0.7160", "-0.0250", "0.7041-0.7282", "1.2345", "0.0543", "1,234,567,890"}
    assert whole <= set(cells) and "none + spatial_1" in cells
    assert cells.count("0.7160") == 3


NAMES = """
from featurecache.commands import terminal

name = "runs/quickstart_clean-82b13949"
views = "spatial_1 + color_1 + none"
row = {"run": name, "top1": 0.5, "views": views, "backbone": "efficientnet_b3_ap", "rows": 1797}
terminal.table([row, row])
"""


@pytest.mark.parametrize("columns", [60, 80])
def test_the_name_of_a_row_is_not_broken(columns: int) -> None:
    lines = on_terminal(NAMES, columns).split("\n")
    assert all("runs/quickstart_clean-82b13949" in line for line in lines if "runs/" in line)
    assert sum("runs/" in line for line in lines) % 2 == 0
    assert sum("efficientnet_b3_ap" in line for line in lines) == 2


# ---- outputs that are closed, full, or read by nobody ----

OUTPUTS = [
    (">&-", 0),
    (">/dev/full", 1),
    ("2>&-", 0),
    ("| true", 0),
    ("<&- >&- 2>&-", 0),
    ("2>/dev/full", 0),
    (">/dev/full 2>/dev/full", 1),
    (">/dev/full 2>&-", 1),
    ("2>&1 | head -1", 0),
]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("output", "code"),
    [*OUTPUTS[:2], *(pytest.param(*each, marks=pytest.mark.slow) for each in OUTPUTS[2:])],
)
def test_an_output_that_can_not_be_written_is_no_traceback(output: str, code: int) -> None:
    command = f"{shlex.quote(sys.executable)} -m featurecache policies {output}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=120)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr
    lost = output == ">/dev/full"
    assert ("can't write the output (No space" in done.stderr) == lost
    assert len(done.stderr.splitlines()) == lost
