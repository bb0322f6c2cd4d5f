"""Requests to an object store, or any file system that fsspec reaches, tried again where they fail in passing."""

import contextlib
import errno
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import fsspec
import xxhash

from dynaxx.errors import BadInput

T = TypeVar("T")
WAITS = (0.5, 2.0, 8.0)
"""Seconds between tries. Clients retry on their own too; this bridges the restart of a server."""
_CHUNK = 1 << 22
_LASTING = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Errors that trying again does not mend."""


class Bucket:
    """A folder behind a URL.

    Args:
        url: As fsspec takes it ("s3://bucket/run", "memory://run").
        waits: Seconds between tries of a failed request; one more try than there are numbers.
        options: What the file system takes ("endpoint_url", "anon").

    Raises:
        BadInput: The URL cannot be opened: an unknown protocol, or a package that is not installed.
    """

    def __init__(self, url: str, waits: Sequence[float] = WAITS, **options: Any) -> None:
        self.url, self.waits, self.options = url.rstrip("/"), tuple(waits), options
        try:
            self._fs, root = cast("tuple[Any, str]", fsspec.url_to_fs(self.url, **options))
        except (ImportError, ValueError, TypeError) as error:
            raise BadInput(f"{url!r} cannot be opened: {error}.") from error
        self.root = root.rstrip("/")

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder as they are now: file systems remember listings.

        Args:
            folder: Its path below the root.

        Returns:
            The names in order; none where it is missing.
        """
        path = self._path(folder)
        self._fs.invalidate_cache()
        try:
            found = self._try(lambda: self._fs.ls(path, detail=False))
        except FileNotFoundError:
            return []
        return sorted(str(entry).rstrip("/").rpartition("/")[2] for entry in found)

    def read(self, path: str) -> bytes | None:
        """An object whole.

        Args:
            path: Below the root.

        Returns:
            Its bytes; None where there is none.
        """
        return self.read_all([path]).get(path)

    def read_all(self, paths: Sequence[str]) -> dict[str, bytes]:
        """Small objects, many at a time.

        Args:
            paths: Below the root.

        Returns:
            Path → bytes of those that are there.
        """

        def request() -> dict[str, Any]:
            wanted = [self._path(path) for path in paths]
            found = self._fs.cat(wanted, recursive=False, on_error="return") if wanted else {}
            for value in found.values():
                if isinstance(value, Exception) and not isinstance(value, FileNotFoundError):
                    raise value
            return found

        found = self._try(request)
        data = {path: found.get(self._path(path)) for path in paths}
        return {path: value for path, value in data.items() if isinstance(value, bytes)}

    def measure(self, path: str, *, deep: bool) -> tuple[int, str | None]:
        """Size and digest of an object, streamed; nothing is kept.

        Args:
            path: Below the root.
            deep: Read it; else only its size is asked for.

        Returns:
            Its bytes, and their xxh3_128 if it was read.
        """

        def request() -> tuple[int, str | None]:
            self._fs.invalidate_cache()
            if not deep:
                return int(self._fs.size(self._path(path))), None
            digest, size = xxhash.xxh3_128(), 0
            with self._fs.open(self._path(path), "rb") as stream:
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
            return size, digest.hexdigest()

        return self._try(request)

    def download(self, path: str, file: Path) -> None:
        """An object as a local file.

        Args:
            path: Below the root.
            file: The file; its folder must exist.
        """
        self._try(lambda: self._fs.get_file(self._path(path), str(file)))

    def upload(self, file: Path, path: str) -> None:
        """A local file as an object, in the place of one that is there; whether it arrived whole is asked.

        Args:
            file: The file.
            path: Below the root.
        """
        size, target = file.stat().st_size, self._path(path)

        def request() -> None:
            self._fs.put_file(str(file), target)
            self._fs.invalidate_cache()
            if (arrived := int(self._fs.size(target))) != size:
                raise OSError(errno.EIO, f"{arrived} of {size} bytes arrived", target)

        self._placed(target, request)

    def write(self, path: str, data: bytes) -> None:
        """A small object, in the place of one that is there.

        Args:
            path: Below the root.
            data: Its bytes.
        """
        self._placed(self._path(path), lambda: self._fs.pipe_file(self._path(path), data))

    def create(self, path: str, data: bytes) -> None:
        """A small object where there is none; exclusively where the store can (S3: If-None-Match).

        A reply that was lost leaves our own object there, which is success.

        Args:
            path: Below the root.
            data: Its bytes.

        Raises:
            FileExistsError: Another one is there.
        """

        def request() -> None:
            try:
                self._fs.pipe_file(self._path(path), data, mode="create")
            except FileExistsError:
                if self.read(path) != data:
                    raise FileExistsError(errno.EEXIST, "another object of that name is there", path) from None

        self._try(request)

    def delete(self, path: str, *, recursive: bool = False) -> None:
        """What is there goes.

        Args:
            path: Below the root.
            recursive: All that is below it.
        """
        try:
            self._try(lambda: self._fs.rm(self._path(path), recursive=recursive))
        except FileNotFoundError:
            pass

    def age(self, folder: str) -> timedelta | None:
        """How long ago the youngest object in a folder was written, by the store's clock.

        Args:
            folder: Below the root.

        Returns:
            The age; None where there is no object.
        """
        self._fs.invalidate_cache()
        files = self._try(lambda: self._fs.find(self._path(folder)))
        written = [cast(datetime, self._try(lambda file=file: self._fs.modified(file))) for file in files]
        zoned = [when if when.tzinfo is not None else when.replace(tzinfo=UTC) for when in written]
        return datetime.now(UTC) - max(zoned) if zoned else None

    def _path(self, path: str) -> str:
        return f"{self.root}/{path}" if path else self.root

    def _placed(self, target: str, request: Callable[[], None]) -> None:
        """A request that writes; where folders are real and missing, they are made, a bucket never is: it is a typo."""
        try:
            self._try(request)
        except FileNotFoundError:
            root, *folders = target.lstrip("/").split("/")[:-1]
            path = target[: len(target) - len(target.lstrip("/"))] + root
            for folder in folders:
                path += f"/{folder}"
                with contextlib.suppress(FileExistsError):
                    self._fs.mkdir(path, create_parents=False)
            self._try(request)

    def _try(self, request: Callable[[], T]) -> T:
        """A request; every error that may pass is an OSError in the end, as clients have classes of their own."""
        for wait in (*self.waits, None):
            try:
                return request()
            except _LASTING:
                raise
            except Exception as error:
                if wait is None:
                    if isinstance(error, OSError):
                        raise
                    raise OSError(errno.EIO, f"{type(error).__name__}: {error}", self.url) from error
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")
