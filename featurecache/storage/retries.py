"""Which errors pass and which stay: one table for disks, network file systems and object stores.

A read or a request that fails for what may pass is tried again, with longer and longer waits. What
stays is reported with its cause. Neither says anything about the bytes of a file (DESIGN law 4).
"""

from __future__ import annotations

import enum
import errno
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from featurecache.errors import FeatureCacheError, NotAFile
from featurecache.text import one_line

Found = TypeVar("Found")

TRIES = 6  # of a request to a store, beside those of the store's own client
WAIT = 0.2  # seconds before the second try; twice as long before each that follows
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
    # A call that was interrupted, or that met a lack of file descriptors, memory or buffers.
    Verdict.PASSING: {
        errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
        errno.ENOBUFS,
        # A file handle of a server that was restarted or re-exported; it is fine once reopened.
        errno.ESTALE,
        # A soft-mounted network file system that did not answer in time, or a disk that read a
        # sector on a later try. One that is broken fails every time, and is reported.
        errno.EIO, getattr(errno, "EREMOTEIO", errno.EIO), errno.ETIMEDOUT,
        # Connections, of network file systems and of the clients of stores.
        errno.ECONNRESET, errno.ECONNABORTED, errno.ECONNREFUSED, errno.EPIPE, errno.ENETDOWN,
        errno.ENETUNREACH, errno.ENETRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN,
    },
    Verdict.ABSENT: {errno.ENOENT, errno.ENOTDIR},
    Verdict.TAKEN: {errno.EEXIST},
}  # fmt: skip

# ---- error codes of stores: they say more than the status ----
# "Error responses" in the Amazon S3 API Reference, and "PutObject" for the conflict of two puts.
_CODES = {
    Verdict.PASSING: {
        # The store has too much to do, or failed inside.
        "SlowDown", "ServiceUnavailable", "InternalError", "Busy", "Throttling",
        "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
        # What was sent did not arrive, whole or in time. Their status is 400.
        "RequestTimeout", "IncompleteBody", "BadDigest", "XAmzContentSHA256Mismatch",
        # Two requests for one name at a time.
        "OperationAborted", "ConditionalRequestConflict",
        # A clock that is wrong is set in time by the service that keeps it.
        "RequestTimeTooSkewed", "RequestExpired",
    },
    Verdict.REFUSED: {"NoSuchBucket"},  # its status is that of a name that is not there
    Verdict.ABSENT: {"NoSuchKey"},
    Verdict.TAKEN: {"PreconditionFailed"},
}  # fmt: skip

# ---- HTTP status, where there is no code: HEAD has no body to say it in ----
# "Error responses" and "Error best practices" in the Amazon S3 documentation; "Retry strategy" in
# the Cloud Storage documentation: 408, 429, 5xx, and lost connections.
_STATUSES = {
    Verdict.PASSING: {408, 409, 425, 429, 500, 502, 503, 504},
    Verdict.ABSENT: {404, 410},
    Verdict.TAKEN: {412},
}
_FORBIDDEN = 403  # without a code it may be a wrong clock, too, and so may pass


def verdict(error: BaseException) -> Verdict:
    """What an error of the system, or of a store's client, means."""
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
    if isinstance(error, PermissionError | IsADirectoryError) or "redential" in str(error):
        return Verdict.REFUSED
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return _in(_ERRNOS, number) or Verdict.REFUSED
    return Verdict.PASSING  # a connection that was lost, a reply that was cut


def retried(call: Callable[[], Found], tries: int = 0, absent_passes: bool = False) -> Found:
    """`call()` of a store's client, tried again where it fails for what may pass; `absent_passes`
    where the store has just named what it says is not there. Raises OSError, of one kind for all
    that the clients raise: FileNotFoundError, FileExistsError, PermissionError, else EIO."""
    tries = tries or TRIES
    for number in range(tries):
        try:
            return call()
        except (FeatureCacheError, NotAFile):
            raise
        except Exception as error:
            found = verdict(error)
            passes = found is Verdict.PASSING or (absent_passes and found is Verdict.ABSENT)
            if not passes or number == tries - 1:
                raise _as_oserror(error, found) from error
            time.sleep(WAIT * 2**number)
    raise AssertionError("not reached")


def retried_on_disk(call: Callable[[], Found]) -> Found:
    """`call()` on files of this machine, tried again where its OSError may pass. Only for what
    changes nothing: a failed fsync must not be tried again (durable.py)."""
    for number in range(DISK_TRIES - 1):
        try:
            return call()
        except OSError as error:
            if verdict(error) is not Verdict.PASSING:
                raise
            time.sleep(DISK_WAIT * 2**number)
    return call()


def _as_oserror(error: Exception, found: Verdict) -> OSError:
    said = one_line(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        said = one_line(Exception(error.strerror))
    code, status = _reply(error)
    if code == "RequestTimeTooSkewed":
        said += " Set the clock of this machine"
    if code == "ExpiredToken":
        said += " Renew the credentials"
    if found is Verdict.ABSENT:
        return FileNotFoundError(errno.ENOENT, said)
    if found is Verdict.TAKEN:
        return FileExistsError(errno.EEXIST, said)
    if isinstance(error, PermissionError) or status in (401, 403):
        return PermissionError(errno.EACCES, said)
    return OSError(errno.EIO, said)


def _reply(error: BaseException) -> tuple[str, int]:
    """The code and the HTTP status of the store's reply that an error stands for, or is raised
    from: ("", 0) where there was none."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):  # botocore's
            code = str(response.get("Error", {}).get("Code", ""))
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return ("", int(code)) if code.isdecimal() else (code, int(status or 0))
        for name in ("status", "status_code", "code"):  # aiohttp's, Azure's, gcsfs's
            value: Any = getattr(cause, name, None)
            if str(value).isdecimal() and 400 <= int(value) < 600:
                return str(getattr(cause, "error_code", None) or ""), int(value)
    return "", 0


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(8):  # a ring of causes has no end
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__


def _in(table: dict[Verdict, Any], key: object) -> Verdict | None:
    return next((found for found, keys in table.items() if key in keys), None)
