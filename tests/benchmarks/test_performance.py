"""docs/performance.md and its plot say what the rows say."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from benchmarks import render
from benchmarks.quality.experiments import ABLATIONS, CUTS
from benchmarks.speed import performance

PROVENANCE = {
    "command": "python -m benchmarks.speed", "commit": "c" * 40, "date": "2026-11-21", "hardware": "a processor, 2 cores", "torch": "2.15.0",
    "seed": 0, "seconds": 61.0, "python": "3.12.1", "threads": 2, "load": 0.1, "clock_mhz": 2600.0,
}  # fmt: skip


def row(group: str, name: str, value: float, unit: str = "img/s", **more: object) -> dict:
    empty = dict.fromkeys(("floor", "ratio_to", "ratio", "ratio_low", "ratio_high"))
    return {"group": group, "name": name, "unit": unit, "value": value, "n": 5, **empty, **PROVENANCE, **more}


ROWS = [
    row("ratio", "training", 2000.0, other=500.0, ratio_to="a loop", ratio=4.0, ratio_low=3.5, ratio_high=4.5, target_ratio=3.0, notes="same"),
    row("ratio", "scoring", 2000.0, other=900.0, ratio_to="a <loop>", ratio=2.2, ratio_low=2.0, ratio_high=2.4, target_ratio=8.0, contended=True),
    row("stage", "partition, warm", 12.0, "s", floor=5.0, target=20.0, mfu=0.4, samples_per_s=333.0, peak_mib=700.0, state="warm"),
    row("stage", "partition, cold", 15.0, "s", floor=5.0, target=14.0, mfu=0.3, samples_per_s=270.0, peak_mib=700.0, state="cold"),
    row("scaling", "exponent of the cost", 1.01, "exponent", limit=1.05, holds=True, lowest=1.0, highest=1.02, points=[[100, 1.0], [200, 2.0]]),
    row("memory", "peak memory", 2.5, "times", limit=2.0, holds=False, peak_mib=300.0),
    row("micro", "training step", 2000.0, floor=3000.0, target=1500.0, mfu=0.66),
    row("correctness", "error", 1e-4, "of its length", limit=0.05, holds=True),
    row("ceiling", "copy", 30.0, "GB/s"),
]  # fmt: skip


def line(text: str, word: str) -> str:
    (found,) = [each for each in text.splitlines() if each.startswith(f"| {word}")]
    return found


def test_every_kind_of_row_has_its_table():
    text = performance.page(ROWS)
    assert line(text, "training |") == "| training | 2,000 img/s | 500 | 4.00 (3.50..4.50) | ≥ 3: yes | 5 | a loop | same |"
    assert "| 2,000 img/s ‡ | 900 | 2.20 (2.00..2.40) | ≥ 8: no | 5 | a &lt;loop> |" in line(text, "scoring")
    assert line(text, "partition, warm") == "| partition, warm | 12 s | 5 | 20: yes | 40 % | 333 | 700 | 5 |"
    assert "| 15 s | 5 | 14: no |" in line(text, "partition, cold")
    assert "| 1.01 exponent | 1..1.02 | 1.05: yes | 5 | 100: 1, 200: 2 |" in line(text, "exponent")
    assert "| 2.5 times | 2: no | 300 |" in line(text, "peak memory")
    assert "| 2,000 img/s | 3,000 | 1,500: yes | 66 % |" in line(text, "training step")
    assert "Threads 2; clock 2,600 MHz; load average 0.1; Python 3.12.1; 1 of 9 rows marked ‡." in text
    assert "    python -m benchmarks.speed\n\na processor, 2 cores; torch 2.15.0; commit cccccccccccc" in text
    assert "None" not in text and "nan" not in text


def test_machines_stand_apart():
    text = performance.page([*ROWS, {**ROWS[0], "hardware": "b processor, 8 cores"}])
    assert text.index("## a processor, 2 cores") < text.index("## b processor, 8 cores")


def test_the_plot_is_the_same_bytes_and_well_formed():
    plot = performance.plot(ROWS)
    assert plot == performance.plot([dict(each) for each in ROWS])
    texts = [element.text or "" for element in ElementTree.fromstring(plot).iter() if element.tag.endswith("text")]
    assert "training, to a loop" in texts and "partition, warm" in texts and "partition, cold" not in texts
    assert "nan" not in plot
    ElementTree.fromstring(performance.plot([]))


def test_without_rows_the_page_says_so():
    assert "No row has been measured yet." in performance.page([])


def test_check_covers_the_page_and_the_plot(tmp_path: Path):
    folder = tmp_path / "benchmarks" / "results"
    folder.mkdir(parents=True)
    (folder / "speed.jsonl").write_text("".join(json.dumps(each) + "\n" for each in ROWS))
    assert render.main([], tmp_path) == 0 and render.main(["--check"], tmp_path) == 0
    assert "training step" not in (tmp_path / "docs" / "results.md").read_text()  # it stands in performance.md
    for name in ("performance.md", "performance.svg"):
        file = tmp_path / "docs" / name
        text = file.read_text()
        file.write_text(text + "typed by hand\n")
        assert render.main(["--check"], tmp_path) == 1
        file.write_text(text)
    assert render.main(["--check"], tmp_path) == 0


def test_a_run_with_less_work_stands_below_the_whole_one():
    def run(experiment: str, tpr: float, seconds: float, commit: str = "c1") -> dict:
        return {
            **PROVENANCE, "commit": commit, "experiment": experiment, "attack": "badnet", "seed": 4, "preset": "default",
            "tpr": tpr, "fpr": 0.01, "auroc": 0.99, "acc": 0.8,
            "asr_k": 9, "asr_n": 900, "verdict": "poisoned", "stage_seconds": {"partition": seconds, "enhance": 1.0, "train_clean": 50.0},
        }  # fmt: skip

    cut = next(iter(CUTS))
    text = performance.page(
        ROWS,
        [
            run("shapes", 1.0, 9.0),
            run(f"shapes, {cut}", 0.9, 3.0, "c0"),
            run(f"shapes, {cut}", 0.5, 4.0),
            run("digits", 1.0, 1.0),
            run("shapes", 0.1, 2.0, "c2"),  # of a later method
        ],
    )
    table = text.split("## Less work")[1].splitlines()
    found = [each for each in table if each.startswith("| shapes")]
    assert found == [
        "| shapes | badnet | 4, looked at | all | 100.0 % | 1.00 % | 0.9900 | 80.0 % | 1.0 % | poisoned | 10 |",
        f"| shapes | badnet | 4, looked at | {cut} | 50.0 % | 1.00 % | 0.9900 | 80.0 % | 1.0 % | poisoned | 5 |",
    ]
    assert "digits" not in text and "Less work" not in performance.page(ROWS)
    back = next(iter(ABLATIONS))
    rows = [run("shapes", 1.0, 9.0), run("shapes", 0.9, 7.0, "c2"), run(f"shapes, {back}", 0.5, 4.0)]
    assert [each for each in performance.ablations(rows).splitlines() if each.startswith("| shapes")] == [
        "| shapes | badnet | 4, looked at | all | 90.0 % | 1.00 % | 0.9900 | 80.0 % | 1.0 % | poisoned | 8 |",  # the newest, of whatever commit
        f"| shapes | badnet | 4, looked at | {back} | 50.0 % | 1.00 % | 0.9900 | 80.0 % | 1.0 % | poisoned | 5 |",
    ]
    assert "taken back" not in performance.page(ROWS, rows) and performance.cuts(rows) == ""
