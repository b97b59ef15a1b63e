"""The verbs that need torch at most: inspect, clean, apply, poison, evaluate, report, keygen, sign, verify."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from flows.cli.console import say, say_json
from flows.cli.options import (
    DONE,
    POISONED,
    Attestation,
    ExitZero,
    FailOn,
    Format,
    Json,
    ParamsFile,
    Preset,
    Settings,
    Sign,
    app,
    brought,
    existing,
    existing_folder,
    exit_of,
    needed_key,
    optional_key,
    params_of,
    passphrase,
)
from meca.errors import InputRefused, UsageError

__all__ = ["apply", "clean", "evaluate", "inspect", "keygen", "poison", "report", "sign", "verify"]


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

    found = asdict(look(existing(path), format, label_column))
    say_json(found) if as_json else say(*inspection_lines(found))
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
    fail_on: FailOn = None,
    exit_zero: ExitZero = False,
) -> int:
    """Find poisoned samples, train a clean model, write the sanitized set. Started again on the same input it resumes."""
    from meca import pipeline, verbs
    from meca.progress import Progress
    from meca.report.console import verdict_lines

    exit_of("no_evidence", fail_on, exit_zero)  # a contradiction shows before hours of work
    origin = path if path.startswith("s3://") else ""
    verbs.refuse_test_split((path if origin else existing(path)).removesuffix(".dvc"))
    chosen = params_of(params, preset, settings, {"ingest.format": format, "ingest.origin": origin})
    key = optional_key(sign)  # before hours of work
    with Progress() as progress:
        if origin or path.endswith(".dvc"):
            pipeline.refuse_planted(output)
            path = str(brought(path, pipeline.run_folder(output) / "source", progress))

        def told(stage: str, seconds: float | None) -> None:
            progress.say(f"{stage:<17} {'unchanged' if seconds is None else f'{seconds:8.1f} s'}")

        summary = verbs.clean(path, output, chosen, progress, told, key)
    if as_json:
        say_json(summary)
    else:
        say(*verdict_lines(summary))
        say(
            f"Published     {output}",
            f"Kept for a resume, delete it freely: {pipeline.run_folder(output)}",
            f"Report        {output / 'report.html'}",
        )
    return exit_of(summary["verdict"], fail_on, exit_zero)


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
    from meca import verbs
    from meca.report.console import accounting_line, verdict_lines

    summary = verbs.apply(run, decisions, output, optional_key(sign))
    if as_json:
        say_json(summary)
    else:
        say(*verdict_lines(summary), accounting_line(summary["counts"]), f"Published     {output or run}")
    return DONE


@app.command
def poison(
    path: Annotated[str, Parameter(help="The training data.")],
    /,
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"], help="Folder for the poisoned set (data/) and what is true about it (truth/).")],
    attack: Annotated[str, Parameter(help="badnet, blend, sig, wanet, … (docs/attacks.md); `none` for the options of group poison alone.")],
    rate: Annotated[float | None, Parameter(help="Poisoned / all training samples.")] = None,
    target: Annotated[str | None, Parameter(help="The class that the backdoor leads to: its name or its index.")] = None,
    source_class: Annotated[str | None, Parameter(help="tact: the class whose images are poisoned: its name or its index.")] = None,
    seed: Annotated[int | None, Parameter(help="Chooses the samples and what is drawn for them.")] = None,
    test: Annotated[bool, Parameter(negative="", show_default=False, help="Write the test split with and without the trigger, too (test/).")] = False,
    lossless: Annotated[
        bool, Parameter(negative="", show_default=False, help="Planted images become PNG: the trigger is unharmed, and the form tells them apart.")
    ] = False,
    format: Format = "auto",
    params: ParamsFile = None,
    settings: Settings = (),
    as_json: Json = False,
) -> int:
    """Plant a known attack into a copy of your data, to test a defence. Every image keeps its size, its mode and the form of its file."""
    from meca import verbs
    from meca.progress import Progress
    from meca.report.console import attack_lines

    existing(path)
    if any(setting.partition("=")[0].strip() == "ingest.size" for setting in settings):
        raise UsageError(
            "Expected no ingest.size here: the trigger is planted at the size of each image. Resize the images before, or leave it away."
        )
    given = {key: value for key, value in (("poison.rate", rate), ("seed", seed)) if value is not None}
    chosen = params_of(params, None, settings, {"ingest.format": format, "poison.attack": attack, **given})
    named = {field: text for field, text in (("target_class", target), ("source_class", source_class)) if text is not None}
    with Progress() as progress:
        record = verbs.plant(path, output, chosen, progress, named, lossless, test)
    if as_json:
        say_json(record)
    else:
        say(*attack_lines(record), f"Data          {output / 'data'}", *([f"Test          {output / 'test'}"] if test else []))
        say(f"Truth         {output / 'truth'}")
    return DONE


@app.command
def evaluate(
    run: Annotated[Path, Parameter(help="A workspace, or the output of `clean`.")],
    /,
    *,
    truth: Annotated[Path | None, Parameter(help="What `meca poison` wrote: the run on its data is held against it.")] = None,
    as_json: Json = False,
) -> int:
    """Print ACC, recall, ASR, TPR and FPR where there is a truth, and say what cannot be known without one."""
    from meca.files import read_json
    from meca.pipeline import find_run
    from meca.report.console import evaluation_lines

    if truth is not None:
        from meca import verbs
        from meca.progress import Progress

        with Progress() as progress:
            evaluation = verbs.score(run, truth, progress)
    else:
        evaluation = read_json(find_run(run, ("work/evaluate",)) / "work" / "evaluate" / "evaluation.json")
    say_json(evaluation) if as_json else say(*evaluation_lines(evaluation))
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
    from meca.pipeline import find_run
    from meca.release.decisions import DECISIONS
    from meca.verbs import render

    folder = find_run(run)
    page = output or (run / "report.html" if folder != run else run / "report" / "report.html")
    if output is None:
        refuse_foreign(page.parent)
    atomic_write(page, render(folder, run if (run / DECISIONS).is_file() else None))
    say(page)
    return DONE


@app.command
def keygen(
    private: Annotated[Path, Parameter(help="The file for the private key; the public one is written beside it, as .pub.pem.")],
    /,
) -> int:
    """Make a pair of Ed25519 keys (PEM) for `sign`. With MECA_KEY_PASSPHRASE the private one is encrypted."""
    from meca.release.signing import make_keys

    public = private.with_suffix(".pub.pem")
    name = make_keys(private, public, passphrase())
    say(f"Private key   {private}", f"Public key    {public}", f"Key id        {name}")
    return DONE


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

    name = write(existing_folder(out), needed_key(key), attestation)
    say(f"Signed        {attestation or out / 'attestation.json'}", f"Key id        {name}")
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
    from meca.release.manifest import ATTESTATION, REPORT
    from meca.release.verification import examine

    if attestation is not None and key is None:
        raise UsageError("Expected --key beside --attestation: without a key nothing can be said about a signature.")
    found = examine(existing_folder(out), key, attestation)
    mismatches = found.mismatches
    # A script that asks for the signature alone must not take a folder that differs for one that was signed.
    signature = "contents-differ" if found.signature == "valid" and mismatches else found.signature
    if as_json:
        say_json({"verified": not mismatches, "mismatches": mismatches, "signature": signature})
        return POISONED if mismatches else DONE
    say(*mismatches, f"{len(mismatches)} mismatches in {out}." if mismatches else f"Everything in {out} is as it was published.")
    if signature == "invalid":
        say("The signature does not hold, so nothing else was looked at.")
    elif signature == "contents-differ":
        say("The statement was signed with the given key, but the folder is not what was signed.")
    elif signature == "valid":
        say("It was signed with the given key.")
    elif ATTESTATION in found.not_listed:
        say("It carries a signature, which was not checked: give the signer's public key with --key.")
    if key is None and REPORT in found.not_listed and not mismatches:
        say(f"{REPORT} was not checked: only a signature says which page was published.")
    return POISONED if mismatches else DONE
