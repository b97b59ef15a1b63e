"""Other people's methods, by name, each with the numbers of its paper; the contract is in `meca.defenses.contract`.

Written from the papers. None of them needs clean data. Of all that stands here, `spectral` alone is told the poison rate.
"""

from meca.defenses.contract import Judgement, Method, Repaired, Samples, Scene
from meca.defenses.detectors import clusters, isolation, scaling, spectral, transforms

__all__ = ["DETECTORS", "Judgement", "Method", "Repaired", "Samples", "Scene"]

DETECTORS: dict[str, Method[Judgement]] = {
    "spectral": Method(
        spectral,
        'Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018',
        {"times": 1.5, "most": 0.5},
        told=frozenset({"rate"}),
    ),
    "clusters": Method(
        clusters,
        'Chen et al., "Detecting Backdoor Attacks on Deep Neural Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728',
        {"smaller": 0.35},
    ),
    "isolation": Method(
        isolation,
        'Li et al., "Anti-Backdoor Learning: Training Clean Models on Poisoned Data", NeurIPS 2021, arXiv 2110.11571',
        {"passes": 10, "lr": 0.1, "weight_decay": 1e-4, "ascent": 0.5, "share": 0.01},
    ),
    "transforms": Method(
        transforms,
        'Chen, Wu, Wang, "Effective Backdoor Defense by Exploiting Sensitivity of Poisoned Samples", NeurIPS 2022',
        {"passes": 2, "spreading": 10, "lr": 0.01, "weight_decay": 5e-4, "share": 0.05},
    ),
    "scaling": Method(
        scaling,
        'Guo et al., "SCALE-UP", ICLR 2023, arXiv 2302.03251; the shift: Pal et al., "Backdoor Secrets Unveiled", ICLR 2024, arXiv 2403.10717',
        {"largest": 12, "shift": 0.2, "above": 0.0},
    ),
}
