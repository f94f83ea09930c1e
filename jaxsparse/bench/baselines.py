"""What else can multiply by a sparse weight, where it is installed.

Each peer gets what suits it best: the transposed weight in its own format and x transposed, both
made beforehand, so that it computes `W^T x^T` and conversions are not charged to it.
"""

import importlib
import os
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

NAMES = ("jax BCSR", "jax BCOO", "scipy CSR", "scipy BSR", "torch BSR")


def installed() -> dict[str, Callable]:
    """For each peer that can be imported, `make(x, w, block)`, which returns a function of nothing.

    That function waits for its result and returns it, `[out, batch]`.
    """
    makers = {"jax BCSR": _jax_sparse("BCSR"), "jax BCOO": _jax_sparse("BCOO")}
    try:
        scipy_sparse = importlib.import_module("scipy.sparse")
        makers["scipy CSR"] = lambda x, w, block: _product(
            scipy_sparse.csr_matrix(np.asarray(w).T), x
        )
        makers["scipy BSR"] = lambda x, w, block: _product(
            scipy_sparse.bsr_matrix(np.asarray(w).T, blocksize=block[::-1]), x
        )
    except ModuleNotFoundError:
        pass
    try:
        torch = importlib.import_module("torch")
        makers["torch BSR"] = lambda x, w, block: _torch(torch, x, w, block)
    except ModuleNotFoundError:
        pass
    return makers


def _jax_sparse(format: str) -> Callable:
    def make(x, w, block):
        from jax.experimental import sparse

        transposed = getattr(sparse, format).fromdense(w.T)
        product, x = jax.jit(lambda w, x: w @ x), jnp.asarray(np.asarray(x).T)
        return lambda: jax.block_until_ready(product(transposed, x))

    return make


def _product(matrix, x) -> Callable:
    x = np.ascontiguousarray(np.asarray(x).T)
    return lambda: matrix @ x


def _torch(torch, x, w, block) -> Callable:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    matrix = torch.from_numpy(np.ascontiguousarray(np.asarray(w).T)).to_sparse_bsr(block[::-1])
    x = torch.from_numpy(np.ascontiguousarray(np.asarray(x).T))
    return lambda: (matrix @ x).numpy()
