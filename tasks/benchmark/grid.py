"""A grid of benchmark cells: which there are, which have been measured, running one, and the file of their rows.

A cell is one run of the bare pipeline: data x network x attack x rate x partition rate x seed x preset. Its key is a hash of
everything that its figures depend on: every parameter in force, the code that the stages import, the bytes of the data. A
grid is resumed by its keys: what has a row is not run again, and what changed is.
"""

import contextlib
import dataclasses
import hashlib
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import meca
from meca.errors import MecaError, UsageError
from meca.files import atomic_write, canonical_json, lock, read_json, refuse_foreign, sha256_tree
from meca.files import code_digest as files_digest
from meca.params import PRESETS, Params, read_params, with_settings
from tasks import environment
from tasks.benchmark.cell import COLUMNS, DETECTED, DETECTION, REFERENCES
from tasks.benchmark.rows import Row, append, identity, newest, provenance, read_rows, revision
from tasks.dvc.closure import closure
from tasks.dvc.stage import end_group

__all__ = ["EIGHT", "NETWORKS", "Cell", "CellFailed", "Grid", "Plan", "cells", "code_digest", "data_of", "work_folder"]

ROOT = Path(meca.__file__).parents[1]
EIGHT = ("badnet", "blend", "sig", "wanet", "physical", "tact", "adaptive_blend", "adaptive_patch")  # of the paper
NETWORKS = {"compact": "s2d", "resnet18": "cifar", "resnet34": "cifar", "mobilenet_v2": "cifar"}  # with the stem for small images
# The stages whose code makes figures; an edit of the report page must not cost a grid.
MEASURED = ("ingest", "poison", "partition", "enhance", "split", "control", "train_clean", "relabel_finetune", "evaluate", "publish")
IGNORED = ("publish", "report", "track", "promote")  # groups of params.yaml that no figure depends on
RECIPE = ("seed", "ingest", "poison", "engine", "network", "train_clean")  # what the two references depend on, beside the recipe of relabel_finetune
PARTITION_RATE = {"unlearn": "enhance.alpha_end", "two_outputs": "enhance.plain"}  # the share taken for clean, by method of `enhance`
ERROR_LENGTH = 600  # characters of a failed cell's reason


class CellFailed(MecaError):  # noqa: N818 - the name says what happened
    """A cell has no figures; its row says why, and the next run tries it again."""


@dataclass(frozen=True)
class Plan:
    """What is to be measured: the product of all fields but the last four."""

    data: tuple[str, ...] = ("shapes",)  # a name that meca knows or a path; `:n` behind it takes n training samples
    attacks: tuple[str, ...] = (*EIGHT, "none")
    rates: tuple[float, ...] = (0.05,)  # poisoned / all training samples; without an attack there is none
    seeds: tuple[int, ...] = (1,)
    presets: tuple[str, ...] = PRESETS
    networks: tuple[str, ...] = ("compact",)  # `name` or `name:stem`
    partition_rates: tuple[float, ...] = ()  # share of the samples taken for clean by `enhance`; empty: what params.yaml says
    settings: Mapping[str, Any] = field(default_factory=dict)  # dotted keys of params.yaml, in force in every cell
    tree: Mapping[str, Any] = field(default_factory=lambda: read_params().tree)  # params.yaml
    until: str = ""  # the last stage of every cell: `split`, where detection alone is measured; empty for the whole pipeline
    again: bool = False  # after the whole pipeline, detection alone is asked of what it has published (`tasks.benchmark.cell.own_output`)

    @staticmethod
    def of(value: Mapping[str, Any]) -> "Plan":
        """Return a plan from what `dataclasses.asdict` and JSON made of one."""
        return Plan(**{name: tuple(item) if isinstance(item, list) else item for name, item in value.items()})


@dataclass(frozen=True)
class Cell:
    """One run."""

    name: str  # for people: `shapes badnet 5 % default seed 1`
    key: str  # 64 hex digits over everything that the row depends on
    recipe: str  # likewise, over what its references depend on: cells with the same one share them
    params: Params
    given: Mapping[str, Any]  # the keys of its row that say what was asked for

    @property
    def until(self) -> str:
        """The last stage, see `Plan.until`."""
        return self.given["until"] or ""

    @property
    def again(self) -> bool:
        """Its own output is judged, too, see `Plan.again`."""
        return bool(self.given.get("again"))


def data_of(text: str) -> tuple[str, int]:
    """Return the source and the limit of training samples (0: all) of `cifar10:10000`, `shapes` or a path."""
    source, colon, limit = text.rpartition(":")
    return (source, int(limit)) if colon and limit.isdigit() and not Path(text).exists() else (text, 0)


def cells(plan: Plan) -> list[Cell]:
    """Return the cells of a plan, each once: without an attack the rates make no difference.

    Raises:
        UsageError: A value is unknown or out of range, a parameter does not exist, or there is no data at a path.
    """
    from meca.stages.parameters import validate

    _check(plan)
    found: dict[str, Cell] = {}
    for data in plan.data:
        source, limit = data_of(data)
        digest = _data_digest(source)
        for network in plan.networks:
            for preset in plan.presets:
                for seed in plan.seeds:
                    for attack in plan.attacks:
                        for rate in plan.rates if attack != "none" else (None,):
                            for share in plan.partition_rates or (None,):
                                cell = _cell(plan, source, limit, digest, network, preset, seed, attack, rate, share)
                                validate(cell.params)  # a number that a late stage refuses shows before the first cell
                                found.setdefault(cell.key, cell)
    names = [cell.name for cell in found.values()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"Expected data sets with names of their own, got two for {twice[0]!r}; rename one of the folders.")
    return list(found.values())


def _check(plan: Plan) -> None:
    from meca.attacks import ATTACKS
    from meca.attacks.poisoning import attack_names
    from meca.data.readers.detect import NAMES
    from meca.verbs import refuse_test_split

    for what, values, allowed in (
        ("attack", [name for attack in plan.attacks for name in attack.split("+")], ("none", *ATTACKS)),
        ("preset", plan.presets, PRESETS),
        ("network", [name.partition(":")[0] for name in plan.networks], tuple(NETWORKS)),
    ):
        for value in values:
            if value not in allowed:
                raise UsageError(f"Expected {what} to be one of {', '.join(allowed)}, got {value!r}.")
    for attack in plan.attacks:
        attack_names(attack)  # several may not go together
    if plan.again and plan.until:
        raise UsageError(f"Expected a plan that asks of its own output to go to the end (''), got until {plan.until!r}: nothing is published before.")
    if plan.until not in ("", DETECTION):
        raise UsageError(f"Expected a plan to go until {DETECTION!r}, or to the end (''), got {plan.until!r}.")
    for what, values in (("rate", plan.rates), ("partition rate", plan.partition_rates)):
        for value in values:
            if not 0 < value < 1:
                raise UsageError(f"Expected a {what} between 0 and 1, got {value}.")
    for name in ("data", "attacks", "rates", "seeds", "presets", "networks"):
        if not getattr(plan, name):
            raise UsageError(f"Expected at least one value for {name}, got none.")
    for data in plan.data:
        source, _ = data_of(data)
        if source not in NAMES:
            if not Path(source).exists():
                raise UsageError(f"Expected {', '.join(NAMES)} or a path, found nothing at {source!r}; check --data.")
            refuse_test_split(source)


def _cell(
    plan: Plan,
    source: str,
    limit: int,
    digest: str | None,
    network: str,
    preset: str,
    seed: int,
    attack: str,
    rate: float | None,
    share: float | None,
) -> Cell:
    name, _, stem = network.partition(":")
    is_path = digest is not None
    # A cell knows what was planted: it measures the detection, and has no use for a control unless it is asked for.
    quiet = {} if any(key.startswith("control.") for key in plan.settings) else {"control.when": "never"}
    axes: dict[str, Any] = {
        "preset": preset,
        "seed": seed,
        "ingest.source": source,
        "ingest.train_limit": limit,
        "poison.attack": attack,
        "network.name": name,
        "network.stem": stem or NETWORKS[name],
    }
    if rate is not None:
        axes["poison.rate"] = rate
    if taken := sorted(set(axes) & set(plan.settings)):
        raise UsageError(f"Expected --set to leave the axes of the grid alone, got {', '.join(taken)}; give their values by their own options.")
    params = with_settings(Params(plan.tree, "params.yaml"), quiet | axes | dict(plan.settings))
    share_key = PARTITION_RATE[str(params.raw("enhance")["method"])]
    if share is not None:
        changed = {share_key: share}
        if share_key == "enhance.alpha_end":  # the schedule grows from there, and never shrinks
            changed["enhance.alpha_start"] = min(share, float(params.raw("enhance")["alpha_start"]))
        params = with_settings(params, changed)
    numbers = params.in_force(group for group in params.numbers if group not in IGNORED)
    if is_path:
        # What is there counts, not where: the same folder moved elsewhere has its rows already.
        numbers["ingest"] |= {"source": digest, "watch": None}
        params = with_settings(params, {"ingest.source": str(Path(source).resolve())})
    if weights := str(params.raw("network")["weights"]):
        from meca.stages.runtime import weights_digest

        numbers["network"] |= {"weights": weights_digest(Path(weights)), "watch": None}
        params = with_settings(params, {"network.weights": str(Path(weights).resolve())})
    label = Path(source).name if is_path else source
    data = label + (f":{limit}" if limit else "")
    options = {"data": data, "attack": attack, "rate": rate, "seed": seed, "preset": preset, "network": network, "partition-rate": share}
    words = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
    words += [word for key, value in plan.settings.items() for word in ("--set", f"{key}={value}")]
    told = [data, network, attack, *([f"{100 * rate:g} %"] if rate is not None else [])]
    told += [
        preset,
        *([f"partition rate {share:g}"] if share is not None else []),
        *([f"until {plan.until}"] if plan.until else []),
        *(["own output"] if plan.again else []),
        f"seed {seed}",
    ]
    code = code_digest(plan.until)
    return Cell(
        name=" ".join(told),
        key=_hash([numbers, code, *(["again"] if plan.again else [])]),
        recipe=_hash([{group: numbers[group] for group in RECIPE}, numbers["relabel_finetune"]["recipe"], code]),
        params=params,
        given={
            "experiment": label + (f"-{limit}" if limit else ""),
            "source": label,
            "train_limit": limit,
            "network": name,
            "stem": params.raw("network")["stem"],
            "attack": attack,
            "rate": rate,
            "preset": preset,
            "seed": seed,
            "partition_rate": params.raw("enhance")[share_key.partition(".")[2]],
            "partition_rate_given": share,
            "command": shlex.join(["meca", "benchmark", *words]),
            "settings": {key: str(value) for key, value in plan.settings.items()},
            "code_sha256": code,
            "until": plan.until or None,
            **({"again": True} if plan.again else {}),
            "data_sha256": digest,
            "params_sha256": _hash(numbers),
        },
    )


@cache
def code_files(until: str = "") -> frozenset[Path]:
    """Return the files that the measured stages import.

    Args:
        until: The last of them, see `Plan.until`.
    """
    stages = MEASURED[: MEASURED.index(until) + 1] if until else MEASURED
    return frozenset(ROOT / file for stage in stages for file in closure(ROOT, f"meca.stages.{stage}"))


@cache
def code_digest(until: str = "") -> str:
    """Return the SHA-256 over these files, as they were when it was asked first."""
    return files_digest(ROOT, code_files(until))


def is_edited(until: str = "") -> bool:
    """Tell whether one of these files is another one since, or gone."""
    # What they import is not looked for anew: to import more, one of them changes; and threads that parse at once break Python 3.11's parser.
    try:
        return files_digest(ROOT, code_files(until)) != code_digest(until)
    except OSError:
        return True


def _absolute(item: str) -> str:
    source, limit = data_of(item)
    return f"{Path(source).resolve()}:{limit}" if _data_digest(source) is not None else item


def _data_digest(source: str) -> str | None:
    from meca.data.readers.detect import NAMES

    return None if source in NAMES else sha256_tree(Path(source))


def _hash(value: Any) -> str:
    return hashlib.sha256(canonical_json(value, indent=None).encode()).hexdigest()


def work_folder(output: Path) -> Path:
    """Return the folder beside a results file that holds its plan, its lock and the runs that are not finished."""
    output = output.resolve()
    return output.with_name(f".{output.name}.work")


def _own_work_folder(output: Path) -> Path:
    place = work_folder(output)
    refuse_foreign(place, below=True)
    return place


class Grid:
    """Cells with the file of their rows. Several threads may measure cells; one process at a time may hold a grid."""

    def __init__(self, plan: Plan | Sequence[Cell], output: Path, threads: int = 1, keep: bool = False, by: Sequence[str] = ("key",)) -> None:
        """Read what has been measured.

        Args:
            plan: What is to be measured; its cells, where they are not called as `cells` calls them.
            output: The results file, JSON lines; created with its first row.
            threads: Of torch, in each cell.
            keep: Do not delete the folder of a run that is finished.
            by: What names the row of a cell, of `Cell.given` and `key`. With `key` alone an edit of the method asks for new rows.

        Raises:
            UsageError: The plan is not possible.
            MecaError: The results file is damaged.
        """
        self.plan, self.output, self.threads, self.keep, self.by = plan, output.resolve(), threads, keep, tuple(by)
        self.cells = cells(plan) if isinstance(plan, Plan) else list(plan)
        self.rows = newest(read_rows(self.output), *self.by)
        revision()  # before the first cell
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._stopped = False

    @classmethod
    def load(cls, output: Path) -> "Grid":
        """Return the grid that `save` left beside a results file, with what has been measured since.

        Raises:
            UsageError: The folder of it, or something in it, is a link or another user's.
        """
        saved = read_json(_own_work_folder(output) / "plan.json")
        return cls(Plan.of(saved["plan"]), output, saved["threads"], saved["keep"])

    def save(self) -> None:
        """Leave the grid of a plan beside its results file, where the flow finds it: paths are no parameters of a flow.

        Raises:
            UsageError: The folder for it, or something in it, is a link or another user's.
        """
        assert isinstance(self.plan, Plan)
        place = _own_work_folder(self.output)
        data = tuple(_absolute(item) for item in self.plan.data)
        plan = dataclasses.asdict(dataclasses.replace(self.plan, data=data))
        kept = {"plan": plan, "threads": self.threads, "keep": self.keep}
        atomic_write(place / "plan.json", canonical_json(kept))

    def locked(self) -> contextlib.AbstractContextManager[None]:
        """Return the lock of the results file: two runs would measure everything twice.

        Raises:
            UsageError: The folder of the runs, or something in it, is a link or another user's: a cell would write into it, or go on with it.
        """
        return lock(_own_work_folder(self.output) / "lock", f"The grid of {self.output.name}")

    def tidy(self) -> None:
        """Delete the work folder of a grid that has all its rows."""
        if not self.keep and not self.missing():
            shutil.rmtree(work_folder(self.output), ignore_errors=True)

    def is_measured(self, cell: Cell) -> bool:
        """Tell whether a cell has figures; one that failed has none."""
        row = self.rows.get(self._identity(cell))
        return row is not None and row.get("status", "done") == "done"

    def missing(self) -> list[Cell]:
        """Return the cells without figures, in the order of the plan."""
        return [cell for cell in self.cells if not self.is_measured(cell)]

    def measure(self, chosen: Sequence[Cell], workers: int, tell: Callable[[Cell, Row | CellFailed], object]) -> int:
        """Measure cells without a flow, several at a time, and return how many of them have no figures.

        Args:
            chosen: Some of the cells. Those that share their references wait for the first of them, which trains these.
            workers: Cells at a time.
            tell: Told of each cell what came out.
        """
        first: dict[str, Cell] = {}
        for cell in chosen:
            if not cell.until and self._references(cell) is None:
                first.setdefault(cell.recipe, cell)
        trained = {cell.key for cell in first.values()}
        failed = 0
        with ThreadPoolExecutor(workers) as pool:
            try:
                for wave in (first.values(), [cell for cell in chosen if cell.key not in trained]):
                    jobs = {pool.submit(self.run, cell.key): cell for cell in wave}
                    for job in as_completed(jobs):
                        error = job.exception()
                        if error is not None and not isinstance(error, CellFailed):
                            raise error
                        failed += error is not None
                        tell(jobs[job], error or job.result())
            except BaseException:  # the threads would wait for their cells to the end
                self.stop()
                raise
        return failed

    def run(self, key: str) -> Row:
        """Measure a cell in a process of its own, record its row and return it.

        Args:
            key: Of the cell.

        Raises:
            CellFailed: It has no figures. That is recorded too, unless the grid was stopped.
            MecaError: The code was edited since the cells were made: their rows would name another one than they ran.
        """
        cell = next(cell for cell in self.cells if cell.key == key)
        if self._stopped:
            raise CellFailed(f"{cell.name} was not started, because the run was interrupted.")
        if is_edited(cell.until):
            raise MecaError(
                f"The code was edited while the grid was running, so {cell.name} was not started; the same command goes on with the new code."
            )
        folder = work_folder(self.output) / cell.key[:24]
        references = None if cell.until else self._references(cell)
        atomic_write(
            folder / "cell.json", canonical_json({"params": cell.params.tree, "references": references, "until": cell.until, "again": cell.again})
        )
        (folder / "row.json").unlink(missing_ok=True)
        code, said = self._subprocess(cell, folder)
        if self._stopped:
            raise CellFailed(f"{cell.name} was interrupted; the same command continues.")
        failed = code != 0 or not (folder / "row.json").is_file()
        error = _reason(code, said) if failed else None
        found = (
            dict.fromkeys(DETECTED if cell.until else (*COLUMNS, *(["own_output"] if cell.again else [])))
            if failed
            else read_json(folder / "row.json")
        )
        row = self._record(cell, {**found, "references_trained": references is None and not cell.until}, error)
        if error is not None:
            raise CellFailed(f"{cell.name}: {error}")
        if not self.keep:
            shutil.rmtree(folder, ignore_errors=True)
        return row

    def stop(self) -> None:
        """End what is running and start nothing more."""
        self._stopped = True
        for process in list(self._running):
            end_group(process)

    def _identity(self, cell: Cell) -> str:
        return identity({**cell.given, "key": cell.key}, self.by)

    def _references(self, cell: Cell) -> Any:
        with self._lock:
            for row in self.rows.values():
                found = row.get("references") or {}
                if row.get("recipe") == cell.recipe and all((found.get("plain") or {}).get(name) for name in REFERENCES):
                    return found
        return None

    def _record(self, cell: Cell, found: Mapping[str, Any], error: str | None) -> Row:
        row = {
            **found,
            **cell.given,
            "dataset": cell.given["source"],
            "key": cell.key,
            "recipe": cell.recipe,
            "status": "failed" if error else "done",
            "error": error,
            **provenance(cell.given["command"], cell.given["seed"], cell.given["code_sha256"], cell.given["params_sha256"]),
        }
        with self._lock:
            append(self.output, row)
            self.rows[self._identity(cell)] = row
        return row

    def _subprocess(self, cell: Cell, folder: Path) -> tuple[int, list[str]]:
        """Return the exit code and what was printed last."""
        threads = str(self.threads)
        # A process group of its own: an interrupt reaches the flow first, which then ends it (`stop`). When the flow is
        # killed, the kernel ends the cell, which asked for that at its start.
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and folder
            [sys.executable, "-m", "tasks.benchmark.cell", str(folder)],
            env={**environment.child_environment(), "MECA_THREADS": threads, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "PASSIVE"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            process_group=0,
        )
        self._running.add(process)
        try:
            _, said = process.communicate()
        finally:
            self._running.discard(process)
            end_group(process)
        return process.returncode, [line for line in said.splitlines() if line.strip()]


def _reason(code: int, said: Sequence[str]) -> str:
    last = said[-1].strip() if said else "it printed nothing"
    return f"exit code {code}: {last}"[:ERROR_LENGTH]
