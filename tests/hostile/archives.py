"""Hostile zip and tar archives: names that lead out, links and devices, bombs, headers that disagree with each other."""

import gzip
import io
import stat
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tests.hostile.case import Case, Expected, keep, quarantine, refuse, usage
from tests.hostile.parts import CANARY, GOOD, encoded, good, write

__all__ = ["CASES", "member", "tar_bytes", "zip_bytes"]

Members = Mapping[str, bytes]
TIME = (2024, 1, 2, 3, 4, 6)


def case(format: str, id: str, threat: str, what: str, expected: Expected, data: Callable[[], bytes], name: str = "") -> Case:
    """An archive of given bytes."""
    file = name or f"x.{format}"
    return Case(
        f"{format.replace('.', '-')}-{id}",
        threat,
        f"{what} ({format})" if not name else what,
        expected,
        lambda root: write(root, {file: data()}) / file,
    )


def zip_bytes(members: Members | Iterable[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # doubled names are what some cases are about
        for name, data in members.items() if isinstance(members, Mapping) else members:
            info: Any = zipfile.ZipInfo(name, TIME) if isinstance(name, str) else name
            info.compress_type = method
            archive.writestr(info, data)
    return buffer.getvalue()


def member(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(data), 1_700_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    return info, data


def tar_bytes(
    members: Members | Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT, headers: dict[str, str] | None = None
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind, pax_headers=headers or {}, errors="surrogateescape") as archive:
        for info, data in (member(*item) for item in members.items()) if isinstance(members, Mapping) else members:
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tar_items(members: Members | None = None) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [member(*item) for item in (good() if members is None else members).items()]


# --- names, the same in both ----------------------------------------------------------------------------------------

ENCODED = encoded(99)


def both(id: str, threat: str, what: str, expected: Expected, more: Members) -> list[Case]:
    """The same members in a zip and in a tar archive."""
    return [
        case("zip", id, threat, what, expected, lambda: zip_bytes(good() | dict(more))),
        case("tar", id, threat, what, expected, lambda: tar_bytes(good() | dict(more))),
    ]


def led_out(id: str, name: str, what: str, says: str, threat: str = "T10") -> list[Case]:
    return both(id, threat, what, refuse(says), {name: ENCODED})


NAMES = [
    *led_out("name-upwards", f"../{CANARY}/evil.png", "a member whose name climbs out", "leaves the folder"),
    *led_out("name-upwards-inside", f"cat/../../{CANARY}/evil.png", "a name that goes in and out again", "leaves the folder"),
    *led_out("name-absolute", "/etc/cron.d/evil.png", "an absolute name", "is absolute"),
    *led_out("name-drive", "C:/evil.png", "a name with a drive", "is an address or begins with a drive"),
    *led_out("name-backslash", "cat\\..\\..\\evil.png", "a name with backslashes", "holds a backslash"),
    *led_out("name-address", "file:///etc/passwd.png", "a name that is an address", "is an address"),
    *led_out("name-escape", "cat/\x1b[2J.png", "a name that clears the terminal", "holds control characters", "T43"),
    *led_out("name-bidi", "cat/\u202egnp.exe.png", "a name that turns the text around", "holds control characters", "T16"),
    *led_out("name-newline", "cat/0.png\nmeca: all is well.png", "a name of two lines", "holds control characters", "T43"),
    *led_out("name-deep", "d/" * 33 + "x.png", "a name of 33 folders", "has more than 32 folders", "T17"),
    *led_out("name-long", "cat/" + "x" * 300 + ".png", "a name of 304 bytes", "a name that is too long", "T17"),
    *led_out("class-in-two-cases", "CAT/x.png", "the classes `cat` and `CAT`", "are one folder on some systems", "T16"),
    *led_out("class-zero-width", "cat\u200b/x.png", "the classes `cat` and `cat` with a space of no width", "are one folder on some systems", "T16"),
    *both(
        "archive-inside",
        "T13",
        "an archive inside, which is not opened",
        keep(GOOD, odd=("cat/inner.zip", "cat/inner.tar.gz")),
        {"cat/inner.zip": b"PK\5\6" + bytes(18), "cat/inner.tar.gz": b"\x1f\x8b"},
    ),
    *both(
        "programs",
        "T02",
        "a pickle and a program inside a class",
        quarantine(GOOD, {"cat/x.pkl": "not-an-image", "cat/x.py": "not-an-image"}),
        {"cat/x.pkl": b"\x80\x04.", "cat/x.py": b"import os"},
    ),
    *both(
        "files-that-tools-obey",
        "T09",
        "prefect.toml, .env and dvc.yaml at the top",
        keep(GOOD, odd=(".env", "dvc.yaml", "prefect.toml")),
        {"prefect.toml": b"x", ".env": b"x", "dvc.yaml": b"x"},
    ),
    *both("names-in-two-cases", "T16", "the files x.png and X.png", keep(GOOD + 2), {"cat/x.png": encoded(7), "cat/X.png": encoded(8)}),
    *both(
        "spellings-of-one-name",
        "T14",
        "one name written in three ways",
        quarantine(GOOD - 1, {"cat/0.png": "name-twice", "cat/0.png#2": "name-twice", "cat/0.png#3": "name-twice"}),
        {"./cat/0.png": ENCODED, "cat//0.png": encoded(98)},
    ),
]


# --- zip -------------------------------------------------------------------------------------------------------------

LOCAL, CENTRAL = b"PK\x03\x04", b"PK\x01\x02"


def patched(data: bytes, name: str, changes: Mapping[bytes, Mapping[int, tuple[str, int]]]) -> bytes:
    """Return a zip archive in which fields (offset: format, value) of one member's headers, by their signature, are others."""
    found = bytearray(data)
    for sign, fields in changes.items():
        length_at, name_at = (28, 46) if sign == CENTRAL else (26, 30)
        at = found.find(sign)
        while at >= 0:
            length = struct.unpack_from("<H", found, at + length_at)[0]
            if found[at + name_at : at + name_at + length] == name.encode():
                for offset, (kind, value) in fields.items():
                    struct.pack_into(kind, found, at + offset, value)
            at = found.find(sign, at + 4)
    return bytes(found)


def zip_patched(changes: Mapping[bytes, Mapping[int, tuple[str, int]]], name: str = "cat/0.png") -> Callable[[], bytes]:
    return lambda: patched(zip_bytes(good()), name, changes)


def attributes(mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("cat/x.png", TIME)
    info.create_system, info.external_attr = 3, mode << 16
    return info


def overlapping(offset: int = 0) -> bytes:
    """Return a zip archive whose entries of the directory all point to one member, as the best known bombs do."""
    kernel = zip_bytes({"cat/0.png": ENCODED})
    local = kernel[: kernel.index(CENTRAL)]
    entry = kernel[kernel.index(CENTRAL) : kernel.index(b"PK\x05\x06")]
    directory = b"".join(entry.replace(b"cat/0.png", b"cat/%d.png" % i) for i in range(8)) + entry.replace(b"cat/0.png", b"dog/0.png")
    end = struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 9, 9, len(directory), len(local) + offset, 0)
    return local + directory + end


def quoted_bomb() -> bytes:
    """Return a zip archive whose first member quotes the local headers of all others, so that they share their data."""
    data = encoded(5)
    local = struct.pack("<4s5H3I2H", LOCAL, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), 9, 0) + b"cat/1.png" + data
    quote = b"\0" + struct.pack("<HH", len(local), len(local) ^ 0xFFFF) + local  # a stored block of deflate
    whole = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = whole.compress(b"") + whole.flush()
    first = quote + tail
    head = struct.pack("<4s5H3I2H", LOCAL, 20, 0, 8, 0, 33, zlib.crc32(local), len(first), len(local), 9, 0) + b"cat/0.png"
    body = head + first
    inner = body.index(LOCAL, 4)
    entries = b""
    for name, method, packed, size, checksum, at in (
        (b"cat/0.png", 8, len(first), len(local), zlib.crc32(local), 0),
        (b"cat/1.png", 0, len(data), len(data), zlib.crc32(data), inner),
    ):
        entries += struct.pack("<4s6H3I5H2I", CENTRAL, 20, 20, 0, method, 0, 33, checksum, packed, size, len(name), 0, 0, 0, 0, 0, at) + name
    return body + entries + struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, 2, 2, len(entries), len(body), 0)


def quine() -> bytes:
    """Return a zip archive that holds, under a class folder, an archive of its own bytes (as far as a copy goes)."""
    inner = zip_bytes(good())
    for _ in range(3):
        inner = zip_bytes(good() | {"cat/again.zip": inner})
    return inner


def zip64(sizes: bytes) -> bytes:
    """Return a zip archive of which one member says its sizes in a zip64 field."""
    info = zipfile.ZipInfo("cat/x.png", TIME)
    info.extra = struct.pack("<HH", 1, len(sizes)) + sizes
    data = zip_bytes([*good().items(), (info, ENCODED)], zipfile.ZIP_STORED)
    return patched(data, "cat/x.png", {CENTRAL: {20: ("<I", 2**32 - 1), 24: ("<I", 2**32 - 1)}})


def flipped_data(data: bytes, name: str) -> bytes:
    at = data.index(name.encode()) + len(name) + 20
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


def one(reason: str, name: str = "cat/0.png") -> Expected:
    return quarantine(GOOD - 1, {name: reason})


def more(reason: str) -> Expected:
    return quarantine(GOOD, {"cat/x.png": reason})


ZIP = [
    case(
        "zip",
        "link",
        "T11",
        "a symbolic link",
        more("link"),
        lambda: zip_bytes([*good().items(), (attributes(stat.S_IFLNK | 0o777), b"/etc/passwd")]),
    ),
    case("zip", "device", "T11", "a device", more("not-a-file"), lambda: zip_bytes([*good().items(), (attributes(stat.S_IFBLK | 0o666), b"")])),
    case("zip", "pipe", "T11", "a pipe", more("not-a-file"), lambda: zip_bytes([*good().items(), (attributes(stat.S_IFIFO | 0o666), b"")])),
    case(
        "zip",
        "folder-with-content",
        "T11",
        "an entry for a folder that has content",
        quarantine(GOOD, {"cat/x.png": "not-a-file"}),
        lambda: zip_bytes(good() | {"cat/x.png/": ENCODED}),
    ),
    case(
        "zip",
        "doubled-name",
        "T14",
        "one name twice, of which libraries return the last",
        quarantine(GOOD - 1, {"cat/0.png": "name-twice", "cat/0.png#2": "name-twice"}),
        lambda: zip_bytes([*good().items(), ("cat/0.png", ENCODED)]),
    ),
    case("zip", "encrypted", "T13", "an encrypted member", one("encrypted"), zip_patched({LOCAL: {6: ("<H", 1)}, CENTRAL: {8: ("<H", 1)}})),
    case(
        "zip",
        "encrypted-strongly",
        "T13",
        "a strongly encrypted member",
        one("corrupt"),
        zip_patched({LOCAL: {6: ("<H", 0x40)}, CENTRAL: {8: ("<H", 0x40)}}),
    ),
    case(
        "zip", "patched-data", "T13", "a member of patched data", one("corrupt"), zip_patched({LOCAL: {6: ("<H", 0x20)}, CENTRAL: {8: ("<H", 0x20)}})
    ),
    case("zip", "bzip2", "T13", "a member packed with bzip2", one("compression:12"), zip_patched({CENTRAL: {10: ("<H", 12)}})),
    case(
        "zip",
        "unknown-method",
        "T13",
        "a member packed in a way that there is not",
        one("compression:99"),
        zip_patched({LOCAL: {8: ("<H", 99)}, CENTRAL: {10: ("<H", 99)}}),
    ),
    case(
        "zip",
        "wrong-checksum",
        "T13",
        "a checksum that does not fit",
        one("corrupt"),
        zip_patched({LOCAL: {14: ("<I", 1)}, CENTRAL: {16: ("<I", 1)}}),
    ),
    case("zip", "flipped-bit", "T13", "one flipped byte in a member", one("corrupt"), lambda: flipped_data(zip_bytes(good()), "cat/0.png")),
    case(
        "zip",
        "local-name-differs",
        "T13",
        "a local header that names another file than the directory",
        one("corrupt"),
        lambda: zip_bytes(good()).replace(b"cat/0.png", b"dog/9.png", 1),
    ),
    case(
        "zip",
        "local-method-differs",
        "T13",
        "a local header that says another method: the directory counts",
        keep(GOOD),
        zip_patched({LOCAL: {8: ("<H", 99)}}),
    ),
    case(
        "zip", "size-too-small", "T13", "a directory that says a smaller size than there is", one("corrupt"), zip_patched({CENTRAL: {24: ("<I", 10)}})
    ),
    case(
        "zip",
        "size-too-large",
        "T13",
        "a directory that says 10 MB where there are 400 bytes",
        one("unpacks-to-too-much"),
        zip_patched({CENTRAL: {24: ("<I", 10**7)}}),
    ),
    case(
        "zip",
        "size-below-the-ratio",
        "T13",
        "a directory that says 1 kB more than there is: what is there counts, and its checksum fits",
        keep(GOOD),
        zip_patched({CENTRAL: {24: ("<I", 1500)}}),
    ),
    case(
        "zip",
        "offset-beyond-the-end",
        "T13",
        "a member that begins behind the end",
        one("corrupt", "dog/2.png"),
        zip_patched({CENTRAL: {42: ("<I", 2**31)}}, "dog/2.png"),
    ),
    case(
        "zip",
        "nul-in-name",
        "T10",
        "a name with a NUL, which libraries cut there",
        refuse("holds a NUL character"),
        lambda: zip_bytes(good() | {"cat/x.png?.exe": ENCODED}).replace(b"x.png?.exe", b"x.png\0.exe"),
    ),
    case(
        "zip",
        "bomb-of-one-member",
        "T13",
        "a member of 50 MB of zeros in 50 kB",
        more("unpacks-to-too-much"),
        lambda: zip_bytes(good() | {"cat/x.png": bytes(50_000_000)}),
    ),
    case(
        "zip",
        "bomb-of-many-members",
        "T13",
        "30 members of 10 MB of zeros",
        refuse("unpacks to more than 20 times its size"),
        lambda: zip_bytes(good() | {f"cat/{i}.bin": bytes(10_000_000) for i in range(30)}),
    ),
    case(
        "zip",
        "bomb-that-lies",
        "T13",
        "members of 50 MB whose directory says 100 kB",
        quarantine(GOOD, {"cat/x.png": "corrupt"}),
        lambda: patched(
            zip_bytes(good() | {"cat/x.png": bytes(50_000_000)}), "cat/x.png", {LOCAL: {22: ("<I", 100_000)}, CENTRAL: {24: ("<I", 100_000)}}
        ),
    ),
    case("zip", "bomb-of-overlapping-members", "T13", "nine entries for one member", refuse("overlap"), overlapping),
    case("zip", "bomb-of-quoted-headers", "T13", "a member that begins inside another one", refuse("overlap"), quoted_bomb),
    case("zip", "archives-in-archives", "T13", "an archive in an archive in an archive", keep(GOOD, odd=("cat/again.zip",)), quine),
    case(
        "zip",
        "zip64-petabytes",
        "T13",
        "a zip64 field that says 2^60 bytes",
        refuse("unpacks to more than 20 times its size"),
        lambda: zip64(struct.pack("<QQ", 2**60, 2**60)),
    ),
    case("zip", "zip64-cut", "T13", "a zip64 field that is too short", refuse("is not a readable zip archive"), lambda: zip64(b"\xff" * 4)),
    case(
        "zip",
        "zip64-directory-elsewhere",
        "T13",
        "a zip64 record that puts the directory at 2^63",
        refuse("is not a readable zip archive"),
        lambda: (
            lambda data: (
                data[:-22]
                + struct.pack("<4sQ2H2I4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 6, 6, 2**63 - 1, 2**63 - 1)
                + struct.pack("<4sIQI", b"PK\x06\x07", 0, len(data) - 22, 1)
                + data[-22:-12]
                + b"\xff" * 8
                + b"\0\0"
            )
        )(zip_bytes(good())),
    ),
    case("zip", "directory-cut", "T21", "a zip archive without its end", refuse("is not a readable zip archive"), lambda: zip_bytes(good())[:-30]),
    case(
        "zip",
        "counts-fewer-members",
        "T13",
        "an end that counts one member: the directory counts",
        keep(GOOD),
        lambda: (lambda data: data[:-14] + struct.pack("<HH", 1, 1) + data[-10:])(zip_bytes(good())),
    ),
    case("zip", "program-in-front", "T08", "a zip archive behind a program", keep(GOOD), lambda: b"\x7fELF" + bytes(200) + zip_bytes(good())),
    case(
        "zip",
        "comment-with-script",
        "T40",
        "a comment with a script",
        keep(GOOD),
        lambda: (lambda data, said: data[:-2] + struct.pack("<H", len(said)) + said)(zip_bytes(good()), b"<script>alert(1)</script>"),
    ),
    case(
        "zip",
        "many-members",
        "T17",
        "5,000 members that are no images",
        refuse("More than 50 images cannot be read"),
        lambda: zip_bytes(good() | {f"cat/{i}.txt": b"" for i in range(5_000)}, zipfile.ZIP_STORED),
    ),
    case("zip", "no-archive", "T08", "a PNG called x.zip", refuse("is not a readable zip archive"), lambda: ENCODED),
    case(
        "zip",
        "name-not-utf8",
        "T16",
        "a name in the old encoding: its letters are those of code page 437",
        keep(GOOD + 1),
        lambda: zip_bytes(good() | {"cat/?.png": ENCODED}).replace(b"cat/?.png", b"cat/\x82.png"),
    ),
    case(
        "zip",
        "name-lies-about-utf8",
        "T16",
        "a name that says it is UTF-8 and is not",
        refuse("is not a readable zip archive"),
        lambda: zip_bytes(good() | {"cat/é.png": ENCODED}).replace("cat/é.png".encode(), b"cat/\xff\xff.png"),
    ),
    case(
        "zip",
        "impossible-date",
        "T30",
        "a member of month 15 and day 31",
        keep(GOOD),
        zip_patched({LOCAL: {12: ("<H", 0xFFFF)}, CENTRAL: {14: ("<H", 0xFFFF)}}),
    ),
    case(
        "zip",
        "of-flat-images",
        "T30",
        "images outside of class folders",
        refuse("Expected class folders with images"),
        lambda: zip_bytes({"0.png": ENCODED, "1.png": encoded(1)}),
    ),
    case(
        "zip",
        "splits-beside-classes",
        "T30",
        "class folders beside train/ and test/",
        usage("are they splits or classes"),
        lambda: zip_bytes(good("train/") | good("test/") | good()),
    ),
    Case(
        "zip-beside-folders",
        "T30",
        "an archive beside class folders",
        usage("could be imagefolder or zip"),
        lambda root: write(root, good() | {"x.zip": zip_bytes(good())}),
    ),
    Case(
        "two-zips",
        "T30",
        "two archives side by side",
        usage("which one counts? Point to that file"),
        lambda root: write(root, {"a.zip": zip_bytes(good()), "b.zip": zip_bytes(good())}),
    ),
    Case(
        "zip-is-a-link",
        "T12",
        "an archive that is a link to outside",
        refuse("Nothing to read in"),
        lambda root: ((root / "x.zip").symlink_to(root.parent / CANARY / "x.zip"), root)[1],
    ),
]

# --- tar -------------------------------------------------------------------------------------------------------------


def header(name: str, size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mtime = size, kind, 1_700_000_000
    return info.tobuf(tarfile.GNU_FORMAT)


def block(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def ended(parts: bytes) -> bytes:
    whole = b"".join(block(header(name, len(data))) + block(data) for name, data in good().items())
    return whole + parts + bytes(1024)


def raw(*parts: bytes) -> Callable[[], bytes]:
    return lambda: ended(b"".join(parts))


def pax(*records: tuple[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    content = b""
    for key, value in records:
        text = f" {key}={value}\n".encode("utf-8", "surrogateescape")
        size = len(text) + 1
        while len(f"{size}") + len(text) != size:
            size += 1
        content += f"{size}".encode() + text
    return header("pax", len(content), kind) + block(content)


FILE = header("cat/x.png", len(ENCODED)) + block(ENCODED)


def linked(kind: bytes, target: str = "/etc/passwd") -> bytes:
    return tar_bytes([*tar_items(), member("cat/x.png", type=kind, linkname=target)])


def old_sparse() -> bytes:
    return header("cat/x.png", 512, tarfile.GNUTYPE_SPARSE) + bytes(512)


def numbered(size: bytes) -> bytes:
    """Return a header whose size field is given, with the right checksum."""
    found = bytearray(header("cat/x.png"))
    found[124:136] = size
    found[148:156] = b" " * 8
    found[148:156] = b"%06o\0 " % sum(found)
    return bytes(found)


TAR = [
    case("tar", "symbolic-link", "T11", "a symbolic link to /etc/passwd", more("link"), lambda: linked(tarfile.SYMTYPE)),
    case(
        "tar",
        "link-then-file-behind",
        "T11",
        "a link to a folder outside, then a file behind it",
        quarantine(GOOD + 1, {"cat/away": "link"}),
        lambda: tar_bytes([*tar_items(), member("cat/away", type=tarfile.SYMTYPE, linkname=f"../../{CANARY}"), member("cat/away/x.png", ENCODED)]),
    ),
    case("tar", "hard-link", "T11", "a hard link to a member", more("link"), lambda: linked(tarfile.LNKTYPE, "cat/0.png")),
    case("tar", "character-device", "T11", "a character device", more("not-a-file"), lambda: linked(tarfile.CHRTYPE)),
    case("tar", "block-device", "T11", "a block device", more("not-a-file"), lambda: linked(tarfile.BLKTYPE)),
    case("tar", "pipe", "T11", "a pipe", more("not-a-file"), lambda: linked(tarfile.FIFOTYPE)),
    case(
        "tar",
        "unknown-type",
        "T11",
        "a member of a type that nobody knows",
        more("not-a-file"),
        raw(header("cat/x.png", len(ENCODED), b"Z"), block(ENCODED)),
    ),
    case(
        "tar",
        "contiguous",
        "T11",
        "a contiguous file, an old type: a file like any other",
        keep(GOOD + 1),
        raw(header("cat/x.png", len(ENCODED), tarfile.CONTTYPE), block(ENCODED)),
    ),
    case("tar", "sparse", "T11", "a sparse file in the way of GNU", refuse("holds the sparse file"), raw(old_sparse())),
    case(
        "tar",
        "sparse-of-pax",
        "T11",
        "a sparse file of 2^50 bytes in the way of pax",
        more("not-a-file"),
        raw(pax(("GNU.sparse.major", "1"), ("GNU.sparse.minor", "0"), ("GNU.sparse.realsize", str(2**50))), FILE),
    ),
    case(
        "tar",
        "doubled-name",
        "T14",
        "one name twice",
        quarantine(GOOD - 1, {"cat/0.png": "name-twice", "cat/0.png#2": "name-twice"}),
        lambda: tar_bytes([*tar_items(), member("cat/0.png", ENCODED)]),
    ),
    case(
        "tar",
        "name-not-utf8",
        "T16",
        "a name that is no UTF-8",
        quarantine(GOOD, {"cat/\\xff.png": "name-not-utf8"}),
        lambda: tar_bytes([*tar_items(), member("cat/\udcff.png", ENCODED)], tarfile.GNU_FORMAT),
    ),
    case(
        "tar",
        "class-not-utf8",
        "T16",
        "a class that is no UTF-8",
        refuse("Expected class folders named in UTF-8"),
        lambda: tar_bytes([*tar_items(), member("\udcff/x.png", ENCODED)], tarfile.GNU_FORMAT),
    ),
    case("tar", "nul-in-pax-name", "T10", "a pax name with a NUL", refuse("holds a NUL character"), raw(pax(("path", "cat/x.png\0.exe")), FILE)),
    case(
        "tar",
        "pax-name-upwards",
        "T10",
        "a harmless header under a pax name that climbs out",
        refuse("leaves the folder"),
        raw(pax(("path", f"../{CANARY}/evil.png")), FILE),
    ),
    case(
        "tar",
        "pax-name-twice",
        "T10",
        "two pax names, of which the last counts",
        refuse("is absolute"),
        raw(pax(("path", "cat/y.png"), ("path", "/etc/x.png")), FILE),
    ),
    case(
        "tar",
        "pax-size-too-large",
        "T13",
        "a pax size of 10^15 bytes",
        refuse("ends in the middle of a member"),
        raw(pax(("size", str(10**15))), FILE),
    ),
    case(
        "tar",
        "pax-size-too-small",
        "T13",
        "a pax size of 0: the content would be read as headers",
        refuse("has no readable header"),
        raw(pax(("size", "0")), FILE),
    ),
    case("tar", "pax-size-negative", "T13", "a pax size below zero", refuse("has a member of '-1' bytes"), raw(pax(("size", "-1")), FILE)),
    case("tar", "pax-size-of-many-digits", "T13", "a pax size of 5,000 digits", refuse("has a member of"), raw(pax(("size", "9" * 5000)), FILE)),
    case(
        "tar",
        "pax-length-lies",
        "T13",
        "a pax record that is longer than its header",
        refuse("has a damaged pax header"),
        raw(header("pax", 20, tarfile.XHDTYPE), block(b"999 path=cat/x.png\n"), FILE),
    ),
    case(
        "tar",
        "pax-without-length",
        "T13",
        "a pax record without its length",
        refuse("has a damaged pax header"),
        raw(header("pax", 15, tarfile.XHDTYPE), block(b"path=cat/x.png\n"), FILE),
    ),
    case(
        "tar",
        "pax-of-all-members",
        "T14",
        "a global pax name",
        refuse("gives all its members one name or size"),
        lambda: tar_bytes(good(), headers={"path": "cat/x.png"}),
    ),
    case(
        "tar",
        "pax-of-all-sizes",
        "T13",
        "a global pax size",
        refuse("gives all its members one name or size"),
        lambda: tar_bytes(good(), headers={"size": "3"}),
    ),
    case(
        "tar",
        "pax-header-without-end",
        "T13",
        "a pax header of 1 MB",
        refuse("has a header of"),
        raw(header("pax", 10**6, tarfile.XHDTYPE), bytes(10**6 + 448), FILE),
    ),
    case(
        "tar",
        "long-name",
        "T17",
        "a GNU long name of 1 MB",
        refuse("has a header of 1000000 bytes"),
        raw(header("././@LongLink", 10**6, tarfile.GNUTYPE_LONGNAME), block(b"a" * 10**6), FILE),
    ),
    case(
        "tar",
        "long-name-upwards",
        "T10",
        "a GNU long name that climbs out",
        refuse("leaves the folder"),
        raw(header("././@LongLink", 13, tarfile.GNUTYPE_LONGNAME), block(b"../evil.png\0\0"), FILE),
    ),
    case(
        "tar",
        "headers-without-end",
        "T13",
        "600 long names before one member",
        refuse("has headers without end"),
        raw((header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME) + block(b"a\0")) * 600, FILE),
    ),
    case(
        "tar",
        "header-without-member",
        "T13",
        "a long name and no member behind it: nothing is lost",
        keep(GOOD),
        raw(header("././@LongLink", 2, tarfile.GNUTYPE_LONGNAME), block(b"a\0")),
    ),
    case("tar", "size-negative", "T13", "a size below zero in base 256", refuse("bytes at byte"), raw(numbered(b"\xff" * 12), bytes(512))),
    case("tar", "size-of-2-to-88", "T13", "a size of 2^88 bytes", refuse("bytes at byte"), raw(numbered(b"\x80" + b"\xff" * 11), bytes(512))),
    case("tar", "size-no-number", "T13", "a size that is no number", refuse("has no readable header"), raw(numbered(b"xxxxxxxxxxx\0"), bytes(512))),
    case(
        "tar",
        "wrong-checksum",
        "T13",
        "a header whose checksum does not fit",
        refuse("has no readable header"),
        raw(header("cat/x.png", len(ENCODED)).replace(b"cat/x", b"cat/y", 1), block(ENCODED)),
    ),
    case(
        "tar", "cut-in-a-member", "T21", "an archive that ends inside a member", refuse("ends in the middle of a"), lambda: tar_bytes(good())[:3700]
    ),
    case(
        "tar",
        "cut-between-members",
        "T21",
        "an archive without its end: nobody could tell what is missing",
        refuse("without the empty blocks that end an archive"),
        lambda: ended(b"")[:-1024],
    ),
    case(
        "tar",
        "second-archive-behind",
        "T14",
        "a second archive behind the end, which is not read",
        keep(GOOD),
        lambda: ended(b"") + tar_bytes({"cat/x.png": ENCODED}),
    ),
    case("tar", "no-archive", "T08", "a PNG called x.tar", refuse("has no readable header"), lambda: block(ENCODED)),
    case(
        "tar",
        "gzipped-under-a-plain-name",
        "T08",
        "a gzipped archive called x.tar",
        refuse("x.tar"),
        lambda: gzip.compress(tar_bytes(good()), mtime=0),
    ),
    case(
        "tar.gz",
        "bomb",
        "T13",
        "a gzipped archive with a member of 260 MiB of zeros",
        refuse("20 times its size"),
        lambda: gzip.compress(tar_bytes([*tar_items(), member("cat/x.png", bytes(260 * 2**20))]), 1, mtime=0),
    ),
    case(
        "tar.gz",
        "bomb-behind-the-end",
        "T13",
        "260 MiB of zeros behind the end, which are not read",
        keep(GOOD),
        lambda: gzip.compress(tar_bytes(good()) + bytes(260 * 2**20), 1, mtime=0),
    ),
    case(
        "tar.gz",
        "bomb-that-lies",
        "T13",
        "a header that promises 1 TB and no content",
        refuse("unpacks to more than"),
        lambda: gzip.compress(ended(header("cat/x.png", 2**40)), mtime=0),
    ),
    case("tar.gz", "cut", "T21", "a gzipped archive that is cut", refuse("is damaged"), lambda: gzip.compress(tar_bytes(good()), mtime=0)[:2000]),
    case(
        "tar.gz",
        "wrong-checksum",
        "T13",
        "a gzipped archive whose checksum does not fit, behind the end of the members",
        keep(GOOD),
        lambda: (lambda data: data[:-8] + bytes(4) + data[-4:])(gzip.compress(tar_bytes(good()), mtime=0)),
    ),
    case("tar.gz", "no-gzip", "T08", "a plain archive called x.tar.gz", refuse("is damaged"), lambda: tar_bytes(good())),
    case(
        "tar.gz",
        "links",
        "T11",
        "links and devices in a gzipped archive",
        quarantine(GOOD, {"cat/l.png": "link", "cat/d.png": "not-a-file"}),
        lambda: gzip.compress(
            tar_bytes([*tar_items(), member("cat/l.png", type=tarfile.SYMTYPE, linkname="/etc/passwd"), member("cat/d.png", type=tarfile.CHRTYPE)]),
            mtime=0,
        ),
    ),
    case(
        "tar",
        "test-class-unknown",
        "T30",
        "a class that split train does not have",
        refuse("'yak' is not among them"),
        lambda: tar_bytes(good("train/") | {"test/yak/0.png": ENCODED}),
    ),
]

CASES = [*NAMES, *ZIP, *TAR]
