"""The benchmark of a whole network runs a sparse network that computes what the dense one does."""

import json

import jax
import pytest
from flax import nnx

from jaxsparse import __main__ as program
from jaxsparse.bench import measure, resnet


@pytest.fixture(autouse=True)
def _unpinned(monkeypatch):
    monkeypatch.setattr(measure, "pin", lambda threads: None)


def test_resnet50_has_the_parameters_of_the_published_network():
    model = nnx.eval_shape(lambda: resnet.ResNet(nnx.Conv, resnet.STAGES, nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    assert sum(sizes) == 25_557_032


def test_quick_row_is_measured(tmp_path):
    path = tmp_path / "rows.json"
    quick = ["bench", "resnet", "--quick", "--seconds", "0.01", "--json", str(path)]
    assert program.main(quick) == 0
    (row,) = json.loads(path.read_text())["rows"]
    assert row["megabytes"][0] < row["megabytes"][1]


@pytest.fixture(scope="module")
def quick_models():
    return resnet.models(0.9, resnet.QUICK_STAGES)


def test_packed_network_stores_a_tenth_of_its_convolutions(quick_models):
    for ours, theirs in zip(*(model.blocks for model in quick_models), strict=True):
        assert ours.middle.is_packed
        assert ours.middle.kernel.size == round(0.1 * theirs.middle.kernel.size)


def test_wrong_network_is_not_timed(quick_models, monkeypatch):
    packed, dense = nnx.clone(quick_models[0]), quick_models[1]
    packed.blocks[0].middle.kernel[...] *= 2
    monkeypatch.setattr(resnet, "models", lambda *_: (packed, dense))
    with pytest.raises(RuntimeError, match="the sparse network on batch 1 is wrong"):
        resnet.run(quick=True, seconds=0.01)
