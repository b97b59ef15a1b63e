"""What a person asks of meca: clean, apply, plant, render."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meca.errors import InputRefused, MecaError, UsageError
from meca.files import atomic_write, copy_folder, fresh_folder, lock, own_folder, read_json, refuse_foreign, replace_folder
from meca.params import Params, with_settings
from meca.progress import Progress
from meca.release.decisions import DECISIONS

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from meca.pipeline import STORE, Told, find_run, paths_of, refuse_planted, run, run_folder
from meca.stages.graph import graph

__all__ = ["apply", "clean", "plant", "refuse_test_split", "render", "score"]


def clean(
    source: str,
    out: Path,
    params: Params,
    progress: Progress | None = None,
    told: Told | None = None,
    key: "Ed25519PrivateKey | None" = None,
) -> dict[str, Any]:
    """Sanitize the data at `source` into the folder `out` and return the summary.

    `out` is replaced in one step, at the end. What the stages wrote stays beside it (`run_folder`), for a resume. With a `key`
    it is signed before it appears.

    Raises:
        UsageError: `out` holds something that meca did not write or that a person decided about, or lies inside the input; it, or what
            is kept beside it, is a link or another user's.
        InputRefused: The source is a test split.
    """
    refuse_test_split(source)
    refuse_planted(out)
    _check_out(source, out, _ours)
    if (out / DECISIONS).exists():
        raise UsageError(f"{out} holds what a person decided, which would be lost; choose another --output, or move {DECISIONS} away first.")
    # Nothing is planted here: neither an attack nor what goes with any attack.
    untouched = {"poison.attack": "none", "poison.label_noise": 0.0, "poison.imbalance": 1.0}
    settings = {**untouched, "ingest.source": str(Path(source).resolve()) if Path(source).exists() else source}
    out, folder = out.resolve(), run_folder(out)
    summary = run(folder, with_settings(params, settings), progress, told)
    temporary = fresh_folder(out.with_name(f".{out.name}.tmp"))
    copy_folder(folder / "published", temporary, _link_or_copy)
    _link_or_copy(folder / "report" / "report.html", temporary / "report.html")
    _sign(temporary, key)
    replace_folder(temporary, out)
    return summary


def apply(run: Path, decisions: Path, out: Path | None = None, key: "Ed25519PrivateKey | None" = None) -> dict[str, Any]:
    """Write the sanitized set again, as people decided about single samples, and return its summary. Trains nothing.

    What meca decided is read from the run and never changed, so the result depends on the run and on the decisions alone, not on
    decisions that were applied before. `out` is replaced in one step, and only by a folder that `verify` accepts.

    Args:
        run: A workspace, or the output of `clean`.
        decisions: A file as `meca.release.decisions` reads it.
        out: The folder to write; if None the output of `clean` itself.
        key: Signs the folder before it appears.

    Raises:
        UsageError: There is no run, no file of decisions, or no place to write to; the run beside an output is not this user's.
        InputRefused: The decisions do not fit the set; the message has the numbers of the lines.
        MecaError: The run is not what its stages wrote.
    """
    from meca.data.store import open_store, read_parquet
    from meca.params import read_params
    from meca.release.decisions import decide, parse, read
    from meca.release.folder import PublishParams, write
    from meca.release.verification import verify

    folder = find_run(run)
    out = _place_of(run, folder, out).resolve()
    data = read(decisions)
    decided = parse(data)
    temporary = out.with_name(f".{out.name}.tmp")
    refuse_foreign(temporary)
    with lock(own_folder(folder / ".meca" / "locks", folder / ".meca") / "run", f"The run in {folder}"):
        published = folder / "published"
        if wrong := verify(published):
            raise MecaError(f"The run in {folder} is not what its stages wrote: {wrong[0]} Run `meca clean` again.")
        store, summary = open_store(folder / STORE), read_json(published / "summary.json")
        if summary["input_sha256"] != store.info.root or summary["decisions"] is not None:
            raise MecaError(f"{published} is not what stage publish made of {store.path}; run `meca clean` again.")
        inconclusive = summary["verdict"] == "inconclusive"
        verdicts = decide(read_parquet(published / "verdicts.parquet"), store.info.class_names, decided, inconclusive)
        record = folder / "work" / "receipts" / "publish.json"
        params = Params(read_json(record)["params"], record.name) if record.is_file() else read_params()
        target = summary["target_class"]
        verdict = {**summary, "target_class": None if target is None else target["label"]}
        facts = {
            name: summary[name] for name in ("preset", "seed", "params_sha256", "code_sha256", "meca_version", "weights_sha256") if name in summary
        }
        try:
            fresh_folder(temporary)
            model = None if inconclusive else published / "model"
            summary = write(temporary, store, verdicts, verdict, params.group("publish", PublishParams), facts, model, data)
            if wrong := verify(temporary):
                raise MecaError(f"What was written does not verify: {wrong[0]} Nothing was replaced; this is a bug, please report it.")
            atomic_write(temporary / "report.html", render(folder, temporary))
            _sign(temporary, key)
            replace_folder(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return summary


def _place_of(run: Path, folder: Path, out: Path | None) -> Path:
    """Return where `apply` writes."""
    if out is None:
        if folder == run:
            raise UsageError(f"Expected --output: {run / 'published'} belongs to the stage that wrote it.")
        out = run
    refuse_foreign(out)
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not _ours(out))):
        raise UsageError(f"Expected {out} to be new, empty, or an earlier output of meca, but it holds other files; choose another --output.")
    target, held = out.resolve(), [(folder / name).resolve() for name in (".meca", "data", "work", "published", "report")]
    if any(target == place or target in place.parents or place in target.parents for place in held):
        raise UsageError(f"Expected --output apart from what the stages wrote in {folder}, got {out}.")
    return out


def _sign(folder: Path, key: "Ed25519PrivateKey | None") -> None:
    if key is not None:
        from meca.release.signing import sign  # needs `cryptography`, which a run without a key does not

        sign(folder, key)


def plant(
    source: str,
    out: Path,
    params: Params,
    progress: Progress | None = None,
    named: Mapping[str, str] | None = None,
    is_lossless: bool = False,
    with_tests: bool = False,
) -> dict[str, Any]:
    """Plant the attack of group [poison] into the data at `source`, for tests of one's own, and return what attack.json says.

    `out` gets `data/`, the training set in the format that it came in, and `truth/` (docs/files.md). It is replaced in one step. Every image
    keeps its size, its mode and its place, and a planted one is encoded as its file was.

    Args:
        source: The data.
        out: The folder to write.
        params: The parameters; `ingest.size` is not read.
        progress: Told what is going on.
        named: Classes by their name or index, by field of group poison, as a person wrote them; they count before `params`.
        is_lossless: Planted images become PNG under the names they had, which unharms the trigger and tells them apart.
        with_tests: `out` gets `test/`, the test split with and without the trigger, too.

    Raises:
        UsageError: `out` holds something that meca did not write, or lies inside the input; it, or what is kept beside it, is a link or
            another user's; a class that there is not.
        InputRefused: The data cannot be read, or carries no poison under these numbers; there is no test split to write.
    """
    from meca.redteam.plant import plant_into

    refuse_planted(out)
    _check_out(source, out, _ours_poisoned)
    params = with_settings(params, {"ingest.source": str(Path(source).resolve()) if Path(source).exists() else source})
    out = out.resolve()
    # Not `run_folder`: an interrupted `clean` may wait there for its resume.
    work, temporary = out.with_name(f".{out.name}.planting"), out.with_name(f".{out.name}.tmp")
    refuse_foreign(work, below=True)
    with lock(own_folder(work / "locks", work) / "plant", f"The folder {out}"):
        try:
            fresh_folder(temporary)
            record = plant_into(temporary, work, params, named or {}, progress, is_lossless, with_tests)
            replace_folder(temporary, out)
        finally:
            shutil.rmtree(work, ignore_errors=True)
            shutil.rmtree(temporary, ignore_errors=True)
    return record


def score(run: Path, truth: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Return the figures of a run of `clean` on planted data, against the truth that `plant` wrote; see `meca.redteam.score`."""
    from meca.redteam.score import score as scored

    return scored(run, truth, progress)


def render(folder: Path, published: Path | None = None) -> str:
    """Return the report page of the run in `folder`, as its parameters want it.

    Args:
        folder: A run folder or a workspace.
        published: What `apply` wrote from the run, if the page is to show that.
    """
    from meca.params import read_params
    from meca.report import page
    from meca.stages import report

    record = folder / "work" / "receipts" / "report.json"
    params = Params(read_json(record)["params"], record.name) if record.is_file() else read_params()
    paths = paths_of(report, "report", folder)
    found = page.read_run(**{Path(path).name: paths[Path(path).name] for path in graph()["report"].reads})
    if published is not None:
        found = page.with_verdicts(found, published)
    return page.render(found, params.seed, params.group("report", page.ReportParams))


def refuse_test_split(source: str) -> None:
    """Refuse what is named as a test split: figures on a cleaned test set flatter.

    Raises:
        InputRefused: It is one.
    """
    name = Path(source).name.lower()
    if name in ("test", "test_batch") or name.startswith(("test-0", "t10k-")):
        raise InputRefused(
            f"Expected training data, got {source!r}, which is named as a test split; a cleaned test set gives flattering figures. "
            "Clean the training split (or the folder above); rename the input if it is training data."
        )


def _check_out(source: str, out: Path, ours: Callable[[Path], bool]) -> None:
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not ours(out))):
        raise UsageError(f"Expected {out} to be new, empty, or an earlier output of meca, but it holds other files; choose another --output.")
    inside, target = Path(source).resolve(), out.resolve()
    if Path(source).is_dir() and (inside == target or inside in target.parents or target in inside.parents):
        raise UsageError(f"Expected input and output to be apart, got {source} and {out}; choose another --output.")


def _ours(out: Path) -> bool:
    known = {"data", "model", "verdicts.parquet", "summary.json", "README.md", "manifest.json", "report.html", DECISIONS, "attestation.json"}
    return (out / "summary.json").is_file() and all(path.name in known for path in out.iterdir())


def _ours_poisoned(out: Path) -> bool:
    return (out / "truth" / "attack.json").is_file() and all(path.name in ("data", "test", "truth") for path in out.iterdir())


def _link_or_copy(source: Path, target: Path) -> None:
    # A link costs no space; stages never write into a finished file, so the two names never drift apart by our doing.
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
