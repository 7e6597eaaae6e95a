"""Gc: list or delete spaces that nobody needs, except those that runs use."""

from __future__ import annotations

import datetime
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from featurecache import byte_sizes
from featurecache.errors import BadInput, DamagedRun, nearest
from featurecache.executors.progress_bars import ProgressOption, resolve_progress
from featurecache.features.orphans import abandoned, of_run, sweep
from featurecache.features.settings import check_keywords
from featurecache.features.space_files import MARKER
from featurecache.features.space_locks import is_in_use, locked_for_deletion
from featurecache.features.spaces import Space
from featurecache.features.store import Cache
from featurecache.images.view_names import ViewName
from featurecache.json_files import damaged_run
from featurecache.keys import setting_beside_names
from featurecache.lookup.caches import existing_cache
from featurecache.lookup.held_spaces import names_of_network
from featurecache.runs.record import read_record
from featurecache.storage import durable
from featurecache.storage.local import LocalStore
from featurecache.text import counted, listed

_SPANS = {"h": 1, "d": 24, "w": 24 * 7}  # in hours


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A space that matches the criteria, or something that a killed command left. `kept` says why a
    matching space is not deleted; `runs` use it."""

    space: str  # "" for a leftover
    view: str
    backbone: str | None
    setting: dict[str, Any]  # as `ls` shows it; empty for a leftover
    rows: int
    bytes: int
    last: str  # time of its newest shard, ISO 8601, UTC
    runs: list[str]
    kept: str
    deleted: bool
    leftover: str = ""  # its path


class Criteria(TypedDict, total=False):
    """Which spaces to select: those that match all criteria."""

    policy: str | Sequence[str]  # views, policies for all of their draws, or `none`
    backbone: str | Sequence[str]  # names of networks, or `pictures`
    older_than: str | None  # `30d`, `12h`, `2w`; compared with the newest shard
    max_size: str | None  # `20G`: the oldest, until the rest is no larger


def gc(
    cache: str | Path = "data/cache",
    *,
    runs: str | Path = "runs",
    delete: bool = False,
    force: bool = False,
    progress: ProgressOption = False,
    **criteria: Unpack[Criteria],
) -> list[Candidate]:
    """The spaces of the cache that match all criteria, and what killed commands left in the cache
    and in the runs. With `delete` they are deleted.

    `policy` is a view (`spatial_2`), a policy for all of its draws, or `none`; `backbone` is the
    name of a network, or `pictures`. `older_than` (`30d`, `12h`, `2w`) compares the time of the
    newest shard. `max_size` (`20G`) selects the oldest matching spaces until the rest of the cache
    is no larger. Spaces that a run in `runs`, or a run noted in the cache, was trained on are kept
    unless `force`; spaces that a process is filling are always kept. Interrupted deletions are
    completed. Names that match no space are not an error (see `absent_names`). Raises BadInput
    without any criterion.
    """
    progress = resolve_progress(progress)
    check_keywords(criteria, Criteria, "gc")
    opened = existing_cache(cache)
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
    candidates = []
    for number, space in enumerate(chosen, 1):
        if surplus is not None and surplus <= 0:
            break
        progress(number, len(chosen), "gc")
        users = sorted({str(run) for run in used.get(space.name, [])})
        reason = ""
        if users and not force:
            reason = f"used by {counted(len(users), 'run')}; --force deletes it anyway"
        elif is_in_use(space):
            reason = "a process is filling it"
        # A live process may have begun to fill it only now.
        deleted = delete and not reason and _delete(space)
        if delete and not reason and not deleted:
            reason = "a process is writing to it, or its disk has no locks"
        if not reason and surplus is not None:
            surplus -= space.size
        candidates.append(
            Candidate(
                space=space.name, view=space.view, backbone=space.backbone,
                setting=setting_beside_names(space.key), rows=len(space.rows), bytes=space.size,
                last=_last(space), runs=users, kept=reason, deleted=deleted,
            )
        )  # fmt: skip
    return candidates + _leftovers(opened, Path(runs), delete)


def absent_names(
    cache: str | Path, policy: str | Sequence[str] = (), backbone: str | Sequence[str] = ()
) -> list[str]:
    """A note for each of these names that matches no space of the cache."""
    spaces = Cache(cache).spaces()
    views = {name for space in spaces for name in (space.view, _policy(space))}
    networks = {name for space in spaces for name in _networks(space)}
    criteria = [("policy", name, views) for name in listed(policy)]
    criteria += [("backbone", name, networks) for name in listed(backbone)]
    return [
        f"the cache holds no space of {kind} {name!r}; {nearest(name, known)}"
        for kind, name, known in criteria
        if name not in known
    ]


def _delete(space: Space) -> bool:
    """Hide a space from all readers in one step, then delete its files. A kill in between leaves a
    leftover, which the next gc deletes."""
    with locked_for_deletion(space) as undisturbed:
        if undisturbed:
            space.store.delete_folder(space.folder)
    return undisturbed


def _leftovers(cache: Cache, runs: Path, delete: bool) -> list[Candidate]:
    """What killed commands left in a cache, beside it and in the runs; with `delete`, what was
    deleted of it."""
    if cache.store.local_folder is None:
        return []
    store = LocalStore(cache.store.local_folder)
    folders = [runs, *sorted(runs.iterdir())] if runs.is_dir() else []
    temporary = [path for folder in folders if folder.is_dir() for path in of_run(folder)]
    temporary = [path for path in temporary if durable.is_abandoned(path)]
    paths = [*abandoned(cache), *store.unfinished(), *temporary]
    candidates = [_leftover(path) for path in paths]
    if not delete:
        return candidates
    removed = {path for path in temporary if durable.remove_abandoned(path)}
    removed |= {*sweep(cache), *store.remove_unfinished(MARKER)}
    return [replace(c, deleted=True) for c in candidates if Path(c.leftover) in removed]


def _leftover(path: Path) -> Candidate:
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    modified = datetime.datetime.fromtimestamp(path.lstat().st_mtime, datetime.UTC)
    return Candidate(
        space="", view="", backbone=None, setting={}, rows=0,
        bytes=sum(f.lstat().st_size for f in files),
        last=modified.isoformat(timespec="seconds"), runs=[], kept="", deleted=False,
        leftover=str(path),
    )  # fmt: skip


def _policy(space: Space) -> str:
    return ViewName.parse(space.view).policy


def _networks(space: Space) -> set[str]:
    return {"pictures"} if space.backbone is None else names_of_network(space)


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
    remedy = "the spaces that it uses are unknown; repair or remove the run, or give another --runs"
    return damaged_run(path, what, remedy)


def _runs_in(folder: Path) -> dict[str, list[Path]]:
    """The runs in a folder, finished or not, by the spaces that they were trained on."""
    users: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*/run.json")):
        for spaces in read_record(path.parent, _unknown_use).spaces.values():
            for space in spaces:
                users.setdefault(space, []).append(path.parent.absolute())
    return users
