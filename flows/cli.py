"""The command `meca`: parses, hands over, turns every outcome into a text and an exit code.

Only the standard library and cyclopts are imported here; each verb imports what it needs when it runs, so that `--help`,
`--version` and a usage error answer at once, and the verbs of the core work where Prefect, MLflow and DVC are missing.
"""

import contextlib
import json
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Parameter

from meca import __version__
from meca.errors import InputRefused, MecaError, UsageError, system_failure
from meca.text import plain

__all__ = ["app", "main"]

DONE, POISONED, FAILED, REFUSED, USAGE, INCONCLUSIVE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 5, 130, 143
VERDICTS = {"no_evidence": DONE, "poisoned": POISONED, "inconclusive": INCONCLUSIVE}

EXITS = """\
Exit codes:
  0  no evidence of poison, or done
  1  poison found (clean: and handled; verify: a mismatch)
  2  meca failed; the same command continues
  3  the input was refused
  4  wrong usage or configuration
  5  inconclusive, or a gate does not hold"""

app = App(
    name="meca",
    help="Train a backdoor-free image classifier on data that you do not trust, and get the data back sanitized.",
    help_epilogue=EXITS,
    help_format="plaintext",
    version=__version__,
    suppress_keyboard_interrupt=False,  # run() decides what an interrupt becomes
)

Json = Annotated[bool, Parameter(name="--json", negative="", show_default=False, help="Print one JSON object on stdout; messages go to stderr.")]
ExitZero = Annotated[
    bool, Parameter(name="--exit-zero", negative="", show_default=False, help="Exit 0 whatever the verdict; failures keep their codes.")
]
Settings = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", show_default=False, help="group.key=value: replaces one number of params.yaml; may be repeated."),
]
Preset = Annotated[Literal["default", "paper"] | None, Parameter(help="Which set of parameters; `paper` is arXiv 2405.12719 to the letter.")]
ParamsFile = Annotated[Path | None, Parameter(name="--params", help="A params.yaml; without it the packaged one.")]
Sign = Annotated[Path | None, Parameter(name="--sign", help="An Ed25519 private key (PEM): the folder is signed before it appears.")]
Format = Annotated[str, Parameter(help="auto, or the name that `meca inspect` shows.")]


@app.command
def inspect(
    path: Annotated[str, Parameter(help="The data.")],
    /,
    *,
    format: Format = "auto",
    label_column: Annotated[str, Parameter(help="The column of the label, where more than one could be meant.")] = "auto",
    as_json: Json = False,
) -> int:
    """Look at data without changing it: format, counts per class and split, odd files. Takes seconds."""
    from dataclasses import asdict

    from meca.data.inspection import inspect as look
    from meca.report.console import inspection_lines

    found = asdict(look(_existing(path), format, label_column))
    _json(found) if as_json else _say(*inspection_lines(found))
    if found["refused"]:
        raise InputRefused(f"`meca clean` will refuse this: {found['refused']}")
    return DONE


@app.command
def clean(
    path: Annotated[str, Parameter(help="The training data.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the sanitized set, the verdicts, the model and the report.")],
    format: Format = "auto",
    preset: Preset = None,
    params: ParamsFile = None,
    settings: Settings = (),
    sign: Sign = None,
    as_json: Json = False,
    exit_zero: ExitZero = False,
) -> int:
    """Find poisoned samples, train a clean model, write the sanitized set. Started again on the same input it resumes."""
    from meca import pipeline
    from meca.progress import Progress
    from meca.report.console import verdict_lines

    origin = path if path.startswith("s3://") else ""
    pipeline.refuse_test_split((path if origin else _existing(path)).removesuffix(".dvc"))
    chosen = _params(params, preset, settings, {"ingest.format": format, "ingest.origin": origin})
    key = _private_key(sign)  # before hours of work
    with Progress() as progress:
        if origin or path.endswith(".dvc"):
            pipeline.refuse_planted(output)
            path = str(_bring(path, pipeline.run_folder(output) / "source", progress))

        def told(stage: str, seconds: float | None) -> None:
            progress.say(f"{stage:<17} {'unchanged' if seconds is None else f'{seconds:8.1f} s'}")

        summary = pipeline.clean(path, output, chosen, progress, told, key)
    if as_json:
        _json(summary)
    else:
        _say(*verdict_lines(summary))
        _say(
            f"Published     {output}",
            f"Kept for a resume, delete it freely: {pipeline.run_folder(output)}",
            f"Report        {output / 'report.html'}",
        )
    return DONE if exit_zero else VERDICTS[summary["verdict"]]


@app.command
def fetch(
    source: Annotated[str, Parameter(help="s3://bucket/prefix; keys come from the AWS variables.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the copy; fetched again, it takes only what changed.")],
    as_json: Json = False,
) -> int:
    """Copy data from a bucket to this machine, with version and SHA-256 of every object. `clean` does so itself."""
    from dataclasses import asdict

    from meca.progress import Progress
    from tasks.s3.download import fetch as copy

    _fetchable(output)
    with Progress() as progress:
        found = asdict(copy(source, output, progress))
    found["path"] = str(found["path"])
    size = f"{found['objects']} objects, {found['bytes']} bytes, {found['downloaded']} of them fetched now"
    if as_json:
        _json(found)
    else:
        _say(f"Copy          {found['path']}", f"Objects       {size}", f"SHA-256       {found['root']}")
        if found["version"]:
            _say(f"Version       {found['version']}, a published set: `meca verify {output} --key KEY` says whose.")
    return DONE


@app.command
def publish(
    run: Annotated[Path, Parameter(help="The output of `clean`, or a workspace.")],
    url: Annotated[str, Parameter(help="s3://bucket/prefix; keys come from the AWS variables.")],
    /,
    *,
    key: Annotated[Path | None, Parameter(help="An Ed25519 public key (PEM) that must have signed the folder.")] = None,
    attestation: Annotated[Path | None, Parameter(name="--attestation", help="The signed statement, where it is not in the folder.")] = None,
    as_json: Json = False,
) -> int:
    """Bring a published folder to a bucket: every object is read back, and then one pointer names the set. `fetch` follows it."""
    from dataclasses import asdict

    from meca.progress import Progress
    from tasks.s3.upload import publish as send
    from tasks.s3.upload import published_folder

    if attestation is not None and key is None:
        raise UsageError("Expected --key beside --attestation: without a key nothing can be said about a signature.")
    with Progress() as progress:
        found = asdict(send(published_folder(_folder(run)), url, key, attestation, progress))
    if as_json:
        _json(found)
    else:
        _say(f"Pointer       {found['url']}" + ("" if found["moved"] else ", which named this version already"), f"Version       {found['version']}")
        _say(f"Objects       {found['objects']}, {found['bytes']} bytes, {found['sent']} of them sent now, all read back")
        if found["guarded"] is False:
            _say("This server ignores conditions on writes: let only one publish to this prefix at a time.")
    return DONE


@app.command
def apply(
    run: Annotated[Path, Parameter(help="The output of `clean`, or a workspace.")],
    /,
    *,
    decisions: Annotated[Path, Parameter(help="JSON lines: source or sample_id, action (keep, remove, relabel with new_label), who, when, why.")],
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Folder to write; without it the output of `clean` itself.")] = None,
    sign: Sign = None,
    as_json: Json = False,
) -> int:
    """Write the sanitized set again as people decided about single samples. Takes no GPU and trains nothing."""
    from meca import pipeline
    from meca.report.console import accounting_line, verdict_lines

    summary = pipeline.apply(run, decisions, output, _private_key(sign))
    if as_json:
        _json(summary)
    else:
        _say(*verdict_lines(summary), accounting_line(summary["counts"]), f"Published     {output or run}")
    return DONE


@app.command
def poison(
    path: Annotated[str, Parameter(help="The training data.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the poisoned set (data/) and what is true about it (truth/).")],
    attack: Annotated[str, Parameter(help="badnet, blend, sig, wanet, … (docs/attacks.md); `none` for the options of group poison alone.")],
    rate: Annotated[float | None, Parameter(help="Poisoned / all training samples.")] = None,
    target: Annotated[int | None, Parameter(help="Index of the class that the backdoor leads to.")] = None,
    seed: Annotated[int | None, Parameter(help="Chooses the samples and what is drawn for them.")] = None,
    format: Format = "auto",
    params: ParamsFile = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Plant a known attack into a copy of your data, to test a defence. Without `--set ingest.size=…` pictures keep their size."""
    from meca import pipeline
    from meca.progress import Progress
    from meca.report.console import attack_lines

    _existing(path)
    given = {key: value for key, value in (("poison.rate", rate), ("poison.target_class", target), ("seed", seed)) if value is not None}
    chosen = _params(params, None, settings, {"ingest.format": format, "ingest.size": 0, "poison.attack": attack, **given})
    with Progress() as progress:
        record = pipeline.plant(path, output, chosen, progress)
    if as_json:
        _json(record)
    else:
        _say(*attack_lines(record), f"Data          {output / 'data'}", f"Truth         {output / 'truth'}")
    return DONE


@app.command
def evaluate(run: Annotated[Path, Parameter(help="A workspace, or the output of `clean`.")], /, *, as_json: Json = False) -> int:
    """Print ACC, recall, ASR, TPR and FPR where there is a truth, and say what cannot be known without one."""
    from meca.files import read_json
    from meca.pipeline import find_run
    from meca.report.console import evaluation_lines

    evaluation = read_json(find_run(run, ("work/evaluate",)) / "work" / "evaluate" / "evaluation.json")
    _json(evaluation) if as_json else _say(*evaluation_lines(evaluation))
    return DONE


@app.command
def report(
    run: Annotated[Path, Parameter(help="A workspace, or the output of `clean`.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(name=["--output", "-o"], help="Where to write the page; without it the place it had.")] = None,
) -> int:
    """Write the report page of a finished run again and print its path."""
    from meca.files import atomic_write, refuse_foreign
    from meca.pipeline import find_run, render
    from meca.release.decisions import DECISIONS

    folder = find_run(run)
    page = output or (run / "report.html" if folder != run else run / "report" / "report.html")
    if output is None:
        refuse_foreign(page.parent)
    atomic_write(page, render(folder, run if (run / DECISIONS).is_file() else None))
    _say(page)
    return DONE


@app.command
def keygen(
    private: Annotated[Path, Parameter(help="The file for the private key; the public one is written beside it, as .pub.pem.")],
    /,
) -> int:
    """Make a pair of Ed25519 keys (PEM) for `sign`. With MECA_KEY_PASSPHRASE the private one is encrypted."""
    from meca.release.signing import make_keys

    public = private.with_suffix(".pub.pem")
    name = make_keys(private, public, _passphrase())
    _say(f"Private key   {private}", f"Public key    {public}", f"Key id        {name}")
    return DONE


Attestation = Annotated[Path | None, Parameter(name="--attestation", help="The signed statement; without it attestation.json in the folder.")]


@app.command
def sign(
    out: Annotated[Path, Parameter(help="A published folder.")],
    /,
    *,
    key: Annotated[Path, Parameter(help="The Ed25519 private key (PEM); its passphrase, if it has one, comes from MECA_KEY_PASSPHRASE.")],
    attestation: Attestation = None,
) -> int:
    """Sign a published folder: an in-toto statement about set, model and verdict, in a DSSE envelope."""
    from meca.release.signing import sign as write

    name = write(_folder(out), _needed_key(key), attestation)
    _say(f"Signed        {attestation or out / 'attestation.json'}", f"Key id        {name}")
    return DONE


@app.command
def verify(
    out: Annotated[Path, Parameter(help="A published folder.")],
    /,
    *,
    key: Annotated[Path | None, Parameter(help="The Ed25519 public key (PEM) that must have signed; without it no signature is checked.")] = None,
    attestation: Attestation = None,
    as_json: Json = False,
) -> int:
    """Check hashes and accounting of a published folder, and with --key its signature. Needs no network, no account and no torch."""
    from meca.release.verification import ATTESTATION, REPORT, examine

    if attestation is not None and key is None:
        raise UsageError("Expected --key beside --attestation: without a key nothing can be said about a signature.")
    found = examine(_folder(out), key, attestation)
    mismatches = found.mismatches
    # A script that asks for the signature alone must not take a folder that differs for one that was signed.
    signature = "contents-differ" if found.signature == "valid" and mismatches else found.signature
    if as_json:
        _json({"verified": not mismatches, "mismatches": mismatches, "signature": signature})
        return POISONED if mismatches else DONE
    _say(*mismatches, f"{len(mismatches)} mismatches in {out}." if mismatches else f"Everything in {out} is as it was published.")
    if signature == "invalid":
        _say("The signature does not hold, so nothing else was looked at.")
    elif signature == "contents-differ":
        _say("The statement was signed with the given key, but the folder is not what was signed.")
    elif signature == "valid":
        _say("It was signed with the given key.")
    elif ATTESTATION in found.not_listed:
        _say("It carries a signature, which was not checked: give the signer's public key with --key.")
    if key is None and REPORT in found.not_listed and not mismatches:
        _say(f"{REPORT} was not checked: only a signature says which page was published.")
    return POISONED if mismatches else DONE


Why = Annotated[str, Parameter(help="The reason, for the record in the registry.")]


@app.command
def promote(
    run: Annotated[Path, Parameter(help="A workspace whose run is tracked; without it the working directory.")] = Path(),
    /,
    *,
    why: Why = "",
    key: Annotated[Path | None, Parameter(help="An Ed25519 public key (PEM) that must have signed the published folder.")] = None,
    attestation: Attestation = None,
    uncompared: Annotated[
        bool, Parameter(negative="", show_default=False, help="Replace a champion that cannot be measured on this data; needs --why.")
    ] = False,
    rollback: Annotated[
        bool,
        Parameter(name=["--rollback", "--undo"], negative="", show_default=False, help="Give the alias back to the version before; needs --why."),
    ] = False,
    history: Annotated[bool, Parameter(negative="", show_default=False, help="Print who moved the alias, when, why, and change nothing.")] = False,
    as_json: Json = False,
) -> int:
    """Register the clean model and move the alias, if every gate in params.yaml holds and the champion is no better. Else exits 5."""
    _platform()
    from tasks.mlflow import registry

    if rollback + history + uncompared > 1 or ((rollback or history) and (key is not None or attestation is not None)):
        raise UsageError("Expected one of --rollback, --history, or a promotion with its options.")
    if history:
        events = registry.history(_folder(run))
        _json(events) if as_json else _say(*_moves(events) or ["The alias was never moved."])
        return DONE
    if rollback:
        outcome = registry.rollback(_folder(run), why=why)
        sentences = [f"Version {outcome['undone']} is {outcome['alias']} no more."]
    else:
        outcome = registry.promote(_folder(run), why=why, key=key, attestation=attestation, uncompared=uncompared)
        sentences = [*(gate["sentence"] for gate in outcome["gates"]), *(f"Warning: {warning}" for warning in outcome["warnings"])]
    if as_json:
        _json(outcome)
    else:
        _say(f"{outcome['model']} version {outcome['version']} is {outcome['alias']}.", *sentences)
    return DONE


def _moves(events: Iterable[dict[str, Any]]) -> list[str]:
    return [
        f"{e.get('when')}  {e['action']:<8} {e['from'] or '-':>4} -> {e['to']:<4} {e.get('who')}: {e.get('why') or 'no reason given'}" for e in events
    ]


@app.command
def check_serving(
    run: Annotated[Path, Parameter(help="A workspace, whose params.yaml names the registered model; without it the working directory.")] = Path(),
    /,
    *,
    alias: Annotated[str | None, Parameter(help="Without it the one in params.yaml.")] = None,
    as_json: Json = False,
) -> int:
    """Load what the alias names in a clean process, with unpickling forbidden, and let it predict. Exits 2 if it cannot be served."""
    _platform()
    from meca.params import read_params
    from tasks.mlflow.serving import check

    params = read_params(_folder(run) / "params.yaml")
    found = check(run, str(params.raw("track")["registered_model"]), alias or str(params.raw("promote")["alias"]))
    if as_json:
        _json(found)
    else:
        _say(
            f"{found['model']} version {found['version']} is {found['alias']}, and answers: labels {', '.join(map(str, found['labels']))} for noise.",
            f"SHA-256 of the model {found['sha256']}, {len(found['classes'])} classes, {found['seconds']} s.",
        )
    return DONE


@app.command
def track(
    run: Annotated[Path, Parameter(help="A workspace with a finished run; without it the working directory.")] = Path(), /, *, as_json: Json = False
) -> int:
    """Tell MLflow what it was not told: this result, and those kept while it was away. Takes the time that it takes; exits 2 if it cannot."""
    _platform()
    from meca.errors import MecaError
    from tasks.dvc.stage import Pipeline
    from tasks.mlflow.tracking import is_recorded, untold

    os.environ["MECA_TRACKING_SECONDS"] = "0"
    before = len(untold(_folder(run)))
    if not is_recorded(run):
        Pipeline(run).run("track", force=True, log=_complain)
    left = len(untold(run))
    if not is_recorded(run):
        raise MecaError(f"MLflow was not told everything; {left} results are still kept, the lines above say why.")
    _json({"recorded": True, "told": before, "left": left}) if as_json else _say(f"MLflow knows this result, and {before} that were kept.")
    return DONE


Workspace = Annotated[Path, Parameter(help="A workspace; without it the working directory.")]


@app.command
def push(run: Workspace = Path(), /) -> int:
    """Send what the DVC remote lacks: data, models, verdicts, run cache. MECA_REMOTE_URL names another remote, such as s3://bucket/prefix."""
    _platform()
    from tasks.dvc.remote import push as send

    send(_folder(run))
    _say("The remote has all of it.")
    return DONE


@app.command
def pull(run: Workspace = Path(), /) -> int:
    """Fetch what dvc.lock names from the DVC remote, and compare it with the SHA-256 that the stages wrote down. Exits 2 if it differs."""
    _platform()
    from tasks.dvc.remote import pull as receive

    receive(_folder(run))
    _say("Everything is here, and as the stages wrote it.")
    return DONE


@app.command
def demo(
    *,
    data: Annotated[str, Parameter(help="shapes (generated), digits (bundled scans), cifar10 (MECA_DATA or download), or a path.")] = "shapes",
    folder: Annotated[Path | None, Parameter(help="The workspace; without it .demo/<data>.")] = None,
    preset: Preset = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Poison a data set, clean it, train, track, publish and promote: the main job as a Prefect flow, with no server."""
    _platform()
    from flows.demo import lines, play

    given = {**_settings(settings), **({"preset": preset} if preset else {})}
    outcome = play(data, folder or Path(".demo") / Path(data).name, given)
    if as_json:
        _json(outcome)
    else:
        _say(*lines(outcome))
    # Poison was planted, so finding it is success here; only a refused promotion is not.
    return DONE if outcome["promotion"].get("version") else INCONCLUSIVE


@app.command
def benchmark(
    *,
    data: Annotated[
        tuple[str, ...], Parameter(negative="", help="shapes, digits, cifar10, fashion-mnist, or a path; `:n` behind it takes n samples.")
    ] = ("shapes",),
    attack: Annotated[tuple[str, ...], Parameter(negative="", show_default=False, help="Without it the paper's eight, and none.")] = (),
    rate: Annotated[tuple[float, ...], Parameter(negative="", help="Poisoned / all training samples.")] = (0.05,),
    seed: Annotated[tuple[int, ...], Parameter(negative="", help="Chooses the samples, the weights, every draw.")] = (1,),
    preset: Annotated[tuple[str, ...], Parameter(negative="")] = ("default", "paper"),
    network: Annotated[
        tuple[str, ...], Parameter(negative="", help="compact, resnet18, resnet34, mobilenet_v2; `:stem` behind it chooses the stem.")
    ] = ("compact",),
    partition_rate: Annotated[
        tuple[float, ...], Parameter(negative="", show_default=False, help="Share taken for clean; without it what params.yaml says.")
    ] = (),
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="JSON lines; the tables stand beside it, as .md.")] = Path("benchmark.jsonl"),
    workers: Annotated[int, Parameter(help="Runs at a time; 0: one for each core, or one on a GPU.")] = 0,
    keep: Annotated[bool, Parameter(negative="", show_default=False, help="Keep the folders of finished runs.")] = False,
    params: ParamsFile = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Measure data x attack x rate x seed x preset as a Prefect flow, into one file with tables. Lists repeat their option."""
    _platform()
    from flows.benchmark import run as measure
    from meca.params import PACKAGED, read_params
    from tasks.benchmark.grid import Plan

    given = {"attacks": attack} if attack else {}
    plan = Plan(
        data=data,
        rates=rate,
        seeds=seed,
        presets=preset,
        networks=network,
        partition_rates=partition_rate,
        settings=_settings(settings),
        tree=read_params(params or PACKAGED).tree,
        **given,
    )
    outcome = measure(plan, output, workers, keep, say=_complain if as_json else _say)
    _json(outcome) if as_json else _say(outcome["results"], *outcome["tables"])
    return DONE


@app.command
def doctor(*, as_json: Json = False) -> int:
    """Say what is here: versions, devices, disk, servers, telemetry. Exits 2 if something that meca needs is missing."""
    from flows.doctor import examine

    checks = examine()
    if as_json:
        _json({"ok": all(check["ok"] for check in checks), "checks": checks})
    else:
        for check in checks:
            _say(f"{'ok ' if check['ok'] else 'BAD'} {check['name']:<12} {plain(check['found'])}")
            _say(*(f"    {'warning:':<12} {plain(warning)}" for warning in check["warnings"]))
            if check["next"]:
                _say(f"    {'next:':<12} {plain(check['next'])}")
    return DONE if all(check["ok"] for check in checks) else FAILED


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code; no exception but an exit gets out."""
    try:
        result = app(argv, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
        return result if isinstance(result, int) else DONE
    except CycloptsError as error:
        _complain(f"{plain(error, 600)} `meca --help` shows the verbs, `meca VERB --help` their options.")
        return USAGE
    except MecaError as error:
        _complain(plain(error, 2000))
        return error.exit_code
    except KeyboardInterrupt:
        _complain("interrupted; the same command continues.")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader of our output went away (`meca inspect … | head`). The interpreter would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except Exception as error:  # every unforeseen failure is a 2; 1 would say "poison found"
        from tasks.environment import without_secrets

        failure, words = system_failure(error), plain(without_secrets(str(error)), 600)
        _complain(plain(failure, 2000) if failure else f"failed with {type(error).__name__}: {words} {_keep_traceback()}")
        return FAILED


def main() -> NoReturn:
    """The console script."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:  # not under `nohup`
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        # In the C locale a class name outside ASCII must not end the run.
        with contextlib.suppress(AttributeError):
            stream.reconfigure(errors="replace")  # pyright: ignore[reportAttributeAccessIssue]
    code = run()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not turn the code into another one
    sys.exit(code)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _keep_traceback() -> str:
    from tasks.environment import without_secrets

    text = without_secrets(traceback.format_exc())
    if os.environ.get("MECA_DEBUG"):
        print(text, file=sys.stderr)
        return "(traceback above)"
    try:
        handle, name = tempfile.mkstemp(prefix="meca-", suffix=".traceback.txt")
        with open(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text)
    except OSError:
        print(text, file=sys.stderr)
        return "(traceback above)"
    return f"(traceback in {name}; what is finished is kept, the same command continues)"


def _platform() -> None:
    """Prepare the environment before the first import of Prefect, MLflow or DVC: they read it then."""
    from tasks.environment import prepare

    prepare()


def _existing(path: str) -> str:
    """Return the path; data sets known by name (shapes, digits, …) need no file."""
    from meca.data.readers import NAMES
    from meca.data.readers.webdataset import is_pattern

    if path.startswith("s3://"):
        raise UsageError(f"{plain(path)} is not on this machine; copy it first: meca fetch {plain(path)} -o FOLDER (`meca clean` does so itself).")
    if path not in NAMES and not Path(path).exists() and not is_pattern(Path(path)):
        raise UsageError(f"Expected a file or folder, found nothing at {plain(path)}; check the path.")
    return path


def _bring(source: str, folder: Path, progress: Any) -> Path:
    _platform()
    from tasks.s3.origin import bring

    return bring(source, folder, progress)


def _fetchable(output: Path) -> None:
    """Refuse a folder that is no copy of this user's: it would be replaced."""
    from tasks.s3.download import is_copy

    if output.is_dir() and any(output.iterdir()) and not is_copy(output):
        raise UsageError(f"Expected {plain(output)} to be new, empty, or an earlier copy, but it holds other files; choose another --output.")


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise UsageError(f"Expected a folder, found none at {plain(path)}; check the path.")
    return path


def _passphrase() -> bytes | None:
    # Not an option: the command line of a process can be read by others.
    return os.environ["MECA_KEY_PASSPHRASE"].encode() if os.environ.get("MECA_KEY_PASSPHRASE") else None


def _needed_key(file: Path) -> Any:
    from meca.release.signing import read_private_key

    return read_private_key(file, _passphrase())


def _private_key(file: Path | None) -> Any:
    return None if file is None else _needed_key(file)


def _settings(given: Iterable[str]) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise UsageError(f"Expected --set group.key=value, got {plain(item)!r}.")
        settings[key] = value
    return settings


def _params(file: Path | None, preset: str | None, given: Iterable[str], more: dict[str, Any]) -> Any:
    from meca.params import PACKAGED, read_params, with_settings

    chosen = {**({"preset": preset} if preset else {}), **more, **_settings(given)}
    return with_settings(read_params(file or PACKAGED), chosen)


def _say(*lines: object) -> None:
    for line in lines:
        print(plain(line, 4000))


def _json(value: Any) -> None:
    # ASCII only: a control or bidi character in a class name reaches the terminal as \u202e, the reader of the JSON as it was.
    print(json.dumps(value, sort_keys=True, indent=2, ensure_ascii=True, default=str))


def _complain(message: str) -> None:
    print(f"meca: {message}", file=sys.stderr, flush=True)
