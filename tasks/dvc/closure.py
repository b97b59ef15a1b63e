"""Which files of the project a program imports, so that DVC sees an edit in any of them.

python -m tasks.dvc.closure          rewrite the lines with code below `deps` in dvc.yaml
python -m tasks.dvc.closure --check  exit 1 if a line is missing or too many
"""

import argparse
import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from meca.params import PRESETS, read_params

__all__ = ["closure", "groups", "module_file", "rewrite", "stage_module"]

PACKAGES = ("meca", "tasks")
RESOURCES = (".html", ".css", ".js", ".svg", ".md", ".txt")  # what a package reads beside its code; params.yaml is tracked by key


def module_file(root: Path, module: str) -> Path | None:
    """Return the file of a module of the project, None for anything else."""
    if module.split(".")[0] not in PACKAGES:
        return None
    path = root.joinpath(*module.split("."))
    for file in (path.with_suffix(".py"), path / "__init__.py"):
        if file.is_file():
            return file
    return None


def closure(root: Path, module: str) -> list[str]:
    """Return the project's files that running `module` can import, relative to `root`, sorted.

    Imports inside functions count, and so do the packages above a module, and the resources beside it that it names.
    """
    found: set[Path] = set()
    open_ = [module]
    seen: set[str] = set()
    while open_:
        name = open_.pop()
        if name in seen:
            continue
        seen.add(name)
        file = module_file(root, name)
        if file is None:
            continue
        found.add(file)
        found |= _resources(file)
        open_ += [name.rpartition(".")[0], *_imports(file, name)]
    return sorted(file.relative_to(root).as_posix() for file in found)


def _resources(file: Path) -> set[Path]:
    """Return the templates and texts beside a module that it names, and those that they name."""
    beside = {path for path in file.parent.iterdir() if path.suffix in RESOURCES}
    found: set[Path] = set()
    new = {file}
    while new:
        text = "".join(path.read_text(encoding="utf-8") for path in new)
        new = {path for path in beside - found if path.name in text}
        found |= new
    return found


def _imports(file: Path, module: str) -> Iterator[str]:
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"), str(file))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            base = ".".join(parts[: len(parts) - node.level + 1]) if node.level else ""
            base = ".".join(part for part in (base, node.module or "") if part)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)  # a name may be a module


def stage_module(cmd: str) -> str:
    """Return the module that a stage's command runs.

    Raises:
        ValueError: The command is not of the form `python -m module ...`.
    """
    match shlex.split(cmd):
        case ["python", "-m", module, *_]:
            return module
    raise ValueError(f"Expected a command `python -m <module> ...` in dvc.yaml, got {cmd!r}.")


def groups(root: Path, module: str) -> list[str] | None:
    """Return a stage's `GROUPS` as DVC names them, None where the module has none; importing it would import torch.

    Of a group with two blocks only the one of the preset in force is a dependency.
    """
    file = module_file(root, module)
    if file is None:
        return None
    tree = read_params(root / "params.yaml").tree
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and any(isinstance(target, ast.Name) and target.id == "GROUPS" for target in node.targets):
            return [
                name + ".${preset}" * (set(tree.get(name) or ()) == set(PRESETS) if isinstance(tree.get(name), dict) else 0)
                for name in ast.literal_eval(node.value)
            ]
    return None


def rewrite(root: Path, text: str) -> str:
    """Return the text of a dvc.yaml with code and parameters as they should be; comments and all else stay."""
    code = re.compile(rf"      - (?:{'|'.join(PACKAGES)})/\S+\.\w+$")
    lines: list[str] = []
    module, section = "", ""
    for line in [*text.splitlines(), ""]:
        if match := re.match(r"\s+(?:cmd: )?python -m (\S+)", line):
            module = match[1]
        if section and not line.startswith("      "):
            if section == "deps":
                lines += [f"      - {file}" for file in closure(root, module)]
            section = ""
        known = groups(root, module) if section == "params" else None
        if not (section == "deps" and code.fullmatch(line)) and known is None:
            lines.append(line)
        if line in ("    deps:", "    params:"):
            section = line.strip(" :")
            if section == "params":
                lines += [f"      - {name}" for name in groups(root, module) or ()]
    return "\n".join(lines[:-1]) + "\n"


def main() -> None:
    """Rewrite or check the dvc.yaml of the working directory."""
    parser = argparse.ArgumentParser(prog="python -m tasks.dvc.closure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if there is something to change")
    arguments = parser.parse_args()
    path = Path("dvc.yaml")
    before = path.read_text(encoding="utf-8")
    after = rewrite(Path(), before)
    if arguments.check and after != before:
        raise SystemExit("dvc.yaml does not list what the stages import or read: run `python -m tasks.dvc.closure`.")
    if after != before:
        path.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
