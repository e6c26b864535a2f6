"""Blobs: results that are too large for a journal record, in a store that all workers of a deployment reach.

A blob is named by the SHA-256 of its content, so that whoever reads it knows whether it is what was written, and a
step that is run again by a zombie can't change what another recorded. It is written before the record that names it.
Nothing here deletes one: no worker can know that no journal names it any more. docs/howto/large_results.md says how.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from llmagentos.streams.errors import ResultError, SettingsError
from llmagentos.streams.ownership import RECORD_ROOM
from llmagentos.streams.settings import Settings

__all__ = ["Blobs"]

#: Where there is a store, what is over this part of the largest record goes there: batches and readers of the journal
#: should not be filled by single results.
SHARE_OF_RECORD: Final = 2

_NAME: Final = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """The store that the setting `blobs` names; of a local node, a folder beside its data.

    Raises:
        SettingsError: no such store can be opened.
    """

    def __init__(self, settings: Settings) -> None:
        self._url = settings.blobs or ("" if settings.brokers else str(settings.home.absolute() / "blobs"))
        self._most = settings.max_result_bytes
        record = settings.max_message_bytes
        self._record_most = record // SHARE_OF_RECORD if self._url else record - min(RECORD_ROOM, record // 2)
        self._opened: tuple[Any, str] | None = None
        if settings.blobs:
            self._open()

    async def keep(self, body: bytes) -> str:
        """Write *body* where it is too large for a journal record.

        Returns:
            Its name; empty: the record has room for it.

        Raises:
            ResultError: it is over `max_result_bytes`, or there is no store, or that can't be written.
        """
        if len(body) > self._most:
            raise ResultError(
                f"it is {len(body):,} bytes; the limit is {self._most:,} (setting max_result_bytes)",
                fix="let the step store it and return where, or raise LLMAGENTOS_MAX_RESULT_BYTES",
            )
        if len(body) <= self._record_most:
            return ""
        if not self._url:
            raise ResultError(
                f"it is {len(body):,} bytes; a journal record takes {self._record_most:,}, and there is no store for"
                " larger ones (setting blobs)",
                fix="set LLMAGENTOS_BLOBS to a store that all workers reach, for example s3://bucket/folder, or let the"
                " step return less",
            )
        name = hashlib.sha256(body).hexdigest()
        try:
            await asyncio.to_thread(self._write, name, body)
        except Exception as error:
            raise ResultError(
                f"it is {len(body):,} bytes, and blob {name} can't be written to {self._url!r} (setting blobs):"
                f" {error}",
                fix="see that the store is there and may be written",
            ) from error
        return name

    async def read(self, name: str) -> bytes:
        """The content of the blob *name*.

        Raises:
            ResultError: it is gone, can't be read, or isn't what was written.
        """
        fix = "put it back, then `llmagentos dead redrive`; without it, redrive with an edited message, or drop it"
        if not _NAME.fullmatch(name) or not self._url:
            raise ResultError(
                f"its result is blob {name!r}, and the setting blobs is {self._url!r}",
                kept="the message, and all that is recorded",
                fix="set LLMAGENTOS_BLOBS to the store that it was written to",
            )
        try:
            body: bytes = await asyncio.to_thread(self._read, name)
        except Exception as error:
            raise ResultError(
                f"its result, blob {name}, can't be read from {self._url!r} (setting blobs): {error!r}",
                kept="the message, and all that is recorded",
                fix=fix,
            ) from error
        if hashlib.sha256(body).hexdigest() != name:
            raise ResultError(
                f"its result, blob {name} in {self._url!r}, is {len(body):,} bytes that are not what was written",
                kept="the message, and all that is recorded",
                fix=fix,
            )
        return body

    def _open(self) -> tuple[Any, str]:
        if self._opened is None:
            from fsspec.core import url_to_fs

            try:
                self._opened = url_to_fs(self._url)
            except (ImportError, ValueError) as error:
                raise SettingsError(
                    f"blobs = {self._url!r}: {error}",
                    fix="correct LLMAGENTOS_BLOBS, or install what that kind of store needs (s3fs, gcsfs, adlfs)",
                ) from error
        return self._opened

    def _write(self, name: str, body: bytes) -> None:
        files, root = self._open()
        place = _place(root, name)
        from fsspec.implementations.local import LocalFileSystem

        # Also where it is there already: a store may delete what is old, and half a file counts for none.
        if isinstance(files, LocalFileSystem):
            _write_whole(Path(place), body)
            return
        try:  # object stores show what is whole, and know no folders
            files.pipe_file(place, body)
        except FileNotFoundError:
            files.makedirs(place.rpartition("/")[0], exist_ok=True)
            files.pipe_file(place, body)

    def _read(self, name: str) -> bytes:
        files, root = self._open()
        return files.cat_file(_place(root, name))


def _place(root: str, name: str) -> str:
    return f"{root.rstrip('/')}/{name[:2]}/{name}"


def _write_whole(path: Path, body: bytes) -> None:
    """As a reader sees it: nothing or all, after a loss of power too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        with scratch.open("wb") as file:
            file.write(body)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
