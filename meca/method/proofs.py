"""How a class was proven to hold poison, and what it is worth there that the clean model confirms the label of a flagged sample.

`split` flags samples of proven classes, clean ones among them. Where the proof is that samples are of other classes, poison has wrong labels:
what the clean model sees as it is labelled is none of it, and its flag can be taken back. Where the proof is that something flips images of
other classes to this one, the labels may be right. That is a clean-label attack (SIG), and the clean model confirms its samples as readily as
clean ones. Then a flag is taken back at the border alone, where there is one: a line that was drawn between two clusters, of the margins or
of the features.
"""

from typing import Literal

__all__ = ["CONFIRMED", "Confirmed", "Proof"]

# In published files these words stand as they are; `heap` is what a cluster of the margins was called.
Proof = Literal["difference", "end", "foreign-heap", "foreign-content", "common-feature", "paired-cluster", "fitted-by-enhanced"]

# What becomes of a flagged sample whose label the clean model confirms. kept: the flag is taken back. removed: it is not. border: it is taken
# back where the suspicion, which then says how deep on the side of the poison it lies, is below `remove_above` (params.yaml, relabel_finetune).
Confirmed = Literal["kept", "border", "removed"]

CONFIRMED: dict[Proof, Confirmed] = {
    # Margins: what two clusters or one end differ in flips images, so labels may be right. Poison lies beyond the line, and seldom close to it.
    "difference": "border",
    "end": "border",
    # Margins again: the cluster is of other classes. What lies deep in it was told apart by networks that had not seen it, so their word counts, too.
    "foreign-heap": "border",
    # Ranks of trust: many other classes were put into the class, and most of what is flagged is clean.
    "foreign-content": "kept",
    # Ranks of trust: what the least trusted have in common flips images, so labels may be right, and ranks know no border.
    "common-feature": "removed",
    # Distances in features: what the cluster is made of flips images of one other class, so labels may be right. Clusters are nearly pure.
    "paired-cluster": "border",
    # Preset `paper`: the probability of the given label, and `remove_above` is out of reach.
    "fitted-by-enhanced": "border",
}
