"""`meca apply`: the set as people decided, whole or not at all, and what a receiver sees of it."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows import cli
from meca import files, pipeline, verbs
from meca.data.store import read_parquet
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import sha256_tree
from meca.release.manifest import listing, root_of
from meca.release.verification import verify
from tests.data.readers.test_readers import make_batches, make_idx
from tests.making import make_cleaned, make_folder, make_shards, seal_run

CHANGED = {0: ("poisoned", "remove", None), 1: ("poisoned", "relabel", 2), 2: ("review", "quarantine", None)}
DECIDED = [
    {"source": "train/cat/0.jpeg", "action": "keep"},
    {"source": "train/cat/2.jpeg", "action": "relabel", "new_label": "dog"},
    {"source": "train/dog/1.jpeg", "action": "remove"},
]


def write(file: Path, *decisions: dict[str, Any]) -> Path:
    common = {"who": "R. Eader", "when": "2026-11-21T10:00:00+01:00", "why": "looked at it"}
    file.write_text("".join(json.dumps({**common, **each}) + "\n" for each in decisions), encoding="utf-8")
    return file


def read_json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def cleaned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cleaned")
    root = make_folder(folder / "in")
    (root / "train" / "dog" / "bad.jpeg").write_bytes(b"no image")
    return make_cleaned(folder, root, CHANGED)


@pytest.fixture
def out(cleaned: Path, tmp_path: Path) -> Path:
    """Return a copy of what `clean` published, with its run beside it."""
    seal_run(Path(shutil.copytree(pipeline.run_folder(cleaned), tmp_path / ".out.meca")))
    return Path(shutil.copytree(cleaned, tmp_path / "out"))


@pytest.fixture
def applied(out: Path) -> Path:
    verbs.apply(out, write(out.parent / "d.jsonl", *DECIDED))
    return out


def test_the_set_is_what_was_decided_and_says_so_everywhere(out: Path, tmp_path: Path) -> None:
    before = {p.relative_to(out).as_posix(): p.read_bytes() for p in (out / "data").rglob("*.jpeg")}
    source = {p.relative_to(tmp_path).as_posix(): p for p in tmp_path.rglob("*")}
    original = pipeline.run_folder(out) / "published"
    machine = sha256_tree(original)
    file = write(tmp_path / "d.jsonl", *DECIDED)
    summary = verbs.apply(out, file)
    assert source and sha256_tree(original) == machine, "what meca decided stays"
    after = {p.relative_to(out).as_posix(): p.read_bytes() for p in (out / "data").rglob("*.jpeg")}
    top = "data/train/"
    assert set(after) - set(before) == {f"{top}cat/0.jpeg", f"{top}dog/2~{name(out, 'cat/2')}.jpeg"}
    assert set(before) - set(after) == {f"{top}dog/1.jpeg"}
    assert all(after[each] == before[each] for each in set(after) & set(before))
    assert summary["counts"] == {"input": 13, "kept": 9, "relabelled": 2, "removed": 1, "quarantined": 1}
    assert summary["verdict"] == "poisoned" and summary["sentence"].startswith("Poison was found: 2 of 13")
    assert "leading to class 'dog' and 1 other;" in summary["sentence"], "one of class cat is what meca found, not what a person decided"
    decisions = {"samples": 3, "kept": 1, "relabelled": 1, "removed": 1, "reviewers": ["R. Eader"], "sha256": files.sha256_file(file)}
    assert read_json(out / "summary.json") == summary and summary["decisions"] == decisions
    assert "A person decided about 3 samples (1 kept, 1 relabelled, 1 removed)" in summary["warnings"][0]
    assert "The model was trained before" in summary["warnings"][1]
    manifest = read_json(out / "manifest.json")
    assert manifest["decided_by"] == "person" and "decisions.jsonl" in manifest["files"]
    assert (out / "decisions.jsonl").read_bytes() == file.read_bytes()
    card = (out / "README.md").read_text(encoding="utf-8")
    assert "A person decided about 3 of the samples: 1 kept, 1 relabelled, 1 removed." in card
    rows = {row["source"]: row for row in read_parquet(out / "verdicts.parquet").to_pylist()}
    row = rows["train/cat/2.jpeg"]
    assert (row["verdict"], row["action"], row["new_label"], row["new_label_name"]) == ("review", "relabel", 1, "dog")
    assert (row["reviewer"], row["review_decision"], row["review_time"], row["review_note"]) == (
        "R. Eader", "relabel", "2026-11-21T10:00:00+01:00", "looked at it",
    )  # fmt: skip
    assert rows["train/cat/1.jpeg"]["reviewer"] is None and rows["train/cat/1.jpeg"]["action"] == "relabel"
    assert "A person decided about 3 samples" in (out / "report.html").read_text(encoding="utf-8")
    assert verify(out) == []


def name(out: Path, sample: str) -> str:
    rows = read_parquet(out / "verdicts.parquet").to_pylist()
    return next(row["sample_id"][:12] for row in rows if row["source"] == f"train/{sample}.jpeg")


def test_the_result_depends_on_run_and_decisions_alone(out: Path, tmp_path: Path) -> None:
    verbs.apply(out, write(tmp_path / "d.jsonl", *DECIDED))
    first = sha256_tree(out)
    verbs.apply(out, write(tmp_path / "e.jsonl", DECIDED[2]))
    rows = {row["source"]: row["action"] for row in read_parquet(out / "verdicts.parquet").to_pylist()}
    assert (rows["train/cat/0.jpeg"], rows["train/dog/1.jpeg"]) == ("remove", "remove"), "earlier decisions do not linger"
    verbs.apply(out, tmp_path / "d.jsonl")
    assert sha256_tree(out) == first
    verbs.apply(out, tmp_path / "d.jsonl", tmp_path / "elsewhere")
    assert sha256_tree(tmp_path / "elsewhere") == first


@pytest.mark.parametrize("make", [make_shards, make_batches, make_idx, "digits"])
def test_every_format_is_written_and_verified(make: Callable[[Path], Path] | str, tmp_path: Path) -> None:
    out = make_cleaned(tmp_path, make(tmp_path / "in") if callable(make) else make, {})
    rows = read_parquet(out / "verdicts.parquet").to_pylist()
    label = (rows[0]["label"] + 1) % 3
    file = write(tmp_path / "d.jsonl", {"source": rows[0]["source"], "action": "relabel", "new_label": label})
    summary = verbs.apply(out, file)
    assert verify(out) == [] and summary["counts"]["relabelled"] == 1 and summary["counts"]["kept"] == len(rows) - 1


def test_a_decision_about_a_set_whose_test_is_weak_leaves_that_standing(tmp_path: Path) -> None:
    out = make_cleaned(tmp_path, make_folder(tmp_path / "in"), {}, "weak")
    control = read_json(out / "summary.json")["control"]
    source = read_parquet(out / "verdicts.parquet")["source"][0].as_py()
    summary = verbs.apply(out, write(tmp_path / "d.jsonl", {"source": source, "action": "remove"}))
    assert (summary["verdict"], summary["control"], summary["counts"]["removed"]) == ("weak", control, 1)
    assert "but the test is weak here: of a planted patch" in summary["sentence"] and verify(out) == []
    assert "## What the test could find here" in (out / "README.md").read_text(encoding="utf-8")


def test_an_inconclusive_set_is_published_by_decisions_about_all_of_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "in", per_class=2)
    (root / "train" / "cat" / "bad.jpeg").write_bytes(b"no image")
    out = make_cleaned(tmp_path, root, {0: ("poisoned", "remove", None)}, "inconclusive")
    old = sha256_tree(out)
    readable = [row["source"] for row in read_parquet(out / "verdicts.parquet").to_pylist() if row["verdict"] != "quarantined"]
    decided = [{"source": source, "action": "keep"} for source in readable]
    with pytest.raises(InputRefused, match=r"every sample needs a decision: 1 of 7 have none, the first is 'train/émeu/1\.jpeg'"):
        verbs.apply(out, write(tmp_path / "some.jsonl", *decided[:-1]))
    assert sha256_tree(out) == old
    decided[0] = {"source": readable[0], "action": "remove"}
    summary = verbs.apply(out, write(tmp_path / "all.jsonl", *decided))
    assert summary["counts"] == {"input": 7, "kept": 5, "relabelled": 0, "removed": 1, "quarantined": 1}
    assert summary["verdict"] == "inconclusive", "a person decides about samples; what meca found stays"
    assert "what is published is what a person decided" in summary["sentence"]
    assert len(list((out / "data").rglob("*.jpeg"))) == 5 and not (out / "model").exists()
    assert "No sample and no model" not in (out / "README.md").read_text(encoding="utf-8")
    assert verify(out) == []
    # The same folder with one decision less is no folder of ours, whatever its manifest says.
    write(out / "decisions.jsonl", *decided[:-1])
    table = pq.read_table(out / "verdicts.parquet")
    for column in ("reviewer", "review_decision", "review_time", "review_note"):
        values = pa.array([*table[column].to_pylist()[:-1], None], pa.string())
        table = table.set_column(table.column_names.index(column), table.schema.field(column), values)
    pq.write_table(table, out / "verdicts.parquet")
    said = {**read_json(out / "summary.json")["decisions"], "samples": 5, "kept": 4, "sha256": files.sha256_file(out / "decisions.jsonl")}
    (out / "summary.json").write_text(json.dumps({**read_json(out / "summary.json"), "decisions": said}))
    list_again(out)
    assert verify(out) == ["The verdict is inconclusive, but decisions.jsonl has no decision about train/émeu/1.jpeg."]


def list_again(folder: Path, **changes: Any) -> None:
    """Write a manifest that fits, as an attacker without a signature key would."""
    listed = listing(folder)
    manifest = {**read_json(folder / "manifest.json"), "files": listed, "sanitized_sha256": root_of(listed), **changes}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def change_row(folder: Path, column: str, at: int, value: object) -> None:
    table = pq.read_table(folder / "verdicts.parquet")
    values = table[column].to_pylist()
    values[at] = value
    array = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(table.column_names.index(column), table.schema.field(column), array), folder / "verdicts.parquet")


def change_decision(folder: Path, old: str, new: str) -> None:
    text = (folder / "decisions.jsonl").read_text(encoding="utf-8")
    assert old in text
    (folder / "decisions.jsonl").write_text(text.replace(old, new), encoding="utf-8")


def change_said(folder: Path, **changes: Any) -> None:
    summary = read_json(folder / "summary.json")
    (folder / "summary.json").write_text(json.dumps({**summary, "decisions": {**summary["decisions"], **changes}}))


MANIPULATED: list[tuple[Callable[[Path], object], str]] = [
    (lambda f: change_decision(f, "R. Eader", "S. Omeone"), "train/cat/0.jpeg is not decided in verdicts.parquet as in decisions.jsonl"),
    (lambda f: change_decision(f, "looked at it", "was told to"), "train/cat/0.jpeg is not decided in verdicts.parquet as in"),
    (lambda f: change_decision(f, '"remove"', '"burn"'), "line 3: expected the action keep, relabel or remove"),
    (lambda f: change_decision(f, "dog/1", "dog/0"), "train/dog/0.jpeg is not decided in verdicts.parquet as in"),
    (lambda f: change_row(f, "reviewer", 0, "S. Omeone"), "train/cat/0.jpeg is not decided in verdicts.parquet as in"),
    (lambda f: change_row(f, "review_decision", 0, None), "train/cat/0.jpeg is not decided in verdicts.parquet as in"),
    (lambda f: change_row(f, "review_decision", 3, "keep"), "train/cat/3.jpeg is not decided in verdicts.parquet as in"),
    (lambda f: (f / "decisions.jsonl").unlink(), "manifest.json says decided_by person, but decisions.jsonl is missing"),
    (lambda f: (f / "decisions.jsonl").write_bytes(b""), "holds none"),
    (lambda f: change_said(f, removed=0), "What summary.json says about decisions is not what decisions.jsonl and verdicts.parquet hold"),
    (lambda f: change_said(f, reviewers=["S. Omeone"]), "What summary.json says about decisions is not"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "sentence"), MANIPULATED)
def test_a_manipulated_decision_is_found_behind_a_manifest_that_fits(change: Callable[[Path], object], sentence: str, applied: Path) -> None:
    change(applied)
    assert verify(applied), "the manifest does not fit yet"
    list_again(applied)
    assert any(sentence in found for found in verify(applied)), verify(applied)


def test_a_set_that_hides_its_decisions_is_found(applied: Path) -> None:
    (applied / "decisions.jsonl").unlink()
    (applied / "summary.json").write_text(json.dumps({**read_json(applied / "summary.json"), "decisions": None}))
    list_again(applied, decided_by="meca")
    assert verify(applied) == [
        f"{row} is not decided in verdicts.parquet as in decisions.jsonl." for row in ("train/cat/0.jpeg", "train/cat/2.jpeg", "train/dog/1.jpeg")
    ]


@pytest.mark.parametrize(
    ("decisions", "sentence"),
    [
        ([{"source": "train/cat/9.jpeg", "action": "keep"}], "line 1: there is no training sample 'train/cat/9.jpeg'"),
        ([*DECIDED, {**DECIDED[0], "action": "remove"}], "line 4: contradicts line 1"),
        ([{**DECIDED[1], "new_label": "unicorn"}], "line 1: there is no class 'unicorn'"),
        ([{"source": "train/dog/bad.jpeg", "action": "keep"}], "cannot be read"),
        ([{"source": "test/cat/0.jpeg", "action": "remove"}], "line 1: there is no training sample"),
    ],
)
def test_nothing_is_half_written(decisions: list[dict[str, Any]], sentence: str, out: Path, tmp_path: Path) -> None:
    file, before = write(tmp_path / "d.jsonl", *decisions), sha256_tree(tmp_path)
    with pytest.raises(InputRefused) as caught:
        verbs.apply(out, file)
    assert sentence in str(caught.value)
    shutil.rmtree(tmp_path / ".out.meca" / ".meca" / "locks", ignore_errors=True)
    assert sha256_tree(tmp_path) == before


@pytest.mark.parametrize(
    "dies_in", ["meca.release.folder.write_sanitized", "meca.release.folder.card", "meca.verbs.render", "meca.verbs.replace_folder"]
)
def test_a_failure_on_the_way_leaves_the_old_folder(dies_in: str, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    old, file = sha256_tree(out), write(tmp_path / "d.jsonl", *DECIDED)
    monkeypatch.setattr(dies_in, die)
    with pytest.raises(OSError, match="No space"):
        verbs.apply(out, file)
    assert sha256_tree(out) == old and not (tmp_path / ".out.tmp").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from meca import files, verbs

out, decisions, where = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if where == "before the swap":
    files._exchange = die
else:
    sync = files.sync
    files.sync = lambda path: die() if path == out.parent and (out / "decisions.jsonl").exists() else sync(path)
verbs.apply(out, decisions)
"""


@pytest.mark.parametrize("where", ["before the swap", "after the swap"])
def test_a_kill_leaves_the_old_folder_or_the_new_one(where: str, out: Path, tmp_path: Path) -> None:
    old, file = sha256_tree(out), write(tmp_path / "d.jsonl", *DECIDED)
    done = subprocess.run([sys.executable, "-c", KILLED, str(out), str(file), where], capture_output=True, text=True, timeout=120)
    assert done.returncode == -9, done.stderr
    assert verify(out) == [] and (sha256_tree(out) == old) == (where == "before the swap")
    verbs.apply(out, file)
    assert verify(out) == [] and not (tmp_path / ".out.tmp").exists(), "started again it finishes, and clears away what was left"
    assert read_json(out / "summary.json")["decisions"]["samples"] == 3


def test_a_result_that_does_not_verify_replaces_nothing(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = sha256_tree(out)
    monkeypatch.setattr("meca.release.folder.entries", lambda *_: [])
    with pytest.raises(MecaError, match="What was written does not verify"):
        verbs.apply(out, write(tmp_path / "d.jsonl", *DECIDED))
    assert sha256_tree(out) == old


def test_a_changed_run_is_not_built_upon(out: Path, tmp_path: Path) -> None:
    file, run = write(tmp_path / "d.jsonl", *DECIDED), pipeline.run_folder(out)
    change_row(run / "published", "action", 5, "remove")
    with pytest.raises(UsageError, match=r"\.out\.meca is not as this user's meca left it, so nothing is read from it"):
        verbs.apply(out, file)
    with pytest.raises(MecaError, match=r"is not what its stages wrote: verdicts\.parquet was changed"):
        verbs.apply(run, file, tmp_path / "elsewhere")
    shutil.copytree(out, tmp_path / "kept")
    shutil.rmtree(run)
    with pytest.raises(UsageError, match="Expected the folder of a finished run"):
        verbs.apply(out, file)
    assert sha256_tree(out) == sha256_tree(tmp_path / "kept")


def test_a_workspace_needs_an_output_apart_from_its_stages(out: Path, tmp_path: Path) -> None:
    run, file = pipeline.run_folder(out), write(tmp_path / "d.jsonl", *DECIDED)
    with pytest.raises(UsageError, match="Expected --output"):
        verbs.apply(run, file)
    for wrong in ("published", "data/store", ".", "work/x"):
        with pytest.raises(UsageError, match=r"Expected (--output apart|.* to be new, empty)"):
            verbs.apply(run, file, run / wrong)
    with pytest.raises(UsageError, match="to be new, empty, or an earlier output"):
        verbs.apply(run, file, tmp_path)
    verbs.apply(run, file, run / "decided")
    assert verify(run / "decided") == []


def test_a_file_that_meca_did_not_write_is_not_lost(out: Path, tmp_path: Path) -> None:
    (out / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match="but it holds other files"):
        verbs.apply(out, write(tmp_path / "d.jsonl", *DECIDED))
    assert (out / "notes.txt").read_text() == "mine"


def test_clean_does_not_write_over_what_a_person_decided(applied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from meca.params import read_params

    monkeypatch.setattr(verbs, "run", lambda *_: pytest.fail("the work began"))
    with pytest.raises(UsageError, match="holds what a person decided, which would be lost"):
        verbs.clean("shapes", applied, read_params())


def test_the_command_shows_the_accounting_and_imports_no_torch(out: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "d.jsonl", *DECIDED)
    code = "import sys; from flows.cli import run; code = run(sys.argv[1:]); print(code, 'torch' in sys.modules, file=sys.stderr)"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", code, "apply", str(out), "--decisions", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.stderr.splitlines()[-1] == "0 False", done.stderr
    assert "Accounting    9 kept + 2 relabelled + 1 removed + 1 quarantined = 13 in the input" in done.stdout
    assert "A person decided about 3 samples" in done.stdout


def test_a_bad_line_is_an_exit_3_and_a_missing_file_an_exit_4(out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "d.jsonl").write_text("{}\n")
    assert cli.run(["apply", str(out), "--decisions", str(tmp_path / "d.jsonl")]) == 3
    assert "line 1: names no sample" in capsys.readouterr().err
    assert cli.run(["apply", str(out), "--decisions", str(tmp_path / "none.jsonl")]) == 4
    assert cli.run(["apply", str(tmp_path / "nowhere"), "--decisions", str(tmp_path / "d.jsonl")]) == 4


def test_the_page_of_an_applied_folder_stays_its_own(applied: Path) -> None:
    page = (applied / "report.html").read_bytes()
    (applied / "report.html").unlink()
    assert cli.run(["report", str(applied)]) == 0
    assert (applied / "report.html").read_bytes() == page
