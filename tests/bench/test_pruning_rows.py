"""Steps of training that prunes are compared as they say, and not timed where they are wrong."""

import jax
import pytest

from jaxsparse import pruning as pruners
from jaxsparse.bench import pruning


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax relies on it
        yield


def test_quick_row_is_checked_and_measured():
    (row,) = pruning.run(quick=True, seconds=0.01)
    assert {"dense", "fixed", "quiet", "moving", "mean"} == row.milliseconds.keys()
    assert row.ratio > 0
    assert row.share < 1


def test_a_step_whose_patterns_do_not_move_is_not_timed(monkeypatch):
    never = pruners.rigl
    monkeypatch.setattr(
        pruners,
        "rigl",
        lambda every, **options: never(**{**options, "every": 10**5, "begin": None}),
    )
    with pytest.raises(RuntimeError, match="moving step"):
        pruning.run(quick=True, seconds=0.01)
