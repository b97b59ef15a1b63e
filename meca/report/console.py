"""What the terminal shows of a run: what was seen, the verdict, the figures. Lines of text, nothing of them markup."""

from collections.abc import Mapping, Sequence
from typing import Any

from meca.data.judged import pixels
from meca.report.numbers import interval, percent
from meca.text import plain

__all__ = ["accounting_line", "attack_lines", "evaluation_lines", "inspection_lines", "verdict_lines"]


def inspection_lines(found: Mapping[str, Any]) -> list[str]:
    """Return what `meca inspect` saw (the fields of `meca.data.inspection.Inspection`)."""

    def commonest(counts: Mapping[str, int]) -> str:
        return ", ".join(f"{plain(name)} ({n})" for name, n in list(counts.items())[:6]) + (f", {len(counts) - 6} more" if len(counts) > 6 else "")

    splits = list(found["classes"])
    names = list(dict.fromkeys(name for split in splits for name in found["classes"][split]))
    width = min(40, max([12, *(len(plain(name)) for name in names)]))
    lines = [
        f"Data          {plain(found['name'])}",
        f"Format        {plain(found['format'])} {plain(found['option'])}".rstrip(),
        "Samples       " + ", ".join(f"{plain(split)} {n}" for split, n in found["samples"].items()),
        f"Sizes         {commonest(found['sizes'])}",
        *_longer_sides(found["longer_sides"]),
        f"Kinds         {commonest(found['modes'])}",
        *_clean_lines(found["judged_at"], found["estimate"]),
        "",
        f"{'class':<{width}}" + "".join(f"{plain(split):>10}" for split in splits),
    ]
    lines += [f"{plain(name, width):<{width}}" + "".join(f"{found['classes'][split].get(name, 0):>10}" for split in splits) for name in names[:50]]
    lines += [f"… {len(names) - 50} more classes"] if len(names) > 50 else []
    for title, key in (("Unreadable", "unreadable"), ("Not read", "odd")):
        if found[f"n_{key}"]:
            lines += [
                "",
                f"{title:<14}{found[f'n_{key}']} of {found['checked']} checked" if key == "unreadable" else f"{title:<14}{found[f'n_{key}']}",
            ]
            lines += [f"  {plain(item)}" for item in found[key]]
    return [*lines, *([""] if found["warnings"] else []), *(f"Warning       {plain(warning, 800)}" for warning in found["warnings"])]


def _longer_sides(quantiles: Mapping[str, int]) -> list[str]:
    """Return the line about the longer sides of the training images; none where there is one size or no image."""
    if not quantiles or quantiles["0"] == quantiles["100"]:
        return []
    middle = f"half of them {quantiles['25']} to {quantiles['75']}, the median {quantiles['50']}"
    return [f"Longer sides  {quantiles['0']} to {quantiles['100']} pixels, {middle}"]


def _clean_lines(judged: Mapping[str, Any], estimate: Mapping[str, Any]) -> list[str]:
    """Return what `meca clean` would do: the size that it looks at images at, and about how long it takes."""
    padded = ", with borders" if judged["fit"] == "pad" else ""
    cores = f"{estimate['cores']} core{'s' * (estimate['cores'] != 1)}"
    times = f"{_duration(estimate['seconds'])}, or {_duration(estimate['seconds_with_control'])} where nothing is found and the control is run"
    return [
        f"Stored at     {pixels(judged)} pixels{padded}. {plain(judged['reason'], 400)}",
        f"Time          meca clean: about {times}; an estimate for {cores} like those of docs/performance.md, without a GPU",
    ]


def _duration(seconds: float) -> str:
    """Return a time as people say it, roughly: an estimate has no seconds."""
    if seconds < 90:
        return "1 minute"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def verdict_lines(summary: Mapping[str, Any]) -> list[str]:
    """Return the verdict and what became of the samples."""
    counts = summary["counts"]
    lines = [summary["sentence"]]
    if summary.get("reason") and summary["reason"] not in summary["sentence"]:
        lines.append(summary["reason"])
    lines.append(
        "Samples       " + ", ".join(f"{counts[key]} {key}" for key in ("kept", "relabelled", "removed", "quarantined")) + f" of {counts['input']}"
    )
    if summary.get("target_class"):
        lines.append(f"Target class  {plain(summary['target_class']['name'])} (label {summary['target_class']['label']})")
    return lines + [f"Warning       {warning}" for warning in summary.get("warnings") or ()]


def accounting_line(counts: Mapping[str, int]) -> str:
    """Return the sum that must hold: `kept + relabelled + removed + quarantined = input`, in rows."""
    words = ("kept", "relabelled", "removed", "quarantined")
    return f"Accounting    {' + '.join(f'{counts[word]} {word}' for word in words)} = {counts['input']} in the input"


def attack_lines(record: Mapping[str, Any]) -> list[str]:
    """Return what was planted, in numbers, and every cap that bit."""
    if record["attack"] == "none":
        lines = ["Attack        none"]
    else:
        names = record.get("class_names") or ()
        told = [f"{target} ({plain(names[target])})" if names and names[target] != str(target) else str(target) for target in record["targets"]]
        targets = "to class " + " and ".join(told) if told else "every class to the next"
        lines = [f"Attack        {record['attack']}, {targets}", f"Poisoned      {record['poisoned']} of {record['n']}"]
        lines += [f"Kept label    {record['kept_label']} that carry what poison carries"] if record.get("kept_label") else []
        lines += [f"Covers        {record['covers']['actual']}"] * bool(record["covers"]["requested"])
        for what, counts in (("poisoned samples", record), ("covers", record["covers"])):
            if counts["capped"]:
                lines.append(f"Warning       {counts['requested']} {what} were asked for, capped: {counts['reason']}.")
    lines += [f"Wrong labels  {record['noise']['actual']}"] if record.get("noise", {}).get("actual") else []
    lines += _file_lines(record["files"]) if record.get("files", {}).get("planted") else []
    return lines + ([f"Dropped       {record['dropped']}"] if record.get("dropped") else [])


def _class_lines(classes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each class in which something is poisoned or flagged."""
    told = [each for each in classes if each["poisoned"] or each["flagged"]]
    if not told:
        return []
    width = min(40, max([12, *(len(plain(each["name"])) for each in told)]))
    lines = [f"{'class':<{width}} {'samples':>8} {'poisoned':>9} {'flagged':>8} {'TPR':>8} {'FPR':>8}"]
    for each in told:
        figures = f"{each['n']:>8} {each['poisoned']:>9} {each['flagged']:>8} {percent(each['tpr']):>8} {percent(each['fpr']):>8}"
        lines.append(f"{plain(each['name'], width):<{width}} {figures}")
    return lines


def _file_lines(files: Mapping[str, Any]) -> list[str]:
    """Return how the planted images were written, and what that did to them."""
    if files["lossless"]:
        lines = [f"Files         {files['planted']} PNG: the trigger is unharmed, and the form of a file tells that it was planted"]
    else:
        harm = files["harm"]
        lines = [
            f"Files         {files['planted']} in the form that they came in; what a reader sees is {harm['mean']:.2f} grey levels from what was "
            f"planted on average, {harm['largest']} at most"
        ]
        if files["reformed"]:
            lines.append(f"Warning       The form of {files['reformed']} of them could not be kept as it was.")
    if files["without_trigger"]:
        lines.append(f"Warning       The trigger changes no pixel of {files['without_trigger']} of them.")
    return lines


def evaluation_lines(evaluation: Mapping[str, Any]) -> list[str]:
    """Return the figures of every model that was evaluated, and what cannot be known."""
    lines = [f"{'model':<12} {'ACC':>8} {'ASR':>8} {'RA':>8}  {'successful attacks':<18} {'95 % interval':<16}"]
    for key in ("no_defence", "oracle", "enhanced", "clean", "final"):
        figures = evaluation.get(key)
        if figures:
            attacks = f"{figures['asr_k']} of {figures['asr_n']}" if figures.get("asr_n") else "unknown"
            lines.append(
                f"{key.replace('_', ' '):<12} {percent(figures.get('acc')):>8} {percent(figures.get('asr')):>8} {percent(figures.get('ra')):>8}  "
                f"{attacks:<18} {interval(figures.get('asr_interval')):<16}".rstrip()
            )
    for key in ("no_defence", "final"):
        figures = evaluation.get(key) or {}
        parts = {"all classes": figures.get("asr_all"), "neither source nor target": figures.get("asr_leak")}
        parts |= {f"trigger to class {each['target_class']}": each["asr"] for each in figures.get("per_trigger", ())}
        lines += [f"{key.replace('_', ' '):<12} ASR of {part}: {percent(value)}" for part, value in parts.items() if value is not None]
    if len(lines) == 1:
        lines = ["There is no test split: no accuracy can be given."]
    detection = evaluation.get("detection") or {}
    words = {"tpr": "TPR", "fpr": "FPR", "fpr_flagged": "FPR inside flagged classes"}
    lines += [f"{word:<12} {percent(detection[key])}" for key, word in words.items() if detection.get(key) is not None]
    if detection.get("auroc") is not None:
        lines.append(f"{'AUROC':<12} {detection['auroc']:.3f}")
    if "poison_relabelled" in detection:
        kinds = {key: detection[key] for key in ("poisoned", "poison_left", "poison_relabelled", "poison_relabelled_rightly")}
        lines.append(
            f"{'poison':<12} {kinds['poisoned']}, of which {kinds['poison_left']} stay as they came and {kinds['poison_relabelled']} are "
            f"relabelled, {kinds['poison_relabelled_rightly']} of these rightly"
        )
    lines += _class_lines(evaluation.get("classes") or ())
    matched = evaluation.get("matched") or {}
    if matched and not matched["samples"] == matched["of_run"] == matched["of_truth"]:
        lines.append(
            f"Warning       {matched['samples']} samples stand in both; the run has {matched['of_run']}, the truth {matched['of_truth']}. The others "
            "are left out of the figures."
        )
    unknown = evaluation.get("unknown") or []
    without = "" if evaluation.get("known") else " without the truth"
    return lines + [f"Cannot be known{without}: {plain(item)}" for item in unknown]
