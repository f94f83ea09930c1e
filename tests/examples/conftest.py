"""What all tests of examples need."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax and the examples rely on it
        yield
