"""The python batches of CIFAR-10 and CIFAR-100: `cifar-10-batches-py`, `cifar-100-python`, what their authors and torchvision give out.

They are pickles, and a pickle is a program. Ours is an unpickler that knows the few steps that a batch needs, and five
names; it answers each name with a stand-in of its own, so that not even NumPy's code runs on what the file says.
"""

import io
import pickle  # only to subclass the unpickler below: the format is pickle, and nothing that it names is looked up
import reprlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.readers.files import MAX_NAME, read_whole
from meca.data.readers.labels import MAX_CLASSES, checked
from meca.data.readers.source import Found, Labels, Source
from meca.errors import InputRefused, UsageError

__all__ = ["SIDE", "WIDTH", "coarse_of", "data_set_name", "folder_of", "labels_by_split", "load_batch", "open_cifar"]

TRAIN, TEST, META = tuple(f"data_batch_{i}" for i in range(1, 6)), ("test_batch",), "batches.meta"
TRAIN_100, TEST_100, META_100 = ("train",), ("test",), "meta"
FOLDERS = ("cifar-10-batches-py", "cifar-100-python")
MAX_BYTES = 512 * 2**20  # an official batch has 31 MB
SIDE = 32
WIDTH = 3 * SIDE * SIDE


class _Refused(Exception):  # noqa: N818 - it becomes an InputRefused
    """The pickle asks for something that a batch does not need."""


class _Dtype:
    __slots__ = ("code",)

    def __init__(self, code: object, *_: object) -> None:
        self.code = code.decode("latin1") if isinstance(code, bytes) else code

    def __setstate__(self, state: object) -> None:
        """Ignore byte order and alignment: a byte has none."""


class _Array:
    __slots__ = ("state",)

    def __setstate__(self, state: object) -> None:
        """Hold the raw parts; `_pixels` checks them."""
        self.state = state


class _Marker:
    """Stands for `numpy.ndarray`, which is only ever named."""

    __slots__ = ()


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _encode(value: object, encoding: object = "latin1") -> bytes:
    if not isinstance(value, str) or encoding not in ("latin1", b"latin1"):
        raise _Refused("_codecs.encode with another encoding")
    return value.encode("latin1")


_STEPS = b"".join(
    (
        *(pickle.PROTO, pickle.FRAME, pickle.STOP, pickle.MARK, pickle.POP, pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE),
        *(pickle.INT, pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.LONG, pickle.LONG1, pickle.LONG4, pickle.FLOAT, pickle.BINFLOAT),
        *(pickle.STRING, pickle.BINSTRING, pickle.SHORT_BINSTRING, pickle.BINBYTES, pickle.SHORT_BINBYTES, pickle.BINBYTES8),
        *(pickle.UNICODE, pickle.BINUNICODE, pickle.SHORT_BINUNICODE, pickle.BINUNICODE8),
        *(pickle.EMPTY_LIST, pickle.LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS),
        *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
        *(pickle.PUT, pickle.BINPUT, pickle.LONG_BINPUT, pickle.MEMOIZE, pickle.GET, pickle.BINGET, pickle.LONG_BINGET),
        *(pickle.GLOBAL, pickle.STACK_GLOBAL, pickle.REDUCE, pickle.BUILD),
    )
)


class _Steps(dict[int, Any]):
    def __missing__(self, code: int) -> Any:
        raise _Refused(f"the step {chr(code)!r}")


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportPrivateUsage] - in Python: the one in C takes gigabytes for a large memo number
    stack: list[Any]
    append: Any
    pop_mark: Any
    dispatch = _Steps({code: pickle._Unpickler.dispatch[code] for code in _STEPS})  # pyright: ignore[reportPrivateUsage]

    def load_dict(self) -> None:
        """Make a dictionary of what follows the mark."""
        items: list[Any] = self.pop_mark()
        self.append(dict(zip(_keys(items[::2]), items[1::2], strict=True)))

    def load_setitem(self) -> None:
        """Put one item into the dictionary below it."""
        value, key = self.stack.pop(), self.stack.pop()
        self._dictionary().update(zip(_keys([key]), [value], strict=True))

    def load_setitems(self) -> None:
        """Put what follows the mark into the dictionary below it."""
        items: list[Any] = self.pop_mark()
        self._dictionary().update(zip(_keys(items[::2]), items[1::2], strict=True))

    def _dictionary(self) -> dict[Any, Any]:
        if type(self.stack[-1]) is not dict:
            raise _Refused("items of what is no dictionary")
        return self.stack[-1]

    dispatch[pickle.DICT[0]] = load_dict
    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems

    def find_class(self, module: str, name: str) -> Any:
        """Return our stand-in for one of the five names that a batch needs; refuse any other."""
        stand_ins: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *a: _reconstruct(*a),  # new each time: a pickle may write onto what it gets
            ("numpy._core.multiarray", "_reconstruct"): lambda *a: _reconstruct(*a),
            ("numpy", "ndarray"): _Marker(),
            ("numpy", "dtype"): lambda *a: _Dtype(*a),
            ("_codecs", "encode"): lambda *a: _encode(*a),
        }
        if (module, name) not in stand_ins:
            raise _Refused(f"{module}.{name}")
        return stand_ins[module, name]


def _keys(keys: list[Any]) -> list[Any]:
    if not all(isinstance(key, bytes | str) for key in keys):
        raise _Refused("a key that is no text")  # tuples inside tuples: to hash them takes for ever, or more stack than there is
    return keys


def load_batch(data: bytes, name: str) -> dict[str, Any]:
    """Return the content of a batch or of `batches.meta`: plain values, byte strings, and arrays in raw parts.

    Raises:
        InputRefused: The file asks for any other name, or is no pickled dictionary.
    """
    try:
        content = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except _Refused as problem:
        raise InputRefused(
            f"{name} is refused: its pickle asks for {problem}, which a CIFAR-10 batch does not need and which could run code."
        ) from None
    except Exception as error:  # an unpickler may fail in any way on hostile bytes
        raise InputRefused(f"{name} is not a readable CIFAR-10 batch ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise InputRefused(f"Expected {name} to hold a dictionary, got {type(content).__name__}.")
    return {_string(key): value for key, value in content.items()}


def _string(value: object) -> str:
    if not isinstance(value, bytes | str):
        return type(value).__name__
    if len(value) > MAX_NAME:  # one value may stand in a million places
        raise InputRefused(f"Expected names of at most {MAX_NAME} characters in a batch, got one of {len(value)}.")
    data = value.encode("utf-8", "backslashreplace") if isinstance(value, str) else value  # a str may hold half a character
    return data.decode("utf-8", "backslashreplace")


def _shown(value: object) -> str:
    """Return what an error says of a value, which may be endless."""
    try:
        return reprlib.repr(value)
    except ValueError:
        return "a number of thousands of digits"


def _pixels(value: object, name: str) -> NDArray[np.uint8]:
    """Return uint8 [n 3072] out of the raw parts of an array."""
    state = value.state if isinstance(value, _Array) and hasattr(value, "state") else None
    if not isinstance(state, tuple) or len(state) != 5:
        raise InputRefused(f"Expected an array as `data` of {name}, got {type(value).__name__}.")
    _, shape, dtype, fortran, raw = state
    code = dtype.code if isinstance(dtype, _Dtype) else dtype
    if code not in ("u1", "|u1") or not isinstance(raw, bytes):
        raise InputRefused(f"Expected `data` of {name} to be uint8, got {_shown(code)}.")
    if not isinstance(shape, tuple) or [type(side) for side in shape] != [int, int] or shape != (len(raw) // WIDTH, WIDTH) or len(raw) % WIDTH:
        raise InputRefused(f"Expected `data` of {name} to have the shape [n {WIDTH}] and as many bytes, got {_shown(shape)} and {len(raw)} bytes.")
    return np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def folder_of(path: Path) -> Path | None:
    """Return the folder that holds the batches: `path`, or one of `FOLDERS` in it.

    Raises:
        UsageError: It holds CIFAR-10 and CIFAR-100.
    """
    found = [folder for folder in (path, *(path / name for name in FOLDERS)) if (folder / TRAIN[0]).is_file() or _is_100(folder)]
    both = [folder for folder in found if (folder / TRAIN[0]).is_file() and _is_100(folder)]
    if len(found) > 1 or both:
        raise UsageError(f"{path.name} holds CIFAR-10 and CIFAR-100: which one is meant? Point to the folder of one of them.")
    return found[0] if found else None


def _is_100(folder: Path) -> bool:
    return (folder / TRAIN_100[0]).is_file() and (folder / META_100).is_file()


def open_cifar(path: Path) -> Source:
    """Return the source of a folder of batches.

    Raises:
        InputRefused: A batch is missing, hostile or damaged, or a label is out of range.
    """
    folder = folder_of(path)
    if folder is None:
        raise InputRefused(f"Expected data_batch_1, or train and meta, in {path.name} or in its folder {' or '.join(FOLDERS)}, found none.")
    fine = _is_100(folder)
    given = (("train", TRAIN_100), ("test", TEST_100)) if fine else (("train", TRAIN), ("test", TEST))
    files = {split: [name for name in members if (folder / name).exists()] for split, members in given}
    meta, label_key = (META_100, "fine_labels") if fine else (META, "labels")
    names = _class_names(folder, meta, "fine_label_names" if fine else "label_names")
    coarse_names = _class_names(folder, meta, "coarse_label_names") if fine else ()
    images: dict[str, NDArray[np.uint8]] = {}
    labels: dict[str, Labels] = {}
    coarse: dict[str, Labels] = {}
    titles: dict[str, list[str]] = {}
    batches: list[dict[str, str]] = []
    for split, members in files.items():
        for name in members:
            content = load_batch(read_whole(folder / name, MAX_BYTES), name)
            missing = [key for key in ("data", label_key, *(["coarse_labels"] if fine else [])) if key not in content]
            if missing:
                raise InputRefused(f"Expected `data` and `{label_key}` in {name}, found {', '.join(sorted(content)) or 'nothing'}.")
            images[name] = _pixels(content["data"], name)
            labels[name] = _labels(content[label_key], len(images[name]), len(names), name)
            if fine:
                coarse[name] = _labels(content["coarse_labels"], len(images[name]), len(coarse_names), name)
            given = content.get("filenames")
            if not isinstance(given, list) or len(given) != len(images[name]):
                given = [f"{at}.png" for at in range(len(images[name]))]
            titles[name] = [_string(value) for value in given]
            batches.append({"name": name, "split": split, "batch_label": _string(content.get("batch_label", b""))})

    def read(split: str, take: NDArray[np.bool_]) -> Iterator[Found]:
        for name, at in _wanted(files[split], labels, take):
            yield Found(f"{name}#{at:05d}", int(labels[name][at]), pixels=images[name][at].reshape(3, SIDE, SIDE).transpose(1, 2, 0))

    def columns(split: str, take: NDArray[np.bool_]) -> pa.Table:
        chosen = list(_wanted(files[split], labels, take))
        table = pa.table({"filename": pa.array([titles[name][at] for name, at in chosen], pa.string())})
        if not fine:
            return table
        table = table.append_column("label", pa.array([int(labels[name][at]) for name, at in chosen], pa.int64()))
        return table.append_column("coarse", pa.array([int(coarse[name][at]) for name, at in chosen], pa.int64()))

    return Source(
        format="cifar-batches",
        name=data_set_name(folder, FOLDERS),
        class_names=names,
        labels=labels_by_split(files, labels),
        read=read,
        columns=columns,
        options={"batches": batches}
        | ({"coarse_names": list(coarse_names), "coarse_of": coarse_of(labels["train"], coarse["train"], len(names))} if fine else {}),
    )


def data_set_name(folder: Path, folders: tuple[str, str]) -> str:
    """Return what a folder of CIFAR is called: by its official name, of CIFAR-10 and of CIFAR-100, else as it is."""
    return dict(zip(folders, ("cifar10", "cifar100"), strict=True)).get(folder.name, folder.name)


def labels_by_split(files: Mapping[str, list[str]], labels: Mapping[str, Labels]) -> dict[str, Labels]:
    """Return int64 [n] a split: the labels of its files, one after the other; none where it has no file."""
    return {split: np.concatenate([labels[name] for name in members] or [np.empty(0, np.int64)]) for split, members in files.items()}


def _wanted(members: list[str], labels: dict[str, Labels], take: NDArray[np.bool_]) -> Iterator[tuple[str, int]]:
    places = ((name, at) for name in members for at in range(len(labels[name])))
    return (place for place, wanted in zip(places, take, strict=True) if wanted)


def coarse_of(labels: Labels, coarse: Labels, classes: int) -> list[int]:
    """Return for each of `classes` the superclass that most of its samples have: what a relabelled sample gets; -1 where none has one."""
    return [int(np.bincount(coarse[labels == label]).argmax()) if (labels == label).any() else -1 for label in range(classes)]


def _class_names(folder: Path, meta: str, key: str) -> tuple[str, ...]:
    if not (folder / meta).exists():
        raise InputRefused(f"Expected {meta} with the class names beside the batches, found none.")
    names = load_batch(read_whole(folder / meta, 2**20), meta).get(key)
    if not isinstance(names, list) or not 0 < len(names) <= MAX_CLASSES or not all(isinstance(name, bytes | str) for name in names):
        raise InputRefused(f"Expected a list of class names as `{key}` of {meta}, got {type(names).__name__}.")
    return checked([_string(name) for name in names], f"the class names in {meta}")


def _labels(value: object, n: int, classes: int, name: str) -> Labels:
    if not isinstance(value, list) or len(value) != n or not all(type(label) is int for label in value):
        raise InputRefused(f"Expected `labels` of {name} to be a list of {n} integers.")
    for at, label in enumerate(value):
        if not 0 <= label < classes:
            raise InputRefused(f"Expected labels in 0..{classes - 1}, got {_shown(label)} in row {at} of {name}.")
    return np.array(value, np.int64)
