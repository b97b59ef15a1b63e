"""Hostile folders: links to outside, pipes and sockets, trees without end, names that collide, files that tools obey."""

import os
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.hostile.case import Case, Expected, keep, quarantine, refuse, usage
from tests.hostile.parts import CANARY, GOOD, encoded, folder, good, write

__all__ = ["CASES"]


def files(id: str, threat: str, what: str, expected: Expected, more: Mapping[str, bytes], **settings: object) -> Case:
    """A good folder with further files."""
    return Case(id, threat, what, expected, lambda root: folder(root, more), settings)


def changed(id: str, threat: str, what: str, expected: Expected, change: Callable[[Path], object]) -> Case:
    """A good folder that something was done to."""

    def make(root: Path) -> Path:
        change(folder(root))
        return root

    return Case(id, threat, what, expected, make)


def linked(id: str, what: str, target: str, reason: str = "link", name: str = "cat/x.png") -> Case:
    return changed(id, "T12", what, quarantine(GOOD, {name: reason}), lambda root: (root / name).symlink_to(target))


def secret(root: Path) -> Path:
    return root.parent / CANARY / "secret.png"


def bound(root: Path) -> None:
    place, here = root / "cat" / "x.png", Path.cwd()
    os.chdir(place.parent)  # the name of a socket has at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(place.name)
    finally:
        os.chdir(here)


def link_folder(root: Path, name: str) -> None:
    (root / name).symlink_to(secret(root).parent, target_is_directory=True)


LINKS = [
    changed(
        "link-to-outside",
        "T12",
        "a link to a picture outside of the folder",
        quarantine(GOOD, {"cat/x.png": "link"}),
        lambda root: (root / "cat/x.png").symlink_to(secret(root)),
    ),
    changed(
        "link-upwards",
        "T12",
        "a relative link that climbs out",
        quarantine(GOOD, {"cat/x.png": "link"}),
        lambda root: (root / "cat/x.png").symlink_to(f"../../{CANARY}/secret.png"),
    ),
    linked("link-to-zeros", "a link to /dev/zero, which never ends", "/dev/zero"),
    linked("link-to-environment", "a link to the environment of the process", "/proc/self/environ"),
    linked("link-to-descriptor", "a link to an open file of the process", "/proc/self/fd/0"),
    linked("link-to-passwords", "a link to /etc/passwd", "/etc/passwd"),
    linked("link-to-nothing", "a link that leads nowhere", "nothing.png"),
    linked("link-to-itself", "a link to itself", "x.png"),
    linked("link-inside", "a link to a picture of the same set: a second name would count it twice", "0.png"),
    changed(
        "link-to-folder-in-class",
        "T12",
        "a link to a folder, inside a class",
        quarantine(GOOD, {"cat/more": "link"}),
        lambda root: link_folder(root, "cat/more"),
    ),
    changed(
        "link-as-class",
        "T12",
        "a class folder that is a link",
        refuse("'bird' is a link, and links are not followed"),
        lambda root: link_folder(root, "bird"),
    ),
    changed(
        "hard-link",
        "T12",
        "a hard link to a file outside: a regular file like any other",
        keep(GOOD + 1),
        lambda root: os.link(secret(root), root / "cat/x.png"),
    ),
    changed(
        "pipe",
        "T12",
        "a pipe, whose opening would wait for ever",
        quarantine(GOOD, {"cat/x.png": "not-a-file"}),
        lambda root: os.mkfifo(root / "cat/x.png"),
    ),
    changed("socket", "T12", "a socket", quarantine(GOOD, {"cat/x.png": "cannot-open"}), bound),
    Case(
        "pipe-as-source",
        "T12",
        "the source itself is a pipe",
        refuse("Nothing found at"),
        lambda root: (os.mkfifo(root / "x.parquet"), root / "x.parquet")[1],
    ),
    Case(
        "device-as-source",
        "T12",
        "the source itself is a link to /dev/zero",
        refuse("Nothing found at"),
        lambda root: ((root / "x.csv").symlink_to("/dev/zero"), root / "x.csv")[1],
        {"format": "auto"},
    ),
    Case(
        "only-links",
        "T12",
        "class folders that are all links",
        refuse("Nothing to read in"),
        lambda root: (link_folder(root, "cat"), link_folder(root, "dog"), root)[2],
    ),
]


def deep(depth: int) -> dict[str, bytes]:
    return {"cat/" + "d/" * depth + "x.png": encoded(50)}


TREES = [
    files("tree-at-the-limit", "T17", "a picture 16 folders below its class", keep(GOOD + 1), deep(16)),
    files("tree-too-deep", "T17", "a picture 17 folders below its class", refuse("Expected at most 16 folders inside each other"), deep(17)),
    files(
        "many-files-that-are-no-images",
        "T17",
        "500 files that are no images",
        refuse("More than 10 images cannot be read"),
        {f"cat/{i}.txt": b"x" for i in range(500)},
    ),
    files(
        "eleven-bad-images",
        "T30",
        "eleven files that cannot be read, where ten may be",
        refuse("More than 10 images cannot be read"),
        {f"cat/x{i}.png": b"x" for i in range(11)},
    ),
    files("folder-named-like-an-image", "T17", "a folder called x.png, with a picture in it", keep(GOOD + 1), {"cat/x.png/y.png": encoded(51)}),
]


def class_named(name: bytes) -> dict[str, bytes]:
    return {os.fsdecode(name) + "/0.png": encoded(60)}


def twins(id: str, what: str, *names: str) -> Case:
    return files(id, "T16", what, refuse("are one folder on some systems"), {f"{name}/0.png": encoded(60 + i) for i, name in enumerate(names)})


def same_text(root: Path) -> None:
    for name in (b"\xff.png", b"\\xff.png"):
        (root / "cat" / os.fsdecode(name)).write_bytes(encoded(5))


NAMES = [
    twins("classes-in-two-cases", "the classes `cat` and `CAT`", "CAT"),
    twins("classes-sharp-s", "the classes `straße` and `STRASSE`", "straße", "STRASSE"),
    twins("classes-composed", "the classes `é` in one and in two characters", "\u00e9", "e\u0301"),
    twins("classes-zero-width", "the classes `cat` and `cat` with a space of no width", "cat\u200b"),
    twins("classes-soft-hyphen", "the classes `dog` and `dog` with a hyphen that is not shown", "do\u00adg"),
    twins("classes-ending-in-a-blank", "the classes `cat` and `cat `, which is one folder on Windows", "cat "),
    twins("classes-ending-in-a-dot", "the classes `dog` and `dog.`, likewise", "dog."),
    files("class-escape", "T43", "a class whose name colours the terminal", refuse("without control characters"), class_named(b"\x1b[31mred")),
    files(
        "class-newline",
        "T43",
        "a class whose name forges a second line",
        refuse("without control characters"),
        class_named(b"bird\nmeca: all is well"),
    ),
    files("class-bidi", "T16", "a class whose name turns the text around", refuse("without control characters"), class_named("\u202etac".encode())),
    files("class-backslash", "T10", "a class called evil\\..\\..\\x", refuse("control characters and backslashes"), class_named(b"evil\\..\\..\\x")),
    files("class-not-utf8", "T16", "a class whose name is no UTF-8", refuse("Expected class folders named in UTF-8"), class_named(b"\xff\xfe")),
    files(
        "class-reserved",
        "T16",
        "classes called CON and nul",
        keep(GOOD + 2, classes=("CON", "cat", "dog", "nul")),
        class_named(b"CON") | class_named(b"nul"),
    ),
    files("class-hidden", "T09", "a class folder whose name begins with a dot", keep(GOOD, odd=(".evil",)), class_named(b".evil")),
    files(
        "name-not-utf8",
        "T16",
        "a picture whose name is no UTF-8",
        quarantine(GOOD, {"cat/\\xff.png": "name-not-utf8"}),
        {os.fsdecode(b"cat/\xff.png"): encoded(5)},
    ),
    changed(
        "names-with-one-text",
        "T16",
        "two names that are written alike: one byte that is no UTF-8, and its escape",
        refuse("a source name of its own"),
        same_text,
    ),
    files("name-of-255-bytes", "T17", "a name as long as the system allows", keep(GOOD + 1), {f"cat/{'é' * 125}x.png": encoded(5)}),
    files(
        "names-in-two-cases",
        "T16",
        "the files x.png and X.png: both are kept, under two names",
        keep(GOOD + 2),
        {"cat/x.png": encoded(5), "cat/X.png": encoded(6)},
    ),
    files(
        "names-composed",
        "T16",
        "the files é.png in one and in two characters",
        keep(GOOD + 2),
        {"cat/\u00e9.png": encoded(5), "cat/e\u0301.png": encoded(6)},
    ),
    files(
        "name-like-an-option",
        "T45",
        "a picture called --output=evil.png and a class called -rf",
        keep(GOOD + 2, classes=("-rf", "cat", "dog")),
        {"cat/--output=evil.png": encoded(5), "-rf/0.png": encoded(6)},
    ),
    files(
        "name-percent-encoded",
        "T10",
        "a picture called %2e%2e%2fsecret.png: a name, not a path",
        keep(GOOD + 1),
        {"cat/%2e%2e%2fsecret.png": encoded(5)},
    ),
]

TOOLS = {
    "prefect.toml": b'[api]\nurl = "http://evil.example/api"\n',
    ".env": b"PREFECT_API_URL=http://evil.example\nMLFLOW_TRACKING_URI=http://evil.example\n",
    "dvc.yaml": b"stages:\n  evil:\n    cmd: touch RAN\n",
    ".dvc/config": b"[core]\n    remote = evil\n",
    ".git/hooks/pre-commit": b"#!/bin/sh\ntouch RAN\n",
    "sitecustomize.py": b"open('RAN', 'w')\n",
    "conftest.py": b"open('RAN', 'w')\n",
    "pyproject.toml": b"[build-system]\nrequires = ['evil']\n",
}
MODELS = {"x.pkl": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "x.pt": b"PK\x03\x04", "x.py": b"open('RAN', 'w')\n"}

CONTENT = [
    files(
        "files-that-tools-obey",
        "T09",
        "prefect.toml, .env, dvc.yaml, .dvc, .git/hooks, sitecustomize.py, conftest.py, pyproject.toml",
        keep(GOOD, odd=(".env", "dvc.yaml", "prefect.toml", "sitecustomize.py"), warns="holds files that tools obey"),
        TOOLS,
    ),
    files(
        "programs-among-images",
        "T02",
        "a pickle, a torch archive and a program inside a class",
        quarantine(GOOD, {f"cat/{name}": "not-an-image" for name in MODELS}),
        {f"cat/{name}": data for name, data in MODELS.items()},
    ),
    files(
        "litter",
        "T09",
        "what file managers leave behind",
        keep(GOOD, odd=("cat/Thumbs.db", "cat/.DS_Store", "__MACOSX.txt")),
        {"cat/Thumbs.db": b"x", "cat/.DS_Store": b"x", "__MACOSX.txt": b"x"},
    ),
    files(
        "class-without-a-readable-image",
        "T30",
        "a class of which no image can be read",
        refuse("The class 'bird' has no readable training image"),
        {"bird/0.png": b"x"},
    ),
    changed(
        "class-without-images",
        "T30",
        "an empty class folder",
        refuse("Expected images in the class folder 'bird', found none"),
        lambda root: (root / "bird").mkdir(),
    ),
    files(
        "classes-beside-splits", "T30", "class folders beside train/ and test/", usage("are they splits or classes"), good("train/") | good("test/")
    ),
    Case(
        "test-class-unknown",
        "T30",
        "a class that split train does not have",
        refuse("'yak' is not among them"),
        lambda root: write(root, good("train/") | {"test/yak/0.png": encoded(0)}),
    ),
    Case(
        "no-training-split",
        "T74",
        "test/ and val/ without train/",
        refuse("Expected a folder train/ beside test, val"),
        lambda root: write(root, good("test/") | good("val/")),
    ),
    Case("empty-folder", "T30", "nothing at all", refuse("Nothing to read in"), lambda root: root),
]


def other(suffix: str, what: str, says: str, threat: str = "T02") -> Case:
    """A file that is no data set, whatever it holds."""

    def make(root: Path) -> Path:
        write(root, {f"x{suffix}": b"\x80\x04\x8c\x05posix\x94\x8c\x06system\x94\x93\x94."})
        return root / f"x{suffix}"

    return Case(f"file-{suffix[1:].replace('.', '-')}", threat, what, refuse(says), make)


def others(suffixes: Iterable[str], says: str, threat: str = "T02") -> list[Case]:
    return [other(suffix, f"a {suffix} file as data", says, threat) for suffix in suffixes]


FILES = [
    *others((".pt", ".pth", ".pkl", ".pickle", ".joblib", ".bin"), "such files can run code when they are loaded"),
    *others((".npy", ".npz"), "write the images as a folder or as parquet", "T03"),
    *others((".pt2", ".onnx", ".skops"), "is not a format that meca reads", "T04"),
    *others((".7z", ".rar", ".zst"), "unpack the archive and point to the folder", "T13"),
    Case(
        "folder-of-models",
        "T02",
        "a folder that holds nothing but .pt and .pkl",
        refuse("Nothing to read in"),
        lambda root: write(root, {"train.pt": b"PK\x03\x04", "test.pkl": b"\x80\x04."}),
    ),
]

CASES = [*LINKS, *TREES, *NAMES, *CONTENT, *FILES]
