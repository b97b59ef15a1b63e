"""The bare pipeline: the same DAG as dvc.yaml, resumed where it stands, published in one step."""

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import pytest
import yaml

from meca import pipeline
from meca.errors import InputRefused, MecaError, UsageError
from meca.params import read_params, with_settings

ROOT = Path(__file__).parents[1]
CODE = ("meca/", "tasks/", "flows/")


def test_the_table_is_the_dag_of_dvc_yaml():
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    stages.pop("track")
    assert list(stages) == list(pipeline.STEPS)
    for name, (reads, writes) in pipeline.STEPS.items():
        depends = [path for path in stages[name].get("deps") or () if not path.startswith(CODE)]
        assert sorted(depends) == sorted(reads), name
        outs = [out if isinstance(out, str) else next(iter(out)) for out in (*stages[name]["outs"], *stages[name].get("metrics", ()))]
        assert [out for out in outs if not out.startswith("work/receipts/")] == list(writes), name


@pytest.mark.parametrize("name", list(pipeline.STEPS))
def test_every_stage_takes_the_folders_of_the_table(name):
    module = importlib.import_module(f"meca.stages.{name}")
    paths = pipeline.paths_of(module, name, Path("run"))
    reads, writes = pipeline.STEPS[name]
    assert sorted(paths.values()) == sorted(Path("run", path) for path in (*reads, *writes))


def stage(name, groups, body):
    """Return a stage module that counts how often it ran; `body` gets (ctx, **paths)."""
    module = types.ModuleType(f"meca.stages.{name}")
    module.__spec__ = importlib.machinery.ModuleSpec(module.__name__, None)
    module.GROUPS, module.OUTPUTS, module.runs = groups, ("out",), 0
    source, values = {"first": "", "second": "first, ", "publish": "second, ", "report": "published, "}[name], {"body": body, "module": module}
    exec(f"def run(ctx, {source}out):\n    module.runs += 1\n    body(ctx, **{{k: v for k, v in locals().items() if k != 'ctx'}})", values)
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
            json.dumps({"verdict": "no_evidence", "sentence": "s", "counts": {}, "attack": ctx.params.raw("poison")["attack"]})
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
        "first": ((), ("work/first",)),
        "second": (("work/first",), ("work/second",)),
        "publish": (("work/second",), ("published",)),
        "report": (("published",), ("report",)),
    }
    monkeypatch.setattr(pipeline, "STEPS", steps)
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
    return pipeline.clean(str(images), out, with_settings(read_params(), settings))


def test_clean_publishes_in_one_folder_and_never_poisons(tmp_path, stages, images):
    summary = clean(images, tmp_path / "out", **{"poison.attack": "badnet"})
    assert summary["attack"] == "none"
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
    pipeline.clean(str(images), tmp_path / "out", read_params(), None, lambda name, seconds: told.append((name, seconds)))
    assert counts(stages) == [1, 1, 1, 1]
    assert told == [(name, None) for name in stages]
    assert (tmp_path / "out/data/x.txt").read_bytes() == before


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
    monkeypatch.setattr(pipeline, "_code", lambda: "other")
    clean(images, tmp_path / "out")
    assert counts(stages) == [2, 2, 2, 2]


def test_a_failed_stage_is_resumed_and_nothing_is_published_before(tmp_path, stages, images, monkeypatch):
    works = stages["second"].run

    def fails(ctx, first, out):
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
    pipeline.refuse_test_split(f"data/{name}")


def test_two_runs_into_one_output_do_not_meet(tmp_path, stages, images):
    from meca.files import lock

    run = pipeline.run_folder(tmp_path / "out")
    with lock(run / ".meca" / "locks" / "run", "it"), pytest.raises(MecaError, match="is being written by process"):
        clean(images, tmp_path / "out")


def test_no_run_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="finished run"):
        pipeline.find_run(tmp_path)
