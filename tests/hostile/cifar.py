"""Hostile CIFAR batches: pickles that call something, take memory or crash, arrays that lie, labels and names without sense; both versions."""

import pickle  # to write what the reader must read without unpickling
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile.case import Case, Expected, keep, refuse, usage
from tests.hostile.parts import CANARY, write

__all__ = ["CASES"]

N = 4
SETTINGS = {"size": 32}
BATCHES = "cifar-10-batches-py"
META = pickle.dumps({b"label_names": [b"a", b"b", b"c", b"d"]}, 2)
DATA = np.random.default_rng(0).integers(0, 256, (N, 3072), np.uint8)
GOOD: dict[bytes, Any] = {b"batch_label": b"one", b"labels": [0, 1, 2, 3], b"data": DATA, b"filenames": [b"%d.png" % i for i in range(N)]}

# --- what the writer of a pickle can ask for -------------------------------------------------------------------------


def short(text: bytes) -> bytes:
    return b"U" + bytes([len(text)]) + text


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def around(step: bytes) -> bytes:
    """Return a pickle of a dictionary with what `step` leaves on the stack under `data`."""
    return b"\x80\x02}" + short(b"data") + step + b"s."


def batch(id: str, what: str, says: str, data: Callable[[], bytes], threat: str = "T01") -> Case:
    """A batch whose bytes are given."""
    return Case(
        f"pickle-{id}",
        threat,
        what,
        refuse(says),
        lambda root: write(root, {f"{BATCHES}/data_batch_1": data(), f"{BATCHES}/batches.meta": META}),
        SETTINGS,
    )


def calls(id: str, module: str, name: str, *arguments: bytes) -> Case:
    """A batch that calls something with texts."""
    says = f"its pickle asks for {module}.{name}, which"
    return batch(id, f"calls {module}.{name}", says, lambda: around(named(module, name) + b"(" + b"".join(map(short, arguments)) + b"tR"))


TOUCH = b"touch RAN"
DOUBLE = b"q\0h\0\x86"  # a pair of what is on the stack and itself
CALLS = [
    calls("os-system", "posix", "system", TOUCH),
    calls("nt-system", "nt", "system", TOUCH),
    calls("subprocess", "subprocess", "Popen", TOUCH),
    calls("eval", "builtins", "eval", b"open('RAN', 'w')"),
    calls("exec-python2", "__builtin__", "execfile", b"evil.py"),
    calls("getattr", "builtins", "getattr", b"x", b"__class__"),
    calls("import", "importlib", "import_module", b"evil"),
    calls("open", "io", "open", b"/etc/passwd"),
    calls("code", "types", "CodeType", b"x"),
    calls("function", "types", "FunctionType", b"x"),
    calls("attrgetter", "operator", "attrgetter", b"system"),
    calls("partial", "functools", "partial", b"x"),
    calls("pip", "pip._internal.cli.main", "main", b"install", b"evil"),
    calls("browser", "webbrowser", "open", b"http://evil.example"),
    calls("socket", "socket", "create_connection", b"evil.example"),
    calls("inner-pickle", "pickle", "loads", b"\x80\x02."),
    calls("numpy-load", "numpy", "load", b"evil.npy"),
    calls("numpy-testing", "numpy.testing._private.utils", "runstring", TOUCH),
    calls("numpy-scalar", "numpy.core.multiarray", "scalar", b"O"),
    calls("torch-storage", "torch.storage", "_load_from_bytes", b"\x80\x02."),
    calls("joblib", "joblib.numpy_pickle", "load", b"evil"),
    calls("pandas-query", "pandas.core.computation.eval", "eval", b"@x"),
    calls("dtype-by-another-way", "numpy.core.multiarray", "dtype", b"O"),
    calls("dotted-name", "numpy", "dtype.__class__", b"x"),
]

PATH = b"\x8c\x05posix\x8c\x06system"
STEPS = [
    batch(
        "stack-global",
        "names os.system on the stack (protocol 4)",
        "asks for posix.system",
        lambda: b"\x80\x04}\x8c\x04data" + PATH + b"\x93\x8c\x09touch RAN\x85Rs.",
    ),
    batch("inst", "makes an instance in the oldest way (INST)", "asks for the step 'i'", lambda: around(b"(" + short(TOUCH) + b"iposix\nsystem\n")),
    batch(
        "obj", "makes an instance in an old way (OBJ)", "asks for posix.system", lambda: around(b"(" + named("posix", "system") + short(TOUCH) + b"o")
    ),
    batch("newobj", "makes an instance of an array (NEWOBJ)", "asks for the step '\\x81'", lambda: around(named("numpy", "ndarray") + b")\x81")),
    batch(
        "newobj-with-keywords",
        "makes an instance with keywords (NEWOBJ_EX)",
        "asks for the step '\\x92'",
        lambda: b"\x80\x04}\x8c\x04data" + named("numpy", "ndarray") + b")}\x92s.",
    ),
    batch("persistent-id", "asks the reader for an object of its own (PERSID)", "asks for the step 'P'", lambda: around(b"Psecret\n")),
    batch("persistent-id-on-the-stack", "likewise (BINPERSID)", "asks for the step 'Q'", lambda: around(short(b"secret") + b"Q")),
    batch("extension", "asks the extension registry", "asks for the step '\\x82'", lambda: around(b"\x82\x01")),
    batch("outside-buffer", "asks for a buffer outside of the pickle", "asks for the step '\\x97'", lambda: b"\x80\x05}\x8c\x04data\x97s."),
    batch("set", "a frozen set, whose items are hashed", "asks for the step '\\x91'", lambda: b"\x80\x04}\x8c\x04data(\x91s."),
    batch(
        "writes-onto-what-it-gets",
        "sets an attribute of what a name stands for",
        "is not a readable CIFAR-10 batch",
        lambda: around(named("numpy", "ndarray") + b"}" + short(b"shape") + b"K\x01sb"),
    ),
    batch(
        "replaces-code",
        "sets the code of a function that it gets",
        "is not a readable CIFAR-10 batch",
        lambda: around(named("numpy", "dtype") + b"N}" + short(b"__code__") + b"Ns\x86b"),
    ),
    batch("calls-a-text", "calls what is no function", "is not a readable CIFAR-10 batch", lambda: around(short(b"x") + b")R")),
    batch(
        "encode-with-another-codec",
        "decodes with a codec of its choice",
        "asks for _codecs.encode with another encoding",
        lambda: around(named("_codecs", "encode") + b"X\x01\0\0\0xX\x04\0\0\0zlib\x86R"),
    ),
    batch(
        "memo-without-end",
        "ten bytes for which Python's own reader takes 32 GB (place 2^31 - 1 of the memo)",
        "Expected `data` and `labels`",
        lambda: b"\x80\x02}r\xff\xff\xff\x7f.",
        "T13",
    ),
    batch(
        "bytes-without-end",
        "bytes of length 2^62",
        "is not a readable CIFAR-10 batch",
        lambda: b"\x80\x04}\x8c\x04data\x8e" + struct.pack("<Q", 2**62) + b"s.",
        "T13",
    ),
    batch(
        "array-of-bytes",
        "a byte array of 2^40 bytes",
        "asks for the step '\\x96'",
        lambda: b"\x80\x05}\x8c\x04data\x96" + struct.pack("<Q", 2**40) + b"s.",
        "T13",
    ),
    batch(
        "tuples-without-end",
        "half a million tuples inside each other as a key: Python's own reader crashes",
        "asks for a key that is no text",
        lambda: b"\x80\x02})" + b"\x85" * 500_000 + b"Ns.",
        "T13",
    ),
    batch(
        "tuples-that-double",
        "a key whose hash takes 2^60 steps",
        "asks for a key that is no text",
        lambda: b"\x80\x02})" + DOUBLE * 60 + b"Ns.",
        "T13",
    ),
    batch(
        "lists-without-end",
        "200,000 lists inside each other",
        "Expected an array as `data`",
        lambda: b"\x80\x02}" + short(b"data") + b"]" * 200_000 + b"a" * 199_999 + b"s" + short(b"labels") + b"]s.",
        "T13",
    ),
    batch(
        "list-of-itself",
        "a list that holds itself",
        "Expected an array as `data`",
        lambda: b"\x80\x02}" + short(b"data") + b"]q\x01h\x01as" + short(b"labels") + b"]s.",
    ),
    batch(
        "number-of-a-million-digits",
        "a number of a million digits",
        "is not a readable CIFAR-10 batch",
        lambda: around(b"L" + b"9" * 1_000_000 + b"L\n"),
        "T13",
    ),
    batch("no-end", "a pickle without an end", "is not a readable CIFAR-10 batch", lambda: pickle.dumps(GOOD, 2)[:-1], "T21"),
    batch("cut", "the first half of a batch", "is not a readable CIFAR-10 batch", lambda: pickle.dumps(GOOD, 2)[:6000], "T21"),
    batch("empty", "an empty batch", "is not a readable CIFAR-10 batch", lambda: b"", "T21"),
    batch("no-dictionary", "a pickle of a list", "Expected data_batch_1 to hold a dictionary, got list", lambda: pickle.dumps([1], 2)),
    batch(
        "dictionary-of-another-kind",
        "an OrderedDict",
        "asks for collections.OrderedDict",
        lambda: b"\x80\x02" + named("collections", "OrderedDict") + b")R.",
    ),
    batch("not-a-pickle", "a PNG called data_batch_1", "data_batch_1 is refused", lambda: b"\x89PNG\r\n\x1a\n" + bytes(50), "T08"),
]

# --- arrays, labels and names that lie -------------------------------------------------------------------------------


def given(id: str, threat: str, what: str, expected: Expected, changes: dict[bytes, Any], meta: Any = None) -> Case:
    """A batch whose content is given, pickled as the official ones are."""

    def make(root: Path) -> Path:
        content = pickle.dumps({key: value for key, value in (GOOD | changes).items() if value is not None}, 2)
        return write(root, {f"{BATCHES}/data_batch_1": content, f"{BATCHES}/batches.meta": META if meta is None else pickle.dumps(meta, 2)})

    return Case(f"batch-{id}", threat, what, expected, make, SETTINGS)


def array(shape: bytes, kind: bytes = b"u1", raw: bytes = bytes(N * 3072), fortran: bytes = b"\x89") -> bytes:
    """Return a whole batch whose array says of itself what is given."""
    dtype = named("numpy", "dtype") + short(kind) + b"K\0K\x01\x87R(K\x03" + short(b"|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    state = b"(K\x01" + shape + dtype + fortran + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    made = named("numpy.core.multiarray", "_reconstruct") + named("numpy", "ndarray") + b"K\0\x85" + short(b"b") + b"\x87R"
    return b"\x80\x02}(" + short(b"data") + made + state + short(b"labels") + b"](K\0K\x01K\x02K\x03e" + b"u."


def lies(id: str, what: str, says: str, data: Callable[[], bytes]) -> Case:
    return batch(f"array-{id}", what, says, data, "T03")


TWO = b"K\x04M\0\x0c\x86"  # the shape (4, 3072)
SHAPE = "to have the shape [n 3072] and as many bytes"
ARRAYS = [
    given("array-of-objects", "T03", "an array of objects", refuse("asks for __builtin__.set"), {b"data": np.array([{"a": {1}}] * 4, object)}),
    given("array-of-floats", "T28", "floats", refuse("to be uint8, got 'f4'"), {b"data": np.zeros((N, 3072), np.float32)}),
    given("array-of-nan", "T28", "floats that are not numbers", refuse("to be uint8, got 'f8'"), {b"data": np.full((N, 3072), np.nan)}),
    given("array-of-signed-bytes", "T28", "bytes with a sign", refuse("to be uint8, got 'i1'"), {b"data": np.zeros((N, 3072), np.int8)}),
    given(
        "array-of-another-order",
        "T28",
        "two bytes a value, in the other order",
        refuse("to be uint8, got 'u2'"),
        {b"data": np.zeros((N, 3072), ">u2")},
    ),
    given("array-of-records", "T28", "records", refuse("to be uint8, got 'V2'"), {b"data": np.zeros((N, 3072), [("a", "u1"), ("b", "u1")])}),
    given("array-one-column-short", "T28", "3,071 bytes a sample", refuse(SHAPE), {b"data": np.zeros((N, 3071), np.uint8)}),
    given("array-of-pictures", "T28", "four dimensions", refuse(SHAPE), {b"data": np.zeros((N, 3, 32, 32), np.uint8)}),
    given("array-is-text", "T28", "text in place of the array", refuse("Expected an array as `data` of data_batch_1, got bytes"), {b"data": b"text"}),
    given("array-is-missing", "T30", "no array", refuse("Expected `data` and `labels` in data_batch_1"), {b"data": None}),
    lies("promises-more", "a shape of more bytes than there are", SHAPE, lambda: array(b"K\x05M\0\x0c\x86")),
    lies("shape-of-floats", "a shape of floats that equal the right numbers", SHAPE, lambda: array(b"K\x04G" + struct.pack(">d", 3072.0) + b"\x86")),
    lies("shape-of-truth", "a shape that holds True", SHAPE, lambda: array(b"\x88M\0\x0c\x86", raw=bytes(3072))),
    lies("shape-below-zero", "a shape below zero", SHAPE, lambda: array(b"J" + struct.pack("<i", -4) + b"M\0\x0c\x86")),
    lies(
        "shape-of-many-digits",
        "a shape whose number nobody can print",
        SHAPE,
        lambda: array(b"\x8b" + struct.pack("<i", 4000) + b"\x7f" * 4000 + b"M\0\x0c\x86"),
    ),
    lies("shape-that-doubles", "a shape that takes 2^60 steps to print", SHAPE, lambda: array(b")" + DOUBLE * 60)),
    lies("kind-is-an-object", "a type `O` around raw bytes", "to be uint8, got 'O'", lambda: array(TWO, b"O")),
    lies("kind-of-many-bytes", "a type of 255 bytes a value", "to be uint8, got 'V255'", lambda: array(TWO, b"V255")),
]

OTHER = [
    Case(
        "batch-array-by-columns",
        "T28",
        "an array in the order of columns: read as it says",
        keep(N),
        lambda root: write(root, {f"{BATCHES}/data_batch_1": array(TWO, fortran=b"\x88"), f"{BATCHES}/batches.meta": META}),
        SETTINGS,
    ),
    given("labels-too-few", "T30", "fewer labels than images", refuse("to be a list of 4 integers"), {b"labels": [0, 1]}),
    given("labels-too-high", "T30", "a label beyond the names", refuse("Expected labels in 0..3, got 4 in row 3"), {b"labels": [0, 1, 2, 4]}),
    given("labels-negative", "T30", "a negative label", refuse("got -1 in row 0"), {b"labels": [-1, 1, 2, 3]}),
    given("labels-floats", "T30", "labels that are floats", refuse("to be a list of 4 integers"), {b"labels": [0.0, 1.0, 2.0, 3.0]}),
    given("labels-truth", "T30", "labels that are true and false", refuse("to be a list of 4 integers"), {b"labels": [True, False, 2, 3]}),
    given(
        "labels-of-many-digits",
        "T30",
        "a label of 9,000 digits, which Python refuses to print",
        refuse("got a number of thousands of digits in row 1"),
        {b"labels": [0, 2**30_000, 2, 3]},
    ),
    given("labels-are-an-array", "T30", "labels as an array", refuse("to be a list of 4 integers"), {b"labels": np.array([0, 1, 2, 3], np.uint8)}),
    given("labels-missing", "T30", "no labels", refuse("Expected `data` and `labels`"), {b"labels": None}),
    given(
        "file-names-upwards",
        "T10",
        "file names that climb out: data, never a path",
        keep(N),
        {b"filenames": [f"../../{CANARY}/secret.png".encode()] * N},
    ),
    given("file-names-half-characters", "T32", "file names with half a character", keep(N), {b"filenames": ["\ud800.png"] * N}),
    given(
        "file-names-without-end",
        "T13",
        "one name of 1 MiB in every place",
        refuse("Expected names of at most 255 characters"),
        {b"filenames": [b"x" * 2**20] * N},
    ),
    given("file-names-are-numbers", "T30", "file names that are numbers", keep(N), {b"filenames": [1, 2, 3, 4]}),
    given("class-names-twice", "T16", "a class name twice", refuse("to be different strings"), {}, {b"label_names": [b"a", b"a", b"c", b"d"]}),
    given(
        "class-names-half-characters",
        "T32",
        "a class name with half a character: kept as an escape",
        keep(N, classes=("\\ud800", "b", "c", "d")),
        {},
        {b"label_names": ["\ud800", "b", "c", "d"]},
    ),
    given(
        "class-names-not-utf8",
        "T16",
        "a class name that is no UTF-8: kept as an escape",
        keep(N, classes=("\\xff", "b", "c", "d")),
        {},
        {b"label_names": [b"\xff", b"b", b"c", b"d"]},
    ),
    given(
        "class-names-without-end",
        "T13",
        "a class name of 100 KiB",
        refuse("Expected names of at most 255 characters"),
        {},
        {b"label_names": [b"x" * 100_000, b"b", b"c", b"d"]},
    ),
    given(
        "class-names-are-numbers", "T30", "class names that are numbers", refuse("Expected a list of class names"), {}, {b"label_names": [1, 2, 3, 4]}
    ),
    given("class-names-missing", "T30", "a meta file without class names", refuse("Expected a list of class names"), {}, {b"x": 1}),
    Case(
        "batch-meta-calls",
        "T01",
        "a meta file that calls os.system",
        refuse("batches.meta is refused: its pickle asks for posix.system"),
        lambda root: write(
            root,
            {f"{BATCHES}/data_batch_1": pickle.dumps(GOOD, 2), f"{BATCHES}/batches.meta": around(named("posix", "system") + short(TOUCH) + b"\x85R")},
        ),
        SETTINGS,
    ),
    Case(
        "batch-meta-missing",
        "T30",
        "no meta file",
        refuse("Expected batches.meta with the class names"),
        lambda root: write(root, {f"{BATCHES}/data_batch_1": pickle.dumps(GOOD, 2)}),
        SETTINGS,
    ),
    Case(
        "batch-is-a-link",
        "T12",
        "a batch that is a link to outside",
        refuse("Expected data_batch_1 to be a regular file"),
        lambda root: (
            write(root, {f"{BATCHES}/batches.meta": META}),
            (root / BATCHES / "data_batch_1").symlink_to(root.parent / CANARY / "data_batch_1"),
            root,
        )[2],
        SETTINGS,
    ),
    Case(
        "batch-trailing-bytes",
        "T26",
        "a second pickle behind the first, which is never read",
        keep(N),
        lambda root: write(
            root,
            {
                f"{BATCHES}/data_batch_1": pickle.dumps(GOOD, 2) + around(named("posix", "system") + short(TOUCH) + b"\x85R"),
                f"{BATCHES}/batches.meta": META,
            },
        ),
        SETTINGS,
    ),
    Case(
        "two-cifars",
        "T30",
        "CIFAR-10 and CIFAR-100 in one folder",
        usage("which one is meant?"),
        lambda root: write(root, {"data_batch_1": pickle.dumps(GOOD, 2), "batches.meta": META, "train": b"x", "meta": b"x"}),
        SETTINGS,
    ),
    Case(
        "cifar100-superclass-too-high",
        "T30",
        "a superclass beyond the names",
        refuse("Expected labels in 0..1, got 2 in row 0 of train"),
        lambda root: write(
            root,
            {
                "train": pickle.dumps({b"data": DATA, b"fine_labels": [0, 1, 2, 3], b"coarse_labels": [2, 0, 0, 0]}, 2),
                "meta": pickle.dumps({b"fine_label_names": [b"a", b"b", b"c", b"d"], b"coarse_label_names": [b"x", b"y"]}, 2),
            },
        ),
        SETTINGS,
    ),
]

# --- the binary version ----------------------------------------------------------------------------------------------

RECORDS = b"".join(bytes([label]) + row.tobytes() for label, row in enumerate(DATA))


def binary(id: str, threat: str, what: str, expected: Expected, records: bytes = RECORDS, names: bytes = b"a\nb\nc\nd\n") -> Case:
    folder = "cifar-10-batches-bin"
    return Case(
        f"binary-{id}",
        threat,
        what,
        expected,
        lambda root: write(root, {f"{folder}/data_batch_1.bin": records, f"{folder}/batches.meta.txt": names}),
        SETTINGS,
    )


BINARY = [
    binary("cut", "T21", "a record that lacks a byte", refuse("to hold records of 3073 bytes, got 12291 bytes"), RECORDS[:-1]),
    binary("empty", "T30", "no record", refuse("Expected training samples in the source, found none"), b""),
    binary("label-too-high", "T30", "a label beyond the names", refuse("Expected labels in 0..3, got 9 in row 0"), b"\x09" + RECORDS[1:]),
    binary("names-twice", "T16", "a class name twice", refuse("different class names"), names=b"a\na\nc\nd\n"),
    binary("names-not-utf8", "T16", "class names that are no UTF-8", refuse("to be UTF-8"), names=b"\xff\nb\nc\nd\n"),
    binary(
        "names-too-many",
        "T30",
        "300 class names",
        refuse("Expected 1 to 256 different class names"),
        names=b"".join(b"c%d\n" % i for i in range(300)),
    ),
    binary(
        "names-without-end", "T17", "a file of names of more than 1 MiB", refuse("to be a regular file of at most 1 MiB"), names=b"x" * (2**20 + 1)
    ),
]

CASES = [*CALLS, *STEPS, *ARRAYS, *OTHER, *BINARY]
