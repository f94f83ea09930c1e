"""The peers that a benchmark compares with compute the same product."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxsparse.bench import baselines


@pytest.mark.parametrize("name", ["jax BCSR", "jax BCOO", "scipy CSR", "scipy BSR"])
def test_peer_multiplies_by_the_weight(name):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((5, 16), np.float32))
    w = jnp.asarray(rng.standard_normal((16, 24), np.float32))
    w = w.at[:8, :8].set(0)
    result = baselines.installed()[name](x, w, (8, 4))()
    np.testing.assert_allclose(np.asarray(result).T, x @ w, rtol=1e-5, atol=1e-5)


def test_only_known_peers_are_offered():
    assert set(baselines.installed()) <= set(baselines.NAMES)
