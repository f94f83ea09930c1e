"""What a family gives an op that has no handlers, and index arrays of both roles."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import need

import jaxsparse as js
from jaxsparse.core import native
from jaxsparse.core.bilinear import BilinearOp
from jaxsparse.core.kinds import Role


@dataclasses.dataclass(frozen=True)
class Spec:
    """y[order[k]] += x[places[k]] * w[k], with `order` of any length."""

    size_in: int
    size_out: int
    cast_from: None = None

    def inner(self, kind):
        return {"x": (self.size_in,), "w": (), "y": (self.size_out,)}[kind]

    def attributes(self):
        return {"unused": np.int64(1)}

    def density(self, stored):
        return stored / (self.size_in * self.size_out)

    def macs(self, batch):
        return batch * self.size_in * self.size_out

    def unmeasured_break_even(self):
        return 1.0

    def shape_class(self, batch):
        return "any"


def reference(spec, x, w, places, order):
    y = jnp.zeros((*x.shape[:-1], spec.size_out), x.dtype)
    w = jnp.broadcast_to(w, (*x.shape[:-1], *w.shape))
    return y.at[..., order[places]].add(x[..., places] * w)


DTYPES = {"cpu": frozenset({"float32"})}
OP = BilinearOp("toy", reference, DTYPES, indices=(Role.STORED, Role.WHOLE))
SPEC = Spec(4, 3)
PLACES, ORDER = np.array([0, 1, 3], np.int32), np.array([2, 0, 1, 1, 0], np.int32)
X, W = np.arange(1.0, 9).reshape(2, 4), np.array([1.0, 2, 3])
WHOLE = np.zeros((4, 3))
WHOLE[PLACES, ORDER[PLACES]] = W


def forward(x, w, places=PLACES, order=ORDER, **options):
    return OP.forward(SPEC, *map(jnp.asarray, (x, w, places, order)), **options)


def test_an_index_of_another_length_than_the_stored_parts_passes_every_member():
    y, pull_back = jax.vjp(forward, jnp.float32(X), jnp.float32(W))
    oracle.equal_exactly(y, X @ WHOLE)
    dx, dw = pull_back(y)
    oracle.equal_exactly(dx, X @ WHOLE @ WHOLE.T)
    oracle.equal_exactly(dw, (X.T @ X @ WHOLE)[PLACES, ORDER[PLACES]])


@pytest.mark.parametrize("which", [2, 3], ids=["stored", "whole"])
def test_vmap_over_an_index_of_either_role_gives_each_its_own(which):
    others = [PLACES, ORDER]
    both = np.stack([others[which - 2], np.flip(others[which - 2])])
    if which == 2:
        both = np.sort(both)
    arrays = [jnp.float32(X), jnp.float32(W), jnp.asarray(PLACES), jnp.asarray(ORDER)]
    axes = [None] * 4
    axes[which], arrays[which] = 0, jnp.asarray(both)
    ys = jax.vmap(forward, axes)(*arrays)
    for i, y in enumerate(ys):
        arrays[which] = jnp.asarray(both[i])
        np.testing.assert_array_equal(y, forward(*arrays))


def test_an_op_without_handlers_runs_its_reference_and_says_so():
    call = js.explain(forward, jnp.float32(X), jnp.float32(W), platform="cpu")[0]
    assert call.path == "xla"
    if native.available("cpu"):
        assert "no cpu kernel jaxsparse.toy_forward.v1" in call.reason


def test_strict_ffi_names_the_handler_that_is_missing():
    need("cpu_kernels")
    with pytest.raises(NotImplementedError, match=r"jaxsparse\.toy_forward\.v1"):
        jax.jit(lambda x, w: forward(x, w, implementation="ffi"))(jnp.float32(X), jnp.float32(W))


def test_only_stored_indices_must_have_one_length():
    with pytest.raises(ValueError, match="values and pattern must store the same number"):
        forward(jnp.float32(X), jnp.float32(W), places=PLACES[:2])
