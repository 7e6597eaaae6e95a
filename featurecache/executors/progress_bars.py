"""`progress=True`: the progress of a Python call as bars of tqdm, in a terminal or a notebook."""

from __future__ import annotations

from typing import Any

from featurecache.executors import Progress, silent

ProgressOption = Progress | bool  # True: bars of tqdm; a function: it is called


def resolve_progress(progress: ProgressOption) -> Progress:
    """The Progress that a public function's argument stands for."""
    if isinstance(progress, bool):
        return _Bars() if progress else silent
    return progress


class _Bars:
    """A bar for each kind of work, one after another."""

    def __init__(self) -> None:
        self._kind = ""
        self._bar: Any = None

    def __call__(self, done: int, total: int, what: str) -> None:
        kind, _, note = what.partition(" (")
        if kind != self._kind:
            from tqdm.auto import tqdm

            if self._bar is not None:
                self._bar.leave = self._bar.n > 0  # else it only announced what comes next
                self._bar.close()
            self._kind = kind
            self._bar = tqdm(desc=kind, total=total or None, initial=done)
        self._bar.total = total or None
        self._bar.set_postfix_str(note.removesuffix(")"), refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total > 0:
            self._bar.refresh()
            self._bar.close()
            self._kind, self._bar = "", None
