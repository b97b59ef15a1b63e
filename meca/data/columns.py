"""Functions over columns. pyarrow makes them at its import, so that no type checker knows them; here they are `Any`."""

from typing import Any

import pyarrow.compute

__all__ = ["pc"]

pc: Any = pyarrow.compute
