"""Object stores as a Store: S3, Google Cloud Storage and Azure, through obstore.

A put is atomic, and durable once acknowledged. An object store has no locks and no links. Files of
a cache are named by their content, so correctness needs neither (docs/cluster.md).

obstore's own retries are off: retries.py decides for disks and stores alike. Its asynchronous
functions are not used, because a process that exits soon after one is sometimes aborted. Its
clients do not survive a fork; workers are spawned (executors/pool.py).
"""

from __future__ import annotations

import contextlib
import datetime
import errno
import functools
import importlib.util
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, TypeVar

from featurecache.errors import BadInput, MissingExtra, NotAFile
from featurecache.storage import object_cache, s3_settings
from featurecache.storage.durable import temporary_name
from featurecache.storage.locks import Claim
from featurecache.storage.retries import retried
from featurecache.storage.store import check_name
from featurecache.text import one_line

Result = TypeVar("Result")

_EXTRAS = {"s3": "s3", "gs": "gs", "az": "az"}  # scheme -> pip extra
_ALIASES = {"s3a": "s3", "gcs": "gs"}
_CONNECT = datetime.timedelta(seconds=10)
_REPLY = datetime.timedelta(seconds=60)  # without a byte of the reply
_UPLOAD = datetime.timedelta(minutes=30)  # obstore counts an upload as waiting for its reply
_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w+)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]+)</Message>")
_CAUSE = re.compile(r'message: "([^"]+)"')


class ObjectStore:
    """The objects under a URL. Opening makes no request."""

    local_folder = None
    has_locks = False
    parallel_requests = 16
    read_attempts = object_cache.FETCHES

    def __init__(self, root: str) -> None:
        """Raises MissingExtra, BadInput."""
        self._root = root.rstrip("/")
        self._region = ""  # of the bucket, if it differs from the configured one
        scheme, _, path = self._url.partition("://")
        if scheme not in _EXTRAS or not path.partition("/")[0]:
            schemes = ", ".join(f"{name}://BUCKET" for name in _EXTRAS)
            raise BadInput(f"{root}: unknown kind of object store; expected a path or {schemes}")
        if not path.isprintable() or "//" in path or {".", ".."} & set(path.split("/")):
            raise BadInput(f"{root}: has a part that the name of an object can't have")
        for package in ("obstore", *(("botocore",) if scheme == "s3" else ())):
            if importlib.util.find_spec(package) is None:
                raise MissingExtra(f"{scheme}://", package, _EXTRAS[scheme])

    def __reduce__(self) -> tuple[object, ...]:
        return shared_store, (self._root,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectStore) and self._root == other._root

    def __hash__(self) -> int:
        return hash(self._root)

    def __repr__(self) -> str:
        return f"ObjectStore({self._root!r})"

    @property
    def root(self) -> str:
        return self._root

    def locate(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    # ---- reading ----

    def read(self, name: str, max_bytes: int, *, listed: bool = True) -> bytes:
        def get() -> bytes:
            reply = self._reader.get(check_name(name))
            size = int(reply.meta["size"])
            if size > max_bytes:
                raise NotAFile(errno.EFBIG, f"{size:,} bytes, more than the {max_bytes:,} allowed")
            return bytes(reply.bytes())

        return self._request(get, absent_passes=listed)

    def read_range(self, name: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""

        def part() -> bytes:
            return bytes(self._reader.get_range(check_name(name), start=start, end=end))

        try:
            return self._request(part, absent_passes=True)
        except OSError:
            if self.size(name) <= start:  # stores refuse empty ranges
                return b""
            raise

    def read_content(self, name: str, size: int, sha256: str, *, fresh: bool = False) -> bytes:
        return object_cache.read(lambda: self.read(name, size), sha256, fresh=fresh)

    def local_path(self, name: str, size: int, sha256: str) -> Path:
        return object_cache.path_of(lambda: self.read(name, size), sha256)

    def size(self, name: str) -> int:
        return int(self._request(lambda: self._head(name), absent_passes=True)["size"])

    def exists(self, name: str, *, listed: bool = False) -> bool:
        with contextlib.suppress(FileNotFoundError):
            self._request(lambda: self._head(name))
            return True
        folder, _, last = name.rpartition("/")
        return listed and last in self.list_folder(folder)

    def is_link(self, name: str) -> bool:
        return False

    def list_folder(self, folder: str = "") -> list[str]:
        folder = check_name(folder).rstrip("/")
        listing = self._request(lambda: self._reader.list_with_delimiter(folder or None))
        start = len(folder) + 1 if folder else 0
        folders = {f"{path[start:]}/" for path in listing["common_prefixes"]}
        files = {entry["path"][start:] for entry in listing["objects"]}
        # Some tools make an empty object with the name of a folder; it is not a file.
        return sorted(folders | {name for name in files if name and f"{name}/" not in folders})

    def _head(self, name: str) -> Any:
        return self._reader.head(check_name(name))

    # ---- writing ----

    def make_folder(self, folder: str) -> None:
        pass

    def put_if_absent(self, name: str, data: bytes) -> bool:
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        def put() -> bool:
            try:
                self._writer.put(check_name(name), data, mode="create")
            except (AlreadyExistsError, PreconditionError):
                # The name is taken, or a conflicting put or delete failed: then this read finds
                # nothing, and the put is tried again. The bytes may be our own, if the reply to an
                # earlier try was lost.
                return bytes(self._reader.get(name).bytes()) == data
            return True

        return self._request(put, absent_passes=True)

    def replace(self, name: str, data: bytes) -> None:
        # In one request: the parts of a killed multipart upload are hidden, but cost money.
        self._request(lambda: self._writer.put(check_name(name), data, use_multipart=False))

    def move(self, name: str, to: str) -> None:
        self._request(lambda: self._writer.copy(check_name(name), check_name(to)))
        self.delete(name)

    def delete(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._request(lambda: self._writer.delete(check_name(name)))

    def delete_folder(self, name: str) -> None:
        raise OSError(errno.ENOTSUP, "an object store has no lock to make this safe")

    def initialize(self, name: str, data: bytes) -> None:
        self.put_if_absent(name, data)

    @contextlib.contextmanager
    def probe(self) -> Iterator[str]:
        name = temporary_name(Path("probe")).name
        self.replace(name, b"")
        try:
            yield name
        finally:
            self.delete(name)

    # ---- locks ----

    def claim(self, name: str) -> Claim | None:
        return Claim.unlocked()

    def claim_shared(self, name: str) -> Claim:
        return Claim.unlocked()

    def lock_shared(self, folder: str) -> AbstractContextManager[None]:
        return contextlib.nullcontext()

    def lock_exclusive(self, folder: str) -> AbstractContextManager[bool]:
        return contextlib.nullcontext(False)

    # ---- the root ----

    def check_access(self) -> None:
        try:
            self._request(lambda: self._reader.list_with_delimiter(), tries=2)
        except OSError as error:
            raise BadInput(
                f"{self._root} can't be reached ({error.strerror}); check that the bucket exists "
                "and that its credentials are set as its own tools expect (for s3:// the variables "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws)"
            ) from error

    def free_bytes(self) -> int | None:
        return None

    # ---- requests ----

    @property
    def _url(self) -> str:
        scheme, _, rest = self._root.partition("://")
        return f"{_ALIASES.get(scheme, scheme)}://{rest}"

    @functools.cached_property
    def _reader(self) -> Any:
        return self._client(_REPLY)

    @functools.cached_property
    def _writer(self) -> Any:
        return self._client(_UPLOAD)

    def _client(self, wait: datetime.timedelta) -> Any:
        from obstore.store import AzureStore, GCSStore, S3Store

        options: dict[str, Any] = {
            "connect_timeout": _CONNECT,
            "read_timeout": wait,
            "timeout": _UPLOAD,
        }
        settings: dict[str, Any] = {}
        scheme, _, path = self._url.partition("://")
        if scheme == "s3":
            settings = s3_settings.settings(self._region)
            options["allow_http"] = str(settings.get("endpoint", "")).startswith("http://")
        bucket, _, prefix = path.partition("/")
        kind: Any = {"s3": S3Store, "gs": GCSStore, "az": AzureStore}[scheme]
        return kind(
            bucket,
            prefix=prefix or None,
            client_options=options,
            retry_config={"max_retries": 0},
            **settings,
        )

    def _request(
        self,
        request: Callable[[], Result],
        *,
        tries: int = 0,
        absent_passes: bool = False,
    ) -> Result:
        """The result of a request, tried again after a transient error. Raises OSError."""
        from obstore.exceptions import BaseError

        def translated() -> Result:
            try:
                return request()
            except (BaseError, FileNotFoundError, ValueError) as error:
                raise StoreError(error) from error

        def run() -> Result:
            try:
                return _wait(translated)
            except StoreError as error:
                if not error.is_elsewhere or self._region:
                    raise
                self._region = s3_settings.region_of(self._url)
                self.__dict__.pop("_reader", None)
                self.__dict__.pop("_writer", None)
                return _wait(translated)

        return retried(run, tries=tries, absent_passes=absent_passes)


@functools.lru_cache(maxsize=32)
def shared_store(root: str) -> ObjectStore:
    """The store at `root`, with one pair of clients for all callers in this process: files of
    datasets, and stores that other processes send."""
    return ObjectStore(root)


class StoreError(Exception):
    """An error of obstore's, with what obstore gives only in its text: `status`, the HTTP status of
    the reply (0 without one), and `error_code`, the store's code. retries.py uses both."""

    def __init__(self, error: Exception) -> None:
        text = str(error)
        status, code = _STATUS.search(text), _CODE.search(text)
        self.status = int(status[1]) if status else _status_of(error)
        self.error_code = code[1] if code else ""
        # A bucket in another region: a redirect without a target, or one of two codes.
        self.is_elsewhere = "incorrectly configured region" in text or self.error_code in (
            "AuthorizationHeaderMalformed",
            "PermanentRedirect",
        )
        message, cause = _MESSAGE.search(text), _CAUSE.search(text)
        if self.status and (code or message):
            parts = [self.error_code, message[1] if message else ""]
            reason = f"{': '.join(part for part in parts if part)} (HTTP {self.status})"
        else:
            reason = text.partition("\n")[0] + (f" ({cause[1]})" if cause else "")
        super().__init__(one_line(Exception(reason)))


def _status_of(error: Exception) -> int:
    from obstore import exceptions

    kinds = {
        exceptions.UnauthenticatedError: 401,
        exceptions.PermissionDeniedError: 403,
        FileNotFoundError: 404,
        exceptions.AlreadyExistsError: 412,
        exceptions.PreconditionError: 412,
        ValueError: 400,
    }
    return next((status for kind, status in kinds.items() if isinstance(error, kind)), 0)


def _wait(request: Callable[[], Result]) -> Result:
    """The result of a request. The main thread handles signals, but not while it is inside the
    client. So another thread makes its requests, and a signal ends the wait at once."""
    if threading.current_thread() is not threading.main_thread():
        return request()
    result: Future[Result] = Future()

    def run() -> None:
        try:
            result.set_result(request())
        except BaseException as error:  # noqa: BLE001 - raised by `result.result()`
            result.set_exception(error)

    threading.Thread(target=run, name="object-store", daemon=True).start()
    return result.result()
