"""What vectors cost to make: the seconds that the records of their shards say."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable, Sequence

from featurecache.features.spaces import Record, Space

_AT_ONCE = 2.0  # seconds between the beginnings of shards that one command made together


def seconds_to_make(space: Space, items: Iterable[bytes], spaces: Sequence[Space]) -> float:
    """The seconds that the rows of `items` in a space took, as far as they are held there.

    A record has the seconds of its shard, on the machine that made it. One command makes a shard
    for several spaces in the same seconds; those of `spaces` that it did so for share them equally.
    """
    used = Counter(space.rows[item][0] for item in set(items) if item in space.rows)
    others = [other for other in spaces if other.path != space.path]
    total = 0.0
    for number, rows in used.items():
        record = space.records[number]
        beside = [o.read_record(o.path / f"{record.shard}.json") for o in others
                  if o.has(record.shard)]  # fmt: skip
        together = 1 + sum(_made_together(record, other) for other in beside)
        total += float(record.made["seconds"]) * rows / len(record.item_list) / together
    return total


def _made_together(one: Record, other: Record) -> bool:
    apart = abs(_began(one) - _began(other))
    return one.made["host"] == other.made["host"] and apart < _AT_ONCE


def _began(record: Record) -> float:
    ended = datetime.datetime.fromisoformat(str(record.made["time"])).timestamp()
    return ended - float(record.made["seconds"])
