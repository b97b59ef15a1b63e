"""The plans of the campaign: what the method says of clean sets, of every attack at 5 %, of rare poison, of poison that is most of its class, and of
what it has published itself.

    python -m benchmarks.quality --campaign --only '*, detection alone*'    clean sets, until `split` alone
    python -m benchmarks.quality --campaign --only cifar10-6k               the eight attacks on one set
    python -m benchmarks.quality --campaign --list                          what has no row yet

Sets that meca has no name for are folders of MECA_DATA, or of --sets: GTSRB as every third frame of its tracks (13,070), CIFAR-100 as a stratified
10,000, the merged ones as `benchmarks.quality.merged` makes them. How many samples of a set are taken stands in the name of an experiment.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality.merged import SIZES, name_of
from benchmarks.rows import ROOT
from meca.attacks import ATTACKS
from meca.data.readers.detect import NAMES
from meca.errors import UsageError
from tasks.benchmark.cell import DETECTION
from tasks.benchmark.grid import EIGHT, Plan, data_of

ALONE = ", detection alone"  # ends the name of an experiment, before its dials
OF_ITS_CLASS = "of its class"  # ends the name of one that asks for a share of the target class
TWENTY, TEN, FIVE, THREE = (tuple(range(101, 101 + n)) for n in (20, 10, 5, 3))
TWO = ("badnet", "blend")
RULE = ("crowd", "kin")  # made against the rule of preset default
FURTHER = tuple(name for name in ATTACKS if name not in (*EIGHT, *RULE))
AGAINST = ", against the rule"  # in the name of an experiment with these
OWN = ", own output"  # ends the name of one whose runs are judged once more, by what they published
WHOLE: Mapping[str, str] = {
    "cifar10-6k": "cifar10:6000",
    "fashion-mnist-6k": "fashion-mnist:6000",
    "gtsrb-5k": "gtsrb:5000",
    "cifar100-8k": "cifar100:8000",
}
CLEAN: Mapping[str, tuple[str, tuple[int, ...]]] = {
    **{name: (WHOLE[name], TWENTY) for name in ("cifar10-6k", "fashion-mnist-6k", "gtsrb-5k")},
    "cifar100-8k": (WHOLE["cifar100-8k"], TEN),
    **{f"{name_of(source)}-{n // 1000}k": (f"{name_of(source)}:{n}", TEN) for source, n in (("cifar100", 8000), ("cifar10", 6000))},
    "digits": ("digits", TEN),
    "shapes": ("shapes", TEN),  # 4,000 by params.yaml
}
TROUBLED: Mapping[str, Mapping[str, Any]] = {"long tail": {"poison.imbalance": 0.1}, "10 % wrong labels": {"poison.label_noise": 0.1}}
RARE = (0.01, 0.005)  # of all samples
SHARES = (0.02, 0.05, 0.10, 0.34, 0.51, 0.70, 0.84, 0.91)  # of the target class, as its labels are given: all-to-one at 5 % is 34 % of one of 10
# The target class, and how many samples of its own it has in the stratified subset, whatever the seed. Of GTSRB the small class stands for the large
# shares, which in a large one would be most of the set.
TARGETS: Mapping[str, tuple[tuple[float, int, int], ...]] = {  # up to this share: class, samples
    "gtsrb-5k": ((0.51, 1, 283), (1.0, 0, 27)),
    "cifar100-8k": ((1.0, 1, 80),),
    "cifar10-6k": ((1.0, 1, 600),),
}


# Half of all classes are targets: at 5 % each has 60 samples of CIFAR-10 and 12 of GTSRB, at 20 % 240 and 48. A square of 3 pixels is hardly learnt.
LARGER: Mapping[str, Any] = {"poison.patch_size": 5}


def rate_for(share: float, own: int, n: int) -> float | None:
    """Return the poison rate at which poison is a share of its class; None where other classes have too few samples for that.

    Args:
        share: Poison / all samples with the label of the target class, in (0, 1).
        own: Samples that are of the class.
        n: Samples of the set.
    """
    poison = round(share / (1 - share) * own)
    return poison / n if 0 < poison <= n - own else None


def _clean(data: str, seeds: tuple[int, ...], settings: Mapping[str, Any] | None = None) -> tuple[Plan, ...]:
    return (Plan((data,), ("none",), seeds=seeds, presets=("default",), settings=settings or {}, until=DETECTION),)


def _attacked(
    data: str, attacks: Sequence[str], rate: float = 0.05, settings: Mapping[str, Any] | None = None, again: bool = False
) -> tuple[Plan, ...]:
    return (Plan((data,), tuple(attacks), (rate,), THREE, ("default",), settings=settings or {}, again=again),)


def _of_its_class() -> dict[str, tuple[Plan, ...]]:
    found: dict[str, tuple[Plan, ...]] = {}
    for name, targets in TARGETS.items():
        for share in SHARES:
            target, own = next((label, own) for most, label, own in targets if share <= most)
            if (rate := rate_for(share, own, data_of(WHOLE[name])[1])) is not None:
                settings = {"poison.cap": 1.0, "poison.target_class": target}
                found[f"{name}, {100 * share:g} % {OF_ITS_CLASS}"] = _attacked(WHOLE[name], TWO, rate, settings)
    return found


CAMPAIGN: Mapping[str, tuple[Plan, ...]] = {
    **{f"{name}{ALONE}": _clean(data, seeds) for name, (data, seeds) in CLEAN.items()},
    **{f"{name}{ALONE}, {words}": _clean(WHOLE[name], FIVE, dials) for name in ("cifar10-6k", "gtsrb-5k") for words, dials in TROUBLED.items()},
    **{name: _attacked(data, EIGHT) for name, data in WHOLE.items()},
    **{f"{name}, further attacks": _attacked(data, FURTHER) for name, data in WHOLE.items()},
    **{f"{name}{AGAINST}": _attacked(WHOLE[name], RULE, settings=LARGER) for name in ("cifar10-6k", "gtsrb-5k")},
    **{f"{name}{AGAINST}, 20 % poison": _attacked(WHOLE[name], RULE[:1], 0.2, LARGER) for name in ("cifar10-6k", "gtsrb-5k")},
    **{f"{name}{OWN}": _attacked(WHOLE[name], TWO, again=True) for name in ("cifar10-6k", "gtsrb-5k", "fashion-mnist-6k")},
    **_of_its_class(),
    **{f"{name}, {100 * rate:g} % poison": _attacked(data, TWO, rate) for name, data in WHOLE.items() for rate in RARE},
}


def data_folder() -> Path:
    """Return where the data sets lie: MECA_DATA, else the folder `shared/data` beside the project."""
    return Path(os.environ.get("MECA_DATA") or ROOT.parent / "shared" / "data")


def located(data: str, sets: Path | None = None) -> str:
    """Return a data set of a plan as `Plan.data` has it, with the path of its folder where meca has no name for it.

    Args:
        data: A name, with `:n` behind it where n samples are taken.
        sets: A folder in which is looked first.

    Raises:
        UsageError: There is no such folder.
    """
    source, limit = data_of(data)
    if source in NAMES or Path(source).is_absolute():
        return data
    places = [*([sets] if sets else []), data_folder()]
    found = next((place / source for place in places if (place / source).is_dir()), None)
    if found is None:
        made = source in map(name_of, SIZES)
        how = (
            "make it with `python -m benchmarks.quality.merged FOLDER` and add --sets FOLDER" if made else "set MECA_DATA to the folder that holds it"
        )
        raise UsageError(f"Expected the set {source} in {' or '.join(map(str, places))}, found none; {how}.")
    return str(found) + (f":{limit}" if limit else "")
