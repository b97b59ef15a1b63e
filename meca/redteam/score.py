"""A run of `meca clean`, held against what `meca poison` wrote down: which samples are poison, and what the networks make of the trigger.

`clean` never sees the truth. A sample of the run is found in it by id, source name and class, whatever was left out in between.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from meca.data.decoder.decode import MAX_BYTES, Decoded
from meca.data.decoder.pool import Decoder
from meca.data.readers.files import NotRegular, inside, read_below
from meca.data.store import Store, open_store, read_parquet
from meca.errors import InputRefused, UsageError
from meca.files import read_json
from meca.metrics import accuracy, attack_figures, detection
from meca.pipeline import STORE, find_run
from meca.progress import Progress
from meca.redteam.test_split import CLEAN, FOLDER, SCHEMA
from meca.stages.tensors import read_rows

__all__ = ["READS", "score"]

READS = (STORE, "work/enhance", "work/split", "work/train_clean", "work/relabel_finetune")
MODELS = {"enhanced": "enhance", "clean": "train_clean", "final": "relabel_finetune"}
MARKS = ("is_poisoned", "is_cover", "is_noise")
BLOCK = 256  # images that a network sees together

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


def score(run: Path, truth: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Return the figures of a run against a truth, in the form of evaluation.json (docs/files.md), with `classes` and `matched`.

    Args:
        run: The output of `clean`, or a workspace.
        truth: What `meca poison` wrote: its folder, or `truth/` in it.
        progress: Told what is going on.

    Raises:
        UsageError: There is no run, no truth, or the truth is of other data.
        InputRefused: The truth, or the test split beside it, is damaged.
        MecaError: The run is not what its stages wrote.
    """
    folder, place = find_run(run, READS), _place(truth)
    attack, table = _attack(place), _table(place / "truth.parquet", {"sample_id": pa.string(), "source": pa.string(), "class_name": pa.string()})
    store = open_store(folder / STORE)
    found = _matched(store, table)
    if not (found >= 0).any():
        raise UsageError(
            f"Expected a run on the data that {place} speaks of, but none of its {len(found)} samples stands there; name the other truth."
        )
    names: Sequence[str] = attack["class_names"]
    ours = {name: number for number, name in enumerate(store.info.class_names)}
    number_of = np.array([ours.get(name, -1) for name in names], dtype=np.int64)  # of a class of the truth, in the run
    result: dict[str, Any] = {"known": True, "attack": attack, "no_defence": None, "oracle": None}
    result |= _detected(store, folder, table, found, number_of, attack)
    result |= _measured(store, folder, place, number_of, attack, progress)
    judged = int((found >= 0).sum())
    return result | {"matched": {"samples": judged, "of_run": len(found), "of_truth": table.num_rows}}


def _place(truth: Path) -> Path:
    for place in (truth, truth / "truth"):
        if (place / "attack.json").is_file():
            return place
    raise UsageError(f"Expected --truth to be what `meca poison` wrote (a folder with truth/attack.json), found none at {truth}.")


def _attack(place: Path) -> dict[str, Any]:
    record: Any = read_json(place / "attack.json")
    names = record.get("class_names") if isinstance(record, dict) else None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UsageError(f"Expected {place} to be of `meca poison`, which names the classes in attack.json; poison the data again.")
    triggers = record.get("triggers", [])
    classes = range(len(names))
    for each in triggers if isinstance(triggers, list) else [None]:
        leads = each.get("target_of") if isinstance(each, dict) else None
        sources = each.get("source_classes") if isinstance(each, dict) else None
        if not isinstance(leads, list) or len(leads) != len(names) or not all(type(to) is int and to in classes for to in (*leads, *(sources or ()))):
            raise InputRefused(
                f"Expected the triggers in {place / 'attack.json'} to lead each of {len(names)} classes to one; poison the data again."
            )
    return record


def _table(path: Path, columns: Mapping[str, pa.DataType]) -> pa.Table:
    table = read_parquet(path)
    wanted = {**columns, **{mark: pa.bool_() for mark in MARKS if "sample_id" in columns}}
    wrong = [name for name, kind in wanted.items() if name not in table.column_names or table.schema.field(name).type != kind]
    if wrong or any(table[name].null_count for name in wanted):
        raise InputRefused(f"Expected the columns {', '.join(wanted)} without gaps in {path}, wrong are {wrong or 'gaps'}; poison the data again.")
    return table


def _matched(store: Store, table: pa.Table) -> Ints:
    """Return the line of the truth for each training row of the run, int64 [n]; -1 where it has none."""
    keys = [table[name].to_pylist() for name in ("sample_id", "class_name", "source")]
    exact = {key: line for line, key in enumerate(zip(*keys, strict=True))}
    alike: dict[tuple[str, str], set[int]] = defaultdict(set)
    marks = np.stack([table[mark].to_numpy(zero_copy_only=False) for mark in MARKS], axis=1)
    kinds = {(name, label): set[bytes]() for name, label in zip(*keys[:2], strict=True)}
    for line, key in enumerate(zip(*keys[:2], strict=True)):
        alike[key].add(line)
        kinds[key].add(marks[line].tobytes())
    trained = store.readable.slice(0, store.info.n_train)
    found = np.full(store.info.n_train, -1, dtype=np.int64)
    for row, key in enumerate(zip(*(trained[name].to_pylist() for name in ("sample_id", "class_name", "source")), strict=True)):
        by_id = key[:2]
        if key in exact:
            found[row] = exact[key]
        elif len(kinds.get(by_id, ())) == 1:  # it was moved; all that look like it are of one kind
            found[row] = min(alike[by_id])
    return found


def _detected(store: Store, folder: Path, table: pa.Table, found: Ints, number_of: Ints, attack: Mapping[str, Any]) -> dict[str, Any]:
    """Return `detection`, as stage `evaluate` has it, and a line for each class."""
    n = store.info.n_train
    final = read_rows(folder / "work" / "relabel_finetune" / "decisions.parquet", ["action", "new_label", "suspicion"], n)
    words = read_rows(folder / "work" / "split" / "decisions.parquet", ["verdict"], n)["verdict"].to_pylist()
    known = found >= 0
    lines = found[known]
    flagged = np.array([word != "clean" for word in words])[known]
    actions = np.array(final["action"].to_pylist(), dtype=object)[known]
    suspicion = final["suspicion"].to_numpy().astype(np.float64)[known]
    poisoned, covers, noise = (table[mark].to_numpy(zero_copy_only=False)[lines] for mark in MARKS)
    given: Ints = store.labels[store.train][known]
    targets = [int(number_of[target]) for target in attack.get("targets", ())]
    told = detection(flagged, suspicion, poisoned, covers, given, targets, noise)
    told |= {"removed": int((actions == "remove").sum()), "poison_left": int((poisoned & (actions == "keep")).sum())}
    moved = poisoned & (actions == "relabel")
    original = number_of[table["original_label"].to_numpy()[lines]]
    new = np.array([-1 if label is None else label for label in final["new_label"].to_pylist()], dtype=np.int64)[known]
    told |= {"poison_relabelled": int(moved.sum()), "poison_relabelled_rightly": int((moved & (new == original)).sum())}
    clean = ~poisoned & ~covers & ~noise
    classes = [
        {
            "label": label,
            "name": name,
            "n": int((mine := given == label).sum()),
            "poisoned": int((mine & poisoned).sum()),
            "flagged": int((mine & flagged).sum()),
            "tpr": _share(flagged, mine & poisoned),
            "fpr": _share(flagged, mine & clean),
        }
        for label, name in enumerate(store.info.class_names)
    ]
    return {"detection": told, "classes": classes}


def _share(flagged: Bools, among: Bools) -> float | None:
    return float(flagged[among].mean()) if among.any() else None


def _measured(store: Store, folder: Path, place: Path, number_of: Ints, attack: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Return what each network of the run makes of the test split that `meca poison --test` wrote; None of each where there is none."""
    tests = place.parent / FOLDER
    if not (place / "test.parquet").is_file() or not tests.is_dir():
        return dict.fromkeys(MODELS) | {"unknown": ["accuracy and attack success rate (plant with --test for a test split with the trigger)"]}
    table = _table(place / "test.parquet", {field.name: field.type for field in SCHEMA})
    views = list(dict.fromkeys(table["view"].to_pylist()))
    of_view = [table.filter(pa.array([name == view for name in table["view"].to_pylist()])) for view in views]
    files: list[str] = of_view[0]["file"].to_pylist()
    triggers: list[Mapping[str, Any]] = attack.get("triggers", [])
    theirs = of_view[0]["label"].to_numpy()
    if any(view["file"].to_pylist() != files for view in of_view) or len(views) != len(triggers):
        raise InputRefused(f"Expected the same files for each of {len(triggers)} triggers in {place / 'test.parquet'}; poison the data again.")
    if len(theirs) and not (0 <= theirs.min() and theirs.max() < len(number_of)):
        raise InputRefused(f"Expected labels in 0..{len(number_of) - 1} in {place / 'test.parquet'}; poison the data again.")
    known = number_of[theirs] >= 0  # a class that lost all its images is none of the run's
    files, labels = [file for file, is_known in zip(files, known, strict=True) if is_known], number_of[theirs[known]]
    answers = {view: _answers(folder, tests / view, files, store, progress) for view in (CLEAN, *views)}
    back = {int(number): class_ for class_, number in enumerate(number_of)}  # class of the run: of the truth
    classes = len(store.info.class_names)
    leads: list[int | list[int]] = [
        [int(number_of[each["target_of"][back[c]]]) if c in back else -1 for c in range(classes)]
        if each.get("target_class") is None
        else int(number_of[each["target_of"][0]])
        for each in triggers
    ]
    sources = [None if each.get("source_classes") is None else [int(number_of[c]) for c in each["source_classes"]] for each in triggers]
    names = [str(each.get("attack", "")) for each in triggers]
    return {
        model: accuracy(clean := answers[CLEAN][model], labels, classes)
        | attack_figures([answers[view][model] for view in views], clean, labels, classes, leads, sources, names)
        for model in MODELS
    }


def _answers(folder: Path, images: Path, files: Sequence[str], store: Store, progress: Progress | None) -> dict[str, Ints]:
    """Return the class that each network of the run gives to each image, int64 [n], by the network's name."""
    import torch

    from meca.models import load_model
    from meca.training.engine import predict

    device = "cuda" if torch.cuda.is_available() else "cpu"
    models = {name: load_model(folder / "work" / stage).to(device) for name, stage in MODELS.items()}
    classes = len(store.info.class_names)
    found: dict[str, list[Ints]] = {name: [np.empty(0, np.int64)] for name in models}
    done = 0
    with Decoder() as decoder:
        for block in _blocks(images, files, (store.info.height, store.info.width), decoder):
            batch = torch.from_numpy(block).to(device)
            for name, model in models.items():
                # The enhanced model has two outputs a class.
                found[name].append(predict(model, batch).argmax(1).cpu().numpy() % classes)
            done += len(block)
            if progress:
                progress(f"evaluate: {images.name}", done, len(files))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _blocks(folder: Path, files: Sequence[str], side: tuple[int, int], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
    """Yield images as the networks see them, uint8 [b h w 3]."""
    waiting: list[NDArray[np.uint8]] = []
    for file, outcome in decoder.map(files, _reader(folder), lambda: side):
        if not isinstance(outcome, Decoded):
            raise InputRefused(f"{file!r} in {folder} cannot be read ({outcome}); poison the data again.")
        waiting.append(outcome.pixels)
        if len(waiting) == BLOCK:
            yield np.stack(waiting)
            waiting = []
    if waiting:
        yield np.stack(waiting)


def _reader(folder: Path) -> Callable[[str], bytes]:
    def read(file: str) -> bytes:
        try:
            return read_below(folder, PurePosixPath(inside(file)), MAX_BYTES)
        except (NotRegular, ValueError, OSError) as problem:
            raise InputRefused(f"{file!r} in {folder} cannot be read ({problem}); poison the data again.") from None

    return read
