"""Where work runs, and how it reports progress. Executors call functions, and know nothing about
features.

`pool` has processes that help this one: they make pictures while the network runs. `scheduler`
shares tasks among equal workers, each of which does a complete task: `processes` on this machine,
or actors of a `cluster`.
"""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Shows the progress of a stage: `done` of `total`, and what is being done. Law 10, "Long work
    shows itself"."""

    def __call__(self, done: int, total: int, what: str) -> None: ...


def silent(done: int, total: int, what: str) -> None:
    """A Progress that shows nothing."""
