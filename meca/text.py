"""Text that comes from data, made harmless for a screen: a class or file name is never markup, colour or direction."""

import unicodedata
from typing import Any

__all__ = ["plain", "sheet_cell"]

# Other/control, format (bidi overrides, zero width), surrogate, private use, unassigned, line and paragraph separator.
_REMOVED = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))
FORMULA = frozenset("=+-@＝＋－＠")  # the wide ones too: some spreadsheets take them for the narrow ones


def plain(value: Any, limit: int = 200) -> str:
    """Return the text of a value without control characters, terminal escapes and bidi marks, cut to `limit` characters.

    White space becomes one blank each, so that a name cannot forge a second line. What is shown stays readable; the exact
    value is in the parquet and JSON files.
    """
    characters = (" " if c in "\t\n\r\v\f\x85" else c for c in str(value))
    kept = "".join(c for c in characters if unicodedata.category(c) not in _REMOVED)
    return kept if len(kept) <= limit else kept[: limit - 1] + "…"


def sheet_cell(value: Any) -> Any:
    """Return a cell of a CSV file: text as on a screen, and none that a spreadsheet takes for a formula; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    shown = plain(value, 1000)
    return f"'{shown}" if shown.lstrip()[:1] in FORMULA else shown
