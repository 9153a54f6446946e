"""Compare the lines that tokens.py printed here and on aarch64: HERE THERE; status 1: too few are equal."""

import sys
from difflib import SequenceMatcher
from pathlib import Path

#: Kernels of another processor sum float32 in another order; where int8 rounds, that can be a whole step.
LEAST_EQUAL = {"float32": 1.0, "model": 0.95}

here, there = (Path(name).read_text("utf-8").splitlines() for name in sys.argv[1:3])
status = int(len(here) != len(there))
for ours, theirs in zip(here, there, strict=False):
    (model, sample, *found), (*_, other) = ours.split(" "), theirs.split(" ", 2)
    others = other.split(" ")
    equal = sum(
        block.size for block in SequenceMatcher(None, found, others, autojunk=False).get_matching_blocks()
    )
    share = equal / max(len(found), len(others))
    print(f"{model}, {sample}: {equal} of {len(found)} tokens and their times equal")
    status |= share < LEAST_EQUAL[model]
sys.exit(status)
