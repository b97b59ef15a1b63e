"""Which split a file, a folder or a row belongs to, by the words that data sets use for it."""

from collections.abc import Mapping, Sequence

from meca.errors import InputRefused, UsageError

__all__ = ["SPLITS", "by_name", "splits_of"]

# `train` is what is sanitized; everything else is for evaluation only.
SPLITS: Mapping[str, str] = {"train": "train", "test": "test", "validation": "test", "valid": "test", "val": "test"}


def by_name(stem: str) -> str | None:
    """Return the split that a name begins with (`train-00000-of-00005`), or None."""
    return next((split for word, split in SPLITS.items() if stem == word or stem.startswith((f"{word}-", f"{word}_", f"{word}."))), None)


def splits_of(names: Sequence[str], what: str) -> dict[str, str]:
    """Return the split of each file by name; all are `train` where no name begins with a split.

    Raises:
        InputRefused: No file is named after split train.
        UsageError: Some files are named after a split and some are not.
    """
    named = {name: by_name(name) for name in names}
    if not any(named.values()):
        return dict.fromkeys(names, "train")
    for name, split in named.items():
        if split is None:
            raise UsageError(f"Expected the name of every {what} to begin with train, validation or test, got {name!r}; rename it or move it away.")
    if "train" not in named.values():
        raise InputRefused(f"Expected a {what} of split train, found only {', '.join(list(names)[:3])}.")
    return {name: split or "train" for name, split in named.items()}
