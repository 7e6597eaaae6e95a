"""Images that change while the work runs: each is reported, and no other row notices."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.reliability.bad_images import FEATURIZE
from benchmarks.reliability.harness import Process, Tally, Writer, write_images
from benchmarks.reliability.image_bytes import encoded, noise
from featurecache.errors import FeatureCacheError
from featurecache.features.store import Cache

IMAGES, SHARD_ROWS, TARGETS = 96, 8, 12
CHANGES = ("edited", "replaced", "appended", "same size and time", "linked", "deleted")


def changing_sources(writer: Writer, size: int, folder: Path) -> Tally:
    """An image changes while its rows are made, when some shards are there already; then again.

    Rows of every content that there is are known from undisturbed runs. A row of a cache is wrong
    if it is not the one that its item has there.
    """
    rng = np.random.default_rng(4)
    data = write_images(folder / "data", IMAGES)
    paths = sorted(data.rglob("*.png"))
    new = _replacements(rng, sorted({len(path.read_bytes()) for path in paths}))
    targets = [paths[int(place)] for place in rng.permutation(IMAGES)[:TARGETS]]
    every = folder / "every"
    shutil.copytree(data, every)
    known = [*new.values(), *(path.read_bytes() + b"appended" for path in targets)]
    for number, content in enumerate(known):
        (every / "train" / "cat" / f"known {number}.png").write_bytes(content)
    commands = ("featurize", "augment") if writer.name == "ours" else ("featurize",)
    expected = {}
    for command in commands:
        process = Process(writer, _words(command, every, folder / command), folder / "said")
        if process.wait(120) != 0:
            raise RuntimeError(f"undisturbed, {command} failed: {process.text()}")
        expected[command] = _rows(writer, command, folder / command)
    bad: list[str] = []
    noticed = wrong_rows = 0
    for trial in range(size):
        command = commands[trial % len(commands)]
        change = CHANGES[trial // len(commands) % len(CHANGES)]
        target = targets[int(rng.integers(TARGETS))]
        cache = folder / f"cache {trial}"
        before = target.read_bytes()
        wanted = len(before) if change == "same size and time" else None
        content = new[wanted] if wanted in new else next(iter(new.values()))
        process = Process(writer, _words(command, data, cache), folder / "said")
        # A shard or more is there: the plan was made, and other shards are still to come.
        late = paths.index(target) // SHARD_ROWS
        _wait_for(process, cache, int(rng.integers(1, max(late, 2))))
        _change(change, target, content, folder / "elsewhere.png")
        code, text = process.wait(60), process.text()
        listed, head = (3, "failed: ") if writer.name == "ours" else (1, "featurecache: ")
        said = [line for line in text.splitlines() if line.startswith(head)]
        wrong = []
        noticed += code == listed
        name = target.relative_to(data).as_posix()
        if code == listed and not (
            len(said) == 1 and f" {name}: " in said[0] and "Trace" not in text
        ):
            wrong.append(f"not said clearly: {text[-300:]}")
        if code not in (0, listed):
            wrong.append(f"exit code {code}: {text[-300:]}")
        if code is None:
            process.signal(signal.SIGKILL)
            process.wait()
        wrong += _wrong_rows(writer, command, cache, expected[command])
        again = Process(writer, _words(command, data, cache), folder / "said")
        if (code := again.wait(60)) != 0:
            wrong.append(f"again, exit code {code}: {again.text()[-300:]}")
        after = _wrong_rows(writer, command, cache, expected[command])
        wrong_rows += len(after)
        wrong += [f"again, {line}" for line in after]
        target.unlink(missing_ok=True)
        target.write_bytes(before)
        shutil.rmtree(cache, ignore_errors=True)
        if wrong:
            bad.append(f"{command}, {name} {change}: {'; '.join(wrong)}")
    said_of = (
        f"{size} changes while {' and '.join(commands)} ran, {noticed} of them in time to be "
        f"noticed and said: {wrong_rows} wrong rows, {len(bad) - wrong_rows} unclear ends"
    )
    return Tally(size, len(bad), said_of, tuple(bad[:5]))


def _words(command: str, data: Path, cache: Path) -> list[object]:
    words: list[object] = [command, "--data", data, "--cache", cache, "--shard-rows", SHARD_ROWS]
    if command == "augment":
        return [*words, "--policy", "color_1", "--workers", 0, "--quiet"]
    return [*words, *FEATURIZE]


def _replacements(rng: np.random.Generator, lengths: Sequence[int]) -> dict[int, bytes]:
    """Other pictures, by their length: one of each of these, where noise of 12x12 can have it."""
    found: dict[int, bytes] = {}
    for _ in range(2000):
        made = encoded(noise(rng, 12, 12, 3), "PNG")
        if len(made) in lengths:
            found.setdefault(len(made), made)
        if len(found) == len(lengths):
            break
    return found


def _wait_for(process: Process, cache: Path, shards: int) -> None:
    """Until that many data files are there, or the process has ended."""
    deadline = time.monotonic() + 60
    while len(list(cache.rglob("*.h5"))) < shards and time.monotonic() < deadline:
        if process.wait(0) is not None:
            return


def _change(change: str, path: Path, content: bytes, elsewhere: Path) -> None:
    before = path.stat()
    if change == "deleted":
        path.unlink()
    elif change == "linked":
        elsewhere.write_bytes(content)
        path.unlink()
        path.symlink_to(elsewhere)
    elif change == "appended":
        with path.open("ab") as file:
            file.write(b"appended")
    elif change == "replaced":
        fresh = path.with_name(".fresh")
        fresh.write_bytes(content)
        fresh.replace(path)
    else:  # edited, in two steps; or the same size and time
        with path.open("r+b") as file:
            file.write(content[:100])
            file.flush()
            file.write(content[100:])
            file.truncate()
        if change == "same size and time":
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _rows(writer: Writer, command: str, cache: Path) -> dict[bytes, bytes]:
    if command == "featurize":
        return writer.rows(cache) if cache.exists() else {}
    spaces = Cache(cache).spaces()
    return {item: space.picture(item) or b"" for space in spaces for item in space.rows}


def _wrong_rows(
    writer: Writer, command: str, cache: Path, expected: dict[bytes, bytes]
) -> list[str]:
    try:
        rows = _rows(writer, command, cache)
    except (FeatureCacheError, OSError) as error:
        return [f"a reader says: {error}"]
    wrong = sum(expected.get(item) != row for item, row in rows.items())
    return [f"{wrong} of {len(rows)} rows are wrong"] if wrong else []
