"""What the verbs share: the application, options, and how an option becomes an object."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from meca import __version__
from meca.errors import UsageError
from meca.text import plain

__all__ = [
    "DONE",
    "EXITS",
    "FAILED",
    "INCONCLUSIVE",
    "INTERRUPTED",
    "POISONED",
    "REFUSED",
    "TERMINATED",
    "USAGE",
    "VERDICTS",
    "Attestation",
    "ExitZero",
    "FailOn",
    "Format",
    "Json",
    "ParamsFile",
    "Preset",
    "Settings",
    "Sign",
    "Why",
    "Workspace",
    "app",
    "as_settings",
    "brought",
    "existing",
    "existing_folder",
    "exit_of",
    "needed_key",
    "optional_key",
    "params_of",
    "passphrase",
    "prepare_platform",
    "refuse_unlike_copy",
]


DONE, POISONED, FAILED, REFUSED, USAGE, INCONCLUSIVE, INTERRUPTED, TERMINATED = 0, 1, 2, 3, 4, 5, 130, 143


VERDICTS = {"no_evidence": DONE, "weak": DONE, "poisoned": POISONED, "inconclusive": INCONCLUSIVE}


EXITS = """\
Exit codes:
  0  no evidence of poison, or done
  1  poison found (clean: and handled; verify: a mismatch)
  2  meca failed; the same command continues
  3  the input was refused
  4  wrong usage or configuration
  5  inconclusive, a gate does not hold, or a weak test with --fail-on weak"""


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
FailOn = Annotated[
    Literal["weak"] | None,
    Parameter(name="--fail-on", help="weak: exit 5 where nothing was found and the test is weak here, as planted triggers show; without it, 0."),
]
Settings = Annotated[
    tuple[str, ...],
    Parameter(name="--set", negative="", show_default=False, help="group.key=value: replaces one number of params.yaml; may be repeated."),
]
Preset = Annotated[Literal["default", "paper"] | None, Parameter(help="Which set of parameters; `paper` is arXiv 2405.12719 at its best.")]
ParamsFile = Annotated[Path | None, Parameter(name="--params", help="A params.yaml; without it the packaged one.")]
Sign = Annotated[Path | None, Parameter(name="--sign", help="An Ed25519 private key (PEM): the folder is signed before it appears.")]
Format = Annotated[str, Parameter(help="auto, or the name that `meca inspect` shows.")]
Attestation = Annotated[Path | None, Parameter(name="--attestation", help="The signed statement; without it attestation.json in the folder.")]
Why = Annotated[str, Parameter(help="The reason, for the record in the registry.")]
Workspace = Annotated[Path, Parameter(help="A workspace; without it the working directory.")]


def prepare_platform() -> None:
    """Prepare the environment before the first import of Prefect, MLflow or DVC: they read it then."""
    from tasks.environment import prepare

    prepare()


def existing(path: str) -> str:
    """Return the path; data sets known by name (shapes, digits, …) need no file."""
    from meca.data.readers.detect import NAMES
    from meca.data.readers.webdataset import is_pattern

    if path.startswith("s3://"):
        raise UsageError(f"{plain(path)} is not on this machine; copy it first: meca fetch {plain(path)} -o FOLDER (`meca clean` does so itself).")
    if path not in NAMES and not Path(path).exists() and not is_pattern(Path(path)):
        raise UsageError(f"Expected a file or folder, found nothing at {plain(path)}; check the path.")
    return path


def brought(source: str, folder: Path, progress: Any) -> Path:
    """Copy what lies in a bucket or behind a .dvc file to `folder`, and return where it is."""
    prepare_platform()
    from tasks.s3.origin import bring

    return bring(source, folder, progress)


def refuse_unlike_copy(output: Path) -> None:
    """Refuse a folder that is no copy of this user's: it would be replaced."""
    from tasks.s3.download import is_copy

    if output.is_dir() and any(output.iterdir()) and not is_copy(output):
        raise UsageError(f"Expected {plain(output)} to be new, empty, or an earlier copy, but it holds other files; choose another --output.")


def existing_folder(path: Path) -> Path:
    """Return the path of a folder that is there."""
    if not path.is_dir():
        raise UsageError(f"Expected a folder, found none at {plain(path)}; check the path.")
    return path


def passphrase() -> bytes | None:
    """Return what the private key is locked with; None where nothing is set."""
    # Not an option: the command line of a process can be read by others.
    return os.environ["MECA_KEY_PASSPHRASE"].encode() if os.environ.get("MECA_KEY_PASSPHRASE") else None


def needed_key(file: Path) -> Any:
    """Return the private key of a file."""
    from meca.release.signing import read_private_key

    return read_private_key(file, passphrase())


def optional_key(file: Path | None) -> Any:
    """Return the private key of a file; None without one."""
    return None if file is None else needed_key(file)


def exit_of(verdict: str, fail_on: str | None, exit_zero: bool) -> int:
    """Return the exit code of a verdict.

    Raises:
        UsageError: Both options were given, and they contradict each other.
    """
    if fail_on and exit_zero:
        raise UsageError("Expected --fail-on or --exit-zero, got both: one asks for a failure that the other takes back.")
    return DONE if exit_zero else INCONCLUSIVE if verdict == fail_on else VERDICTS[verdict]


def as_settings(given: Iterable[str]) -> dict[str, Any]:
    """Return the values of --set by name."""
    settings: dict[str, Any] = {}
    for item in given:
        key, sign, value = item.partition("=")
        if not sign or not key:
            raise UsageError(f"Expected --set group.key=value, got {plain(item)!r}.")
        settings[key] = value
    return settings


def params_of(file: Path | None, preset: str | None, given: Iterable[str], more: dict[str, Any]) -> Any:
    """Return the parameters that the options choose: a file, a preset, single values, and what the verb adds."""
    from meca.params import PACKAGED, read_params, with_settings

    chosen = {**({"preset": preset} if preset else {}), **more, **as_settings(given)}
    return with_settings(read_params(file or PACKAGED), chosen)
