"""The registry of hostile data sets: every case with the one outcome that is right."""

from tests.hostile import archives, cifar, folders, idx, images, lists, names, parquet, settings, webdataset
from tests.hostile.case import Case

__all__ = ["CASES", "MODULES"]

MODULES = {
    module.__name__.rpartition(".")[2]: module.CASES
    for module in (images, folders, names, lists, parquet, archives, webdataset, cifar, idx, settings)
}
CASES: dict[str, Case] = {case.id: case for cases in MODULES.values() for case in cases}
assert len(CASES) == sum(map(len, MODULES.values())), "two cases have one id"
