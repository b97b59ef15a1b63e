"""How a class was proven to hold poison, and what it is worth there that the clean model confirms the label of a flagged sample.

`split` flags samples of proven classes, clean ones among them. Where the proof is that samples are of other classes, poison has wrong labels:
what the clean model sees as it is labelled is none of it, and its flag can be taken back. Where the proof is that something flips images of
other classes to this one, the labels may be right. That is a clean-label attack (SIG), and the clean model confirms its samples as readily as
clean ones. Then a flag is taken back at the border alone, close to the line that networks drew between poison and the rest.
"""

from typing import Literal

__all__ = ["CONFIRMED", "REASONS", "Confirmed", "Proof"]

# In published files these words stand as they are.
Proof = Literal["difference", "foreign-content", "fitted-by-enhanced"]

# What becomes of a flagged sample whose label the clean model confirms. kept: the flag is taken back. border: it is taken
# back where the suspicion, which then says how deep on the side of the poison it lies, is below `remove_above` (params.yaml, relabel_finetune).
Confirmed = Literal["kept", "border"]

CONFIRMED: dict[Proof, Confirmed] = {
    # What a part of the class has in common flips images of other classes, so labels may be right. Poison lies beyond the line, seldom close to it.
    "difference": "border",
    # Networks that never saw the class see typical images of many other classes in it, so labels are wrong.
    "foreign-content": "kept",
    # Preset `paper`: the probability of the given label, and `remove_above` is out of reach.
    "fitted-by-enhanced": "border",
}

# The word of the column `reasons` that a flagged sample gets (docs/files.md, "Reasons").
REASONS: dict[Proof, str] = {"difference": "stands-apart", "foreign-content": "foreign-content", "fitted-by-enhanced": "fitted-by-enhanced"}
