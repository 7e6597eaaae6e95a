"""The folders of spaces in local caches, and shards of format 1 in them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from featurecache import keys
from featurecache.features import shards
from featurecache.features.spaces import Space


def folder_of(space: Space) -> Path:
    assert space.store.local_folder is not None
    return space.store.local_folder / space.folder


def turn_to_format_1(space: Space, record_index: int) -> None:
    """Replace a shard of format 2 by one of format 1 with the same rows."""
    record = space.records[record_index]
    folder = folder_of(space)
    arrays = {name: rows for name, rows in space.read(record_index).items() if name != "digests"}
    attributes = {
        "format": "1",
        "key": keys.canonical(space.key).decode(),
        "provenance": keys.canonical(record.provenance).decode(),
    }
    content, layout = shards.pack(arrays, attributes)
    sha256 = hashlib.sha256(content).hexdigest()
    old = record.model_copy(
        update={
            "format": 1,
            "file": f"{record.shard}-{sha256[:16]}.h5",
            "size": len(content),
            "sha256": sha256,
            "arrays": layout,
            "row_digests": None,
        }
    ).model_dump(mode="json", exclude_none=True)
    (folder / record.file).unlink()
    (folder / old["file"]).write_bytes(content)
    path = folder / f"{record.shard}.json"
    path.write_text(json.dumps(old | {"checksum": keys.digest(old)}) + "\n")
