"""Archives are read in place: no name leads out, no length is believed, and what cannot be read is one sample."""

import gzip
import io
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meca.data.inspection import inspect
from meca.data.readers import archive as archives
from meca.data.readers import tar_members
from meca.data.readers.detect import detect
from meca.data.readers.tar_members import Tar
from meca.errors import InputRefused, UsageError
from tests.making import NAMES, encode, ingest, make_folder, pixels

Members = dict[str, bytes]


def members(prefix: str = "", per_class: int = 3) -> Members:
    return {f"{prefix}{name}/{i}.png": encode(pixels(10 * c + i, 9, 12)) for c, name in enumerate(NAMES) for i in range(per_class)}


def make_zip(file: Path, content: Members | Iterable[tuple[Any, bytes]], method: int = zipfile.ZIP_DEFLATED) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(file, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # two members of one name are what some tests are about
        for name, data in content.items() if isinstance(content, dict) else content:
            archive.writestr(name, data)
    return file


def info(name: str, data: bytes = b"", **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    found = tarfile.TarInfo(name)
    found.size, found.mtime, found.mode = len(data), 1_700_000_000, 0o644
    for key, value in fields.items():
        setattr(found, key, value)
    return found, data


def make_tar(file: Path, content: Members | Iterable[tuple[tarfile.TarInfo, bytes]], kind: int = tarfile.PAX_FORMAT) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    items = [info(name, data) for name, data in content.items()] if isinstance(content, dict) else content
    with tarfile.open(file, "w:gz" if file.name.endswith("gz") else "w", format=kind) as archive:
        for member, data in items:
            archive.addfile(member, io.BytesIO(data))
    return file


def make(file: Path, content: Members) -> Path:
    return (make_zip if file.suffix == ".zip" else make_tar)(file, content)


ARCHIVES = ["photos.zip", "photos.tar", "photos.tar.gz"]


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("prefix", ["", "photos/", "./a/b/"])
def test_an_archive_holds_what_its_folder_holds(name: str, prefix: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in")
    content = {prefix + p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*.jpeg"))}
    folder, packed = ingest(root, tmp_path / "a"), ingest(make(tmp_path / name, content), tmp_path / "b")
    assert packed.info.source["format"] == ("zip" if name.endswith("zip") else "tar")
    assert (packed.ids, packed.labels.tolist(), packed.info.class_names) == (folder.ids, folder.labels.tolist(), folder.info.class_names)
    assert packed.info.sha256["images.npy"] == folder.info.sha256["images.npy"], "the same samples in the same order"


@pytest.mark.parametrize("name", ARCHIVES)
def test_nothing_is_extracted_and_what_is_no_sample_is_named(name: str, tmp_path: Path) -> None:
    more = {"a/README.md": b"x", "a/cat/.hidden": b"", "__MACOSX/a/cat/._0.png": b"x", "a/dog/inner.zip": b"PK", "a/dog/notes.txt": b"hello"}
    file = make(tmp_path / "in" / name, members("a/") | more)
    found = inspect(file)
    assert sorted(found.odd) == ["__MACOSX/a/cat/._0.png", "a/README.md", "a/cat/.hidden", "a/dog/inner.zip"]
    assert found.unreadable == ["a/dog/notes.txt (not-an-image)"] and found.samples == {"train": 10, "test": 0}
    assert [path.name for path in (tmp_path / "in").iterdir()] == [name] and detect(tmp_path / "in") == found.format


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize(
    "evil", ["../evil.png", "a/../../evil.png", "/abs/evil.png", "C:/evil.png", "cat\\..\\evil.png", "cat/\x1b[31m.png", "file:///x.png"]
)
def test_a_member_that_leads_out_refuses_the_archive(evil: str, name: str, tmp_path: Path) -> None:
    file = make(tmp_path / "in" / name, members())
    if name.endswith("zip"):
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr(zipfile.ZipInfo(evil), encode(pixels(0)))
    else:
        make_tar(file, members() | {evil: encode(pixels(0))})
    with pytest.raises(InputRefused, match=r"The member '.*' of photos\.[a-z.]+ (leaves|is|holds|begins)"):
        ingest(file, tmp_path / "store")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"], "nothing was written, not even the store"


@pytest.mark.parametrize("name", ARCHIVES)
def test_of_two_members_of_one_name_none_is_believed(name: str, tmp_path: Path) -> None:
    items = [*members().items(), ("cat/0.png", encode(pixels(99)))]
    file = tmp_path / name
    if name.endswith("zip"):
        make_zip(file, items)
    else:
        make_tar(file, [info(*item) for item in items])
    store = ingest(file, tmp_path / "store")
    bad = {line["source"]: line["reason"] for line in store.samples.to_pylist() if line["row"] < 0}
    assert bad == {"cat/0.png": "name-twice", "cat/0.png#2": "name-twice"} and store.info.n_train == 8


def test_links_devices_and_pipes_in_a_tar_are_no_images(tmp_path: Path) -> None:
    kinds = {"sym": tarfile.SYMTYPE, "hard": tarfile.LNKTYPE, "char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "pipe": tarfile.FIFOTYPE}
    items = [info(*item) for item in members().items()]
    items += [info(f"cat/{name}.png", type=kind, linkname="/etc/passwd") for name, kind in kinds.items()] + [info("dog", type=tarfile.DIRTYPE)]
    store = ingest(make_tar(tmp_path / "x.tar", items), tmp_path / "store")
    bad = {line["source"]: line["reason"] for line in store.samples.to_pylist() if line["row"] < 0}
    assert bad == {f"cat/{name}.png": "link" if name in ("sym", "hard") else "not-a-file" for name in kinds}
    assert b"root:" not in (store.path / "payload.bin").read_bytes()


def test_a_link_in_a_zip_is_no_image(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("cat/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    store = ingest(make_zip(tmp_path / "x.zip", [*members().items(), (link, b"/etc/passwd")]), tmp_path / "store")
    assert [(line["source"], line["reason"]) for line in store.samples.to_pylist() if line["row"] < 0] == [("cat/link.png", "link")]


def changed_zip(file: Path, change: Any) -> None:
    """Change the entries of the directory and the local headers of a zip: `change` gets each as (signature, fields as bytearray)."""
    data = bytearray(file.read_bytes())
    for sign in (b"PK\x01\x02", b"PK\x03\x04"):
        at = data.find(sign)
        while at >= 0:
            change(sign, data, at)
            at = data.find(sign, at + 4)
    file.write_bytes(data)


def test_encrypted_members_other_methods_and_damage_are_samples_that_cannot_be_read(tmp_path: Path) -> None:
    content = members(per_class=4)
    file = make_zip(tmp_path / "x.zip", content)
    names = list(content)

    def change(sign: bytes, data: bytearray, at: int) -> None:
        central = sign == b"PK\x01\x02"
        length = struct.unpack_from("<H", data, at + (28 if central else 26))[0]
        name = bytes(data[at + (46 if central else 30) :][:length]).decode()
        if name == names[0]:
            data[at + (8 if central else 6)] |= 1
        elif name == names[1]:
            struct.pack_into("<H", data, at + (10 if central else 8), 99)
        elif name == names[2] and not central:
            data[at + 30 + length + 20] ^= 0xFF
        elif name == names[4]:
            struct.pack_into("<I", data, at + (24 if central else 22), 10**7)

    changed_zip(file, change)
    bad = {line["source"]: line["reason"] for line in ingest(file, tmp_path / "store").samples.to_pylist() if line["row"] < 0}
    assert bad == {names[0]: "encrypted", names[1]: "compression:99", names[2]: "corrupt", names[4]: "unpacks-to-too-much"}


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = make_zip(tmp_path / "x.zip", members() | {"cat/bomb.png": bytes(50_000_000)})
    lines = ingest(file, tmp_path / "store").samples.to_pylist()
    assert [(line["source"], line["bytes"]) for line in lines if line["reason"] == "unpacks-to-too-much"] == [("cat/bomb.png", 0)]
    monkeypatch.setattr(archives, "FREE", 10**6)
    with pytest.raises(InputRefused, match=r"x\.zip unpacks to more than 20 times its size"):
        ingest(file, tmp_path / "other")
    monkeypatch.setattr(tar_members, "FREE", 10**6)
    with pytest.raises(InputRefused, match=r"x\.tar\.gz unpacks to more than .* 20 times its size"):
        ingest(make_tar(tmp_path / "x.tar.gz", members() | {"cat/bomb.png": bytes(50_000_000)}), tmp_path / "other")


def test_members_that_overlap_refuse_the_archive(tmp_path: Path) -> None:
    file = make_zip(tmp_path / "x.zip", members())
    offset = []

    def change(sign: bytes, data: bytearray, at: int) -> None:
        if sign == b"PK\x01\x02":
            offset.append(struct.unpack_from("<I", data, at + 42)[0])
            if len(offset) > 3:
                struct.pack_into("<I", data, at + 42, offset[0])

    changed_zip(file, change)
    with pytest.raises(InputRefused, match=r"Members of x\.zip overlap|x\.zip is not a readable zip"):
        ingest(file, tmp_path / "store")


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_is_cut_or_none_is_named(name: str, tmp_path: Path) -> None:
    file = make(tmp_path / name, members())
    whole = file.read_bytes()
    for data in (whole[: len(whole) // 2], b"no archive" * 100, whole[:100]):
        file.write_bytes(data)
        with pytest.raises(InputRefused, match=r"photos\.(zip|tar|tar\.gz) (is not a readable|ends |is damaged|has no readable header)"):
            ingest(file, tmp_path / "store", format="zip" if name.endswith("zip") else "tar")
    for data in (b"", gzip.compress(b"")):
        file.write_bytes(data)
        with pytest.raises(InputRefused, match=r"photos\.[a-z.]+ |in photos\.[a-z.]+, found none"):
            ingest(file, tmp_path / "store", format="zip" if name.endswith("zip") else "tar")


@pytest.mark.parametrize("fields", [{"path": "other.png"}, {"size": "3"}])
def test_a_global_name_refuses_the_archive(fields: dict[str, str], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT, pax_headers=fields) as archive:
        for name, data in members().items():
            archive.addfile(info(name, data)[0], io.BytesIO(data))
    with pytest.raises(InputRefused, match="gives all its members one name or size"):
        ingest(tmp_path / "x.tar", tmp_path / "store")


def test_headers_without_end_are_refused(tmp_path: Path) -> None:
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 10**6
    (tmp_path / "x.tar").write_bytes(long.tobuf(tarfile.GNU_FORMAT) + b"a" * 10**6 + bytes(576))
    with pytest.raises(InputRefused, match="has a header of 1000000 bytes"):
        ingest(tmp_path / "x.tar", tmp_path / "store")
    long.size = 1
    (tmp_path / "x.tar").write_bytes((long.tobuf(tarfile.GNU_FORMAT) + b"a" + bytes(511)) * 1000)
    with pytest.raises(InputRefused, match="has headers without end"):
        ingest(tmp_path / "x.tar", tmp_path / "store")
    sparse = tarfile.TarInfo("cat/0.png")
    sparse.type, sparse.size = tarfile.GNUTYPE_SPARSE, 512
    (tmp_path / "x.tar").write_bytes(sparse.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(InputRefused, match="holds the sparse file"):
        ingest(tmp_path / "x.tar", tmp_path / "store")


def test_layouts_that_are_not_clear_are_asked_about(tmp_path: Path) -> None:
    file = make_zip(tmp_path / "a.zip", members("train/") | members("test/") | {"zebra/x.png": encode(pixels(1))})
    with pytest.raises(UsageError, match=r"a\.zip holds the split folders test, train beside 'zebra': are they splits or classes"):
        ingest(file, tmp_path / "store")
    make_zip(tmp_path / "b.zip", members())
    with pytest.raises(UsageError, match=r"holds the archives a\.zip and b\.zip: which one counts"):
        ingest(tmp_path, tmp_path / "store", format="zip")
    with pytest.raises(InputRefused, match=r"Expected class folders with images in flat\.zip, found none"):
        ingest(make_zip(tmp_path / "flat.zip", {"0.png": encode(pixels(0))}), tmp_path / "store")
    with pytest.raises(InputRefused, match="'CAT' and 'cat' are one folder"):
        ingest(make_zip(tmp_path / "c.zip", members() | {"CAT/x.png": encode(pixels(0))}), tmp_path / "store")
    with pytest.raises(InputRefused, match="'yak' is not among them"):
        ingest(make_zip(tmp_path / "d.zip", members("train/") | {"test/yak/x.png": encode(pixels(0))}), tmp_path / "store")
    both = make_folder(tmp_path / "both", split_folders=False)
    make_zip(both / "x.zip", members())
    with pytest.raises(UsageError, match="could be imagefolder or zip"):
        detect(both)


NAME = st.text(st.sampled_from("abé/. "), min_size=1, max_size=150).filter(lambda name: name.strip("/. ") != "")


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    st.lists(st.tuples(NAME, st.binary(max_size=1500)), max_size=8),
    st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    st.booleans(),
)
def test_members_are_those_of_the_library(tmp_path_factory: pytest.TempPathFactory, items: list[tuple[str, bytes]], kind: int, zipped: bool) -> None:
    file = tmp_path_factory.mktemp("tar") / ("x.tar.gz" if zipped else "x.tar")
    try:
        make_tar(file, [info(*item) for item in items], kind)
    except ValueError:
        return  # the name does not fit into this kind of header
    with tarfile.open(file) as library:
        wanted = [(member.name, library.extractfile(member).read()) for member in library if member.isfile()]
    with Tar(file) as archive:
        found = [(member.name, archive.read(member)) for member in archive if member.kind == "file"]
    assert [(name.rstrip("/"), data) for name, data in found] == [(name.rstrip("/"), data) for name, data in wanted]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=12)), min_size=1, max_size=4), st.sampled_from(ARCHIVES))
def test_any_damage_ends_in_samples_or_in_a_sentence(tmp_path_factory: pytest.TempPathFactory, noise: list[tuple[int, bytes]], name: str) -> None:
    folder = tmp_path_factory.mktemp("damaged")
    data = bytearray(make(folder / name, members(per_class=1)).read_bytes())
    for at, patch in noise:
        at %= min(len(data), 3000)
        data[at : at + len(patch)] = patch
    (folder / name).write_bytes(data)
    try:
        found = inspect(folder / name, "zip" if name.endswith("zip") else "tar")
    except (InputRefused, UsageError) as problem:
        assert str(problem)
    else:
        assert sum(found.samples.values()) >= found.n_unreadable


def test_a_member_without_a_name_is_nothing(tmp_path: Path) -> None:
    file = make_zip(tmp_path / "in.zip", members() | {"x": b""})
    data = file.read_bytes()
    at = data.rindex(b"PK\x01\x02")  # the last entry of the list, that of x: a name of no bytes, and the x becomes a comment
    entry = bytearray(data[at:])
    entry[28:30], entry[32:34] = b"\0\0", b"\1\0"
    file.write_bytes(data[:at] + bytes(entry))
    assert zipfile.ZipFile(file).infolist()[-1].filename == ""
    assert ingest(file, tmp_path / "store").info.n_train == len(members())
