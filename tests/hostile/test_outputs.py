"""What data calls itself, in everything that meca writes or shows: text on a screen, a cell of a sheet, a key of a record, a name of a file."""

import csv
import html.parser
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest

from flows.cli import console as terminal_lines
from meca.data.store import open_store, pixel_id, write_store
from meca.data.writers.imagefolder import place
from meca.params import PACKAGED
from meca.release.folder import PublishParams, card
from meca.release.verification import verify
from meca.report import console
from meca.stages import ingest as ingest_stage
from meca.stages import publish
from meca.stages.runtime import execute
from meca.text import plain, sheet_cell
from tasks.mlflow import recorder, tracking
from tasks.mlflow.result import Result
from tasks.prefect import summary as artifacts
from tests.data.readers.test_lists import write_list
from tests.hostile.payloads import FORMULAS, PAYLOADS, SCRIPTS, TERMINAL
from tests.hostile.trial import CONTROLS
from tests.making import decide, encode, ingest, pixels, publish_store, settings

WRITABLE = [text for text in PAYLOADS if not re.search("[\ud800-\udfff]", text)]


def test_the_list_is_long_and_has_every_kind() -> None:
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 130 and len(SCRIPTS) >= 50
    assert all(CONTROLS.search(text) or "\n" in text or "\x00" in text for text in TERMINAL), "a payload for the terminal has something to remove"


# --- the terminal ----------------------------------------------------------------------------------------------------


def shown(payload: str) -> list[str]:
    """Return every line that the terminal shows of data in which everything is called `payload`."""
    counts = {"input": 4, "kept": 1, "relabelled": 1, "removed": 1, "quarantined": 1}
    said = {"sentence": f"Of {payload!r}.", "reason": payload, "warnings": [payload], "target_class": {"label": 1, "name": payload}, "counts": counts}
    seen: dict[str, Any] = {
        "name": payload,
        "format": "zip",
        "option": payload,
        "samples": {payload: 3},
        "sizes": {payload: 1},
        "modes": {payload: 2},
        "longer_sides": {},
        "judged_at": {"height": 32, "width": 32, "fit": "pad", "reason": payload},
        "estimate": {"cores": 2, "seconds": 60, "seconds_with_control": 90_000},
    }
    seen |= {
        "classes": {payload: {payload: 3}},
        "unreadable": [payload],
        "n_unreadable": 1,
        "odd": [payload],
        "n_odd": 1,
        "checked": 3,
        "warnings": [payload],
    }
    figures = {"known": False, "unknown": [payload], "final": {"acc": 0.5, "per_trigger": [{"target_class": payload, "asr": 0.5}]}}
    return [*console.inspection_lines(seen), *console.verdict_lines(said), *console.evaluation_lines(figures)]


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_the_terminal_shows_no_control_character_and_no_line_that_is_not_ours(payload: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = shown(payload)
    terminal_lines.say(*lines)
    out = capsys.readouterr().out
    assert not CONTROLS.search(out) and not re.search("[\ud800-\udfff]", out)
    assert len(out.splitlines()) == len(lines), "a name forged a line"
    terminal_lines.complain(plain(payload, 600))
    err = capsys.readouterr().err
    assert err.startswith("meca: ") and err.count("\n") == 1 and not CONTROLS.search(err)


@pytest.mark.parametrize("payload", [text for text in PAYLOADS if text.isprintable() and len(text) <= 60], ids=repr)
def test_what_is_harmless_is_still_to_be_read(payload: str) -> None:
    assert plain(payload) == payload, "markup is no control character: it is shown as it is"


def test_a_stage_that_refuses_says_it_in_plain_text(tmp_path: Path) -> None:
    """DVC and Prefect show the last words of a stage program as they are."""
    name = "\x1b[2J\x1b]0;owned\x07\u202e.parquet"
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "params.yaml").write_bytes(PACKAGED.read_bytes().replace(b"source: shapes", b"source: " + json.dumps(name).encode()))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-m", "meca.stages.ingest", "--out", "out"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 3 and "is not a readable parquet file" in done.stderr
    assert not CONTROLS.search(done.stderr) and len(done.stderr.splitlines()) == 1


def test_a_bar_on_a_terminal_interprets_nothing() -> None:
    from rich.console import Console
    from rich.progress import Progress, TextColumn

    for payload in PAYLOADS:
        file = io.StringIO()
        terminal = Console(file=file, force_terminal=True, width=5000, color_system="truecolor", legacy_windows=False)
        with Progress(TextColumn("{task.description}", markup=False), console=terminal, auto_refresh=False) as bar:
            bar.add_task(plain(payload), total=1)
        # Rich draws with escapes of its own; none of them opens a link or sets a title.
        drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())
        assert "\x1b" not in drawn and plain(payload).strip() in drawn


# --- sheets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", FORMULAS, ids=repr)
def test_no_cell_of_a_sheet_is_a_formula(payload: str, tmp_path: Path) -> None:
    (tmp_path / "work" / "evaluate").mkdir(parents=True)
    lines = [{"phase": payload, "step": 1, payload: -0.5}, {"phase": "loss", "step": 2, payload: payload}]
    (tmp_path / "work" / "evaluate" / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finished = Result(tmp_path, (), tmp_path, tmp_path / "work", tmp_path, tmp_path, tmp_path, tmp_path)
    tracking._write_curves(finished, tmp_path / "curves")
    with open(tmp_path / "curves" / "evaluate.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    shown = f"'{plain(payload)}"
    assert rows == [["phase", "step", shown], [shown, "1", "-0.5"], ["loss", "2", shown]]


def test_numbers_and_plain_words_stay_as_they_are() -> None:
    assert [sheet_cell(value) for value in (-0.5, 3, None, "loss", "a=b", "")] == [-0.5, 3, None, "loss", "a=b", ""]


# --- records ---------------------------------------------------------------------------------------------------------

NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,199}")


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_a_key_of_mlflow_is_letters_and_a_value_is_short(payload: str) -> None:
    assert NAME.fullmatch(recorder._name(payload)) and len(recorder._value(payload)) <= 500
    flat = recorder._flat({payload: {payload: payload}})
    assert all(NAME.fullmatch(recorder._name(name)) for name in flat)


def test_mlflow_takes_every_key() -> None:
    from mlflow.utils.validation import _validate_metric_name, _validate_param_name, path_not_unique

    for payload in PAYLOADS:
        name = recorder._name(payload)
        _validate_metric_name(name)
        _validate_param_name(name)
        assert not path_not_unique(name)


@pytest.mark.platform
def test_a_run_on_hostile_data_is_recorded_under_our_own_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Folder, files and classes are called by payloads; what MLflow has as keys, names and paths comes from us."""
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    names = [text for text in WRITABLE if text.isprintable() and 0 < len(text) < 100 and text.strip() and "/" not in text and "\\" not in text][:40]
    root = tmp_path / names[0]
    labels = sorted({name.strip() for name in names})
    for at, name in enumerate(labels):
        (root / f"{at}").mkdir(parents=True)
        (root / f"{at}" / f"{name}.png").write_bytes(encode(pixels(at)))
    paths = [f"{at}/{name}.png" for at, name in enumerate(labels)]
    write_list(root / "list.jsonl", {"path": paths, "label": labels})
    place_of = {name: tmp_path / "w" / name for name in ("store", "work", "published", "report", "out")}
    receipts = [tmp_path / "w" / f"{name}.json" for name in ("ingest", "publish")]
    chosen = settings(ingest__source=str(root), ingest__format="manifest", ingest__size=8)
    execute(ingest_stage, {"out": place_of["store"]}, chosen, receipts[0], scratch=tmp_path / "s")
    store = open_store(place_of["store"])
    folders = {"store": store.path, **decide(store, place_of["work"], {0: ("poisoned", "remove", None)}), "out": place_of["published"]}
    execute(publish, folders, settings(), receipts[1], scratch=tmp_path / "s")
    place_of["report"].mkdir()
    (place_of["report"] / "report.html").write_text("the page")
    told = tracking.record(tmp_path / "w", Result(tmp_path / "w", tuple(receipts), **place_of, params=PACKAGED))
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    for run_id in (told["parent"], *told["runs"].values()):
        run = client.get_run(run_id)
        keys = [*run.data.params, *run.data.metrics, *run.data.tags]
        assert keys and all(NAME.fullmatch(key) for key in keys) and NAME.fullmatch(run.info.run_name)
        assert all(len(value) <= 500 for value in (*run.data.params.values(), *run.data.tags.values()))
    stored = {file.path for file in client.list_artifacts(told["parent"])}
    assert stored == {"verdicts.parquet", "summary.json", "manifest.json", "README.md", "report.html", "suspicion.svg"}
    files = [path.relative_to(tmp_path / "mlruns").parts for path in (tmp_path / "mlruns").rglob("*") if path.is_file()]
    assert files and all(NAME.fullmatch(part) for parts in files for part in parts)


@pytest.mark.parametrize("payload", PAYLOADS, ids=range(len(PAYLOADS)))
def test_an_artifact_of_prefect_shows_text(payload: str) -> None:
    found = {"sentence": payload, "counts": {"input": 1}, "warnings": [payload], "classes": [{"name": payload, "input": 1}]}
    shown = artifacts.markdown(found, [])
    assert not CONTROLS.search(shown) and len(shown.splitlines()) == len(
        artifacts.markdown({**found, "sentence": "x", "warnings": ["x"]}, []).splitlines()
    )
    assert not re.search(r"(?<!\\)[<\[`]", shown.replace("|", ""))
    assert not any(CONTROLS.search(str(row["name"])) for row in artifacts.classes(found))
    assert re.fullmatch(r"[a-z0-9-]*", artifacts.key(payload)) and re.fullmatch(r"[A-Za-z0-9._-]+", artifacts.plain(payload, 40))


# --- files -----------------------------------------------------------------------------------------------------------


class Tags(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, [name for name, _ in attrs]))


@pytest.mark.parametrize("payload", [text for text in WRITABLE if text.strip()], ids=repr)
def test_the_card_of_a_published_set_says_names_as_text(payload: str, tmp_path: Path) -> None:
    images = np.stack([pixels(seed) for seed in range(4)])
    common = {"split": "train", "class_name": "x", "offset": -1, "notes": []}
    lines = [{**common, "sample_id": pixel_id(image), "source": f"{row}", "row": row, "label": row % 2} for row, image in enumerate(images)]
    info = write_store(tmp_path, images, lines, ["cat", payload], {"kind": "digits", "format": "digits", "name": payload, "options": {}})
    counts = {"input": 4, "kept": 4, "relabelled": 0, "removed": 0, "quarantined": 0}
    line = {"name": payload, **dict.fromkeys(("input", "kept", "relabelled_in", "relabelled_out", "removed", "quarantined"), 1)}
    said = {"verdict": "poisoned", "sentence": payload, "reason": payload, "counts": counts, "classes": [line], "warnings": [payload]}
    said |= {
        "source": info.source,
        "input_sha256": "a",
        "sanitized_sha256": "b",
        "meca_version": "1",
        "preset": "default",
        "seed": 0,
        "decisions": None,
    }
    text = card(open_store(tmp_path), said, PublishParams("x", "mit"))
    assert not CONTROLS.search(text)
    head, body = text.split("\n---\n", 1)
    assert all(re.fullmatch(r"[a-z_]+: .*", line) and json.loads(line.partition(": ")[2]) is not None for line in head.split("\n")[1:])
    markdown = pytest.importorskip("markdown_it", reason="needs markdown-it-py, which Rich brings")
    rendered = Tags(markdown.MarkdownIt("commonmark", {"html": True}).enable("table").render(body))
    plainly = {"h1", "h2", "p", "ul", "li", "code", "table", "thead", "tbody", "tr", "th", "td"}
    assert {tag for tag, _ in rendered.found} <= plainly and not [names for tag, names in rendered.found if names and tag not in ("th", "td")]


@pytest.mark.parametrize("payload", WRITABLE, ids=range(len(WRITABLE)))
def test_a_name_of_a_class_or_file_leads_nowhere(payload: str) -> None:
    samples = [(f"cat/{payload}", "cat", "0" * 64), (f"{payload}/x.png", payload, "1" * 64), ("cat/0.png", payload, "2" * 64)]
    placed = place([sample for sample in samples if not sample[0].startswith("/")], 0)
    assert len(set(placed)) == len(placed)
    for path in placed:
        assert not path.is_absolute() and ".." not in path.parts and "\\" not in str(path) and "\0" not in str(path)
        assert PurePosixPath("/out") in (PurePosixPath("/out") / path).parents and all(len(part.encode()) <= 255 for part in path.parts)


LISTED = [text for text in WRITABLE if text.strip() and "\0" not in text and len(text) <= 255 and text.strip() != "x"]


def test_hostile_labels_are_published_exactly_and_verify(tmp_path: Path) -> None:
    """A set whose every class has a hostile name: read, published, verified, and read again with the same names."""
    labels = sorted({text.strip() for text in LISTED})
    root = tmp_path / "in"
    root.mkdir()
    for at in range(len(labels)):
        (root / f"{at}.png").write_bytes(encode(pixels(at)))
    write_list(root / "list.jsonl", {"path": [f"{at}.png" for at in range(len(labels))], "label": labels})
    store = ingest(root, tmp_path / "store")
    assert sorted(store.info.class_names) == labels, "exactly as they came"
    out = publish_store(store, tmp_path, {0: ("poisoned", "relabel", 1)})
    assert verify(out) == []
    assert sorted(line["label"] for line in map(json.loads, (out / "data" / "list.jsonl").read_text(encoding="utf-8").split("\n")[:-1])) == sorted(
        [*(label for label in labels if label != store.info.class_names[store.labels[0]]), store.info.class_names[1]]
    )
    text = (out / "README.md").read_text(encoding="utf-8")
    assert not CONTROLS.search(text) and not re.search(r"(?<!\\)<", text)
    summary = json.loads((out / "summary.json").read_text(encoding="utf-8"))
    assert sorted(line["name"] for line in summary["classes"]) == labels
