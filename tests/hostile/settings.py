"""Hostile parameter files and settings: tags, references that stand for a billion values, doubled keys, numbers that are none."""

from collections.abc import Callable

from meca.params import PACKAGED
from tests.hostile.case import Case, usage
from tests.hostile.parts import write

__all__ = ["CASES"]


def params(id: str, threat: str, what: str, says: str, content: bytes | Callable[[], bytes]) -> Case:
    """A parameter file over a good set."""
    return Case(
        f"params-{id}",
        threat,
        what,
        usage(says),
        lambda root: write(root, {"params.yaml": content() if callable(content) else content}) / "params.yaml",
        options=("--params", "{params}"),
    )


def changed(old: str, new: str) -> Callable[[], bytes]:
    """Return the packaged file with one place changed."""

    def make() -> bytes:
        text = PACKAGED.read_text(encoding="utf-8")
        assert old in text, "the packaged file has another text"
        return text.replace(old, new, 1).encode()

    return make


def added(text: str) -> Callable[[], bytes]:
    return lambda: PACKAGED.read_bytes() + text.encode()


def given(id: str, threat: str, what: str, says: str, *settings: str) -> Case:
    """Settings of the command line over a good set."""
    return Case(
        f"setting-{id}", threat, what, usage(says), lambda root: root, options=tuple(part for setting in settings for part in ("--set", setting))
    )


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES = [
    params(
        "tag-that-calls",
        "T06",
        "a tag that calls os.system",
        "could not determine a constructor",
        added("more: !!python/object/apply:os.system ['touch RAN']\n"),
    ),
    params("tag-of-a-name", "T06", "a tag that names a function", "could not determine a constructor", added("more: !!python/name:os.system\n")),
    params("tag-of-a-module", "T06", "a tag that imports a module", "could not determine a constructor", added("more: !!python/module:evil\n")),
    params("tag-of-our-own", "T06", "a tag that nobody knows", "could not determine a constructor", added("more: !evil {}\n")),
    params(
        "references-of-a-billion-values", "T06", "nine lines that stand for a billion values", "refers to another value; write it out", added(LAUGHS)
    ),
    params("reference-to-itself", "T06", "a list that holds itself", "refers to another value; write it out", added("more: &a [*a]\n")),
    params(
        "merged-group",
        "T35",
        "a group that takes over another one",
        "refers to another value; write it out",
        added("more: &a {x: 1}\nmost: {<<: *a}\n"),
    ),
    params(
        "depth-bomb",
        "T06",
        "10,000 lists inside each other",
        "more than 20 levels inside each other",
        added("more: " + "[" * 10_000 + "]" * 10_000 + "\n"),
    ),
    params(
        "depth-bomb-of-groups",
        "T06",
        "100 groups inside each other",
        "more than 20 levels inside each other",
        added("".join("  " * i + f"g{i}:\n" for i in range(100))),
    ),
    params(
        "doubled-key",
        "T35",
        "a key twice: two readers would take two values",
        "stands twice in one group",
        changed("\nseed: 0", "\nseed: 0\nseed: 1"),
    ),
    params(
        "doubled-key-in-a-group",
        "T35",
        "a key twice in a group",
        "the key 'size' stands twice in one group",
        changed("  size: auto #", "  size: 16\n  size: auto #"),
    ),
    params("unknown-group", "T35", "a group that nobody reads", "unknown group 'ingset'; did you mean 'ingest'?", added("ingset: {size: 8}\n")),
    params(
        "unknown-key",
        "T35",
        "a key that nobody reads",
        "unknown 'sizes' (did you mean 'size'?)",
        changed("  size: auto #", "  sizes: 32\n  size: auto #"),
    ),
    params("missing-group", "T35", "a file of one group", "params.yaml has no parameter 'ingest.format'", b"preset: default\nseed: 0\n"),
    params("key-is-a-number", "T35", "a key that is a number", "expected a name as key, got 1", added("1: 2\n")),
    params("key-is-a-list", "T35", "a key that is a list", "expected a name as key, got ['a']", added("? [a]\n: 1\n")),
    params("key-is-no", "T35", "the key `no`, which one reader takes for false", "'no' (line", added("no: 1\n")),
    params(
        "number-as-text",
        "T35",
        "`1e-3`, which one reader takes for a text",
        "expected ingest.quarantine_share to be float, got '1e-3'",
        changed("quarantine_share: 0.01", "quarantine_share: 1e-3"),
    ),
    params(
        "number-in-base-60",
        "T35",
        "`12:30:45`, which one reader takes for 45,045",
        "'12:30:45' (line 6) is another value to another reader",
        changed("\nseed: 0", "\nseed: 12:30:45"),
    ),
    params(
        "number-in-base-8",
        "T35",
        "`017`, which one reader takes for 15",
        "'017' (line 6) is another value to another reader",
        changed("\nseed: 0", "\nseed: 017"),
    ),
    params(
        "truth-as-no",
        "T35",
        "`no`, which one reader takes for a text",
        "'no' (line ",
        changed("relative: false", "relative: no"),
    ),
    params(
        "number-nan",
        "T35",
        "a share that is no number",
        "expected ingest.quarantine_share to be float, got nan",
        changed("quarantine_share: 0.01", "quarantine_share: .nan"),
    ),
    params(
        "number-infinite",
        "T35",
        "an infinite share",
        "expected ingest.quarantine_share to be float, got inf",
        changed("quarantine_share: 0.01", "quarantine_share: .inf"),
    ),
    params("number-of-5000-digits", "T06", "a number of 5,000 digits", "is not YAML", changed("\nseed: 0", "\nseed: " + "9" * 5000)),
    params("date-that-is-none", "T35", "the 31st of February", "is not YAML", changed("\nseed: 0", "\nseed: 2026-02-31")),
    params("list-in-place-of-groups", "T35", "a list", "expected groups of parameters, got list", b"- 1\n- 2\n"),
    params("empty", "T35", "an empty file", "expected groups of parameters, got NoneType", b""),
    params("two-documents", "T35", "two documents", "is not YAML", added("---\nseed: 1\n")),
    params("not-utf8", "T32", "a file that is no UTF-8", "to be UTF-8", b"seed: 0 # \xff\n"),
    params("nul", "T32", "a file with a NUL", "is not YAML", added("more: 'a\0b'\n")),
    params("larger-than-a-mebibyte", "T06", "a file of 2 MiB", "of at most 1048576 bytes", added("# " + "x" * 2**21 + "\n")),
    params("no-yaml", "T08", "a PNG", "to be UTF-8", b"\x89PNG\r\n\x1a\n"),
    Case(
        "params-is-a-folder",
        "T35",
        "a folder in the place of the file",
        usage("Expected a parameter file"),
        lambda root: root,
        options=("--params", "{params}"),
    ),
    given(
        "tag-that-calls",
        "T06",
        "a tag that calls os.system, on the command line",
        "is not YAML",
        "seed=!!python/object/apply:os.system ['touch RAN']",
    ),
    given("unknown", "T35", "a parameter that there is not", "did you mean 'ingest.size'?", "ingest.sise=8"),
    given("no-value", "T35", "a setting without a value", "Expected --set group.key=value", "ingest.size"),
    given("size-of-a-gigapixel", "T20", "pictures of 100,000 x 100,000", "at most 1024 pixels", "ingest.size=100000"),
    given("size-negative", "T35", "pictures of -1 pixels", "to be 0 or more, got -1", "ingest.size=-1"),
    given("share-above-one", "T35", "a share above 1", "expected ingest.quarantine_share in [0, 1]", "ingest.quarantine_share=1.5"),
    given("date-that-is-none", "T35", "the 31st of February as seed", "is not YAML", "seed=2026-02-31"),
    given("group-in-place-of-number", "T35", "a group in the place of a number", "expected ingest.size to be int", "ingest.size={a: 1}"),
    given("format-unknown", "T35", "a format that there is not", "expected ingest.format to be", "ingest.format=tiff"),
    given(
        "limit-below-classes",
        "T30",
        "a limit below the number of classes",
        "to be 0 or at least 2, one for each class, got 1",
        "ingest.train_limit=1",
    ),
    given(
        "label-column-of-a-folder",
        "T30",
        "a column of labels where there is none",
        "expected ingest.label_column to be auto",
        "ingest.label_column=x",
    ),
]
