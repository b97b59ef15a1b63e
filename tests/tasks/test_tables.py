"""The paper's tables: what is measured stands where it belongs, what is not is "not run", and nothing counts twice."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from meca.metrics import BINS, ROC_AT
from tasks.benchmark import tables
from tests.test_render import row

FLAT = {"poison": [0] * (BINS - 1) + [10], "clean": [5] * BINS, "roc": [0.9] * len(ROC_AT)}


def grid_row(**changes):
    base = {
        "key": "k", "status": "done", "rate": 0.05, "clean_acc": 0.88, "clean_asr": 0.02, "error": None, "train_limit": 0, "settings": {},
        "partition_rate": 0.5, "partition_rate_given": None, "peak_mib": 900.0, "separation": {"partition": FLAT, "final": FLAT},
    }  # fmt: skip
    found = {**row(**base), **changes}
    return found | {
        "command": changes.get("command", json.dumps([found[name] for name in ("attack", "rate", "preset", "seed", "partition_rate_given")]))
    }


def table(text, title):
    """Return the cells of the lines below a heading, without the head."""
    part = re.split(r"\n#{3,4} ", text.split(title, 1)[1], maxsplit=1)[0]
    return [[word.strip() for word in line.strip("|").split("|")] for line in part.splitlines() if line.startswith("|")][2:]


def test_a_line_has_each_defence_in_its_own_column_as_acc_and_asr():
    rows = [
        grid_row(acc=0.9, asr_k=9, asr_n=900, no_defence_acc=0.91, no_defence_asr=0.97, oracle_acc=0.92, oracle_asr=0.02),
        grid_row(preset="paper", acc=0.5, asr_k=0, asr_n=900, no_defence_acc=None, no_defence_asr=None, oracle_acc=None, oracle_asr=None),
    ]
    lines = table(tables.render(rows), "### Table II")
    assert lines[0] == ["shapes (4,000), compact cifar", "badnet", "1", "91.0/97.0", "50.0/0.0", "90.0/1.0", "92.0/2.0"]
    assert [line[1] for line in lines] == ["badnet", "blend", "sig", "wanet", "physical"]
    assert all(line[2:] == ["0", *["not run"] * 4] for line in lines[1:])


def test_adaptive_attacks_stand_in_table_iii_only():
    text = tables.render([grid_row(attack="tact")])
    assert "Not run." in text.split("### Table II:")[1].split("###")[0]
    assert [line[1] for line in table(text, "### Table III")] == ["tact", "adaptive_blend", "adaptive_patch"]


def test_seeds_have_mean_and_deviation_and_presets_share_their_references():
    rows = [grid_row(seed=s, preset=p, acc=a, asr_k=0, no_defence_acc=0.9) for p in ("default", "paper") for s, a in ((1, 0.8), (2, 0.9))]
    (line, *_) = table(tables.render(rows), "### Table II")
    assert line[2] == "2" and line[5] == "85.0 ± 7.1 / 0.0 ± 0.0"  # by hand: stdev(80, 90) = 7.07
    assert line[3].startswith("90.0 ± 0.0 / 97.0 ± 0.0")


def test_a_weak_attack_is_marked_and_in_no_mean():
    rows = [grid_row(acc=0.9), grid_row(attack="sig", acc=0.8), grid_row(attack="blend", acc=0.1, no_defence_asr=0.49)]
    lines = table(tables.render(rows), "### Table II")
    assert ["badnet", "blend †", "sig"] == [line[1] for line in lines[:3]]
    (mean,) = [line for line in lines if "mean" in line[1]]
    assert mean[1] == "*mean of 2 attacks*" and mean[5] == "85.0/1.0"


def test_rows_of_code_that_no_commit_has_are_marked_and_unequal_references_are_told(tmp_path):
    text = tables.render([grid_row(dirty=True), grid_row(attack="none", dirty=True), grid_row(attack="sig", dirty=False)])
    assert [line[1] for line in table(text, "### Detection")] == ["badnet ‡", "sig", "no attack ‡"]
    rows = [grid_row(equal_passes=True), grid_row(attack="sig")]
    assert tables.unequal(rows).startswith("Of 2 rows 1 do not say") and tables.unequal(rows[:1]) == ""
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows))
    tables.write(tmp_path / "b.jsonl")
    assert "Of 2 rows 1 do not say that the references had as many passes" in (tmp_path / "b.md").read_text()


def test_a_mean_over_fewer_attacks_says_so():
    rows = [grid_row(acc=0.9), grid_row(attack="sig", acc=0.8), grid_row(preset="paper", acc=0.1)]
    (mean,) = [line for line in table(tables.render(rows), "### Table II") if "mean" in line[1]]
    assert mean[4] == "10.0/1.0 (1 of 2)" and mean[5] == "85.0/1.0"


def test_table_iv_sets_the_model_before_relabelling_beside_the_one_after():
    (line,) = table(tables.render([grid_row(clean_acc=0.7, clean_asr=0.3, acc=0.9)]), "### Table IV")
    assert line[2:] == ["not run", "not run", "70.0/30.0", "90.0/1.0"]


def test_table_v_has_the_papers_rates_and_those_that_were_run():
    rows = [grid_row(), grid_row(rate=0.2, poison_rate=0.2, acc=0.7), grid_row(rate=0.01, poison_rate=0.01, no_defence_asr=0.1)]
    text = tables.render(rows)
    assert "| 1 % | 10 % | 15 % | 20 % |" in text
    assert table(text, "### Table V")[0][2:] == ["90.0/1.0 †", "not run", "not run", "70.0/1.0"]


def test_a_rate_that_a_cap_lowered_stands_where_it_was_asked_for():
    (line, *_) = [line for line in table(tables.render([grid_row(attack="sig", poison_rate=0.02)]), "### Table II") if line[1] == "sig"]
    assert line[5] == "90.0/1.0"


def test_table_vi_has_a_column_for_each_network():
    rows = [grid_row(stem="s2d"), grid_row(network="resnet34", acc=0.95), grid_row(network="resnet34", attack="none", asr_k=None, asr_n=None)]
    text = tables.render(rows)
    assert "| compact s2d | resnet34 cifar | mobilenet_v2 cifar |" in text
    assert table(text, "### Table VI")[0][1:] == ["no attack", "not run", "90.0/–", "not run"]
    assert table(text, "### Table VI")[1][1:] == ["badnet", "90.0/1.0", "95.0/1.0", "not run"]


def test_table_vii_has_clean_data_and_the_mean_over_what_works():
    rows = [
        grid_row(attack="none", asr_k=None, asr_n=None, acc=0.93, no_defence_acc=0.94, no_defence_asr=None),
        grid_row(acc=0.9),
        grid_row(attack="blend", acc=0.8),
    ]
    quiet, mean = table(tables.render(rows), "### Table VII")
    assert quiet[1:] == ["no attack", "94.0/–", "not run", "93.0/–"]
    assert mean[1:] == ["*mean of 2 attacks of 8*", "91.0/97.0", "not run", "85.0/1.0"]


def test_a_failed_cell_is_named_and_is_no_number():
    failed = dict.fromkeys(row()) | {
        "dataset": "shapes", "network": "compact", "stem": "cifar", "attack": "sig", "preset": "default", "seed": 1, "rate": 0.05, "status": "failed",
        "error": "exit code 2: a | b", "settings": {}, "train_limit": 0, "partition_rate_given": None, "command": "x", "key": "y",
    }  # fmt: skip
    text = tables.render([grid_row(), failed])
    (line,) = [line for line in table(text, "### Table II") if line[1] == "sig"]
    assert line[2:] == ["0", "failed", "not run", "failed", "failed"]
    assert "| shapes | sig | default | 1 | exit code 2: a \\| b |" in text
    assert "### Failed" not in tables.render([grid_row()])


def test_the_partition_rate_has_a_figure_of_its_own_and_is_in_no_other_table():
    rows = [grid_row(acc=0.9)] + [grid_row(partition_rate=s, partition_rate_given=s, acc=a) for s, a in ((0.3, 0.6), (0.7, 0.7), (0.5, 0.1))]
    text = tables.render(rows, "x")
    assert table(text, "### Table II")[0][5] == "90.0/1.0"
    assert [line[1:] for line in table(text, "#### Fig. 7")] == [["0.3", "1", "60.0/1.0"], ["0.5", "1", "90.0/1.0"], ["0.7", "1", "70.0/1.0"]]
    assert "(x-partition.svg)" in text
    assert "Not run." in tables.render(rows[:1]).split("#### Fig. 7")[1]


def test_the_time_of_a_run_is_without_the_references_that_others_share():
    rows = [grid_row(seed=s, tpr=t, stage_seconds={"split": 10.0, "evaluate": e}) for s, t, e in ((1, 0.9, 99.0), (2, 1.0, 1.0))]
    (line,) = table(tables.render(rows), "### Detection")
    assert line[1:] == ["badnet", "default", "95.0 %", "1.00 %", "not recorded", "0.990", "10", "900"]
    (line,) = table(tables.render([grid_row(fpr_flagged=0.25), grid_row(seed=2, fpr_flagged=None)]), "### Detection")
    assert line[5] == "25.0 %"


def heights(figure, name):
    """Return the heights of the points of a line of a figure."""
    (group,) = [element for element in ElementTree.fromstring(figure).iter() if element.get("id") == name]
    return [float(y) for y in re.findall(r"[ML] \S+ (\S+)", group[0].get("d"))]


def test_the_figures_are_those_of_the_rows():
    text = tables.render([grid_row()], "x")
    assert table(text, "#### In the place of Fig. 4")[1][1:] == ["final", "100.0 %", "50.0 %"]
    assert table(text, "#### In the place of Fig. 6")[0][1:] == ["partition", "90.0 %", "90.0 %", "90.0 %", "90.0 %"]
    drawn = tables.figures([grid_row()])
    assert set(drawn) == {"suspicion", "roc"} and drawn == tables.figures([grid_row()])
    # The last bin of poison holds all of it: the line ends at the upper edge, which is where the axis begins.
    upper = heights(drawn["suspicion"], "axis-0")[-1]
    clean, poison = (heights(drawn["suspicion"], f"{kind}-0") for kind in ("clean", "poison"))
    assert poison[-1] == upper and clean[-1] > upper and min(clean) > upper, "heights grow downwards"
    partition = heights(drawn["roc"], "partition-0")
    assert len(partition) == len(ROC_AT) and len({*partition}) == 1, "a TPR of 90 % everywhere is a level line"


def test_text_in_a_row_breaks_neither_table_nor_figure():
    rows = [grid_row(dataset="a|b\n<script>", settings={"k": "<x>|" * 20})]
    text, drawn = tables.render(rows, "x"), tables.figures(rows)
    assert "<script" not in text and "a\\|b &lt;script>" in text and "Settings 1: k=" in text
    assert all("<script" not in figure and "<x>" not in figure for figure in drawn.values())
    assert all("a|b <script>" in "".join(ElementTree.fromstring(figure).itertext()) for figure in drawn.values())


@pytest.mark.parametrize("name", ["$x_1$ and $", "\x00\x1b[31m\u202e", "絵・ภาพ", "a & <b>"])
def test_a_name_is_text_in_a_figure_whatever_it_is(name):
    for figure in tables.figures([grid_row(dataset=name)]).values():
        ElementTree.fromstring(figure)


def test_rows_of_older_code_do_not_count_beside_newer_ones(tmp_path):
    file = tmp_path / "b.jsonl"
    file.write_text("".join(json.dumps(grid_row(key=key, acc=acc, command="same")) + "\n" for key, acc in (("old", 0.1), ("new", 0.9))))
    written = tables.write(file)
    assert [path.name for path in written] == ["b.md", "b-suspicion.svg", "b-roc.svg"]
    assert table((tmp_path / "b.md").read_text(), "### Table II")[0][5] == "90.0/1.0"
    file.write_text(json.dumps(grid_row(separation=None)) + "\n")
    tables.write(file)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "b.md"]


@pytest.mark.parametrize("rows", [[], [grid_row(no_defence_acc=None, no_defence_asr=None, oracle_acc=None, asr_k=None, asr_n=None, tpr=None)]])
def test_nothing_known_is_no_number(rows):
    text = tables.render(rows)
    assert "nan" not in text and "None" not in text


def test_a_row_of_detection_alone_is_told_in_a_line_and_is_in_no_table_of_the_paper():
    alone = {"until": "split", "flagged_classes": [3, 7], "flagged_share": 0.0125, "cost": 1.504, "seconds": 61.0}
    row_of_it = {**grid_row(attack="none", tpr=None, fpr=0.0125, verdict="poisoned"), **alone}
    assert tables.line(row_of_it) == "poisoned, 1.25 % flagged in 3, 7, TPR –, FPR 1.25 %, 1.504 plain trainings, 61.0 s"
    quiet = {**row_of_it, "flagged_classes": [], "cost": None, "verdict": "no_evidence", "flagged_share": 0.0, "fpr": 0.0}
    assert tables.line(quiet) == "no_evidence, 0.00 % flagged in no class, TPR –, FPR 0.00 %, – plain trainings, 61.0 s"
    assert tables.render([row_of_it]) == tables.render([])
