"""Which split a file, a folder or a row belongs to, by the words that data sets use for it, and which names only look like splits."""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from meca.errors import InputRefused, UsageError

__all__ = ["SPLITS", "by_name", "quoted", "refuse_beside", "renamed", "seeming", "splits_of"]

# `train` is what is sanitized; everything else is for evaluation only.
SPLITS: Mapping[str, str] = {"train": "train", "test": "test", "validation": "test", "valid": "test", "val": "test"}

# Words for splits, small and without accents. Those of the second table are words for other things, too: they count only
# where all names look like splits.
_CERTAIN: Mapping[str, str] = {
    **dict.fromkeys(
        "train training trainings trains trn treino treinamento entrenamiento entrainement apprentissage addestramento egitim "
        "обучение обучающая тренировка тренировочная 训练 訓練 学習 훈련 학습".split(),
        "train",
    ),
    **dict.fromkeys(
        "test tests testing tst teste testen prueba pruebas тест тестовая 测试 測試 テスト 테스트 시험 "
        "val vals vali vld valid validation validate validating validacion validacao validazione validatie validierung validierungs "
        "валидация 验证 驗證 検証 검증 eval evals evaluation evaluate evaluating holdout heldout".split(),
        "test",
    ),
}
_POSSIBLE: Mapping[str, str] = {
    **dict.fromkeys(("tr", "learn", "learning"), "train"),
    **dict.fromkeys("te ts va vl dev devel development pred predict prediction predictions inference query probe hold out unseen".split(), "test"),
    **dict.fromkeys(("extra", "unlabeled", "unlabelled", "fold", "gallery"), ""),  # neither, but no class beside one of the others
}
# What stands around them and tells nothing.
_FILLING = frozenset(
    "data dataset datasets set sets split splits subset image images img imgs pic pics picture pictures photo photos file files folder folders dir "
    "sample samples label labels labeled labelled seg cls part final new raw orig original processed resized public private my the of for and "
    "daten bilder satz dati dados datos donnees images 集 数据 数据集 資料 データ セット 用 데이터 세트".split()
)
_PARTS = re.compile(r"[^\W\d_]+")
_ACCENT = re.compile("[\u0300-\u036f]")
_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_GLUED = re.compile(  # it never goes back: a name of many such words would take for ever
    "(?:{0})*+({1})(?:{0}|{1})*+".format(*("|".join(sorted(map(re.escape, words), key=len, reverse=True)) for words in (_FILLING, _CERTAIN)))
)


def _seen(name: str) -> tuple[str, bool, str] | None:
    """Return the split that a name speaks of, whether it can hardly mean anything else, and what else it says; None without such a word.

    Case, accents, digits, what separates words, and words such as `images` make no difference.
    """
    plain = _ACCENT.sub("", unicodedata.normalize("NFKD", _CAPITAL.sub(" ", name[:300])))
    found: list[tuple[str, bool]] = []
    rest: list[str] = []
    for word in _PARTS.findall(unicodedata.normalize("NFC", plain).casefold()):
        glued = None if word in _POSSIBLE or word in _FILLING else _GLUED.fullmatch(word)
        if glued:
            found.append((_CERTAIN[glued[1]], True))
        elif word in _POSSIBLE:
            found.append((_POSSIBLE[word], False))
        elif word not in _FILLING:
            rest.append(word)
    if not found:
        return None
    split = next((split for wanted in ("train", "test") for split, _ in found if split == wanted), "")  # what has both words is trained on
    return split, any(certain for _, certain in found), " ".join(rest)


def seeming(names: Iterable[str]) -> dict[str, str]:
    """Return what look like splits among names that were read as classes, each with its split (`""`: one that is neither train nor test).

    They do where all names have a word for a split and differ in nothing else, or where two names differ in that word alone,
    one for training and one for evaluation. A class may be called `train`: there is nothing where other names stand beside it.
    """
    seen = {name: _seen(name) for name in names}
    found = {name: about for name, about in seen.items() if about is not None}
    splits = {split for split, _, _ in found.values() if split}
    certain = len(splits) == 2 or any(sure for _, sure, _ in found.values())
    if len(seen) > 1 and len(found) == len(seen) and len({rest for _, _, rest in found.values()}) == 1 and splits and certain:
        return {name: split for name, (split, _, _) in found.items()}
    sides = {split: {rest for of, sure, rest in found.values() if sure and of == split} for split in ("train", "test")}
    both = sides["train"] & sides["test"]
    return {name: split for name, (split, sure, rest) in found.items() if sure and rest in both}


def renamed(splits: Mapping[str, str]) -> dict[str, str]:
    """Return a name that is read as a split for each one that only looks like it; nothing where it is not clear which one is for training."""
    if sum(split == "train" for split in splits.values()) != 1 or "" in splits.values() or len(splits) > len(SPLITS):
        return {}
    free = ["test", "val", "valid", "validation"]
    chosen: dict[str, str] = {name: name for name in splits if name in SPLITS}
    free = [word for word in free if word not in chosen]
    for name, split in splits.items():
        if name not in chosen:
            said = name.casefold()
            own = "train" if split == "train" else next((word for word in free if word in said), free[0])
            chosen[name] = own
            free = [word for word in free if word != own]
    return chosen if len(set(chosen.values())) == len(chosen) else {}


def quoted(names: Iterable[str], most: int = 5) -> str:
    """Return names as a sentence shows them."""
    listed = list(names)
    shown = [repr(name[:100]) for name in listed[:most]]
    if len(listed) > most:
        return ", ".join(shown) + f" and {len(listed) - most} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)


def refuse_beside(where: str, found: Sequence[str], others: Sequence[str], packed: bool) -> None:
    """Ask what split folders are that other folders stand beside.

    Raises:
        UsageError: Always: a name does not say whether `train` is a split beside `Test`, or a vehicle beside `car`.
    """
    unpack = "unpack the archive and " if packed else ""
    new = renamed({name: SPLITS[name] for name in found} | seeming([*found, *others]))
    rest = [name for name in others if new.get(name, name) == name]  # to call one so would change nothing
    ways = [f"rename {name!r} to {new[name]}" for name in others if name not in rest] + [f"move {quoted(rest)} away"] * bool(rest)
    raise UsageError(
        f"{where} holds the split folders {', '.join(found)} beside {quoted(others, 1)}: are they splits or classes? "
        f"If they are splits, {unpack}{' and '.join(ways)}. If they are classes, {unpack}rename {quoted(found)}: "
        "a folder of that name that holds folders is read as a split."
    )


def by_name(stem: str) -> str | None:
    """Return the split that a name begins with (`train-00000-of-00005`), or None."""
    return next((split for word, split in SPLITS.items() if stem == word or stem.startswith((f"{word}-", f"{word}_", f"{word}."))), None)


def splits_of(names: Sequence[str], what: str) -> dict[str, str]:
    """Return the split of each file by name; all are `train` where no name begins with a split.

    Raises:
        InputRefused: No file is named after split train.
        UsageError: Some files are named after a split and some are not, or they are in other words.
    """
    named = {name: by_name(name) for name in names}
    if not any(named.values()):
        unclear = seeming(name.partition(".")[0] for name in names)
        if {"train", "test"} <= set(unclear.values()):
            raise UsageError(
                f"The {what}s {quoted(unclear)} look like splits: let the names of those for training begin with train and the others with test, "
                "or move away what is not for training."
            )
        return dict.fromkeys(names, "train")
    for name, split in named.items():
        if split is None:
            raise UsageError(f"Expected the name of every {what} to begin with train, validation or test, got {name!r}; rename it or move it away.")
    if "train" not in named.values():
        raise InputRefused(f"Expected a {what} of split train, found only {', '.join(list(names)[:3])}.")
    return {name: split or "train" for name, split in named.items()}
