"""The bare pipeline: the same DAG as dvc.yaml, resumed where it stands, published in one step."""

import importlib
import importlib.machinery
import json
import os
import shutil
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from flows import cli
from flows.cli import options
from meca import pipeline, state, verbs
from meca.data.store import open_store
from meca.errors import InputRefused, MecaError, UsageError
from meca.files import canonical_json, sha256_tree
from meca.params import read_params, with_settings
from meca.progress import Progress
from meca.stages.graph import Groups, Output, Step, graph

ROOT = Path(__file__).parents[1]
CODE = ("${", "meca/", "tasks/", "flows/")


def test_the_graph_is_the_dag_of_dvc_yaml():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages.pop("track")
    assert list(stages) == list(graph())
    for name, (reads, writes) in graph().items():
        assert [path for path in stages[name]["deps"] if not path.startswith(CODE)] == list(reads), name
        assert [out for out in stages[name]["outs"] if not out.startswith("work/receipts/")] == list(writes), name


@pytest.mark.parametrize("name", graph())
def test_every_stage_takes_the_folders_of_the_graph(name):
    module = importlib.import_module(f"meca.stages.{name}")
    paths = pipeline.paths_of(module, name, Path("run"))
    reads, writes = graph()[name]
    assert sorted(paths.values()) == sorted(Path("run", path) for path in (*reads, *writes))


def stage(name, groups, body):
    """Return a stage module that counts how often it ran; `body` gets (ctx, **paths)."""
    module: Any = types.ModuleType(f"meca.stages.{name}")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.runs = 0
    source, values = (
        {"first": "", "second": "first, ", "publish": "second, ", "report": "published, "}[name],
        {"body": body, "module": module, "Output": Output, "Groups": Groups, "groups": Groups(*groups)},
    )
    exec(
        f"def run(ctx, {source}out: Output, *, used: Groups = groups):\n    module.runs += 1\n"
        "    body(ctx, **{k: v for k, v in locals().items() if k not in ('ctx', 'used')})",
        values,
    )
    module.run = values["run"]
    return module


@pytest.fixture
def stages(monkeypatch):
    """Four small stages in the place of the ten: they read, copy, and publish."""

    def first(ctx, out):
        source = Path(ctx.params.raw("ingest")["source"])
        (out / "a").write_text("".join(p.read_text() for p in sorted(source.iterdir())) if source.is_dir() else str(source))
        ctx.metrics["size"] = ctx.params.raw("ingest")["size"]

    def second(ctx, first, out):
        (out / "b").write_text((first / "a").read_text().upper())

    def publish(ctx, second, out):
        (out / "data").mkdir()
        (out / "data" / "x.txt").write_text((second / "b").read_text())
        (out / "summary.json").write_text(
            json.dumps({"verdict": "no_evidence", "sentence": "s", "counts": {}, "poison": dict(ctx.params.raw("poison"))})
        )

    def report(ctx, published, out):
        (out / "report.html").write_text("<p>" + (published / "data/x.txt").read_text())

    made = {
        "first": stage("first", ("ingest",), first),
        "second": stage("second", ("seed",), second),
        "publish": stage("publish", ("publish", "poison"), publish),
        "report": stage("report", ("report",), report),
    }
    steps = {
        "first": Step((), ("work/first",)),
        "second": Step(("work/first",), ("work/second",)),
        "publish": Step(("work/second",), ("published",)),
        "report": Step(("published",), ("report",)),
    }
    monkeypatch.setattr(pipeline, "graph", lambda: steps)
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, f"meca.stages.{name}", module)
    # receipts and the identity of `ingest` are dropped by name
    monkeypatch.setattr(pipeline, "FIRST", "first")
    return made


def counts(stages):
    return [module.runs for module in stages.values()]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "1").write_text("one ")
    (folder / "2").write_text("two")
    return folder


def clean(images, out, **settings):
    return verbs.clean(str(images), out, with_settings(read_params(), settings))


def test_clean_publishes_in_one_folder_and_never_poisons(tmp_path, stages, images):
    summary = clean(images, tmp_path / "out", **{"poison.attack": "badnet", "poison.label_noise": 0.5, "poison.imbalance": 0.1})
    assert [summary["poison"][name] for name in ("attack", "label_noise", "imbalance")] == ["none", 0.0, 1.0]
    assert sorted(p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*")) == [
        "data", "data/x.txt", "report.html", "summary.json",
    ]  # fmt: skip
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"
    assert [p.name for p in images.iterdir()] and (images / "1").read_text() == "one "
    assert pipeline.find_run(tmp_path / "out") == tmp_path / ".out.meca"


def test_again_on_the_same_input_nothing_runs(tmp_path, stages, images):
    clean(images, tmp_path / "out")
    before = (tmp_path / "out/data/x.txt").read_bytes()
    told = []
    verbs.clean(str(images), tmp_path / "out", read_params(), None, lambda name, seconds: told.append((name, seconds)))
    assert counts(stages) == [1, 1, 1, 1]
    assert told == [(name, None) for name in stages]
    assert (tmp_path / "out/data/x.txt").read_bytes() == before


def test_a_run_until_a_stage_runs_what_that_needs_and_a_whole_run_goes_on_from_there(tmp_path, stages, images, monkeypatch):
    steps = {**pipeline.graph(), "report": Step(("work/first",), ("report",))}  # reads nothing of the two before it
    monkeypatch.setattr(pipeline, "graph", lambda: steps)
    stages["report"].run = stage("second", (), lambda ctx, first, out: (out / "report.html").write_text("")).run
    params, told = with_settings(read_params(), {"ingest.source": str(images)}), []
    assert pipeline.run(tmp_path / "run", params, told=lambda name, seconds: told.append(name), until="report") == {}
    assert told == ["first", "report"] and not (tmp_path / "run" / "work" / "second").exists()
    assert pipeline.run(tmp_path / "run", params)["verdict"] == "no_evidence" and counts(stages)[:3] == [1, 1, 1]


def test_a_changed_input_is_read_again(tmp_path, stages, images):
    clean(images, tmp_path / "out")
    (images / "2").write_text("six")  # same name, same size
    clean(images, tmp_path / "out")
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE SIX"
    assert counts(stages) == [2, 2, 2, 2]


def test_a_touched_input_is_read_again_and_what_depends_on_its_content_is_not(tmp_path, stages, images):
    clean(images, tmp_path / "out")
    (images / "1").write_text("one ")
    clean(images, tmp_path / "out")
    assert counts(stages) == [2, 1, 1, 1]


def test_a_changed_parameter_runs_what_reads_it(tmp_path, stages, images):
    clean(images, tmp_path / "out")
    clean(images, tmp_path / "out", **{"report.kept_pictures": 3})
    assert counts(stages) == [1, 1, 1, 2]
    clean(images, tmp_path / "out", **{"report.kept_pictures": 3, "publish.name": "other"})
    assert counts(stages) == [1, 1, 2, 2]


@pytest.mark.parametrize("how", ["change", "remove", "receipt"])
def test_a_damaged_result_is_made_again(tmp_path, stages, images, how):
    clean(images, tmp_path / "out")
    run = pipeline.run_folder(tmp_path / "out")
    if how == "change":
        (run / "work/second/b").write_text("forged")
    elif how == "remove":
        (run / "work/second/b").unlink()
    else:
        (run / "work/receipts/second.json").write_text("{half")
    clean(images, tmp_path / "out")
    assert counts(stages) == [1, 2, 1, 1]
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"


def test_changed_code_runs_everything(tmp_path, stages, images, monkeypatch):
    clean(images, tmp_path / "out")
    monkeypatch.setattr(pipeline, "code_digest", lambda: "other")
    clean(images, tmp_path / "out")
    assert counts(stages) == [2, 2, 2, 2]


def test_a_failed_stage_is_resumed_and_nothing_is_published_before(tmp_path, stages, images, monkeypatch):
    works = stages["second"].run

    def fails(ctx, first, out: Output):
        (out / "b").write_text("half")
        raise RuntimeError("killed")

    monkeypatch.setattr(stages["second"], "run", fails)
    with pytest.raises(RuntimeError, match="killed"):
        clean(images, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(stages["second"], "run", works)
    clean(images, tmp_path / "out")
    assert counts(stages) == [1, 1, 1, 1]
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"
    assert not list(tmp_path.rglob("*.tmp"))


def test_foreign_files_in_the_output_are_never_replaced(tmp_path, stages, images):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        clean(images, out)
    assert (out / "thesis.tex").read_text() == "mine" and counts(stages) == [0, 0, 0, 0]
    (out / "thesis.tex").unlink()
    clean(images, out)  # empty: fine
    (out / "note.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        clean(images, out)


@pytest.mark.parametrize("out", ["in", "in/clean", "."])
def test_input_and_output_are_apart(tmp_path, stages, images, out):
    with pytest.raises(UsageError, match=r"to be apart|holds other files"):
        clean(images, tmp_path / out)
    assert counts(stages) == [0, 0, 0, 0]


@pytest.mark.parametrize("name", ["test", "Test", "test_batch", "test-00000-of-00001.parquet", "t10k-images-idx3-ubyte.gz"])
def test_a_test_split_is_refused(tmp_path, stages, name):
    with pytest.raises(InputRefused, match="test split"):
        clean(tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["train", "tests", "latest", "testing-ground"])
def test_other_names_are_not_taken_for_a_test_split(name):
    verbs.refuse_test_split(f"data/{name}")


def test_two_runs_into_one_output_do_not_meet(tmp_path, stages, images):
    from meca.files import lock

    run = pipeline.run_folder(tmp_path / "out")
    with lock(run / ".meca" / "locks" / "run", "it"), pytest.raises(MecaError, match="is being written by process"):
        clean(images, tmp_path / "out")


def test_no_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="finished run"):
        pipeline.find_run(tmp_path)


# --- what somebody else left where meca keeps what a run has finished --------------------------------------------------


def forge(run):
    """Write another result into a finished run, with the hashes that fit it."""
    (run / "work/second/b").write_text("FORGED")
    receipt = run / "work/receipts/second.json"
    record = json.loads(receipt.read_text())
    receipt.write_text(canonical_json({**record, "outputs": {"out": sha256_tree(run / "work/second")}}))
    for name in ("publish", "report"):
        (run / f"work/receipts/{name}.json").unlink()


def as_another_user(monkeypatch, tmp_path):
    monkeypatch.setenv("MECA_STATE_DIR", str(tmp_path.parent / f"{tmp_path.name}-another"))


@pytest.mark.parametrize("whose", ["mine", "of a supplier"])
@pytest.mark.parametrize("how", ["forged", "as it was", "moved"])
def test_a_run_that_this_user_did_not_make_here_decides_nothing(tmp_path, stages, images, monkeypatch, capsys, whose, how):
    clean(images, tmp_path / "out")
    run = pipeline.run_folder(tmp_path / "out")
    if how == "forged":
        forge(run)
    elif how == "moved":
        out, run = tmp_path / "b" / "out", tmp_path / "b" / ".out.meca"
        (tmp_path / "b").mkdir()
        (tmp_path / ".out.meca").rename(run)
    if whose == "of a supplier":
        as_another_user(monkeypatch, tmp_path)
    out = run.with_name("out")
    verbs.clean(str(images), out, read_params(), Progress())
    assert (out / "data/x.txt").read_text() == "ONE TWO"
    said = capsys.readouterr().err
    if whose == "of a supplier" or how == "moved":
        assert counts(stages) == [2, 2, 2, 2] and f"{run} was not written by this user's meca; what is in it is made anew." in said
    elif how == "forged":
        assert (
            counts(stages) == [1, 2, 2, 2]
            and f"{run}/work/receipts/second.json was not written by this user's meca; stage second is run anew." in said
        )
    else:
        assert counts(stages) == [1, 1, 1, 1] and "was not written" not in said


@pytest.mark.parametrize("left", ["identity", "receipts", "seals"])
def test_no_part_of_a_foreign_run_is_believed_without_the_others(tmp_path, stages, images, monkeypatch, left):
    """Forged receipts alone, the identity alone, seals alone: whatever a supplier ships of a run."""
    clean(images, tmp_path / "out")
    run, mine = pipeline.run_folder(tmp_path / "out"), tmp_path / "mine"
    shutil.copytree(run, mine)
    shutil.rmtree(run)
    as_another_user(monkeypatch, tmp_path)
    clean(images, tmp_path / "out")
    for part in {"identity": ["work/receipts", ".meca/seals"], "receipts": [".meca"], "seals": [".meca/identity.json", ".meca/identity.json.seal"]}[
        left
    ]:
        for path in (mine / part).rglob("*") if (mine / part).is_dir() else [mine / part]:
            if path.is_file():
                shutil.copyfile(path, run / path.relative_to(mine))
    before = counts(stages)
    clean(images, tmp_path / "out")
    again = [now - then for now, then in zip(counts(stages), before, strict=True)]
    assert again == [1, 1, 1, 1] and (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"


def test_a_seal_of_one_stage_or_input_is_none_of_another(tmp_path, stages, images):
    clean(images, tmp_path / "out")
    run = pipeline.run_folder(tmp_path / "out")
    old = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (images / "2").write_text("six")
    clean(images, tmp_path / "out")
    now = run / ".meca/identity.json"
    for path, data in old.items():  # all that was true of the input of before, beside the identity of today
        if path.parent.name in ("seals", "receipts") or path.is_relative_to(run / "work"):
            path.write_bytes(data)
    assert now.read_bytes() != old[now]
    clean(images, tmp_path / "out")
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE SIX"


LINKS = ["", "work", "work/receipts", "work/second", "published", "report", ".meca", ".meca/locks", ".meca/seals", ".meca/checkpoints",
         "work/receipts/second.json", "work/second/b", "published/data/x.txt", ".meca/identity.json", "source", "anything"]  # fmt: skip


@pytest.mark.parametrize("name", LINKS)
def test_a_link_in_a_run_is_refused_and_what_it_leads_to_stays(tmp_path, stages, images, capsys, name):
    (tmp_path / "mine").mkdir()
    for part in ("published", "report", "work/receipts", "work/second", "locks"):
        (tmp_path / "mine" / part).mkdir(parents=True)
        (tmp_path / "mine" / part / "thesis").write_text("mine")
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    run = tmp_path / ".out.meca"
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(tmp_path / "mine")
    assert cli.run(["clean", str(images), "-o", str(tmp_path / "out")]) == options.USAGE
    place = str(run / name) if name else str(run)
    assert f"{place} is a link, which meca does not follow. Remove it, or choose another place to write to." in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == before
    assert counts(stages) == [0, 0, 0, 0] and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["out", ".out.tmp", ".out.old", ".out.planting"])
@pytest.mark.parametrize("verb", [["clean"], ["poison", "--attack", "badnet"]])
def test_a_link_beside_the_output_is_refused_and_what_it_leads_to_stays(tmp_path, stages, images, capsys, name, verb):
    (tmp_path / "mine" / "data").mkdir(parents=True)
    (tmp_path / "mine" / "data" / "thesis").write_text("mine")
    (tmp_path / name).symlink_to("mine")
    assert cli.run([verb[0], str(images), "-o", str(tmp_path / "out"), *verb[1:]]) == options.USAGE
    assert f"{tmp_path / name} is a link, which meca does not follow" in capsys.readouterr().err
    assert [path.relative_to(tmp_path / "mine").as_posix() for path in (tmp_path / "mine").rglob("*")] == ["data", "data/thesis"]


def test_a_second_name_of_a_file_of_mine_is_not_written_through(tmp_path, stages, images):
    """What is replaced gets a new file, and a lock, which is written in place, is refused."""
    clean(images, tmp_path / "out")
    for name in (
        "work/receipts/second.json", "work/second/b", "published/data/x.txt", ".meca/identity.json", ".meca/identity.json.seal",
        ".meca/identity.json.tmp", ".meca/seals/second.seal", ".meca/locks/run",
    ):  # fmt: skip
        path = tmp_path / ".out.meca" / name
        (tmp_path / "mine").write_text("mine")
        path.unlink(missing_ok=True)
        os.link(tmp_path / "mine", path)
        if path.parent.name == "locks":
            with pytest.raises(UsageError, match="no file of its own"):
                clean(images, tmp_path / "out")
        else:
            clean(images, tmp_path / "out")
        assert (tmp_path / "mine").read_text() == "mine", path
    assert (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"


def test_a_pipe_in_a_run_is_refused_and_nobody_waits(tmp_path, stages, images):
    for name in ("work/receipts/second.json", ".meca/identity.json", ".meca/locks/run", "work/second"):
        path = tmp_path / ".out.meca" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(path)
        with pytest.raises(UsageError, match="is no folder and no file"):
            clean(images, tmp_path / "out")
        path.unlink()


def test_where_no_secret_can_be_kept_a_run_is_made_anew_and_says_so(tmp_path, stages, images, monkeypatch, capsys):
    monkeypatch.setenv("MECA_STATE_DIR", "/dev/null/nowhere")
    for n in (1, 2):
        state._secret.cache_clear()  # another process
        verbs.clean(str(images), tmp_path / "out", read_params(), Progress())
        assert counts(stages) == [n] * 4 and capsys.readouterr().err.count("meca has no secret of its own here (") == 1
    with pytest.raises(UsageError, match=r"is not as this user's meca left it, .* name \.out\.meca itself instead of the output"):
        state._secret.cache_clear()
        pipeline.find_run(tmp_path / "out")


@pytest.mark.parametrize("dies_at", range(1, 11))
def test_a_kill_at_any_write_of_receipts_and_seals_costs_one_stage_at_most_and_says_nothing(tmp_path, stages, images, monkeypatch, capsys, dies_at):
    real, calls = state.atomic_write, []

    def die(path, data):
        calls.append(path)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        real(path, data)

    monkeypatch.setattr(state, "atomic_write", die)
    with pytest.raises(KeyboardInterrupt):
        clean(images, tmp_path / "out")
    verbs.clean(str(images), tmp_path / "out", read_params(), Progress())
    assert sum(counts(stages)) <= len(stages) + 1 and (tmp_path / "out/data/x.txt").read_text() == "ONE TWO"
    assert "was not written" not in capsys.readouterr().err


@pytest.mark.parametrize("what", ["of a supplier", "changed", "a receipt", "moved", "as a link"])
def test_a_run_beside_an_output_is_read_if_it_is_mine_alone(tmp_path, stages, images, monkeypatch, capsys, what):
    clean(images, tmp_path / "out")
    run = pipeline.run_folder(tmp_path / "out")
    assert pipeline.find_run(tmp_path / "out") == run
    if what == "of a supplier":
        as_another_user(monkeypatch, tmp_path)
    elif what == "changed":
        (run / "published/data/x.txt").unlink()
        (run / "published/data/x.txt").write_text("FORGED")
    elif what == "a receipt":  # of a stage whose output is not read; but the page takes its numbers from it
        (run / "work/receipts/report.json").write_text("{}")
    elif what == "moved":
        run.rename(tmp_path / ".other.meca")
        (tmp_path / "out").rename(tmp_path / "other")
    else:
        run.rename(tmp_path / "elsewhere")
        run.symlink_to("elsewhere")
    out = tmp_path / ("other" if what == "moved" else "out")
    with pytest.raises(UsageError, match=r"is a link" if what == "as a link" else r"is not as this user's meca left it, so nothing is read from it"):
        pipeline.find_run(out)
    page = (out / "report.html").read_bytes()
    assert cli.run(["report", str(out)]) == options.USAGE and (out / "report.html").read_bytes() == page
    if what != "as a link":
        assert pipeline.find_run(pipeline.run_folder(out)) == pipeline.run_folder(out), "what the user names is the user's choice"


def test_evaluate_reads_no_figures_that_somebody_else_left(tmp_path, stages, images, monkeypatch, capsys):
    (tmp_path / ".out.meca/work/evaluate").mkdir(parents=True)
    (tmp_path / ".out.meca/published").mkdir()
    (tmp_path / ".out.meca/work/evaluate/evaluation.json").write_text('{"known": false, "final": null, "unknown": []}')
    monkeypatch.setitem(pipeline.graph(), "evaluate", Step((), ("work/evaluate",)))
    assert cli.run(["evaluate", str(tmp_path / "out")]) == options.USAGE
    assert "is not as this user's meca left it" in capsys.readouterr().err
    assert cli.run(["evaluate", str(tmp_path / ".out.meca")]) == options.DONE


def poison(ctx, ingested, store: Output, truth: Output):
    shutil.copytree(ingested, store, dirs_exist_ok=True)
    (truth / "attack.json").write_text('{"attack": "none"}')


def partition(ctx, store, out: Output):
    ids = open_store(store).ids[open_store(store).train]
    suspicion = np.linspace(0, 1, len(ids), dtype=np.float32)
    pq.write_table(
        pa.table({"row": np.arange(len(ids)), "sample_id": ids, "suspicion": suspicion, "likely_clean": suspicion < 0.5}), out / "scores.parquet"
    )


def enhance(ctx, store, partition, out: Output):
    shutil.copy(partition / "scores.parquet", out)


def split(ctx, store, partition, enhance, out: Output):
    scores, labels = pq.read_table(enhance / "scores.parquet"), open_store(store).labels
    suspicion, n = scores["suspicion"].to_numpy(), scores.num_rows
    action = np.select([suspicion > 0.95, suspicion > 0.9, suspicion > 0.85], ["remove", "relabel", "quarantine"], "keep")
    verdict = np.select([suspicion > 0.9, suspicion > 0.85], ["poisoned", "review"], "clean")
    decisions = {
        "row": np.arange(n), "sample_id": scores["sample_id"], "label": labels[:n], "verdict": verdict, "action": action,
        "new_label": pa.array(np.where(action == "relabel", 1 - labels[:n], -1), mask=action != "relabel"), "suspicion": suspicion,
        "enhanced_pred": labels[:n], "clean_pred": pa.nulls(n, pa.int64()), "reasons": pa.array([[]] * n, pa.list_(pa.string())),
    }  # fmt: skip
    pq.write_table(pa.table(decisions), out / "decisions.parquet")
    found = {"verdict": "poisoned", "reason": "Planted by this test.", "target_class": 1, "estimated_rate": {"value": 0.1, "low": 0.05, "high": 0.2}}
    (out / "verdict.json").write_text(json.dumps({**found, "caps": [], "leak": None}))


def train_clean(ctx, store, split, out: Output):
    (out / "model.json").write_text("{}")
    (out / "model.safetensors").write_bytes(b"weights")


def relabel_finetune(ctx, store, partition, split, train_clean, out: Output):
    for file in (*split.iterdir(), *train_clean.iterdir()):
        shutil.copy(file, out)


def evaluate(ctx, store, truth, partition, enhance, split, train_clean, relabel_finetune, out: Output):
    (out / "evaluation.json").write_text('{"known": false, "final": null, "unknown": ["all"]}')


@pytest.fixture
def method(monkeypatch):
    """The stages of the method, replaced by rules that take no time; ingest, publish and report are the real ones."""
    for run in (poison, partition, enhance, split, train_clean, relabel_finetune, evaluate):
        module: Any = types.ModuleType(f"meca.stages.{run.__name__}")
        module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
        module.run = run
        monkeypatch.setitem(sys.modules, module.__name__, module)


def photographs(folder, n=30):
    rng = np.random.default_rng(0)
    for name in ("cat[b]", "<script>"):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(folder / name / f"{i}.jpg")
    (folder / "cat[b]" / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    return folder


@pytest.mark.parametrize(("size", "is_reduced"), [(16, True), (32, False), (0, False)])
def test_a_size_below_that_of_the_images_is_said_before_the_work_and_after_it(tmp_path, method, capsys, size, is_reduced):
    folder = photographs(tmp_path / "in")
    for _ in range(2):  # the second time every stage is finished
        assert cli.run(["clean", str(folder), "-o", str(tmp_path / "out"), "--set", f"ingest.size={size}"]) == 1
        said = capsys.readouterr()
        if is_reduced:
            before, _, after = said.err.partition("Warning: Images are judged at 16 x 16 pixels (ingest.size). Larger ones: 60, up to 24 x 20.")
            assert "poison  " in before and "partition  " in after and "partition  " not in before
            assert ", judged at 16 x 16 pixels," in said.out and "Warning       Images are judged at 16 x 16 pixels" in said.out
        else:
            assert "judged at" not in said.err + said.out


def test_a_folder_is_cleaned_verified_reported_and_resumed(tmp_path, method, capsys):
    folder, out = photographs(tmp_path / "in"), tmp_path / "out"
    before = {path: path.read_bytes() for path in folder.rglob("*.jpg")}
    assert cli.run(["clean", str(folder), "-o", str(out), "--json"]) == 1
    captured = capsys.readouterr()
    summary = json.loads(captured.out)
    counts = summary["counts"]
    assert counts["input"] == 61 == sum(counts[key] for key in ("kept", "relabelled", "removed", "quarantined"))
    assert counts["removed"] and counts["relabelled"]
    published = {path.read_bytes() for path in (out / "data").rglob("*") if path.is_file()}
    assert len(published) == counts["kept"] + counts["relabelled"] and published <= set(before.values())
    assert {path: path.read_bytes() for path in folder.rglob("*.jpg")} == before

    assert cli.run(["verify", str(out)]) == 0
    page = (out / "report.html").read_text()
    assert "&lt;script&gt;" in page and "<script" not in page
    assert cli.run(["report", str(out), "-o", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_text() == page
    assert cli.run(["evaluate", str(out)]) == 0
    assert "no accuracy can be given" in capsys.readouterr().out

    first = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cli.run(["clean", str(folder), "-o", str(out), "--exit-zero"]) == 0
    assert capsys.readouterr().err.count("unchanged") == len(pipeline.graph())
    assert {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()} == first

    victim = next(path for path in (out / "data").rglob("*") if path.is_file())
    victim.unlink()  # not written through: it shares its bytes with the run folder
    victim.write_bytes(b"exchanged")
    assert cli.run(["verify", str(out), "--json"]) == 1
    assert victim.name in capsys.readouterr().out


def test_two_folders_of_the_same_images_give_the_same_bytes(tmp_path, method, capsys):
    folder = photographs(tmp_path / "in")
    for name in ("one", "two"):
        assert cli.run(["clean", str(folder), "-o", str(tmp_path / name)]) == 1
    one, two = ({p.relative_to(tmp_path / n): p.read_bytes() for p in (tmp_path / n).rglob("*") if p.is_file()} for n in ("one", "two"))
    assert one == two
