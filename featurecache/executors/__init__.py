"""Where work runs, and how it shows. An executor knows nothing of features: it calls functions.

`pool` are processes that help this one (they make pictures while the network runs); `crew` shares
work among equals, each of which does all of it: `processes` of this machine, or of a `cluster`.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """How a stage shows its progress (law 10): `done` of `total`, and what is being done."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The Progress that shows nothing."""
