"""What vectors cost to make: the seconds that the records of their shards say."""

from __future__ import annotations

import datetime
import functools
from collections import Counter
from collections.abc import Iterable, Sequence

from featurecache.features.space_files import Record
from featurecache.features.spaces import Space
from featurecache.storage.store import Store

_AT_ONCE = 2.0  # seconds between the beginnings of shards that one command made together


def seconds_to_make(space: Space, items: Iterable[bytes], spaces: Sequence[Space]) -> float:
    """The seconds that the rows of `items` in a space took, as far as they are held there.

    A record has the seconds of its shard, on the machine that made it. One command makes a shard
    for several spaces in the same seconds; those of `spaces` that it did so for share them equally.
    """
    used = Counter(space.rows[item][0] for item in set(items) if item in space.rows)
    others = [other for other in spaces if (other.store, other.name) != (space.store, space.name)]
    total = 0.0
    for number, rows in used.items():
        record = space.records[number]
        beside = [
            _begun(other.store, other.name, record.shard)
            for other in others
            if other.has(record.shard)
        ]
        together = 1 + sum(_at_once((record.made.host, _began(record)), one) for one in beside)
        total += record.made.seconds * rows / len(record.item_list) / together
    return total


@functools.lru_cache(maxsize=1 << 16)  # a report asks for each as often as it has views
def _begun(store: Store, space: str, shard: str) -> tuple[str, float]:
    """The host that made a shard of a space, and when it began."""
    record = Space(store, space).read_record(f"{shard}.json")
    return record.made.host, _began(record)


def _at_once(one: tuple[str, float], other: tuple[str, float]) -> bool:
    return one[0] == other[0] and abs(one[1] - other[1]) < _AT_ONCE


def _began(record: Record) -> float:
    ended = datetime.datetime.fromisoformat(record.made.time).timestamp()
    return ended - record.made.seconds
