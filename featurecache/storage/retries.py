"""Which errors are transient: one table for disks, network file systems and object stores.

A read or a request that fails with a transient error is tried again after increasing waits. Other
errors are reported with their cause. Neither says anything about the bytes of a file (law 4,
"Committed or absent").
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

from featurecache.errors import FeatureCacheError, NotAFile
from featurecache.text import one_line

Result = TypeVar("Result")

TRIES = 6  # of a request to an object store
WAIT = 0.2  # seconds before the second try; doubled before each further try
DISK_TRIES = 4
DISK_WAIT = 0.1


class Verdict(enum.Enum):
    """What an error means for the call that raised it."""

    PASSING = "try again"
    REFUSED = "report it"
    ABSENT = "there is nothing of this name"
    TAKEN = "something has this name already"


# ---- error numbers of the operating system ----
# POSIX.1-2017, <errno.h>; Linux man pages open(2), read(2), nfs(5). What is not here is REFUSED:
# EACCES, EPERM, ELOOP, EISDIR, ENAMETOOLONG, EROFS, ENOSPC, EDQUOT, EINVAL, …
_ERRNOS = {
    # A call that was interrupted, or that ran out of file descriptors, memory or buffers.
    Verdict.PASSING: {
        errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
        errno.ENOBUFS,
        # A file handle of a server that was restarted or re-exported; it is fine once reopened.
        errno.ESTALE,
        # A soft-mounted network file system that did not answer in time, or a disk that reads a
        # sector on a later try. A broken disk fails every time, and is reported.
        errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT,
        # Connections, of network file systems and of the clients of stores.
        errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ENETDOWN,
        errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
    },
    Verdict.ABSENT: {errno.ENOENT, errno.ENOTDIR},
    Verdict.TAKEN: {errno.EEXIST},
}  # fmt: skip

# ---- error codes of stores, which are more specific than the status ----
# "Error responses" in the Amazon S3 API Reference, and "PutObject" for the conflict of two puts.
_CODES = {
    Verdict.PASSING: {
        # The store is overloaded, or failed internally.
        "SlowDown", "ServiceUnavailable", "InternalError", "Busy", "Throttling",
        "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
        # The request did not arrive complete, or in time. Their status is 400.
        "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
        # Two requests for one name at the same time.
        "OperationAborted", "ConditionalRequestConflict",
        # A wrong clock is soon set by the time service.
        "RequestTimeTooSkewed", "RequestExpired",
    },
    Verdict.REFUSED: {"NoSuchBucket"},  # its status, 404, is that of an absent object
    Verdict.ABSENT: {"NoSuchKey"},
    Verdict.TAKEN: {"PreconditionFailed"},
}  # fmt: skip

# ---- HTTP statuses, for replies without a code: a reply to HEAD has no body ----
# "Error responses" and "Error best practices" in the Amazon S3 documentation; "Retry strategy" in
# the Cloud Storage documentation: 408, 429, 5xx, and lost connections.
_STATUSES = {
    Verdict.PASSING: {408, 409, 425, 429, 500, 502, 503, 504},
    Verdict.ABSENT: {404, 410},
    Verdict.TAKEN: {412},
}
_FORBIDDEN = 403  # without a code it may also mean a wrong clock, which is transient


def verdict(error: BaseException) -> Verdict:
    """What an error of the operating system or of an object store means."""
    if isinstance(error, FeatureCacheError | NotAFile):
        return Verdict.REFUSED
    code, status = _reply(error)
    if status == _FORBIDDEN and not code:
        return Verdict.PASSING
    if code or status:
        return _in(_CODES, code) or _in(_STATUSES, status) or Verdict.REFUSED
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return Verdict.ABSENT
    if isinstance(error, FileExistsError):
        return Verdict.TAKEN
    if isinstance(error, PermissionError | IsADirectoryError):
        return Verdict.REFUSED
    if "credentials" in str(error).lower():  # those of botocore's errors, in obstore's text
        return Verdict.REFUSED
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return _in(_ERRNOS, number) or Verdict.REFUSED
    return Verdict.PASSING  # a lost connection, a reply that was cut


def retried(call: Callable[[], Result], tries: int = 0, absent_passes: bool = False) -> Result:
    """The result of `call()`, a request to an object store, tried again after a transient error.
    With `absent_passes`, for names that the store has just listed, "not found" is transient too.

    Raises OSError: FileNotFoundError, FileExistsError, PermissionError, or one with EIO.
    """
    tries = tries or TRIES
    for number in range(tries):
        try:
            return call()
        except (FeatureCacheError, NotAFile):
            raise
        except Exception as error:
            meaning = verdict(error)
            passes = meaning is Verdict.PASSING or (absent_passes and meaning is Verdict.ABSENT)
            if not passes or number == tries - 1:
                raise _as_oserror(error, meaning) from error
            time.sleep(WAIT * 2**number)
    raise AssertionError("not reached")


def retried_on_disk(call: Callable[[], Result]) -> Result:
    """The result of `call()` on local files, tried again after a transient OSError. Only for calls
    that change nothing: a failed fsync must not be tried again (durable.py)."""
    for number in range(DISK_TRIES - 1):
        try:
            return call()
        except OSError as error:
            if verdict(error) is not Verdict.PASSING:
                raise
            time.sleep(DISK_WAIT * 2**number)
    return call()


def _as_oserror(error: Exception, meaning: Verdict) -> OSError:
    reason = one_line(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        reason = one_line(Exception(error.strerror))
    code, status = _reply(error)
    if code == "RequestTimeTooSkewed":
        reason += " Set the clock of this machine"
    if code == "ExpiredToken":
        reason += " Renew the credentials"
    if meaning is Verdict.ABSENT:
        return FileNotFoundError(errno.ENOENT, reason)
    if meaning is Verdict.TAKEN:
        return FileExistsError(errno.EEXIST, reason)
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, reason)
    return OSError(errno.EIO, reason)


def _reply(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status of the reply that a StoreError (object_store.py) stands for;
    ("", 0) where there was none."""
    return getattr(error, "error_code", ""), getattr(error, "status", 0)


def _in(table: Mapping[Verdict, Collection[str | int]], key: str | int) -> Verdict | None:
    return next((verdict for verdict, keys in table.items() if key in keys), None)
