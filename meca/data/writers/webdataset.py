"""WebDataset shards: every kept sample with all its members as they came; a relabelled one with another `cls` or `json`."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from meca.data.readers.files import clean_name
from meca.data.readers.rows import json_members
from meca.data.readers.webdataset import KEYS
from meca.data.store import Store
from meca.data.writers.archive import end_tar, header_of, write_member
from meca.data.writers.entry import Entries, Entry
from meca.errors import MecaError

__all__ = ["write"]


def write(store: Store, entries: Entries, out: Path) -> None:
    """Write the shards of split train below `out`."""
    options = store.info.source["options"]
    further: Any = store.columns
    of_shard: dict[str, list[Entry]] = {shard["name"]: [] for shard in options["shards"] if shard["split"] == "train"}
    for entry in entries:
        of_shard[entry.line["source"].split("#", 1)[0]].append(entry)
    for shard in options["shards"]:
        if shard["name"] not in of_shard:
            continue
        if clean_name(shard["name"]) != shard["name"]:
            raise MecaError(f"Expected a shard named without folders, got {shard['name']!r}; ingest the data again.")
        with open(out / shard["name"], "xb") as file:
            for entry in of_shard[shard["name"]]:
                column = further.slice(entry.at, 1).to_pylist()[0]
                new = store.info.class_names[entry.label]
                for part in column["parts"]:
                    data = part["data"]
                    if data is None:
                        data = store.payload(entry.line["offset"], entry.line["bytes"])
                    elif new != column["label"]:
                        data = _changed(part, column["label"], new, options["label_column"])
                    write_member(file, header_of(part["header"], part["name"], True, len(data)), data)
            end_tar(file, shard["padded"])


def _changed(part: Mapping[str, Any], old: str, new: str, wanted: str) -> bytes:
    """Return the member with the new label wherever the old one stood as the label."""
    data: bytes = part["data"]
    if part["extension"] == "cls" and wanted in ("auto", "cls"):
        text = data.decode()
        return text.replace(old, new, 1).encode()
    if part["extension"] != "json" or wanted == "cls":
        return data
    text = data.decode()
    for key, value, begin, end in reversed(json_members(text)):
        if key in (KEYS if wanted == "auto" else (wanted,)) and isinstance(value, int | str) and str(value).strip() == old:
            text = text[:begin] + json.dumps(int(new) if isinstance(value, int) else new, ensure_ascii=False) + text[end:]
    return text.encode()
