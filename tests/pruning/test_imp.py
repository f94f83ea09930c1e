"""Iterative magnitude pruning with rewinding."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse import pruning


@pytest.fixture
def params(rng):
    return {"w": jnp.asarray(rng.standard_normal((8, 10)), "float32"), "b": jnp.ones(10)}


def train(params, patterns):
    """Something that moves weights, also those that are gone."""
    return jax.tree.map(lambda w: jnp.sin(5 * w) + 2, params)


def test_each_round_prunes_a_share_of_what_is_left_and_rewinds(params):
    tickets = list(pruning.iterate(train, params, rounds=2, format="unstructured", rate=0.5))
    stored = [int(t.patterns["w"].mask().sum()) for t in tickets]
    assert stored == [80, 40, 20]
    assert [t.patterns["w"].capacity for t in tickets] == stored
    assert [t.sparsity for t in tickets] == [0, 0.5, 0.75]
    for ticket in tickets:
        mask = np.asarray(ticket.patterns["w"].mask())
        np.testing.assert_array_equal(ticket.params["w"], np.where(mask, params["w"], 0))
        np.testing.assert_array_equal(ticket.params["b"], params["b"])
        assert (np.asarray(ticket.trained["w"])[~mask] == 0).all()
    size = np.abs(np.asarray(tickets[0].trained["w"]))
    np.testing.assert_array_equal(tickets[1].patterns["w"].mask(), size > np.median(size))


def test_later_rounds_only_remove(params):
    masks = [
        np.asarray(t.patterns["w"].mask())
        for t in pruning.iterate(train, params, rounds=2, format="2x2", rate=0.2)
    ]
    for before, after in itertools.pairwise(masks):
        assert not (after & ~before).any()
        assert after.sum() < before.sum()


def test_it_is_an_iterator_that_trains_only_when_asked(params):
    calls = []

    def counted(params, patterns):
        calls.append(patterns["w"].capacity)
        return train(params, patterns)

    tickets = pruning.iterate(counted, params, rounds=9, format="unstructured")
    assert calls == []
    next(tickets), next(tickets)
    assert calls == [80, 64]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rounds": 2, "format": "2x2", "rate": 1.2}, "iterate: rate is a share, .* got 1.2"),
        ({"rounds": -1, "format": "2x2"}, "rounds is how often to prune, .* got -1"),
        ({"rounds": 1}, "iterate: give a format, or the patterns"),
    ],
    ids=["rate", "rounds", "format"],
)
def test_iterate_refuses(options, words, params):
    with pytest.raises(ValueError, match=words):
        pruning.iterate(train, params, **options)
