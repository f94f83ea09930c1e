"""The table of sparse inputs measures what it says, and refuses to time what is wrong."""

import dataclasses

import pytest
from machine import need

import jaxsparse as js
from jaxsparse.bench import masked


def test_labels_name_one_row_each():
    assert len(masked.labels(quick=False)) == len(list(masked.cases()))


@pytest.mark.parametrize("label", masked.labels(quick=True))
def test_quick_rows_are_checked_and_measured(label):
    row = masked.measure_case(masked.labels(quick=True)[label], seconds=0.001)
    assert row.ratio > 0
    assert {"sparse", "xla"} <= row.milliseconds.keys()


@pytest.mark.parametrize("variant", ["mask", "masked"])
def test_gradients_of_active_places_only_are_checked_as_such(variant):
    (case, *_) = masked.quick_cases()
    case = dataclasses.replace(case, role="input_grad", variant=variant)
    assert masked.measure_case(case, seconds=0.001).ratio > 0


def test_a_wrong_result_is_not_timed(monkeypatch):
    need("cpu_kernels")
    right = js.masked_conv
    monkeypatch.setattr(js, "masked_conv", lambda *args, **options: 1.001 * right(*args, **options))
    with pytest.raises(RuntimeError, match="wrong"):
        masked.measure_case(next(masked.quick_cases()), seconds=0.001)
