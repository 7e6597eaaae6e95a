"""Everything that can go wrong, as one tree. A message says what, where, and what to do next.

FeatureCacheError          exit code 1: work began and failed; committed shards stay
├── BadInput               exit code 2: reported before any work begins
│   ├── UnknownName        an unknown name, with the nearest known names
│   ├── MissingExtra       an optional package, with the command that installs it
│   └── NotCached          rows that a stage needs and the cache does not hold
├── BackboneUnavailable    weights that can't be loaded (law 7: never a silent stand-in)
├── CannotRead             a file that may be sound and could not be read: the system's error
│   └── RemovedMeanwhile   a shard that another process removed since it was listed
├── Damaged                a file whose content is wrong
│   ├── DamagedCache       bytes that are not what their record says
│   └── DamagedRun         a file of a run folder that is not what it should be
└── SourceChanged          an image file that changed since it was listed
"""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from featurecache.text import one_line

INTERRUPTED = "interrupted; committed work is kept. Rerun the command to resume."


class FeatureCacheError(Exception):
    """A failure that its message explains; the CLI prints no traceback."""

    exit_code = 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python or torch raised this because memory ran out. torch has its own class only for
    the memory of a GPU, which is also a RuntimeError."""
    text = str(error)
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError)
        and ("allocate memory" in text or "out of memory" in text.lower())
    )


class BadInput(FeatureCacheError):
    """The request can't be carried out as it is."""

    exit_code = 2


class UnknownName(BadInput):
    """There is no `kind` called `name`; the message lists the nearest of `known`."""

    def __init__(self, kind: str, name: object, known: Iterable[str], where: str = "") -> None:
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}unknown {kind} {str(name)!r}; {nearest(str(name), known)}")


class MissingExtra(BadInput):
    """`package` is needed for `what` and not installed."""

    def __init__(self, what: str, package: str, extra: str) -> None:
        super().__init__(
            f"{what} needs {package}, which is not installed; "
            f"install it with: pip install 'featurecache[{extra}]'"
        )


class NotCached(BadInput):
    """The cache lacks rows that a stage needs; the message names the command that makes them."""


class BackboneUnavailable(FeatureCacheError):
    """The weights of a backbone could not be loaded."""


class Damaged(FeatureCacheError):
    """A file is damaged; `reason` is the message without the file."""

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class DamagedCache(Damaged):
    """A file of the cache does not match its record."""


class DamagedRun(Damaged):
    """A file of a run folder is damaged."""


class CannotRead(FeatureCacheError):
    """A file that could not be read, and so may be sound; `error` is the system's."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(f"{path}: can't be read ({why(error)})")
        self.path, self.error = path, error

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.error)


class RemovedMeanwhile(CannotRead):
    """A file of a cache that was listed, and that another process has removed since."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(path, error)
        self.args = (f"{path}: another process removed it meanwhile; run the same command again",)


class NotAFile(OSError):
    """A name under which there is no regular file of an allowed size. Access was not refused, so
    this is not a case of CannotRead."""


class SourceChanged(FeatureCacheError):
    """An image file has changed since it was listed; `reason` is the message without the file."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}; nothing wrong was stored: run again")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type[SourceChanged], tuple[str, str]]:
        return type(self), (self.name, self.reason)


@contextmanager
def located(where: object) -> Iterator[None]:
    """Errors within begin with `where`: the file, the key or the step that they are about."""
    try:
        yield
    except FeatureCacheError as error:
        if not str(error).startswith(str(where)):
            error.args = (f"{where}: {error}",)
        raise


class FeatureCacheWarning(UserWarning):
    """The input may not mean what its author intended; work continues."""


_ADVICE = {
    errno.EACCES: "give yourself permission to read it",
    errno.EPERM: "give yourself permission to read it",
    errno.EMFILE: "raise the limit of open files, `ulimit -n`",
    errno.ENFILE: "close other programs: the system has no more open files",
}


def why(error: OSError) -> str:
    """The reason that the system or a store gives, and what to do."""
    advice = _ADVICE.get(error.errno or 0, "it may be sound: run again once it can be read")
    return f"{error.strerror or one_line(error)}; {advice}"


def nearest(name: str, known: Iterable[str], max_names: int = 5) -> str:
    """A phrase with the names nearest to `name`, or with the first few if none is near."""
    names = sorted(set(known))
    if not names:
        return "there are none"
    lower = [n.lower() for n in names]
    close = difflib.get_close_matches(name.lower(), lower, n=max_names, cutoff=0.5)
    if close:
        return "nearest: " + ", ".join(n for c in close for n in names if n.lower() == c)
    return "there are: " + ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
