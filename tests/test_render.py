"""docs/results.md says what the rows say: nothing typed, nothing counted twice, nothing weak in a mean."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
spec = importlib.util.spec_from_file_location("render", ROOT / "benchmarks" / "render.py")
assert spec and spec.loader
render = importlib.util.module_from_spec(spec)
sys.modules["render"] = render
spec.loader.exec_module(render)

PROVENANCE = {
    "command": "python -m x",
    "commit": "c" * 40,
    "date": "2026-11-21",
    "hardware": "cpu, 2 cores",
    "torch": "2.15.0",
    "seed": 101,
    "seconds": 61.0,
}


def row(**changes):
    base = {
        "experiment": "main", "dataset": "shapes", "n_train": 4000, "n_test": 1000, "network": "compact", "stem": "cifar",
        "attack": "badnet", "poison_rate": 0.05, "preset": "default", "acc": 0.9, "asr_k": 9, "asr_n": 900, "tpr": 0.98, "fpr": 0.01, "auroc": 0.99,
        "verdict": "poisoned", "no_defence_acc": 0.91, "no_defence_asr": 0.97, "oracle_acc": 0.92, "oracle_asr": 0.01,
    }  # fmt: skip
    return {**base, **PROVENANCE, **changes}


def write(root, kind, rows):
    folder = root / "benchmarks" / "results"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{kind}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def lines_of(text, word):
    text = text.split("## Tables II to VII")[0]  # those have tests of their own, tests/tasks/test_tables.py
    return [line for line in text.splitlines() if line.startswith("|") and word in line]


def test_seeds_are_averaged_with_their_range_and_deviation_and_the_interval_is_that_over_seeds(tmp_path):
    rows = render.read(write(tmp_path, "quality", [row(seed=s, acc=a, asr_k=k) for s, a, k in ((101, 0.90, 0), (102, 0.92, 9), (103, 0.94, 18))]))
    (line,) = lines_of(render.render(rows), "badnet")
    assert "| 3 | 92.0 % (90.0..94.0, s.d. 2.0) |" in line
    assert "| 1.0 % (0.0..2.0, s.d. 1.0) | 27 of 2,700 | 0.0 to 3.5 % |" in line  # by hand: 1.0 - 4.303 * 1.0 / sqrt(3) is -1.5, so 0


def test_the_interval_of_a_single_run_is_that_of_its_images(tmp_path):
    (line,) = lines_of(render.render(render.read(write(tmp_path, "quality", [row(asr_k=27, asr_n=2700)]))), "badnet")
    assert "| 1 | 90.0 % |" in line and "| 1.0 % | 27 of 2,700 | 0.7 to 1.5 % |" in line  # Wilson by hand: 0.688..1.451
    assert "| -2.0, one seed |" in line


@pytest.mark.parametrize(
    ("ours", "told"),
    [
        ([0.910, 0.911, 0.912], "-0.9 (-1.1..-0.7), 3 seeds: too few"),
        ([0.910, 0.911, 0.912, 0.911, 0.911], "-0.9 (-1.0..-0.8), lower"),
        ([0.890, 0.891, 0.892], "-2.9 (-3.1..-2.7), lower"),
        ([0.910, 0.930, 0.935], "+0.5 (-2.8..+3.8), not shown"),
        ([0.92, 0.92], "+0.0, the same"),
    ],
)
def test_a_difference_below_two_points_is_told_on_five_seeds_and_none_that_the_seeds_do_not_show(tmp_path, ours, told):
    rows = [row(seed=101 + i, acc=acc, oracle_acc=0.92) for i, acc in enumerate(ours)]
    (line,) = lines_of(render.render(render.read(write(tmp_path, "quality", rows))), "badnet")
    assert f"| {told} |" in line


def test_references_of_equal_passes_are_never_averaged_with_older_ones(tmp_path):
    rows = [row(seed=101, acc=0.9), row(seed=102, acc=0.8, equal_passes=True), row(seed=103, acc=0.7, equal_passes=True)]
    lines = lines_of(render.render(render.read(write(tmp_path, "quality", rows))), "badnet")
    assert [("equal passes" in line, "not recorded" in line.split("| 1.0 % ")[0], "75.0 % (70.0..80.0" in line) for line in lines] == [
        (False, True, False),
        (True, False, True),
    ]


def test_false_alarms_inside_of_flagged_classes_have_a_column_and_older_rows_do_not_invent_them(tmp_path):
    rows = [row(fpr_flagged=0.25), row(attack="blend", fpr_flagged=None), row(attack="sig")]
    text = render.render(render.read(write(tmp_path, "quality", rows)))
    cells = [lines_of(text, f"{attack} | 5.0 %")[0].split(" | ")[16] for attack in ("badnet", "blend", "sig")]
    assert cells == ["25.0 %", "–", "not recorded"] and "| FPR inside flagged classes |" in text


def test_how_near_a_decision_was_stands_below_its_table_and_older_rows_do_not_say_it(tmp_path):
    strongest = [{"label": 1, "flips": 0.61, "p_value": 0.001}, {"label": 4, "flips": 0.2}]
    found = {"verdict": "poisoned", "flagged": {"1": 40, "3": 2}, "doubtful": [], "strongest": strongest, "left_out": {"flagged": 2, "strongest": 0}}
    text = render.render(render.read(write(tmp_path, "quality", [row(evidence=found), row(attack="blend")])))
    assert "| badnet | default | 101 | 1: 40, 3: 2 and 2 more | 1: flips 0.61, p_value 0.001 | 4: flips 0.2 |" in text
    assert "| blend | default | 101 | not recorded | – | – |" in text
    assert "How near" not in render.render(render.read(write(tmp_path, "quality", [row()])))


def test_seeds_that_were_looked_at_stand_apart_and_a_summary_takes_them_only_where_there_is_no_report(tmp_path):
    old, new = row(seed=20, acc=0.5), row(seed=101, acc=0.9)
    text = render.render(render.read(write(tmp_path, "quality", [old])))
    assert "## main\n" not in text.split("## Seeds that were looked at")[0] and "### main\n" in text.split("## Seeds that were looked at")[1]
    assert "Of 1 rows 1 are of seeds that have been looked at since" in text and "| 50.0/1.0 |" in text
    assert "| 1, looked at | 50.0 %" in render.short([old]) and "looked at" not in render.short([new]) and "50.0 %" not in render.short([old, new])
    both = render.render(render.read(write(tmp_path, "quality", [old, new])))
    assert "| 90.0/1.0 |" in both and "| 50.0/1.0 |" not in both and "seeds that have been looked at since" not in both
    assert "| 50.0 % |" in both.split("## Seeds that were looked at")[1], "nothing is hidden"


def test_a_row_of_code_that_no_commit_has_is_marked_and_in_no_summary(tmp_path):
    rows = [row(dirty=True), row(attack="blend", dirty=False)]
    text = render.render(render.read(write(tmp_path, "quality", rows)))
    assert len(lines_of(text, "badnet ‡")) == 1 and not lines_of(text, "blend ‡") and "‡ measured with code that differs from its commit" in text
    assert "| badnet |" not in render.short(rows) and "| blend |" in render.short(rows)
    assert "| badnet | 0 | not run" in text.split("### Table II")[1]


def test_a_repeated_seed_counts_once_and_the_newest_wins(tmp_path):
    rows = render.read(write(tmp_path, "quality", [row(acc=0.1), row(acc=0.9)]))
    (line,) = lines_of(render.render(rows), "badnet")
    assert "| 1 | 90.0 % |" in line


def test_a_weak_attack_is_marked_and_stays_out_of_the_mean(tmp_path):
    rows = [row(attack="badnet", acc=0.9), row(attack="sig", acc=0.8), row(attack="blend", acc=0.1, no_defence_asr=0.49), row(attack="none", acc=0.2)]
    text = render.render(render.read(write(tmp_path, "quality", rows)))
    assert lines_of(text, "blend †") and not lines_of(text, "badnet †") and not lines_of(text, "none †")
    (mean,) = lines_of(text, "mean of 2 attacks")
    assert "| 85.0 % |" in mean
    assert "† weak" in text


def test_unknown_values_are_dashes_and_never_zero(tmp_path):
    (line,) = lines_of(render.render(render.read(write(tmp_path, "quality", [row(tpr=None, auroc=None, asr_k=None, asr_n=None)]))), "badnet")
    assert "nan" not in line and "None" not in line
    assert line.count("| – ") == 5 and "not recorded" in line


def test_text_in_a_row_cannot_break_the_table(tmp_path):
    text = render.render(render.read(write(tmp_path, "quality", [row(dataset="a|b\n# c <img>")])))
    assert "a\\|b # c &lt;img>" in text


def test_provenance_stands_below_the_table(tmp_path):
    text = render.render(render.read(write(tmp_path, "quality", [row(seed=10), row(seed=9)])))
    assert "    python -m x\n\ncpu, 2 cores; torch 2.15.0; commit cccccccccccc; 2026-11-21; 61 to 61 s a run; seeds 9, 10\n" in text


def test_the_other_files_are_rendered(tmp_path):
    write(
        tmp_path, "speed", [{"name": "ingest", "unit": "images/s", "value": 5123.4, "ratio": 1.5, "ratio_low": 1.4, "ratio_high": 1.6, **PROVENANCE}]
    )
    write(tmp_path, "services", [{"name": "mlflow", "tried": 3, "passed": 3, "value": None, "unit": None, "notes": "ok", **PROVENANCE}])
    folder = write(tmp_path, "reliability", [{"name": "random-kills", "tried": 300, "as_specified": 300, "lost": 0, "notes": None, **PROVENANCE}])
    text = render.render(render.read(folder))
    assert "| ingest | 5,123 images/s | – | 1.50 (1.40..1.60) | – | – | cpu, 2 cores |" in text
    assert "| random-kills | 300 | 300 | 0 | – |" in text
    assert "| mlflow | 3 | 3 | – | ok |" in text


def test_a_row_without_provenance_is_refused_with_its_line(tmp_path):
    bad = row()
    del bad["command"]
    with pytest.raises(ValueError, match=r"quality.jsonl:2: lacks command"):
        render.read(write(tmp_path, "quality", [row(), bad]))


def test_check_notices_a_stale_document_and_writing_heals_it(tmp_path):
    write(tmp_path, "quality", [row()])
    (tmp_path / "README.md").write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    assert render.main(["--check"], tmp_path) == 1
    assert render.main([], tmp_path) == 0
    assert render.main(["--check"], tmp_path) == 0
    first = (tmp_path / "docs/results.md").read_bytes()
    readme = (tmp_path / "README.md").read_text()
    assert readme.startswith("before\n<!-- results:begin -->\n| data") and readme.endswith("<!-- results:end -->\nafter\n")
    assert "\nold\n" not in readme
    assert render.main([], tmp_path) == 0 and (tmp_path / "docs/results.md").read_bytes() == first
    write(tmp_path, "quality", [row(acc=0.5)])
    assert render.main(["--check"], tmp_path) == 1


def test_half_a_pair_of_markers_is_an_error():
    with pytest.raises(ValueError, match="once each"):
        render.between_markers("<!-- results:begin --> and no end", "x")


def test_without_rows_the_page_says_so(tmp_path):
    assert "No row has been measured yet." in render.render(render.read(tmp_path))


def benchmarked(**changes):
    found = row(key="k", status="done", rate=0.05, settings={}, partition_rate_given=None, command="meca benchmark --attack badnet", separation=None)
    return {**found, **changes}


def test_a_cell_that_the_flow_measured_too_counts_once_in_the_papers_tables(tmp_path):
    write(
        tmp_path,
        "quality",
        [row(acc=0.1), row(experiment="main, half the width", attack="sig", acc=0.2), row(experiment="main, 1 % poison", poison_rate=0.01)],
    )
    write(tmp_path, "benchmark", [benchmarked(key="old", acc=0.3), benchmarked(key="new", acc=0.9, poison_rate=0.0499)])
    found = render.paper_rows(render.read(tmp_path / "benchmarks" / "results"))
    assert [(r["experiment"], r.get("key"), r["acc"]) for r in found] == [("main, 1 % poison", None, 0.9), ("main", "new", 0.9)]
    varied = {"settings": {"split.least_flips": "0.4"}}
    write(tmp_path, "benchmark", [benchmarked(**varied)])
    assert 0.1 in [r["acc"] for r in render.paper_rows(render.read(tmp_path / "benchmarks" / "results"))], "another setting is another cell"


def test_the_papers_figures_come_and_go_with_their_rows(tmp_path):
    flat = {"poison": [1] * 20, "clean": [1] * 20, "roc": [0.5] * 13}
    write(tmp_path, "benchmark", [benchmarked(separation={"partition": flat, "final": flat})])
    assert render.main([], tmp_path) == 0 and render.main(["--check"], tmp_path) == 0
    assert (tmp_path / "docs/results-roc.svg").read_text().startswith("<svg") and "(results-roc.svg)" in (tmp_path / "docs/results.md").read_text()
    write(tmp_path, "benchmark", [benchmarked()])
    assert render.main(["--check"], tmp_path) == 1
    assert render.main([], tmp_path) == 0 and not (tmp_path / "docs/results-roc.svg").exists() and render.main(["--check"], tmp_path) == 0


def test_a_cell_that_failed_is_named_until_it_has_figures_and_is_never_a_number(tmp_path):
    empty = dict.fromkeys(row()) | {"status": "failed", "error": "exit code 2: no luck", "rate": 0.05, "settings": {}, "train_limit": 0, "key": "k"}
    named = {"experiment": "main", "dataset": "shapes", "network": "compact", "stem": "cifar", "preset": "default"}
    failed = {**empty, **named, "attack": "sig", "seed": 101}
    broken = {**empty, **named, "attack": "badnet", "seed": 101}
    text = render.render(render.read(write(tmp_path, "quality", [failed, row(), broken])))
    assert "| shapes | sig | default | 101 | exit code 2: no luck |" in text and "| badnet | default | 101 | exit" not in text
    assert [line.split("|")[1].strip() for line in lines_of(text, "default |")] == ["badnet"], "a failure that came later takes no figure away"
    text = render.render(render.read(write(tmp_path, "quality", [failed, row(), row(attack="sig")])))
    assert "no luck" not in text
