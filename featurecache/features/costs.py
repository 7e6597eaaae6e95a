"""The cost of vectors: the seconds that the records of their shards state."""

from __future__ import annotations

import datetime
import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from featurecache.features.space_files import Record
from featurecache.features.spaces import Space
from featurecache.storage.store import Store

_MAX_GAP = 2.0  # seconds between the starts of shards that one command made together


def seconds_to_make(space: Space, items: Iterable[bytes], spaces: Sequence[Space]) -> float:
    """The seconds that it took to make the rows of `items` that a space holds.

    A record states the seconds of its shard on the machine that made it. One command may make a
    shard for several spaces together; these of `spaces` share the seconds equally.
    """
    used = Counter(space.rows[item][0] for item in set(items) if item in space.rows)
    others = [other for other in spaces if (other.store, other.name) != (space.store, space.name)]
    total = 0.0
    for number, rows in sorted(used.items()):  # so that every process adds in the same order
        record = space.records[number]
        start = (record.made.host, _start(record))
        other_starts = [
            _start_of_shard(other.store, other.name, record.shard)
            for other in others
            if other.has(record.shard)
        ]
        sharing = 1 + sum(_are_together(start, other_start) for other_start in other_starts)
        total += record.made.seconds * rows / len(record.item_list) / sharing
    return total


@functools.lru_cache(maxsize=1 << 16)  # a report needs each as many times as it has views
def _start_of_shard(store: Store, space: str, shard: str) -> tuple[str, float]:
    """The host that made a shard of a space, and the time at which it started."""
    record = Space(store, space).read_record(f"{shard}.json")
    return record.made.host, _start(record)


def _are_together(start: tuple[str, float], other_start: tuple[str, float]) -> bool:
    return start[0] == other_start[0] and abs(start[1] - other_start[1]) < _MAX_GAP


def _start(record: Record) -> float:
    end = datetime.datetime.fromisoformat(record.made.time).timestamp()
    return end - record.made.seconds
