"""Gc: delete spaces that nobody needs. Shows first, deletes when told to, and spares runs."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict, Unpack

from featurecache import byte_sizes
from featurecache.errors import BadInput, DamagedRun, nearest
from featurecache.executors import Progress, silent
from featurecache.features.backbones import ALIASES
from featurecache.features.orphans import abandoned, of_run, sweep
from featurecache.features.settings import check_keywords
from featurecache.features.space_files import MARKER
from featurecache.features.space_locks import is_in_use, locked_for_deletion
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.view_names import ViewName
from featurecache.json_files import damaged_run
from featurecache.runs.record import read_record
from featurecache.storage import durable
from featurecache.storage.local import LocalStore
from featurecache.text import listed

_SPANS = {"h": 1, "d": 24, "w": 24 * 7}  # in hours


@dataclass(frozen=True)
class Candidate:
    """A space that the criteria fit, or what a killed command left. `kept` says why it stays
    nevertheless; `runs` stand on it."""

    space: str  # "" for what is none, or no longer a whole one
    view: str
    backbone: str | None
    rows: int
    bytes: int
    last: str  # when its newest shard was made, ISO 8601, UTC
    runs: list[str]
    kept: str
    deleted: bool
    leftover: str = ""  # the path of what a killed command left


class Criteria(TypedDict, total=False):
    """Which spaces are meant: those that match every criterion given."""

    policy: str | Sequence[str]  # views, policies for all of their draws, or `none`
    backbone: str | Sequence[str]  # names of networks, or `pictures`
    older_than: str | None  # `30d`, `12h`, `2w`; by the newest shard
    max_size: str | None  # `20G`: the oldest, until the cache is no larger


def gc(
    cache: str | Path = "data/cache",
    *,
    runs: str | Path = "runs",
    delete: bool = False,
    force: bool = False,
    progress: Progress = silent,
    **criteria: Unpack[Criteria],
) -> list[Candidate]:
    """The spaces of the cache that fit every criterion given, and what killed commands left in the
    cache and in the runs; with `delete` they are deleted.

    `policy` is a view (`spatial_2`), a policy for all of its draws, or `none`; `backbone` a
    network's name, or `pictures`. `older_than` (`30d`, `12h`, `2w`) goes by the newest shard.
    `max_size` (`20G`) takes the oldest of the spaces that fit until the cache is no larger.
    What a run in `runs` or a run noted in the cache was trained on is spared without `force`; what
    a process is filling is always spared. A deletion that was interrupted is finished. Names that
    no space has are no error (`absent_names` has them). Raises BadInput without any criterion.
    """
    check_keywords(criteria, Criteria, "gc")
    opened = Cache(cache)
    if not opened.exists:
        raise BadInput(f"no cache at {cache}")
    policies, backbones = listed(criteria.get("policy", ())), listed(criteria.get("backbone", ()))
    older_than, max_size = criteria.get("older_than"), criteria.get("max_size")
    if not (policies or backbones or older_than or max_size):
        raise BadInput("gc needs --view, --backbone, --older-than or --max-size")
    before = _moment(older_than) if older_than else None
    spaces = sorted(opened.spaces(), key=lambda space: (_last(space), space.name))
    used = opened.runs()
    for name, folders in _runs_in(Path(runs)).items():
        used.setdefault(name, []).extend(folders)

    chosen = [
        space
        for space in spaces
        if (not policies or {space.view, _policy(space)} & set(policies))
        and (not backbones or _networks(space) & set(backbones))
        and (before is None or _last(space) < before)
    ]
    surplus = (
        sum(s.size for s in spaces) - byte_sizes.parse_size(max_size, "--max-size")
        if max_size
        else None
    )
    found = []
    for number, space in enumerate(chosen, 1):
        if surplus is not None and surplus <= 0:
            break
        progress(number, len(chosen), "gc")
        stands = sorted({str(run) for run in used.get(space.name, [])})
        kept = ""
        if stands and not force:
            kept = f"used by {len(stands)} run{'s' * (len(stands) > 1)}; --force deletes it anyway"
        elif is_in_use(space):
            kept = "a process is filling it"
        # A living process may have begun to fill it only now.
        deleted = delete and not kept and _delete(space)
        if delete and not kept and not deleted:
            kept = "a process is writing to it, or its disk has no locks"
        if not kept and surplus is not None:
            surplus -= space.size
        found.append(
            Candidate(
                space.name, space.view, space.backbone, len(space.rows), space.size,
                _last(space), stands, kept, deleted,
            )
        )  # fmt: skip
    return found + _leftovers(opened, Path(runs), delete)


def absent_names(
    cache: str | Path, policy: str | Sequence[str] = (), backbone: str | Sequence[str] = ()
) -> list[str]:
    """What to say of each of these names that no space of the cache goes by."""
    spaces = Cache(cache).spaces()
    views = {name for space in spaces for name in (space.view, _policy(space))}
    networks = {name for space in spaces for name in _networks(space)}
    given = [("policy", name, views) for name in listed(policy)]
    given += [("backbone", name, networks) for name in listed(backbone)]
    return [
        f"the cache holds no space of {kind} {name!r}; {nearest(name, known)}"
        for kind, name, known in given
        if name not in known
    ]


def _delete(space: Space) -> bool:
    """Take a space away from every reader in one step, then delete its files. What a kill leaves
    of it is a leftover, which the next gc deletes."""
    with locked_for_deletion(space) as undisturbed:
        if undisturbed:
            space.store.delete_folder(space.folder)
    return undisturbed


def _leftovers(cache: Cache, runs: Path, delete: bool) -> list[Candidate]:
    """What killed commands left in a cache, beside it and in the runs; with `delete` that is gone
    now."""
    if cache.store.local_folder is None:
        return []
    store = LocalStore(cache.store.local_folder)
    folders = [runs, *sorted(runs.iterdir())] if runs.is_dir() else []
    temporary = [path for folder in folders if folder.is_dir() for path in of_run(folder)]
    temporary = [path for path in temporary if durable.is_abandoned(path)]
    found = [_leftover(path) for path in [*abandoned(cache), *store.unfinished(), *temporary]]
    if not delete:
        return found
    gone = {path for path in temporary if durable.remove_abandoned(path)}
    gone |= {*sweep(cache), *store.remove_unfinished(MARKER)}
    return [replace(one, deleted=True) for one in found if Path(one.leftover) in gone]


def _leftover(path: Path) -> Candidate:
    inside = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    size = sum(file.lstat().st_size for file in inside)
    moment = datetime.datetime.fromtimestamp(path.lstat().st_mtime, datetime.UTC)
    made = moment.isoformat(timespec="seconds")
    return Candidate("", "", None, 0, size, made, [], "", False, str(path))


def _policy(space: Space) -> str:
    return ViewName.parse(space.view).policy


def _networks(space: Space) -> set[str]:
    """The names that a space's network goes by."""
    if space.backbone is None:
        return {"pictures"}
    model = str(space.key["backbone"]["name"])
    return {space.backbone, model} | {a for a, known in ALIASES.items() if known == model}


def _last(space: Space) -> str:
    return max((record.made.time for record in space.records), default="")


def _moment(span: str) -> str:
    match = re.fullmatch(r"(\d{1,4})([hdw])", span)
    if match is None:
        raise BadInput(f"--older-than {span!r}: expected a span such as 12h, 30d or 2w")
    hours = int(match[1]) * _SPANS[match[2]]
    moment = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=hours)
    return moment.isoformat(timespec="seconds")


def _unknown_use(path: Path, what: str) -> DamagedRun:
    remedy = "what this run uses can't be spared; mend or remove it, or give another --runs"
    return damaged_run(path, what, remedy)


def _runs_in(folder: Path) -> dict[str, list[Path]]:
    """The spaces that the runs in a folder were trained on; finished or not."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/run.json")):
        for spaces in read_record(path.parent, _unknown_use).spaces.values():
            for space in spaces:
                found.setdefault(space, []).append(path.parent.absolute())
    return found
