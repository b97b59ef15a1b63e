"""The registry of hostile data sets: every case with the one outcome that is right."""

from tests.hostile import archives, cifar, folders, idx, images, lists, names, parquet, settings, webdataset
from tests.hostile.case import Case

__all__ = ["CASES"]

CASES: dict[str, Case] = {}
for module in (images, folders, names, lists, parquet, archives, webdataset, cifar, idx, settings):
    for found in module.CASES:
        assert found.id not in CASES, f"two cases are called {found.id}"
        CASES[found.id] = found
