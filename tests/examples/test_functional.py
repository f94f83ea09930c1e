"""The shortest example: it runs as it is, and what it trains gets better."""

import pathlib
import re

from machine import run_python

EXAMPLE = pathlib.Path(__file__).parents[2] / "examples" / "functional.py"


def test_training_by_the_values_of_a_sparse_weight_lowers_the_loss():
    printed = run_python(EXAMPLE.read_text())
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", printed)]
    assert len(losses) == 5
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 0.2 * losses[0]
    assert "SparseWeight(" in printed
