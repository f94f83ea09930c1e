"""Transformations, whole programs, bad patterns and errors on a GPU."""

import bilinear
import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from machine import run_python
from transforms import TRANSFORMS, cubes

import jaxsparse as js
from jaxsparse.core import native

PLAIN = bilinear.make_ops()
OPS = {name: PLAIN[name] for name in bilinear.WITH_CUDA_KERNELS}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
def test_transformations_of_kernels_equal_those_of_the_definition(op, transform):
    ours = jax.jit(transform(op.of("ffi")))(op.a, op.b)
    bilinear.equal(ours, jax.jit(transform(op.theirs))(op.a, op.b))


@pytest.mark.parametrize("name", PLAIN)
def test_every_op_runs_by_its_own_choice(name):
    op = PLAIN[name]
    ours = jax.jit(jax.grad(cubes(op.ours), (0, 1)))(op.a, op.b)
    bilinear.equal(ours, jax.jit(jax.grad(cubes(op.theirs), (0, 1)))(op.a, op.b))


def test_a_pattern_that_changes_needs_no_new_program():
    traces = []

    @jax.jit
    def product(x, w):
        traces.append(w)
        return js.matmul(x, w, implementation="ffi")

    for seed in range(3):
        layer = cases.make("tiles", seed=seed)
        oracle.equal_exactly(product(layer.array("x"), layer.weight()), layer.y())
    assert len(traces) == 1


def test_calls_that_follow_each_other_need_no_waiting():
    """A hundred calls in flight, each on the result of the one before."""
    layer = cases.make("full")
    x, w = layer.array("x"), layer.weight()
    step = jax.jit(lambda x: jnp.sign(js.matmul(x, w, implementation="ffi")))
    plain = jax.jit(lambda x: jnp.sign(jnp.matmul(x, w.todense(), precision="highest")))
    ours = theirs = x
    for _ in range(100):
        ours, theirs = step(ours), plain(theirs)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("graphs", ["", "+CUSTOM_CALL"], ids=["default", "recorded"])
def test_programs_that_xla_records_as_cuda_graphs_give_the_same(graphs):
    """Ten runs of a loop with a product and its gradients; XLA records after the first."""
    code = """
        import cases, jax, jax.numpy as jnp, oracle
        import jaxsparse as js
        layer = cases.make("wide_batch", unused=2)
        w, x, g = layer.weight(garbage=False), layer.array("x"), layer.array("g")
        def gradients(x, values):
            f = lambda x, v: js.matmul(x, w.with_values(v), implementation="ffi")
            y, pull = jax.vjp(f, x, values)
            return y, *pull(g)
        run = jax.jit(gradients)
        for _ in range(10):
            y, dx, dw = run(x, w.values)
            oracle.equal_exactly(y, layer.y())
            oracle.equal_exactly(dx, layer.dx())
            oracle.equal_exactly(dw, layer.dvalues())
        print("equal")
    """
    flags = f"--xla_gpu_enable_command_buffer={graphs} --xla_gpu_graph_min_graph_size=1"
    flags = flags if graphs and jax.default_backend() == "gpu" else ""
    platforms = "cuda,cpu" if jax.default_backend() == "gpu" else "cpu"
    assert run_python(code, XLA_FLAGS=flags, JAX_PLATFORMS=platforms) == "equal\n"


# Patterns that are none ---------------------------------------------------------------------------

BAD = {
    "row_beyond": lambda rows, cols: (rows.at[0].set(10**6), cols),
    "row_negative": lambda rows, cols: (rows.at[0].set(-1), cols),
    "column_beyond": lambda rows, cols: (rows, cols.at[-1].set(2**31 - 1)),
    "out_of_order": lambda rows, cols: (rows[::-1], cols[::-1]),
    "twice": lambda rows, cols: (rows.at[1].set(rows[0]), cols.at[1].set(cols[0])),
}


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD)
def test_a_bad_pattern_gives_nan_or_an_error_and_the_process_lives_on(spoil):
    layer = cases.make("full")
    w, x = layer.weight(), layer.array("x")
    indices = [jnp.asarray(a) for a in spoil(w.pattern.rows, w.pattern.cols)]
    bad = js.SparseWeight(w.values, w.pattern.with_indices(*indices))
    product = jax.jit(lambda x, w: js.matmul(x, w, implementation="ffi"))
    if jax.default_backend() == "gpu":  # whose handlers do not see the indices
        assert np.isnan(np.asarray(product(x, bad))).all()
    else:
        with pytest.raises((ValueError, RuntimeError), match="block"):
            jax.block_until_ready(product(x, bad))
    oracle.equal_exactly(product(x, w), layer.y())


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (((4, 32), (3, 16, 16), (4, 48), (2,)), "as many blocks as indices"),
        (((4, 32), (2, 16, 16), (5, 48), (2,)), "the same batch axes"),
        (((4, 32), (16, 16), (4, 48), (2,)), "block_in, block_out"),
    ],
    ids=["capacity", "batch", "axes"],
)
def test_handlers_refuse_in_the_words_of_the_cpus(shapes, words):
    of_x, of_w, of_y, of_indices = shapes
    zeros = [jnp.zeros(shape) for shape in (of_x, of_w)]
    indices = [jnp.zeros(of_indices, jnp.int32)] * 2
    result = jax.ShapeDtypeStruct(of_y, jnp.float32)
    is_gpu = jax.default_backend() == "gpu"
    results = (result, jax.ShapeDtypeStruct((1 << 20,), jnp.uint8)) if is_gpu else result
    call = jax.ffi.ffi_call("jaxsparse.block_matmul_forward.v1", results)
    with pytest.raises((ValueError, RuntimeError), match=words):
        jax.block_until_ready(call(*zeros, *indices, **({"exact": False} if is_gpu else {})))


def test_too_little_scratch_memory_is_refused():
    if jax.default_backend() != "gpu":
        assert native.isa() is not None  # the CPU's handlers take none
        return
    w, x = jnp.zeros((64, 16, 16)), jnp.zeros((4, 1024))
    indices = jnp.zeros(64, jnp.int32)
    results = (
        jax.ShapeDtypeStruct((4, 1024), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.uint8),
    )
    call = jax.ffi.ffi_call("jaxsparse.block_matmul_forward.v1", results)
    with pytest.raises((ValueError, RuntimeError), match="the scratch has at least"):
        jax.block_until_ready(call(x, w, indices, indices, exact=False))
