"""The headers of a tar archive, one after the other: what lies where. Nothing is extracted and no name is opened.

`tarfile` decodes the header blocks; the walk over them is ours, because every length in them is hostile: a long name or a
pax header is read up to a limit, and no member's bytes are read or unpacked to find out where the next one begins.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from meca.data.readers.files import open_regular, text
from meca.errors import InputRefused

__all__ = ["BLOCK", "Member", "Tar", "is_gzip"]

BLOCK = tarfile.BLOCKSIZE
ENCODING = "utf-8"
MAX_MEMBERS = 5_000_000
MAX_HEADER = 2**16  # bytes of a long name or a pax header
MAX_HEADERS = 2**30  # bytes of all headers: they are kept, so that the archive can be written again
FREE = 256 * 2**20  # bytes that an archive may unpack to, whatever its size
MAX_RATIO = 20  # beyond that: unpacked to packed


@dataclass(frozen=True)
class Member:
    """One member of an archive."""

    name: str  # as it stands there
    kind: str  # file, folder, link or other (devices, pipes, sparse files)
    size: int  # bytes of its content
    offset: int  # of its content in the unpacked archive
    header: bytes  # all header blocks as they came


def is_gzip(path: Path) -> bool:
    """Say by its name whether an archive is gzipped."""
    return path.name.lower().endswith((".gz", ".tgz"))


class Tar:
    """An opened archive: iterate over its members in their order, and `read` those that count."""

    def __init__(self, path: Path) -> None:
        self.name = text(path.name)
        self._file = open_regular(path)
        self._size = self._file.seek(0, 2)
        self._file.seek(0)
        self._zipped = is_gzip(path)
        # Typed as a file: GzipFile seeks forward by unpacking, and never holds more than a buffer.
        self._stream: BinaryIO = gzip.GzipFile(fileobj=self._file) if self._zipped else self._file  # pyright: ignore[reportAttributeAccessIssue]
        self._limit = max(FREE, MAX_RATIO * self._size) if self._zipped else self._size

    def __enter__(self) -> "Tar":
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._file.close()

    def read(self, member: Member) -> bytes:
        """Return the content of a member; in a gzipped archive members must be read in their order."""
        data = self._at(member.offset, member.size)
        if len(data) != member.size:
            raise InputRefused(f"{self.name} ends in the middle of a member; get the archive again.")
        return data

    def __iter__(self) -> Iterator[Member]:
        """Yield the members.

        Raises:
            InputRefused: The archive is damaged, or unpacks to far more than it is.
        """
        position, headers, count, empty = 0, 0, 0, 0
        pending, attributes = b"", dict[str, str]()
        while True:
            block = self._at(position, BLOCK)
            if not block:
                if not empty:  # cut between two members: nobody could tell what is missing
                    raise InputRefused(f"{self.name} ends without the empty blocks that end an archive; get the archive again.")
                break
            if len(block) < BLOCK:
                raise InputRefused(f"{self.name} ends in the middle of a header; get the archive again.")
            if not block.strip(b"\0"):
                empty += 1
                position += BLOCK
                if empty == 2:
                    break
                continue
            empty = 0
            info = self._decode(block, position)
            data = position + BLOCK
            end = data + -(-info.size // BLOCK) * BLOCK
            if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                content = self._header(info.size, data)
                if info.type == tarfile.GNUTYPE_LONGNAME:
                    attributes["path"] = content.rstrip(b"\0").decode(ENCODING, "surrogateescape")
                elif info.type != tarfile.GNUTYPE_LONGLINK:
                    found = self._pax(content)
                    if info.type == tarfile.XGLTYPE and {"path", "size"} & found.keys():
                        raise InputRefused(f"{self.name} gives all its members one name or size; pack it again.")
                    attributes |= {} if info.type == tarfile.XGLTYPE else found
                pending += block + self._at(data, end - data)
                if len(pending) > 4 * MAX_HEADER:
                    raise InputRefused(f"{self.name} has headers without end before a member; pack it again.")
                position = end
                continue
            member = self._member(info, data, pending + block, attributes)
            end = data + -(-member.size // BLOCK) * BLOCK if member.kind in ("file", "other") else data
            if data + member.size > self._limit:
                raise InputRefused(
                    f"{self.name} unpacks to more than {self._limit} bytes, {MAX_RATIO} times its size; pack it again with fewer."
                    if self._zipped
                    else f"{self.name} ends in the middle of a member; get the archive again."
                )
            headers, count = headers + len(member.header), count + 1
            if headers > MAX_HEADERS or count > MAX_MEMBERS:
                raise InputRefused(f"Expected at most {MAX_MEMBERS} members in {self.name}, found more.")
            yield member
            pending, attributes, position = b"", {}, end

    def _at(self, offset: int, size: int) -> bytes:
        if offset + size > self._limit + 2**20:  # blocks of zeros behind the last member are none of its content
            raise InputRefused(f"{self.name} is larger than its members may be, or unpacks to more than {MAX_RATIO} times its size.")
        try:
            if self._stream.tell() != offset:
                self._stream.seek(offset)
            return self._stream.read(size)
        except (OSError, EOFError, zlib.error) as problem:
            raise InputRefused(f"{self.name} is damaged ({problem}); get the archive again.") from None

    def _decode(self, block: bytes, position: int) -> tarfile.TarInfo:
        try:
            info = tarfile.TarInfo.frombuf(block, ENCODING, "surrogateescape")
        except (tarfile.HeaderError, ValueError, OverflowError) as problem:
            raise InputRefused(f"{self.name} has no readable header at byte {position} ({problem}); is it a tar archive?") from None
        if info.size < 0 or info.size > 2**62:
            raise InputRefused(f"{self.name} has a member of {info.size} bytes at byte {position}.")
        return info

    def _header(self, size: int, offset: int) -> bytes:
        if size > MAX_HEADER:
            raise InputRefused(f"{self.name} has a header of {size} bytes at byte {offset}, more than {MAX_HEADER}.")
        content = self._at(offset, size)
        if len(content) != size:
            raise InputRefused(f"{self.name} ends in the middle of a header; get the archive again.")
        return content

    def _pax(self, content: bytes) -> dict[str, str]:
        found: dict[str, str] = {}
        rest = content.rstrip(b"\0")
        while rest:
            length = re.match(rb"([1-9][0-9]{0,5}) ", rest)
            size = int(length[1]) if length else 0
            key, sign, value = rest[len(length[0]) if length else 0 : size].partition(b"=")
            if not length or size > len(rest) or not sign or not value.endswith(b"\n"):
                raise InputRefused(f"{self.name} has a damaged pax header; pack it again.")
            found[key.decode(ENCODING, "surrogateescape")] = value[:-1].decode(ENCODING, "surrogateescape")
            rest = rest[size:]
        return found

    def _member(self, info: tarfile.TarInfo, data: int, header: bytes, attributes: dict[str, str]) -> Member:
        size, name = info.size, attributes.get("path", info.name)
        if "size" in attributes:
            if not re.fullmatch(r"[0-9]{1,18}", attributes["size"]):
                raise InputRefused(f"{self.name} has a member of {attributes['size'][:50]!r} bytes.")
            size = int(attributes["size"])
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise InputRefused(f"{self.name} holds the sparse file {name[:200]!r}; pack it again without them.")
        if info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
            kind = "other" if any(key.startswith("GNU.sparse") for key in attributes) else "file"
            kind = "folder" if info.type == tarfile.AREGTYPE and name.endswith("/") else kind
        elif info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
            kind = "link"
        else:
            # What has a type that nobody knows has its content behind it, as tarfile reads it too.
            kind = (
                "folder"
                if info.type == tarfile.DIRTYPE
                else "nothing"
                if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)
                else "other"
            )
        if kind in ("folder", "link", "nothing"):
            size = 0
        return Member(name, "other" if kind == "nothing" else kind, size, data, header)
