"""What an error means for a read or a request: the table of retries.py."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from obstore.exceptions import AlreadyExistsError, GenericError, UnauthenticatedError

from featurecache.errors import BadInput, NotAFile
from featurecache.storage import retries
from featurecache.storage.object_store import StoreError
from featurecache.storage.retries import Verdict, retried, retried_on_disk, verdict

PASSING, REFUSED = Verdict.PASSING, Verdict.REFUSED


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", found.append)
    return found


def answer(code: str, status: int) -> Exception:
    """The error for a reply of an object store, with the text that obstore gives it."""
    body = f"<Error><Code>{code}</Code><Message>No.</Message></Error>" if code else ""
    return StoreError(
        GenericError(
            f"Generic S3 error: Error performing GET http://x/a in 1ms - Server returned non-2xx "
            f"status code: {status} Status: {body}"
        )
    )


@pytest.mark.parametrize(
    ("code", "status", "wanted"),
    [
        ("SlowDown", 503, PASSING),
        ("ServiceUnavailable", 503, PASSING),
        ("InternalError", 500, PASSING),
        ("RequestTimeout", 400, PASSING),
        ("RequestTimeTooSkewed", 403, PASSING),
        ("ConditionalRequestConflict", 409, PASSING),
        ("OperationAborted", 409, PASSING),
        ("AnotherCode", 429, PASSING),
        ("", 403, PASSING),  # of a HEAD: it may be the clock
        ("", 401, REFUSED),
        ("", 408, PASSING),
        ("", 429, PASSING),
        ("", 500, PASSING),
        ("", 502, PASSING),
        ("AccessDenied", 403, REFUSED),
        ("ExpiredToken", 400, REFUSED),
        ("InvalidRange", 416, REFUSED),
        ("NoSuchBucket", 404, REFUSED),
        ("NotImplemented", 501, REFUSED),
        ("NoSuchKey", 404, Verdict.ABSENT),
        ("", 404, Verdict.ABSENT),
        ("", 412, Verdict.TAKEN),
        ("PreconditionFailed", 412, Verdict.TAKEN),
    ],
)
def test_replies_of_stores(code: str, status: int, wanted: Verdict) -> None:
    assert verdict(answer(code, status)) is wanted


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        *((OSError(getattr(errno, name), name), PASSING) for name in (
            "EIO", "ESTALE", "EMFILE", "ENFILE", "EINTR", "EAGAIN", "ETIMEDOUT", "ECONNRESET")),
        *((OSError(getattr(errno, name), name), REFUSED) for name in (
            "EACCES", "EPERM", "ELOOP", "EISDIR", "ENOSPC", "ENAMETOOLONG")),
        (FileNotFoundError("obstore gives no number"), Verdict.ABSENT),
        (TimeoutError(), PASSING),
        (StoreError(GenericError("error sending request")), PASSING),
        (StoreError(GenericError("Unable to locate credentials")), REFUSED),
        *((StoreError(error), meaning) for error, meaning in (
            (UnauthenticatedError("no key"), REFUSED), (FileNotFoundError("a"), Verdict.ABSENT),
            (AlreadyExistsError("a"), Verdict.TAKEN), (ValueError("a name"), REFUSED))),
        (NotAFile(errno.EINVAL, "a pipe"), REFUSED),
        (BadInput("ours"), REFUSED),
    ],
)  # fmt: skip
def test_errors_without_a_reply(error: Exception, wanted: Verdict) -> None:
    assert verdict(error) is wanted


def failing(times: int, error: Exception) -> Callable[[], str]:
    """A call that fails so many times."""
    left = [error] * times

    def call() -> str:
        if left:
            raise left.pop()
        return "read"

    return call


def test_what_may_pass_is_tried_again_and_what_stays_is_raised_once(waits: list[float]) -> None:
    assert retried(failing(5, answer("SlowDown", 503))) == "read"
    assert waits == [0.2, 0.4, 0.8, 1.6, 3.2]
    with pytest.raises(OSError, match="SlowDown") as caught:
        retried(failing(6, answer("SlowDown", 503)))
    assert caught.value.errno == errno.EIO
    waits.clear()
    for error, kind in (
        (answer("AccessDenied", 403), PermissionError),
        (answer("NoSuchKey", 404), FileNotFoundError),
        (answer("PreconditionFailed", 412), FileExistsError),
    ):
        with pytest.raises(kind) as caught:
            retried(failing(1, error))
        assert caught.value.strerror
    with pytest.raises(OSError, match="NoSuchBucket") as caught:
        retried(failing(1, answer("NoSuchBucket", 404)))
    assert not isinstance(caught.value, FileNotFoundError) and waits == []
    assert retried(failing(5, answer("NoSuchKey", 404)), absent_passes=True) == "read"


def test_a_disk_is_tried_a_few_times(waits: list[float]) -> None:
    assert retried_on_disk(failing(3, OSError(errno.ESTALE, "stale"))) == "read"
    assert waits == [0.1, 0.2, 0.4]
    with pytest.raises(OSError, match="broken"):
        retried_on_disk(failing(4, OSError(errno.EIO, "broken")))
    with pytest.raises(PermissionError):
        retried_on_disk(failing(1, PermissionError(errno.EACCES, "denied")))
    assert len(waits) == 6
