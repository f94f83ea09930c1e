"""The examples on digits: what their parts promise, and that short runs show all they should."""

import importlib
import pathlib

import jax
import numpy as np
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse import pruning

FOLDER = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def examples():
    """The two of them; the second imports the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield importlib.import_module("digits"), importlib.import_module("tickets")


@pytest.fixture
def call(monkeypatch, capsys):
    """What an example prints when it is called from the command line."""

    def run(module, *arguments):
        monkeypatch.setattr("sys.argv", [module.__name__, *map(str, arguments)])
        module.main()
        return capsys.readouterr().out

    return run


def test_digits_to_judge_by_are_not_learned_from(examples):
    digits, _ = examples
    (learn, _), (judge, labels) = digits.load(0)
    assert len(learn) + len(judge) == 1797
    seen = {image.tobytes() for image in learn}
    assert not any(image.tobytes() in seen for image in judge)
    assert set(labels) == set(range(10))


def test_tickets_rewind_to_one_set_of_weights_and_regrouped_ones_have_zeros_outside(examples):
    digits, tickets = examples
    learn = tuple(part[: 2 * digits.BATCH] for part in digits.load(0)[0])
    found = list(tickets.find(learn, 0, rounds=2, epochs=1))
    assert [ticket.sparsity for ticket in found] == pytest.approx([0, 1 - 0.1**0.5, 0.9])
    start = found[0].params
    for ticket in found:
        expected = pruning.apply_patterns(start, ticket.patterns)
        jax.tree.map(np.testing.assert_array_equal, ticket.params, expected)
    blocks, rows = tickets.regrouped(found[-1], start, learn, 0, epochs=1)
    assert len(rows) == 5
    for name in ("second", "third", "fourth", "last"):
        kernel = np.asarray(blocks[name]["kernel"]).reshape(-1, blocks[name]["kernel"].shape[-1])
        assert (kernel != 0).any(0).all(), "an output has nothing left"
        groups = js.patterns.regroup_by_cost(
            np.asarray(found[-1].patterns[name]["kernel"].mask()), keep=0.75, widths=(8,)
        )
        assert not kernel[~groups.mask().reshape(kernel.shape)].any()


def test_quick_run_of_digits_shows_layers_plan_and_accuracy(examples, tmp_path, call):
    digits, _ = examples
    shown = call(digits, "--quick", "--output", tmp_path / "digits")
    for words in ("rule 'first': dense", "which way", "256 digits", "packed", "before RigL"):
        assert words.lower() in shown.lower()
    assert (tmp_path / "digits.plan.json").exists()
    right = {
        line.split()[0]: float(line.split()[1]) for line in shown.splitlines() if " ms" in line
    }
    assert min(right["dense"], right["packed"]) > 80  # of a tenth by chance


def test_quick_run_of_tickets_shows_rounds_and_blocks(examples, call):
    _, tickets = examples
    shown = call(tickets, "--quick")
    for words in ("round", "90.0 %", "fourth", "In blocks"):
        assert words in shown
    assert float(shown.split("In blocks")[1].split()[0]) > 80


def test_training_rigl_moves_patterns_and_keeps_their_sizes(examples):
    digits, _ = examples
    learn = tuple(part[: 4 * digits.BATCH] for part in digits.load(0)[0])
    sparse, _ = js.sparsify(digits.Net(nnx.Rngs(0)), digits.RULES)
    before = np.asarray(sparse.third.pattern.mask())
    digits.train(sparse, learn, 0, sparse=True, epochs=10)
    after = np.asarray(sparse.third.pattern.mask())
    assert (before != after).any()
    assert before.sum() == after.sum()
    assert not np.asarray(sparse.third.kernel[...])[~after].any()
