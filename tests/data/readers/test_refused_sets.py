"""What `meca clean` will refuse `meca inspect` says, with the same exit code: a single class, images that cannot be read."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from meca.data.inspection import inspect
from meca.errors import InputRefused
from tests.data.readers.test_properties import WAYS, Sample
from tests.making import encode, ingest, pixels, table


def images(root: Path, *folders: str, data: bytes | None = None, n: int = 3) -> Path:
    for at, folder in enumerate(folders):
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            (root / folder / f"{i}.png").write_bytes(encode(pixels(10 * at + i)) if data is None else data)
    return root


@pytest.mark.parametrize("way", list(WAYS))
def test_a_single_class_is_refused_in_every_format(way: str, tmp_path: Path) -> None:
    format, write = WAYS[way]
    (tmp_path / "in").mkdir()
    write([Sample(f"{i}.png", "cat", pixels(i, 32, 32)) for i in range(3)], tmp_path / "in")
    name = "0" if way == "idx" else "cat"
    with pytest.raises(InputRefused, match=rf"Expected images of at least two classes, found only the class '{name}': a backdoor .*: "):
        ingest(tmp_path / "in", tmp_path / "store", format=format, size=0)
    assert not (tmp_path / "store").exists()
    found = inspect(tmp_path / "in", format)
    assert found.samples == {"train": 3, "test": 0} and found.refused.startswith("Expected images of at least two classes")


def test_of_many_classes_two_have_to_occur(tmp_path: Path) -> None:
    pq.write_table(table([1, 1]), tmp_path / "x.parquet")
    with pytest.raises(InputRefused, match=r"found only the class 'dog': .* The label was taken from 'label': .*ingest\.label_column=NAME"):
        ingest(tmp_path / "x.parquet", tmp_path / "store")
    root = images(tmp_path / "in", "train/cat", "test/cat")
    with pytest.raises(InputRefused, match="found only the class 'cat'"):
        ingest(root, tmp_path / "store")


def test_the_command_line_refuses_a_single_class_with_3_and_shows_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = images(tmp_path / "in", "cat")
    assert cli.run(["clean", str(root), "-o", str(tmp_path / "out")]) == 3 and not (tmp_path / "out").exists()
    assert "found only the class 'cat'" in capsys.readouterr().err
    assert cli.run(["inspect", str(root)]) == 3
    shown = capsys.readouterr()
    assert "imagefolder" in shown.out and "`meca clean` will refuse this: Expected images of at least two classes" in shown.err
    assert cli.run(["inspect", str(root), "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["refused"].startswith("Expected images of at least two classes")


def test_inspect_refuses_what_clean_will_refuse_for_its_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path / "all", "cat", "dog", data=b"no image")
    images(images(tmp_path / "class", "cat", data=b"no image"), "dog", "owl")
    many = images(tmp_path / "many", "cat", "dog")
    for i in range(11):
        (many / "cat" / f"x{i}.png").write_bytes(b"x")
    for name, says in (
        ("all", "No training image can be read: cat/0.png (not-an-image); cat/1.png"),
        ("class", "The class 'cat' has no readable training image"),
        ("many", "More than 10 images cannot be read, among them cat/x0.png (not-an-image)"),
    ):
        assert cli.run(["inspect", str(tmp_path / name)]) == 3 and says in capsys.readouterr().err
        with pytest.raises(InputRefused, match=re.escape(says)):
            ingest(tmp_path / name, tmp_path / f"store {name}")
    (many / "cat" / "x0.png").unlink()
    assert inspect(many).refused == "" and inspect(many).n_unreadable == 10
