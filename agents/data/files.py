"""Files below one folder, of any file system that fsspec knows, within quotas."""

from __future__ import annotations

import stat
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pydantic import Field

from llmagentos.agents.data.service import EVERYONE, Caller, DataTool, Operation, Request, Who, permitted
from llmagentos.streams.errors import DataRefused

__all__ = ["Files"]

#: Of a path, in characters and in folders: file systems take 4,096 and any number; nobody names a note like that.
PATH_MAX: Final = 1_000
DEPTH_MAX: Final = 32
#: Of a listing.
LISTED_MAX: Final = 1_000


class _List(Request):
    folder: str = Field("", description="Below which to list; empty: all.")


class _Read(Request):
    path: str = Field(description="Of the file, relative, with / between folders.")
    start: int = Field(0, ge=0, description="The first byte to read.")


class _Write(Request):
    path: str = Field(description="Of the file, relative, with / between folders. What is there is replaced.")
    text: str


class _Delete(Request):
    path: str = Field(description="Of the file, relative, with / between folders.")


class Files:
    """Files below *root*, for agents.

    Args:
        root: a folder that exists, or an fsspec URL (`s3://bucket/notes`).
        read, write: names of the agents that may; `"*"`: all.
        quota_bytes, quota_files: of all that is below the root; with *per_tenant* of each tenant.
        file_bytes: largest file that is written.
        answer_bytes: the most that one answer brings of a file; further calls read on.
        per_tenant: each tenant has a folder of its own below the root, and sees nothing else.

    Quotas are kept within one worker; several that write to one root at the same moment may pass them by what is under
    way. A local root is not to be shared with programs that put symbolic links there while a request runs.

    Raises:
        DataRefused: the root is no folder.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        read: Who = EVERYONE,
        write: Who = (),
        quota_bytes: int = 100 * 1024 * 1024,
        quota_files: int = 10_000,
        file_bytes: int = 1024 * 1024,
        answer_bytes: int = 64 * 1024,
        per_tenant: bool = False,
    ) -> None:
        import fsspec.core
        from fsspec.implementations.local import LocalFileSystem

        self._fs: Any
        self._fs, self._root = fsspec.core.url_to_fs(str(root))
        # What a person put above the root is theirs: below it nothing may lead elsewhere.
        self._local = isinstance(self._fs, LocalFileSystem)
        if self._local:
            self._root = str(Path(self._root).resolve())
            if not Path(self._root).is_dir():
                raise DataRefused(f"there is no folder {self._root}", fix="make it, or correct the path")
        self._read, self._write = read, write
        self._quota_bytes, self._quota_files, self._file_bytes = quota_bytes, quota_files, file_bytes
        self._answer_bytes = answer_bytes
        self._per_tenant = per_tenant
        self._writing = threading.Lock()

    def tools(self) -> list[DataTool]:
        """For `ctx.llm.chat(tools=...)`."""
        return [DataTool(operation) for operation in self.operations()]

    def operations(self) -> Sequence[Operation]:
        """List, read, write, delete."""

        def of(name: str, description: str, request: type[Request], do: Any, who: Who) -> Operation:
            def authorise(caller: Caller, _: Any) -> None:
                if not permitted(who, caller.name):
                    raise DataRefused(f"agent {caller.name!r} may not use {name} here")

            return Operation(name, description, request, _target, authorise, do)

        return (
            of("list_files", "List files with their sizes in bytes.", _List, self._do_list, self._read),
            of("read_file", "Read a text file, from a byte on.", _Read, self._do_read, self._read),
            of("write_file", "Write a text file whole.", _Write, self._do_write, self._write),
            of("delete_file", "Delete a file.", _Delete, self._do_delete, self._write),
        )

    # -- operations, each in a thread

    def _do_list(self, caller: Caller, request: _List) -> dict[str, Any]:
        base = self._base(caller)
        folder = self._place(caller, request.folder) if request.folder else base
        found = self._found(folder)
        listed = [{"path": path.removeprefix(base).lstrip("/"), "bytes": size} for path, size in sorted(found.items())]
        return {"files": listed[:LISTED_MAX], "more": max(0, len(listed) - LISTED_MAX)}

    def _do_read(self, caller: Caller, request: _Read) -> dict[str, Any]:
        place = self._place(caller, request.path)
        if not self._fs.isfile(place):
            raise DataRefused(f"there is no file {request.path!r}")
        whole: int = self._fs.size(place)
        end = min(whole, request.start + self._answer_bytes)
        content: bytes = self._fs.cat_file(place, start=request.start, end=end) if request.start < whole else b""
        text, taken = _text(content, last=end == whole, path=request.path)
        return {"text": text, "bytes": whole, "next": None if request.start + taken >= whole else request.start + taken}

    def _do_write(self, caller: Caller, request: _Write) -> dict[str, Any]:
        place = self._place(caller, request.path)
        content = request.text.encode()
        if len(content) > self._file_bytes:
            raise DataRefused(f"{request.path!r} would be {len(content):,} bytes; a file may have {self._file_bytes:,}")
        with self._writing:
            if self._fs.isdir(place):
                raise DataRefused(f"{request.path!r} is a folder")
            found = self._found(self._base(caller))
            before = found.pop(place, None)
            used = sum(found.values())
            if before is None and len(found) >= self._quota_files:
                raise DataRefused(f"there are {len(found):,} files already, which is the quota; delete some")
            if used + len(content) > self._quota_bytes:
                raise DataRefused(
                    f"{request.path!r} with {len(content):,} bytes is over the quota:"
                    f" {used:,} of {self._quota_bytes:,} bytes are in use; delete something"
                )
            self._put(place, content, caller.key)
        return {"written": len(content)}

    def _do_delete(self, caller: Caller, request: _Delete) -> dict[str, Any]:
        place = self._place(caller, request.path)
        if self._fs.isdir(place):
            raise DataRefused(f"{request.path!r} is a folder")
        there = bool(self._fs.exists(place))
        if there:
            self._fs.rm_file(place)
        return {"deleted": there}

    # -- places

    def _base(self, caller: Caller) -> str:
        if not self._per_tenant:
            return self._root
        return self._below(self._root, [_part(caller.tenant, "tenant")])

    def _place(self, caller: Caller, path: str) -> str:
        """Where *path* lies in the file system; refused where it leads out, or by way of a link."""
        if len(path) > PATH_MAX:
            raise DataRefused(f"a path of {len(path):,} characters is too long; {PATH_MAX:,} are allowed")
        parts = [_part(part, f"path {path!r}") for part in path.split("/")]
        if len(parts) > DEPTH_MAX:
            raise DataRefused(f"path {path!r} has {len(parts)} parts; {DEPTH_MAX} are allowed")
        return self._below(self._base(caller), parts)

    def _below(self, base: str, parts: Sequence[str]) -> str:
        place = base
        for number, part in enumerate(parts, 1):
            place = f"{place}/{part}"
            if not self._local:
                continue
            try:
                mode = Path(place).lstat().st_mode
            except FileNotFoundError:
                return "/".join([base, *parts])
            shown = "/".join(parts[:number])
            if stat.S_ISLNK(mode):
                raise DataRefused(f"{shown!r} is a symbolic link, and links are not followed")
            if not stat.S_ISDIR(mode) and (number < len(parts) or not stat.S_ISREG(mode)):
                raise DataRefused(f"{shown!r} is no {'folder' if number < len(parts) else 'plain file'}")
        return place

    def _found(self, folder: str) -> dict[str, int]:
        """Plain files below *folder*, with their sizes; links and what they lead to are left out."""
        if self._local:
            return {
                str(path): status.st_size
                for path in Path(folder).rglob("*")
                if stat.S_ISREG((status := path.lstat()).st_mode)
            }
        if not self._fs.exists(folder):
            return {}
        found: dict[str, Any] = self._fs.find(folder, detail=True)
        return {path: int(info["size"] or 0) for path, info in found.items()}

    def _put(self, place: str, content: bytes, key: str) -> None:
        """Replace a file at once, so that a reader sees the old content or the new, and a crash leaves no part."""
        folder = place.rpartition("/")[0]
        self._fs.makedirs(folder, exist_ok=True)
        if not self._local:
            self._fs.pipe_file(place, content)
            return
        scratch = Path(folder) / f".{key}.part"  # a rerun writes over what a killed worker left
        scratch.write_bytes(content)
        scratch.replace(place)


def _target(request: Any) -> str:
    return request.folder if isinstance(request, _List) else request.path


def _part(part: str, what: str) -> str:
    """One name in a path; raises DataRefused where it is none."""
    if (
        part in ("", ".", "..")
        or "/" in part
        or "\\" in part
        or not part.isprintable()
        or len(part.encode(errors="replace")) > 240
    ):
        raise DataRefused(
            f"{what} is not allowed: give names of printable characters with / between them, without . and .. and not"
            " beginning or ending with /"
        )
    return part


def _text(content: bytes, *, last: bool, path: str) -> tuple[str, int]:
    """*content* as text, without a character that is cut off at its end; and how many bytes that is."""
    for cut in range(1 if last else 4):  # UTF-8 has up to 4 bytes a character
        try:
            kept = content[: len(content) - cut]
            return kept.decode(), len(kept)
        except UnicodeDecodeError:
            continue
    raise DataRefused(f"{path!r} is not a text in UTF-8, at least not from there on")
