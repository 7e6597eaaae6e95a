"""What an error means for a read or a request: the table of retries.py."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError
from s3fs.errors import translate_boto_error

from featurecache.errors import BadInput, NotAFile
from featurecache.storage import retries
from featurecache.storage.retries import Verdict, retried, retried_on_disk, verdict

PASSING, REFUSED = Verdict.PASSING, Verdict.REFUSED


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(retries.time, "sleep", found.append)
    return found


def answer(code: str, status: int) -> Exception:
    """What s3fs raises for a reply of S3."""
    reply = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    found = translate_boto_error(ClientError(reply, "GetObject"))
    assert isinstance(found, OSError)
    return found


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
        ("403", 403, PASSING),  # of a HEAD: it may be the clock
        ("500", 500, PASSING),
        ("502", 502, PASSING),
        ("AccessDenied", 403, REFUSED),
        ("ExpiredToken", 400, REFUSED),
        ("InvalidRange", 416, REFUSED),
        ("NoSuchBucket", 404, REFUSED),
        ("NotImplemented", 501, REFUSED),
        ("NoSuchKey", 404, Verdict.ABSENT),
        ("404", 404, Verdict.ABSENT),
        ("PreconditionFailed", 412, Verdict.TAKEN),
    ],
)
def test_replies_of_s3(code: str, status: int, wanted: Verdict) -> None:
    assert verdict(answer(code, status)) is wanted


class GoogleError(Exception):
    """As gcsfs has it: a code, and no body that botocore would know."""

    def __init__(self, code: int | str) -> None:
        super().__init__(f"{code}")
        self.code = code


@pytest.mark.parametrize(
    ("code", "wanted"),
    [(408, PASSING), ("429", PASSING), (503, PASSING), (401, REFUSED), (404, Verdict.ABSENT),
     (412, Verdict.TAKEN)],
)  # fmt: skip
def test_replies_of_other_stores(code: int | str, wanted: Verdict) -> None:
    assert verdict(GoogleError(code)) is wanted


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        *((OSError(getattr(errno, name), name), PASSING) for name in (
            "EIO", "ESTALE", "EMFILE", "ENFILE", "EINTR", "EAGAIN", "ETIMEDOUT", "ECONNRESET")),
        *((OSError(getattr(errno, name), name), REFUSED) for name in (
            "EACCES", "EPERM", "ELOOP", "EISDIR", "ENOSPC", "ENAMETOOLONG")),
        (FileNotFoundError("s3fs gives no number"), Verdict.ABSENT),
        (TimeoutError(), PASSING),
        (EndpointConnectionError(endpoint_url="http://x"), PASSING),
        (NoCredentialsError(), REFUSED),
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
