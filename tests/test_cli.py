"""The command line: what it imports, what it prints, and an exit code for every end."""

import errno
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import cli, demo, doctor
from flows.cli import console
from meca import verbs
from meca.data.store import read_parquet
from meca.errors import Inconclusive, InputRefused, MecaError
from meca.power import not_run
from meca.report.console import evaluation_lines, verdict_lines
from tests.data.readers.test_archives import make_tar
from tests.data.readers.test_lists import make_list
from tests.data.readers.test_readers import make_idx
from tests.data.readers.test_webdataset import make_web
from tests.making import ingest, make_folder, make_shards
from tests.report.fixture import make_run

HEAVY = {"numpy", "pyarrow", "torch", "prefect", "mlflow", "dvc", "boto3", "matplotlib", "PIL", "jinja2", "pandas", "sklearn"}
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2066-\u2069]")
HOSTILE = "\x1b]8;;http://evil\x07\u202ecat[/]\nmeca: forged"


def python(code, *argv, **changes):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **changes}
    return subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, env=environment, timeout=120)


def imported(*argv):
    code = (
        "import sys; from flows.cli import run; code = run(sys.argv[1:]); print(code, *{m.partition('.')[0] for m in sys.modules}, file=sys.stderr)"
    )
    code, *modules = python(code, *argv).stderr.splitlines()[-1].split()
    return int(code), set(modules)


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--help"], 0),
        ([], 0),
        (["--version"], 0),
        (["clean", "--help"], 0),
        (["demo", "--help"], 0),
        (["poison", "--help"], 0),
        (["benchmark", "--help"], 0),
        (["apply", "--help"], 0),
        (["sign", "--help"], 0),
        (["apply", "x"], 4),
        (["clen"], 4),
        (["clean", "x"], 4),
        (["clean", "x", "-o", "y", "--preset", "best"], 4),
        (["clean", "x", "-o", "y", "--bogus"], 4),
    ],
)
def test_help_version_and_usage_errors_import_nothing_heavy(argv, expected):
    code, modules = imported(*argv)
    assert code == expected
    assert not modules & HEAVY


def test_verify_imports_neither_torch_nor_a_platform(tmp_path):
    code, modules = imported("verify", str(tmp_path))
    assert code == 1  # an empty folder is no published one
    assert not modules & {"torch", "prefect", "mlflow", "dvc", "boto3", "matplotlib"}


def summary(verdict="poisoned", name="cat"):
    return {
        "verdict": verdict, "sentence": f"Of {name}.", "reason": "Because.", "warnings": [f"beware of {name}"],
        "target_class": {"label": 3, "name": name},
        "counts": {"input": 10, "kept": 7, "relabelled": 1, "removed": 1, "quarantined": 1},
    }  # fmt: skip


@pytest.fixture
def cleaned(monkeypatch, tmp_path):
    """`clean` without the work: returns a verdict, or raises; says what it was called with."""
    calls = []

    def use(result):
        def clean(source, out, params, progress, told, key=None):
            calls.append((source, out, params))
            if isinstance(result, BaseException):
                raise result
            return result

        monkeypatch.setattr(verbs, "clean", clean)
        return calls

    return use


def clean(*more):
    return cli.run(["clean", "shapes", "-o", "out", *more])


@pytest.mark.parametrize(("verdict", "expected"), [("no_evidence", 0), ("weak", 0), ("poisoned", 1), ("inconclusive", 5)])
def test_the_exit_code_is_the_verdict(cleaned, capsys, verdict, expected):
    cleaned(summary(verdict))
    assert clean() == expected
    assert "7 kept, 1 relabelled, 1 removed, 1 quarantined of 10" in capsys.readouterr().out
    assert clean("--exit-zero") == 0
    assert clean("--fail-on", "weak") == (5 if verdict == "weak" else expected)


def test_what_contradicts_itself_is_refused_before_the_work(cleaned, capsys):
    calls = cleaned(summary("weak"))
    assert clean("--fail-on", "weak", "--exit-zero") == clean("--fail-on", "poisoned") == 4
    assert "Expected --fail-on or --exit-zero, got both" in capsys.readouterr().err and calls == []


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (InputRefused("a bomb"), 3),
        (MecaError("disk is full"), 2),
        (Inconclusive("no"), 5),
        (RuntimeError("unforeseen"), 2),
        (MemoryError(), 2),
        (KeyboardInterrupt(), 130),
    ],
)
def test_no_failure_looks_like_a_verdict(cleaned, capsys, error, expected):
    cleaned(error)
    assert clean("--exit-zero") == expected
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("meca: ") and "Traceback" not in captured.err


def test_an_unforeseen_failure_says_where_its_traceback_is(cleaned, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cleaned(ZeroDivisionError("so\x1b[31mbad at https://somebody:hidden@host/x?token=hidden"))
    assert clean() == 2
    err = capsys.readouterr().err
    (kept,) = tmp_path.iterdir()
    assert str(kept) in err and "ZeroDivisionError" in err and "\x1b" not in err
    assert "Traceback (most recent call last)" in kept.read_text()
    assert "https://host/x" in err and "hidden" not in err + kept.read_text()


def test_a_full_disk_is_a_sentence_and_no_traceback(cleaned, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    cleaned(OSError(errno.ENOSPC, "No space left on device", "out/x"))
    assert clean() == 2
    assert capsys.readouterr().err.startswith("meca: Could not go on at out/x: the disk is full; make room") and not list(tmp_path.iterdir())


def test_json_is_one_object_with_the_keys_of_the_summary(cleaned, capsys):
    cleaned(summary(name=HOSTILE))
    assert clean("--json") == 1
    out = capsys.readouterr().out
    assert json.loads(out) == summary(name=HOSTILE)
    assert out.isascii() and not CONTROLS.search(out)


def test_settings_reach_the_parameters(cleaned):
    calls = cleaned(summary())
    assert clean("--preset", "paper", "--set", "seed=7", "--set", "ingest.size=16", "--format", "parquet") == 1
    ((source, out, params),) = calls
    assert (source, out) == ("shapes", Path("out"))
    assert (params.preset, params.seed, params.raw("ingest")["size"], params.raw("ingest")["format"]) == ("paper", 7, 16, "parquet")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--set", "ingest.sze=1"], "did you mean 'ingest.size'"),
        (["--set", "size"], "Expected --set group.key=value"),
        (["--params", "/no/such.yaml"], "Expected a parameter file"),
    ],
)
def test_wrong_configuration_is_4(cleaned, capsys, more, message):
    cleaned(summary())
    assert clean(*more) == 4
    assert message in capsys.readouterr().err


def test_a_path_that_is_not_there_is_4(capsys, tmp_path):
    assert cli.run(["clean", str(tmp_path / "nothing"), "-o", str(tmp_path / "out")]) == 4
    assert cli.run(["inspect", str(tmp_path / "nothing")]) == 4
    assert cli.run(["verify", str(tmp_path / "nothing")]) == 4
    assert cli.run(["report", str(tmp_path)]) == 4
    assert capsys.readouterr().out == ""


def test_a_test_split_is_refused(tmp_path, capsys):
    (tmp_path / "test").mkdir()
    assert cli.run(["clean", str(tmp_path / "test"), "-o", str(tmp_path / "out")]) == 3
    assert "test split" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def images(folder, classes=("cat", "dog"), n=4):
    rng = np.random.default_rng(0)
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i in range(n):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(folder / name / f"{i}.png")
    return folder


def test_inspect_shows_a_folder_and_its_hostile_names_as_text(tmp_path, capsys):
    folder = images(tmp_path / "in", ("cat[b]", "<b>", "$x^"))
    (folder / "<b>" / "\x1b]8;;x\x07.png").write_bytes(b"no image")
    assert cli.run(["inspect", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "cat[b]" in out and "imagefolder" in out and "]8;;x.png" in out
    assert not CONTROLS.search(out)
    assert cli.run(["inspect", str(folder), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert sum(found["samples"].values()) >= 12
    assert cli.run(["inspect", str(images(tmp_path / "bad", ("\x1b[31mred", "x")))]) == 3
    err = capsys.readouterr().err
    assert err.startswith("meca: ") and not CONTROLS.search(err)


def test_inspect_knows_numbered_shards_and_asks_between_two_layouts(tmp_path, capsys):
    root = make_web(tmp_path / "in")
    assert cli.run(["inspect", str(root / "train-{000..001}.tar")]) == 0
    assert "--format webdataset" in capsys.readouterr().out
    both = make_list(images(tmp_path / "both"), "list.csv", category=["x", "y"] * 3 + ["x"])
    assert cli.run(["inspect", str(both)]) == 4
    assert "could be imagefolder or manifest; say which with --format" in capsys.readouterr().err
    assert cli.run(["inspect", str(both), "--format", "manifest"]) == 4
    assert "ingest.label_column" in capsys.readouterr().err
    assert cli.run(["inspect", str(both), "--format", "manifest", "--label-column", "category"]) == 0
    assert "--format manifest --set ingest.label_column=category" in capsys.readouterr().out


def test_inspect_refuses_what_it_cannot_read(tmp_path, capsys):
    (tmp_path / "x.bin").write_bytes(b"nothing")
    assert cli.run(["inspect", str(tmp_path / "x.bin")]) in (3, 4)
    assert capsys.readouterr().err.startswith("meca: ")


def poison(source, out, *more):
    return cli.run(["poison", str(source), "-o", str(out), "--rate", "0.3", "--set", "poison.cap=1.0", *more])


def archive_of(root):
    """Pack a folder of class folders into a tar archive."""
    folder = make_folder(root.parent / "packed", split_folders=False)
    content = {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*.jpeg"))}
    shutil.rmtree(folder)
    return make_tar(root / "x.tar", content).parent


@pytest.mark.parametrize(
    "make",
    [make_folder, make_shards, make_idx, make_list, archive_of, make_web],
    ids=["imagefolder", "parquet", "idx", "manifest", "tar", "webdataset"],
)
def test_poison_gives_the_set_back_in_its_format_and_the_truth_beside_it(make, tmp_path, capsys):
    source, out = make(tmp_path / "in"), tmp_path / "out"
    before = ingest(source, tmp_path / "before", size=0)
    assert poison(source, out, "--attack", "badnet", "--seed", "4", "--set", "poison.patch_size=2") == 0
    said = capsys.readouterr().out
    assert "badnet, to class 1" in said and str(out / "data") in said and str(out / "truth") in said
    after = ingest(out / "data", tmp_path / "after", size=0)
    assert after.info.source["format"] == before.info.source["format"] and after.info.n_train == before.info.n_train
    truth = read_parquet(out / "truth" / "truth.parquet")
    record = json.loads((out / "truth" / "attack.json").read_text())
    named = dict(zip(after.ids, zip(after.labels, np.array(after.images), strict=True), strict=True))
    old = dict(zip(before.ids, before.labels, strict=True))
    assert record["poisoned"] == sum(truth["is_poisoned"].to_pylist()) > 0
    for name, is_poisoned in zip(truth["sample_id"].to_pylist(), truth["is_poisoned"].to_pylist(), strict=True):
        label, image = named[name]
        if is_poisoned:
            assert label == 1 and image[-1, -1].min() > 200 and name not in old
        else:
            assert old[name] == label, "the others keep their bytes and their label"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["after", "before", "in", "out"], "nothing is left behind"


def test_poison_prints_its_record_as_json_and_replaces_only_its_own(tmp_path, capsys):
    source, out = images(tmp_path / "in", ("cat", "dog"), n=10), tmp_path / "out"
    assert poison(source, out, "--attack", "sig", "--json", "--set", "poison.sig_frequency=1") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["attack"] == "sig" and record["clean_label"] and record["poisoned"] == 6
    assert poison(source, out, "--attack", "none", "--set", "poison.label_noise=0.1") == 0
    assert "Wrong labels  2" in capsys.readouterr().out
    assert not (out / "truth" / "triggered.npy").exists(), "the older truth is gone"
    (out / "mine.txt").write_text("of the user")
    assert poison(source, out, "--attack", "badnet") == 4
    assert "holds other files" in capsys.readouterr().err and (out / "mine.txt").exists()


@pytest.mark.parametrize(
    ("more", "expected", "sentence"),
    [
        (["--attack", "badnets"], 4, r"expected poison\.attack to be one of none, badnet, .*got 'badnets'; did you mean 'badnet'"),
        ([], 4, "--attack"),
        (["--attack", "badnet", "--target", "7"], 3, r"Expected poison\.target_class in 0\.\.1, got 7"),
        (["--attack", "tact"], 3, r"set poison\.cover_rate to 0\.0|poison\.cover_rate"),
        (["--attack", "badnet", "--set", "poison.imbalance=2.0"], 4, r"poison\.imbalance to be in \(0, 1\]"),
        (["--attack", "badnet", "--set", "poison.rat=2.0"], 4, r"did you mean 'poison\.rate'"),
        (["--attack", "badnet", "--target", "dogs"], 4, r"to be a class of this data or its index, got 'dogs'; did you mean 'dog'"),
        (["--attack", "badnet", "--test"], 3, r"Expected a split test in the data, found none"),
        (["--attack", "badnet", "--set", "ingest.size=64"], 4, r"Expected no ingest\.size here: the trigger is planted at the size of each image"),
    ],
)
def test_poison_says_in_a_sentence_why_it_cannot(more, expected, sentence, tmp_path, capsys):
    source = images(tmp_path / "in", n=60)
    assert poison(source, tmp_path / "out", *more) == expected
    assert re.search(sentence, capsys.readouterr().err)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_evaluate_prints_every_convention_of_an_attack(capsys):
    figures = {"acc": 0.9, "asr": 0.8, "asr_k": 8, "asr_n": 10, "asr_interval": [0.5, 0.95]}
    lines = evaluation_lines({"final": figures | {"asr_all": 0.4, "asr_leak": 0.1}})
    assert "final        ASR of all classes: 40.0 %" in lines and "final        ASR of neither source nor target: 10.0 %" in lines
    each = [{"target_class": 1, "asr": 0.8}, {"target_class": 5, "asr": 0.2}]
    assert "no defence   ASR of trigger to class 5: 20.0 %" in evaluation_lines({"no_defence": figures | {"per_trigger": each}})


def test_evaluate_tells_what_is_known_and_what_is_not(tmp_path, capsys):
    known, unknown = make_run(tmp_path / "known"), make_run(tmp_path / "unknown", truth=False)
    assert cli.run(["evaluate", str(known)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^final .* of 9\d ", out, re.M) and re.search(r"^TPR +\d+\.\d %$", out, re.M) and "oracle" in out
    assert cli.run(["evaluate", str(unknown)]) == 0
    out = capsys.readouterr().out
    assert "Cannot be known without the truth: the attack success rate" in out and "TPR" not in out
    assert cli.run(["evaluate", str(known), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["known"] is True


def test_report_writes_the_page_again_and_says_where(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    assert cli.run(["report", str(folder)]) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == folder / "report/report.html" and path.read_text().startswith("<!DOCTYPE html>")
    assert cli.run(["report", str(folder), "-o", str(tmp_path / "page.html")]) == 0
    assert (tmp_path / "page.html").read_bytes() == path.read_bytes()


def test_nothing_from_data_reaches_the_terminal_as_a_control(capsys):
    lines = [
        *verdict_lines(summary(name=HOSTILE)),
        *evaluation_lines({"unknown": [HOSTILE], "final": None}),
    ]
    console.say(*lines)
    out = capsys.readouterr().out
    assert "cat[/]" in out and not CONTROLS.search(out)
    assert len(out.splitlines()) == len(lines)  # a name forges no second line


def test_each_signal_has_its_exit_code():
    code = """
import signal, sys, time
from meca import verbs
def clean(*_):
    print("ready", signal.getsignal(signal.SIGHUP) == signal.SIG_IGN, flush=True)
    time.sleep(60)
verbs.clean = clean
sys.argv = ["meca", "clean", "shapes", "-o", "out"]
from flows.cli import main
main()
"""

    def sent(number, **options):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
        assert process.stdout
        word, ignored = process.stdout.readline().split()
        process.send_signal(number)
        process.communicate(timeout=60)
        return word, ignored, process.returncode

    def usual():  # these tests may run under `nohup` themselves
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    for number, expected in ((signal.SIGTERM, 143), (signal.SIGHUP, 143), (signal.SIGINT, 130)):
        assert sent(number, preexec_fn=usual) == ("ready", "False", expected)
    # Under `nohup` a terminal that closes ends nothing.
    assert sent(signal.SIGTERM, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)) == ("ready", "True", 143)


def test_output_survives_a_terminal_that_knows_ascii_only(tmp_path):
    folder = images(tmp_path / "in", ("名前", "é"))
    code = "import sys; sys.argv[0] = 'meca'; from flows.cli import main; main()"
    done = python(code, "inspect", str(folder), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def platform(monkeypatch):
    """The modules of the platform, replaced: their own tests run them for real."""

    def use(**functions):
        for name, members in functions.items():
            module = types.ModuleType(name)
            for member, value in members.items():
                setattr(module, member, value)
            package, _, leaf = name.replace("__", ".").rpartition(".")
            monkeypatch.setitem(sys.modules, f"{package}.{leaf}", module)
            monkeypatch.setattr(importlib.import_module(package), leaf, module, raising=False)

    return use


def test_promote_refused_by_a_gate_is_5_and_names_it(platform, tmp_path, capsys):
    def refuse(path, **options):
        raise Inconclusive("Not promoted: acc is 0.4, 0.1 below 0.5 [promote.min_acc].")

    platform(tasks__mlflow__registry={"promote": refuse})
    assert cli.run(["promote", str(tmp_path)]) == 5
    assert "0.1 below" in capsys.readouterr().err
    outcome = {"model": "meca-clean", "version": "3", "alias": "champion", "gates": [{"sentence": "fine"}], "warnings": []}
    platform(tasks__mlflow__registry={"promote": lambda path, **options: outcome})
    assert cli.run(["promote", str(tmp_path)]) == 0
    assert "meca-clean version 3 is champion" in capsys.readouterr().out


@pytest.mark.parametrize("refused", [False, True])
def test_demo_ends_with_the_path_of_the_page(platform, tmp_path, capsys, refused):
    made = {}

    def create(folder, settings):
        made.update(settings)
        return make_run(folder)

    def promote(path):
        if refused:
            raise Inconclusive("Not promoted: no.")
        return {"model": "m", "version": "1", "alias": "champion"}

    stages = {"ingest": {"outcome": "ran", "seconds": 1.0}}
    platform(
        tasks__dvc__workspace={"create": create},
        tasks__mlflow__registry={"promote": promote},
        flows__sanitize={"run": lambda place: {"stages": stages}},
    )
    assert cli.run(["demo", "--data", "cifar10", "--folder", str(tmp_path / "w"), "--set", "seed=3"]) == (5 if refused else 0)
    out = capsys.readouterr().out
    assert out.rstrip().splitlines()[-1] == str(tmp_path / "w/report/report.html")
    assert "no defence" in out and "oracle" in out and "TPR" in out and "FPR" in out and "ingest" in out
    assert made["seed"] == "3" and made["ingest.train_limit"] == 10_000 and made["poison.attack"] == "badnet"


def test_what_is_given_to_demo_wins():
    assert demo.settings_for("cifar10", {"poison.attack": "sig"})["poison.attack"] == "sig"
    settings = demo.settings_for("shapes", {"train_clean.epochs": 3})
    assert settings["train_clean.epochs"] == 3 and settings["ingest.source"] == "shapes" and settings["poison.attack"] == "badnet"


def test_the_control_of_a_demonstration_is_small_and_it_says_so():
    settings = demo.settings_for("digits", {})
    assert (settings["control.kinds"], settings["control.rates"]) == (["badnet"], [0.05])
    assert demo.settings_for("digits", {"control.rates": "[0.1]"})["control.rates"] == "[0.1]"
    outcome = {**summary("poisoned"), "evaluation": {}, "stages": {}, "promotion": {"refused": "no"}, "report": "page"}
    said = "\n".join(demo.lines(outcome | {"control": not_run("the verdict is poisoned, and control.when is no_evidence")}))
    assert "Control       small in a demonstration: one patch at 5 % of all samples, in one copy; not run, because the verdict is poisoned" in said


def test_benchmark_hands_its_axes_over_and_says_where_the_tables_are(platform, capsys, tmp_path):
    asked = []

    def measure(plan, output, workers, keep, say):
        asked.append((plan, output, workers, keep))
        say("1 cells")
        return {"cells": 1, "measured": 1, "results": "r.jsonl", "tables": ["r.md"]}

    platform(flows__benchmark={"run": measure})
    argv = ["benchmark", "--data", "digits", "--data", "cifar10:10000", "--attack", "sig", "--rate", "0.01", "--rate", "0.1", "--seed", "3"]
    argv += ["--preset", "paper", "--network", "resnet34:cifar", "--partition-rate", "0.3", "--workers", "2", "--set", "split.least_flips=0.4"]
    assert cli.run([*argv, "-o", str(tmp_path / "r.jsonl")]) == 0
    assert capsys.readouterr().out.splitlines() == ["1 cells", "r.jsonl", "r.md"]
    ((plan, output, workers, keep),) = asked
    assert (plan.data, plan.attacks, plan.rates, plan.seeds) == (("digits", "cifar10:10000"), ("sig",), (0.01, 0.1), (3,))
    assert (plan.presets, plan.networks, plan.partition_rates, plan.settings) == (
        ("paper",),
        ("resnet34:cifar",),
        (0.3,),
        {"split.least_flips": "0.4"},
    )
    assert (output, workers, keep) == (tmp_path / "r.jsonl", 2, False)
    assert cli.run(["benchmark", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["cells"] == 1 and "1 cells" in captured.err
    assert len(asked[1][0].attacks) == 9 and asked[1][0].presets == ("default", "paper")


def test_doctor_exits_2_when_something_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(doctor, "_devices", lambda: doctor._check("devices", True, "none"))
    monkeypatch.delenv("MECA_DATA", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["doctor"]) == 0
    assert "telemetry" in capsys.readouterr().out
    monkeypatch.setenv("MECA_DATA", str(tmp_path / "nowhere"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9/x?token=secret")  # the discard port: nothing answers
    assert cli.run(["doctor", "--json"]) == 2
    out = capsys.readouterr().out
    found = {check["name"]: check for check in json.loads(out)["checks"]}
    assert not found["MECA_DATA"]["ok"] and not found["mlflow"]["ok"] and found["disk"]["ok"]
    assert "secret" not in out
