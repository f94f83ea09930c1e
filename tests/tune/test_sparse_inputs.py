"""Break-even points of sparse inputs: what is compared, and that the library has them."""

import json
import pathlib

import numpy as np
import pytest
from machine import need

from jaxsparse import tune
from jaxsparse.tune import sparse_inputs

TABLES = sorted(pathlib.Path(tune.__file__).parent.glob("data/*.json"))


def _classes():
    for taps in sparse_inputs.KERNELS:
        for stride in sparse_inputs.STRIDES:
            for sizes in sparse_inputs.CHANNELS:
                yield {sparse_inputs._spec(taps, stride, size).shape_class() for size in sizes}


def test_the_layers_of_a_class_are_of_one_class_and_no_class_is_measured_twice():
    classes = list(_classes())
    assert all(len(names) == 1 for names in classes)
    assert len(set().union(*classes)) == len(classes)


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.stem)
def test_tables_of_the_library_have_all_points_of_every_class(path):
    table = json.loads(path.read_text())["break_even"]
    for kind in sparse_inputs.ROLES:
        for dtype in sparse_inputs.DTYPES:
            for (name,) in _classes():
                assert 0 <= table[f"masked_conv_{kind}"][dtype][name] <= 1


def test_measure_compares_the_kernel_with_the_dense_path(monkeypatch):
    need("cpu_kernels")
    monkeypatch.setattr(sparse_inputs, "DTYPES", ("float32",))
    monkeypatch.setattr(sparse_inputs, "CHANNELS", (((3, 4),),))
    monkeypatch.setattr(sparse_inputs, "STRIDES", (2,))
    monkeypatch.setattr(sparse_inputs, "WIDTH", 6)
    compared = []

    def compare(ours, theirs):
        compared.append((np.asarray(ours()), np.asarray(theirs())))
        return 2.0

    table = {}
    sparse_inputs.measure(table, compare, lambda line: None, only="taps>1")
    assert [ours.shape for ours, _ in compared] == [
        (4, 3, 3, 4),
        (3, 3, 3, 4),
        (4, 3, 3, 4),
        (3, 3, 3, 4),
    ]
    for ours, theirs in compared:
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    points = {"taps>1,strides>1,channels<16": 1.0}
    assert table == {
        "masked_conv_places": {"float32": points},
        "masked_conv_nonzeros": {"float32": points},
        "masked_conv_weight_grad_nonzeros": {"float32": points},
    }
