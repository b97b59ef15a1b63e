"""All groups of params.yaml that stages read, so that a wrong number shows before the first hour of work and not after it."""

from meca.attacks.poisoning import PoisonParams
from meca.data.readers import IngestParams
from meca.errors import UsageError
from meca.method.enhance import EnhanceParams
from meca.method.partition import PartitionParams
from meca.method.relabel import RelabelParams
from meca.method.second_look import SecondLookParams
from meca.method.split import SplitParams
from meca.models import DetectorParams, NetworkParams
from meca.params import Params
from meca.release.folder import PublishParams
from meca.report.page import Pictures
from meca.stages.evaluate import EvaluateParams
from meca.training.device import EngineParams
from meca.training.trainer import Recipe

__all__ = ["READERS", "validate"]

READERS: dict[str, type] = {
    "ingest": IngestParams,
    "poison": PoisonParams,
    "network": NetworkParams,
    "detector": DetectorParams,
    "engine": EngineParams,
    "partition": PartitionParams,
    "enhance": EnhanceParams,
    "split": SplitParams,
    "second_look": SecondLookParams,
    "train_clean": Recipe,
    "relabel_finetune": RelabelParams,
    "evaluate": EvaluateParams,
    "publish": PublishParams,
    "report": Pictures,
}
RULES = {"two_outputs": "two_clusters", "unlearn": "misclassified"}  # what `enhance` does, and the rule that can read it


def validate(params: Params) -> None:
    """Read every group once.

    Raises:
        UsageError: A group has unknown, missing or impossible fields, or two groups do not fit together.
    """
    for group, reader in READERS.items():
        params.group(group, reader)
    method, rule = params.group("enhance", EnhanceParams).method, params.group("split", SplitParams).rule
    if RULES[method] != rule:
        raise UsageError(f"{params.origin}: expected split.rule {RULES[method]!r} with enhance.method {method!r}, got {rule!r}.")
