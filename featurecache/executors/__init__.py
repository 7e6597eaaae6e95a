"""Where work runs, and how it reports progress. An executor knows nothing about features: it calls
functions.

`pool` has processes that help this one (they make pictures while the network runs). `scheduler`
shares tasks among equal workers, each of which does the whole of a task: `processes` of this
machine, or actors of a `cluster`.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shows the progress of a stage (law 10, "Long work shows itself"): `done` of `total`, and what
    is being done."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """The Progress that shows nothing."""
