"""The quality rows: data sets x attacks x presets x seeds, each a whole run of the pipeline, into results/quality.jsonl, or its detection alone, into
results/detection.jsonl.

    python -m benchmarks.quality                            all of `EXPERIMENTS` that has no row yet
    python -m benchmarks.quality --only shapes --seeds 104  a part of it
    python -m benchmarks.quality --only shapes --seeds 1 --looked-at    while a number is set: rows that are no report
    python -m benchmarks.quality --again                    measure anew; the newest row counts
    python -m benchmarks.quality --cuts                     what each saving of work, and each departure from the paper, does
    python -m benchmarks.quality --campaign                 false alarms, every attack, rare poison: benchmarks/quality/campaign.py
    python -m benchmarks.quality --campaign --list          what has no row yet, one a line; nothing is run

Here stand plans; `tasks.benchmark.grid` runs them. What has a row is not run again, with whatever code it was measured: `code_sha256` says it.
Nothing here sees the truth; `evaluate` does. Which seeds may be reported is written down in seeds.toml before a report runs, and one that was looked
at never is. Runs of the same data, attack and seed share their references: same recipe, same bytes.
"""

import argparse
import os
import shlex
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.quality.campaign import CAMPAIGN, data_folder, located
from benchmarks.quality.seeds import LOOKED_AT, refuse
from benchmarks.rows import CELL, RESULTS
from meca.errors import UsageError
from meca.params import PRESETS
from tasks.benchmark.grid import EIGHT, Cell, CellFailed, Grid, Plan, cells
from tasks.benchmark.rows import Row, read_rows
from tasks.benchmark.tables import line

FILE = RESULTS / "quality.jsonl"
DETECTION_FILE = RESULTS / "detection.jsonl"
TWO, PAPER = ("badnet", "blend"), ("paper",)
SEEDS = (101, 102, 103)
FIRST = SEEDS[0]
Experiments = Mapping[str, tuple[Plan, ...]]

CIFAR = Plan(("cifar10:10000",), (*EIGHT, "none"), seeds=SEEDS)
FASHION = Plan(("fashion-mnist:20000",), (*EIGHT, "none"), seeds=SEEDS)
SHAPES = Plan(("shapes",), (*TWO, "none"), seeds=SEEDS)
DIGITS = Plan(("digits",), (*TWO, "none"), seeds=SEEDS)


def _part(plan: Plan, settings: Mapping[str, Any] | None = None, **changes: Any) -> tuple[Plan]:
    """Return a plan with these settings on one seed, or with other fields changed."""
    return (replace(plan, **{"seeds": (FIRST,), "settings": settings or {}} | changes),)


NARROW = {"detector.width": 16}  # narrower than what we ship: half the time, and all attacks were measured with it first
# What `paper` had before what the paper leaves open was looked for, see docs/log.md.
HALF = {
    "partition.mask_of": "set",
    "enhance.alpha_end": 0.5,
    "enhance.recipe.lr": 0.01,
    "enhance.rescore": "all",
    "enhance.mean_over": "batch",
}
WEAK = {"poison.dot_size": 2, "poison.grid_amplitude": 2}
PATCH = {"poison.patch_size": 5}  # with squares of 3 pixels the second target is not learnt
RED_TEAM = ("two_targets", "fragile_dots", "fragile_grid")
# What could break a rule for one trigger and one target class: settings, attacks and a rate each. Planned for reports; docs/attacks.md has the dials.
DIALS: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...], float]] = {
    "covers as many as poison": ({"poison.cover_rate": 0.05}, ("tact", "adaptive_blend", "adaptive_patch"), 0.05),
    # Of 10,000 samples 30 and 30 (60): the authors' rates and opacities.
    "AdaptiveBlend of its authors": ({"poison.cover_rate": 0.003, "poison.adaptive_alpha": 0.15}, ("adaptive_blend",), 0.003),
    "AdaptivePatch of its authors": ({}, ("four_patches",), 0.003),
    "four patches": ({}, ("four_patches",), 0.05),
    "1 % SIG": ({}, ("sig",), 0.01),
    "2 % SIG": ({}, ("sig",), 0.02),
    "noise mixed in": ({"poison.blend_with": "noise"}, ("blend", "adaptive_blend"), 0.05),
    "a photograph mixed in": ({"poison.blend_with": "photograph"}, ("blend", "adaptive_blend"), 0.05),
    "weaker in training than in tests": (
        {"poison.blend_alpha": 0.1, "poison.adaptive_alpha": 0.1, "poison.test_alpha": 0.25},
        ("blend", "adaptive_blend"),
        0.05,
    ),
    **{f"{sources} source classes": ({"poison.sources": sources}, TWO, 0.05) for sources in (1, 2, 4, 8)},
    **{f"{targets} targets, 10 % poison": ({**PATCH, "poison.targets": targets}, ("badnet",), 0.1) for targets in (2, 3, 4, 5)},
    "half of the labels stay": ({"poison.flip_share": 0.5}, TWO, 0.1),
    "three attacks at once": ({}, ("badnet+blend+sig",), 0.08),
    "three other attacks at once": ({}, ("tact+adaptive_blend+physical",), 0.09),
    "a logo that moves, one source class": ({"poison.sources": 1}, ("moving_logo",), 0.05),
    "a trigger of random sign": ({"poison.random_sign": True}, ("blend", "sig", "fragile_grid"), 0.05),
    "poison in the light of its class": ({"poison.match_light": True}, ("badnet", "blend", "physical"), 0.05),
}
EXPERIMENTS: Experiments = {
    "shapes": (SHAPES,),
    "cifar10-10k": (CIFAR,),
    "digits": (DIGITS,),
    "fashion-mnist-20k": (FASHION,),
    "cifar10-10k, detector of 16 channels": _part(CIFAR, NARROW),
    "shapes, detector of 16 channels": _part(SHAPES, NARROW, attacks=TWO, seeds=SEEDS),
    "digits, detector of 16 channels": _part(DIGITS, NARROW, attacks=TWO),
    "cifar10-10k, 1 % poison": _part(CIFAR, attacks=TWO, rates=(0.01,)),
    "fashion-mnist-20k, 1 % poison": _part(FASHION, attacks=TWO, rates=(0.01,)),
    "cifar10-10k, 10 % poison": _part(CIFAR, attacks=TWO, rates=(0.1,)),
    "cifar10-10k, 20 % poison": _part(CIFAR, attacks=TWO, rates=(0.2,)),
    "cifar10-10k, long tail": _part(CIFAR, {"poison.imbalance": 0.1}, attacks=("badnet", "none")),
    "cifar10-10k, 10 % wrong labels": _part(CIFAR, {"poison.label_noise": 0.1}, attacks=("badnet",)),
    "cifar10-10k, paper with alpha to 0.5": _part(CIFAR, HALF, attacks=("badnet", "blend", "sig", "none"), presets=PAPER),
    "digits, paper with alpha to 0.5": _part(DIGITS, HALF, seeds=SEEDS, presets=PAPER),
    "shapes, paper with alpha to 0.5": _part(SHAPES, HALF, seeds=SEEDS, presets=PAPER),
    # All-to-all has a tenth as much poison for each class.
    "cifar10-10k, red team": _part(CIFAR, PATCH, attacks=RED_TEAM),
    "cifar10-10k, all-to-all, 10 % poison": _part(CIFAR, PATCH, attacks=("all_to_all",), rates=(0.1,), seeds=SEEDS),
    "fashion-mnist-20k, all-to-all, 10 % poison": _part(FASHION, attacks=("all_to_all",), rates=(0.1,)),
    "digits, all-to-all, 10 % poison": _part(DIGITS, attacks=("all_to_all",), rates=(0.1,), seeds=SEEDS),
    "cifar10-10k, red team with weak triggers": _part(CIFAR, WEAK, attacks=RED_TEAM),
    **{
        f"cifar10-10k, {words}": _part(CIFAR, settings, attacks=attacks, rates=(rate,), seeds=SEEDS, presets=("default",))
        for words, (settings, attacks, rate) in DIALS.items()
    },
}
# One thing less work in each, against the row of the same data, attack and seed above.
CUTS: dict[str, dict[str, Any]] = {
    "two thirds of partition": {"partition.recipe.epochs": 2, "partition.recipe.min_steps": 300},
    "no score pass, loss alone": {"partition.signals": ["loss"]},
    "one round of enhance": {"enhance.rounds": 1},
    "detector of half the width": {"detector.width": 16},
}
# One departure from the paper taken back in each (docs/method.md), against the same rows.
ABLATIONS: dict[str, dict[str, Any]] = {
    "ten passes of partition": {"partition.recipe.epochs": 10},
    "the paper's score alone": {"partition.signals": ["kl"]},
    "the paper's enhance and split": {
        "enhance.method": "unlearn",
        "enhance.rounds": 5,
        "enhance.recipe.epochs": 1,
        "enhance.recipe.min_steps": 0,
        "enhance.recipe.lr": 0.05,
        "enhance.alpha_end": 0.9,
        "enhance.rescore": "rest",
        "enhance.mean_over": "parts",
        "split.rule": "misclassified",
    },
    "all that is flagged relabelled": {"relabel_finetune.confidence": 0.0, "relabel_finetune.remove_above": 1.1},
    "all that is flagged removed": {"relabel_finetune.confidence": 1.1},
}
# One part of the decision changed in each, against the same rows. Where clean classes are believed to show anything, a way of asking proves nothing.
DECISIONS: dict[str, dict[str, Any]] = {
    "content alone": {"split.least_flips": 1.0e9},
    "flips alone": {"split.least_content": 1.0e9},
    "classes asked once": {"split.rounds": 1},
    "two groups of classes": {"split.groups": 2},
    "ten groups of classes": {"split.groups": 10},
    "content of half of the classes": {"split.lower_content": 0.5},
    "a trigger that works on all classes": {"split.lower_content": 1.0, "split.lower_flips": 1.0},
    "ends of a twentieth": {"split.end": 0.05},
    "5 % false discoveries": {"split.false_discovery": 0.05},
}
LESS: Experiments = {
    f"{name}, {words}": _part(EXPERIMENTS[name][0], settings, attacks=attacks, presets=("default",))
    for changes, where in (
        (CUTS, (("shapes", TWO), ("cifar10-10k", ("badnet",)))),
        (ABLATIONS, (("shapes", TWO), ("cifar10-10k", ("badnet", "sig", "adaptive_patch")))),
        (DECISIONS, (("shapes", (*TWO, "none")), ("cifar10-10k", ("badnet", "sig", "adaptive_patch", "none")))),
    )
    for words, settings in changes.items()
    for name, attacks in where
}
# The full data sets. A large batch fills the GPU; the learning rate follows it, by less than in proportion.
FULL = Plan(
    ("cifar10",),
    (*EIGHT, "none"),
    seeds=SEEDS,
    networks=("resnet18:cifar",),
    settings={
        "train_clean.epochs": 30,
        "train_clean.batch_size": 512,
        "train_clean.lr": 0.4,
        "relabel_finetune.recipe.batch_size": 512,
        "relabel_finetune.recipe.lr": 0.05,
    },
)
ON_GPU: Experiments = {"cifar10": (FULL,), "cifar10, torchvision stem": (replace(FULL, networks=("resnet18:imagenet",)),)}

TABLES: Mapping[str, Experiments] = {"": EXPERIMENTS, "--cuts": LESS, "--gpu": ON_GPU, "--campaign": CAMPAIGN}  # by the option that asks for them


def chosen(
    experiments: Experiments,
    only: Collection[str] = (),
    attacks: Collection[str] = (),
    presets: Collection[str] = (),
    seeds: Sequence[int] = (),
    command: str = "",
    looked_at: bool = False,
    sets: Path | None = None,
) -> list[Cell]:
    """Return the cells of experiments under the names of their rows, those of preset `default` first.

    Args:
        experiments: The plans of each.
        only: Names of experiments, or patterns of them (`*`); empty for all.
        attacks: Likewise.
        presets: Likewise.
        seeds: In place of those of the plans.
        command: Of the rows; empty for the one that measures the row alone.
        looked_at: The rows are for setting numbers, which the names of their experiments say: they are never reported.
        sets: See `benchmarks.quality.campaign.located`.

    Raises:
        UsageError: A data set is not where it should be, or a name of `only` is none of theirs.
    """
    found: list[Cell] = []
    if unknown := [wanted for wanted in only if not any(fnmatchcase(name, wanted) for name in experiments)]:
        other = {flag: name for flag, table in TABLES.items() for name in table if table is not experiments and fnmatchcase(name, unknown[0])}
        hint = f"{next(iter(other.values()))!r} is there with {next(iter(other))}" if other else "--list names them"
        raise UsageError(f"Expected --only to name an experiment, or to be a pattern of their names, got {unknown[0]!r}; {hint}.")
    for name, plans in experiments.items():
        if only and not any(fnmatchcase(name, wanted) for wanted in only):
            continue
        here = [replace(plan, seeds=tuple(seeds) or plan.seeds, data=tuple(located(data, sets) for data in plan.data)) for plan in plans]
        for cell in (each for plan in here for each in cells(plan)):
            attack, preset, seed = (cell.given[key] for key in ("attack", "preset", "seed"))
            if all(not wanted or value in wanted for value, wanted in ((attack, attacks), (preset, presets))):
                alone = f"python -m benchmarks.quality --only {shlex.quote(name)} --attack {attack} --preset {preset} --seeds {seed}"
                alone += "".join(f" {flag}" for flag, table in TABLES.items() if flag and name in table) + " --looked-at" * looked_at
                given = {**cell.given, "experiment": name + LOOKED_AT * looked_at, "command": command or alone}
                found.append(replace(cell, name=f"{name} {attack} {preset} seed {seed}", given=given))
    return sorted(found, key=lambda cell: PRESETS.index(cell.given["preset"]))


def grid(wanted: Sequence[Cell], threads: int = 1, keep: bool = False) -> Grid:
    """Return the grid of these cells, over the rows that there are.

    Args:
        wanted: All to the end of the pipeline, or all until `split`: the rows of one are no rows of the other.
        threads: Of torch, in each cell.
        keep: Do not delete the folder of a run that is finished.

    Raises:
        UsageError: A report with a seed that is not listed for one, or that was looked at (`benchmarks.quality.seeds`).
    """
    refuse((cell.given for cell in wanted), [*read_rows(FILE), *read_rows(DETECTION_FILE)])
    os.environ.setdefault("MECA_DATA", str(data_folder()))
    return Grid(wanted, DETECTION_FILE if any(cell.until for cell in wanted) else FILE, threads, keep, CELL)


def main() -> None:
    """Measure the cells that have no row yet, as many at a time as there are cores: first those that detect alone."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], help="an experiment, or a pattern of names: '*, detection alone*'")
    parser.add_argument("--attack", action="append", default=[])
    parser.add_argument("--preset", action="append", default=[], choices=PRESETS)
    parser.add_argument("--seeds", type=int, nargs="*", default=[])
    parser.add_argument(
        "--looked-at", action="store_true", help="while numbers or rules are set, on the seeds listed for that: rows that are no report"
    )
    parser.add_argument("--again", action="store_true", help="measure cells that have a row already")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--cuts", action="store_true", help="the runs with less work, and those with a departure from the paper taken back; preset default"
    )
    which.add_argument("--gpu", action="store_true", help="the full data sets with ResNet18")
    which.add_argument("--campaign", action="store_true", help="clean sets until `split`, every attack, rare poison; preset default")
    parser.add_argument("--sets", type=Path, help="a folder with data sets that are not in MECA_DATA, see benchmarks.quality.merged")
    parser.add_argument("--workers", type=int, default=0, help="runs at a time, one thread each; 0: one per core")
    parser.add_argument("--keep", action="store_true", help="keep the run folders, in a folder beside the rows")
    parser.add_argument("--list", action="store_true", help="name the cells that are due, and run nothing")
    arguments = parser.parse_args()
    cores = os.cpu_count() or 1
    workers = arguments.workers or (1 if arguments.gpu else cores)
    experiments = next((table for flag, table in TABLES.items() if flag and getattr(arguments, flag.strip("-"))), EXPERIMENTS)
    wanted = chosen(
        experiments, arguments.only, arguments.attack, arguments.preset, arguments.seeds, looked_at=arguments.looked_at, sets=arguments.sets
    )
    parts = [[cell for cell in wanted if bool(cell.until) == alone] for alone in (True, False)]
    grids = [grid(part, max(1, cores // workers) if arguments.gpu else 1, arguments.keep) for part in parts if part]
    due = {id(mine): mine.cells if arguments.again else mine.missing() for mine in grids}
    print(f"{len(wanted)} cells, {sum(map(len, due.values()))} to run, {workers} at a time.", flush=True)
    if arguments.list:
        print("".join(f"{cell.name}\n" for mine in grids for cell in due[id(mine)]), end="")
        return

    def tell(cell: Cell, row: Row | CellFailed) -> None:
        if isinstance(row, CellFailed):
            print(row, file=sys.stderr, flush=True)
        else:
            print(f"{cell.name}: {line(row)}" + ("" if cell.until else f"; oracle {row['oracle_acc']} {row['oracle_asr']}"), flush=True)

    failed = 0
    for mine in grids:
        with mine.locked():
            failed += mine.measure(due[id(mine)], workers, tell)
            mine.tidy()
    sys.exit(1 if failed else 0)
