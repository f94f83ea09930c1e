"""Convolutions in whole programs, and the mistakes that other sparse convolutions made."""

import functools
import re

import conv_cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import oracle_conv
import pytest
from jax import export
from machine import compiled, handler_calls, loops, members, need, run_python

import jaxsparse as js
from jaxsparse.core import dispatch
from jaxsparse.problems import ConvProblem

every_format = pytest.mark.parametrize("format", conv_cases.FORMATS)
transposed = pytest.mark.parametrize("transposed", [False, True], ids=["conv", "conv_transpose"])

PROBLEM = ConvProblem("programs", (5, 4), (3, 2), (4, 6), (2, 1), batch=(2,), sparsity=0.5)
LAYER = conv_cases.make(PROBLEM, "unstructured")
X, G, W = LAYER.array("x"), LAYER.array("g"), LAYER.weight(garbage=False)


def convolve(x, values, implementation=None):
    return LAYER.convolve(x, W.with_values(values), implementation=implementation)


@pytest.fixture(autouse=True)
def every_kernel_pays(monkeypatch):
    """What was measured on some machine decides nothing here."""
    monkeypatch.setattr(dispatch, "break_even", lambda *_: 1.0)


# One call -----------------------------------------------------------------------------------------

XS, VALUES = jnp.stack([X, 2 * X, -X]), jnp.stack([W.values, -W.values, 2 * W.values])
squares = lambda x, v: jnp.sum(convolve(x, v) ** 2)
FOLDED = {
    # name: (function, arguments, the sparse calls it may make)
    "x": (jax.vmap(convolve, (0, None)), (XS, W.values), ["forward"]),
    "w": (jax.vmap(convolve, (None, 0)), (X, VALUES), ["forward"]),
    "x_and_w": (jax.vmap(convolve), (XS, VALUES), ["forward"]),
    "w_in_x": (jax.vmap(jax.vmap(convolve, (None, 0)), (0, None)), (XS, VALUES), ["forward"]),
    "grad_per_example": (
        jax.vmap(jax.grad(squares, (0, 1)), (0, None)),
        (XS, W.values),
        ["forward", "input_grad", "weight_grad"],
    ),
    "grad_of_vmap": (
        jax.grad(lambda v: jnp.sum(jax.vmap(squares, (0, None))(XS, v))),
        (W.values,),
        ["forward", "weight_grad"],
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_vmap_makes_one_call_and_no_loop(name):
    need("cpu_kernels")
    function, arguments, expected = FOLDED[name]
    ffi = [f"unstructured_conv_{member}" for member in expected]
    assert members(function, *arguments) == ffi
    program = compiled(function, *arguments)
    assert handler_calls(program) == ffi
    assert loops(program) == 0


@transposed
@every_format
def test_the_sparse_way_does_not_call_the_dense_convolution(format, transposed):
    need("cpu_kernels")
    layer = layer_of(format, transposed)
    w = layer.weight(garbage=False)
    product = lambda x, v: layer.convolve(x, w.with_values(v))
    gradients = lambda x, v, g: (product(x, v), *jax.vjp(product, x, v)[1](g))
    program = compiled(gradients, layer.array("x"), w.values, layer.array("g"))
    assert not re.search(r" (convolution|dot)\(|__(onednn|dot|conv)", program.as_text())
    assert len(handler_calls(program)) == 3


def layer_of(format, transposed=False, **changes):
    arguments = {"strides": (2, 1), "batch": (2,), "sparsity": 0.5, "transposed": transposed}
    problem = ConvProblem("programs", (5, 4), (3, 2), (4, 6), **{**arguments, **changes})
    return conv_cases.make(problem, format)


def gradients(layer, w, path):
    product = lambda x, v: layer.convolve(x, w.with_values(v), implementation=path)
    run = lambda x, v, g: (product(x, v), *jax.vjp(product, x, v)[1](g))
    return jax.jit(run)(layer.array("x"), w.values, layer.array("g"))


# Patterns -----------------------------------------------------------------------------------------


@every_format
def test_one_compiled_program_serves_every_pattern_of_its_capacity(format, path):
    traces = []

    @jax.jit
    def product(x, w):
        traces.append(w)
        return js.conv(x, w, strides=(2, 1), implementation=path)

    for seed in range(3):
        layer = conv_cases.make(PROBLEM, format, seed=seed)
        oracle.equal_exactly(product(layer.array("x"), layer.weight(garbage=False)), layer.y())
    assert len(traces) == 1


@every_format
def test_vmap_and_scan_over_whole_weights_take_each_pattern(format, path):
    problem = ConvProblem("stacked", (5,), (3,), (4, 4), batch=(2,), sparsity=0.5)
    several = [conv_cases.make(problem, format, seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.weight() for one in several])
    x = several[0].array("x")
    conv = functools.partial(js.conv, implementation=path)
    ys = jax.jit(jax.vmap(conv, (None, 0)))(x, stacked)
    for y, one in zip(ys, several, strict=True):
        oracle.equal_exactly(y, one.with_x(several[0].x).y())
    last = jax.jit(lambda x: jax.lax.scan(lambda x, w: (conv(x, w), None), x, stacked)[0])(x)
    exact = several[0].x
    for one in several:
        exact = one.with_x(exact).y()
    oracle.equal_exactly(last, exact)


@pytest.mark.parametrize("format", ["unstructured", "grouped:2", "4x2"])
def test_a_pattern_that_changes_in_a_training_step_compiles_once(format, path):
    shape, traces = (3, 2, 4, 6), []
    key = jax.random.key(0)
    target = js.conv(X, jax.random.normal(key, shape))

    @jax.jit
    def step(w, key):
        traces.append(w)
        error = lambda v: jnp.sum((js.conv(X, w.with_values(v), implementation=path) - target) ** 2)
        before, gradient = jax.value_and_grad(error)(w.values)
        w = w.with_values(w.values - 1e-3 * gradient)
        scores = jax.random.uniform(key, w.pattern.grid)
        pattern = js.patterns.exchange(w.pattern, js.block_norms(w, w.format), scores, 2)
        return w.with_pattern(pattern), before

    pattern = js.patterns.random(key, format, shape, sparsity=0.5)
    w = js.SparseWeight(jnp.zeros(pattern.values_shape), pattern)
    errors = []
    for i in range(10):
        w, before = step(w, jax.random.fold_in(key, i))
        errors.append(float(before))
    assert len(traces) == 1
    assert errors[-1] < errors[0]


# Export and the rest ------------------------------------------------------------------------------


def test_an_exported_convolution_gives_the_same_for_any_batch():
    need("cpu_kernels")
    need("flatbuffers")
    (batch,) = export.symbolic_shape("b")
    arguments = (jax.ShapeDtypeStruct((batch, *X.shape[1:]), X.dtype), W.values)
    program = export.export(
        jax.jit(functools.partial(convolve, implementation="ffi")),
        disabled_checks=js.disabled_export_checks(),
    )(*arguments)
    loaded = export.deserialize(program.serialize())
    for x in (X, jnp.concatenate([X, X])):
        np.testing.assert_array_equal(loaded.call(x, W.values), convolve(x, W.values))


def test_remat_and_donation_change_no_number(path):
    f = functools.partial(convolve, implementation=path)
    loss = lambda x, v: jnp.sum(f(x, v) ** 2)
    plain = jax.jit(jax.grad(loss, (0, 1)))(X, W.values)
    remat = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1)))(X, W.values)
    donated = jax.jit(jax.grad(loss, (0, 1)), donate_argnums=0)(jnp.array(X), W.values)
    for other in (remat, donated):
        jax.tree.map(np.testing.assert_array_equal, plain, other)


def test_a_thousand_calls_do_not_grow_memory():
    need("cpu_kernels")
    code = """
        import jax, jax.numpy as jnp, jaxsparse as js

        def resident():
            with open("/proc/self/status") as file:
                (line,) = (line for line in file if line.startswith("VmRSS"))
            return int(line.split()[1]) * 1024

        shape = (3, 3, 32, 32)
        x = jnp.ones((2, 16, 16, 32))

        @jax.jit
        def step(values, places):
            w = js.SparseWeight(values, pattern.with_indices(places))
            loss = lambda v: js.conv(x, w.with_values(v), implementation="ffi").sum()
            return jax.value_and_grad(loss)(values)

        values = None
        for i in range(1100):
            if i == 100:
                before = resident()
            # Every call has another pattern: what is kept for each must be bounded.
            pattern = js.patterns.random(jax.random.key(i % 200), "unstructured", shape,
                                         sparsity=0.9)
            values = jnp.ones(pattern.values_shape) if values is None else values
            jax.block_until_ready(step(values, pattern.places))
        print(resident() - before)
    """
    assert int(run_python(code)) < 64e6


def test_no_role_of_a_convolution_copies_its_input_for_every_tap():
    """Nine copies would be in an im2col of these; what kernels pack is no more than the input."""
    need("cpu_kernels")
    code = """
        import jax, jax.numpy as jnp, jaxsparse as js

        def memory(name):
            with open("/proc/self/status") as file:
                (line,) = (line for line in file if line.startswith(name))
            return int(line.split()[1]) * 1024

        def taken(program, *arguments):
            before = memory("VmRSS")
            with open("/proc/self/clear_refs", "w") as file:
                file.write("5")  # the peak starts again here
            results.append(jax.block_until_ready(program(*arguments)))
            planned = program.memory_analysis()
            assert planned.temp_size_in_bytes < 1e6, planned
            return memory("VmHWM") - before - planned.output_size_in_bytes

        x, results, most = jnp.ones((16, 64, 64, 64)), [], {}
        dense = jax.random.normal(jax.random.key(0), (3, 3, 64, 64))
        for format in ("unstructured", "grouped:8", "32x32"):
            w = js.fromdense(dense, format, sparsity=0.9)
            conv = lambda x, v: js.conv(x, w.with_values(v), implementation="ffi")
            roles = {
                "forward": conv,
                "input_grad": lambda g, v: jax.vjp(lambda x: conv(x, v), g)[1](g),
                "weight_grad": lambda x, v: jax.vjp(lambda v: conv(x, v), v)[1](x),
            }
            for name, role in roles.items():
                program = jax.jit(role).lower(x, w.values).compile()
                most[name, format] = taken(program, x, w.values) / x.nbytes
        print(max(most.values()) < 1.25, most)
    """
    assert run_python(code, NPROC="2").startswith("True")


BITS = """
    import hashlib, jax, numpy as np, conv_cases, oracle
    from jaxsparse.problems import ConvProblem

    bits = hashlib.sha256()
    for transposed in (False, True):
        problem = ConvProblem("threads", (13, 11), (3, 3), (40, 70), (2, 1), batch=(6,),
                              transposed=transposed, sparsity=0.7)
        for format in conv_cases.FORMATS:
            layer = conv_cases.make(problem, format, oracle.normals)
            w = layer.weight(garbage=False)

            @jax.jit
            def all_three(x, v, g):
                conv = lambda x, v: layer.convolve(x, w.with_values(v), implementation="ffi")
                y, pull_back = jax.vjp(conv, x, v)
                return y, *pull_back(g)

            for result in all_three(layer.array("x"), w.values, layer.array("g")):
                bits.update(np.asarray(result).tobytes())
    print(bits.hexdigest())
"""


def test_kernels_give_the_same_bits_for_any_number_of_threads():
    need("cpu_kernels")
    one, two, eight = (run_python(BITS, NPROC=count) for count in ("1", "2", "8"))
    assert one == two == eight


# Numbers ------------------------------------------------------------------------------------------


@transposed
@pytest.mark.parametrize("sparsity", [0.0, 0.69, 0.70, 0.71, 1.0])
def test_gradients_equal_definition_at_every_share_of_zeros(sparsity, transposed, path):
    layer = layer_of("unstructured", transposed, sparsity=sparsity)
    y, dx, dvalues = gradients(layer, layer.weight(), path)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())


@pytest.mark.parametrize("limit", [0.49, 0.51])
def test_results_and_gradients_do_not_jump_at_the_break_even_point(limit, monkeypatch):
    need("cpu_kernels")
    layer = layer_of("unstructured")
    assert 0.49 < layer.pattern.density < 0.51
    monkeypatch.setattr(dispatch, "break_even", lambda *_: limit)
    y, dx, dvalues = gradients(layer, layer.weight(), None)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())


@pytest.mark.parametrize("size_out", range(1, 10))
@every_format
def test_negative_weights_are_right_at_every_tail_length(format, size_out, path):
    problem = ConvProblem("tails", (4,), (2,), (size_out, size_out), batch=(2,), sparsity=0.0)
    negative = lambda rng, shape: -np.abs(oracle.small_integers(rng, shape))
    layer = conv_cases.make(problem, format, negative)
    y, dx, dvalues = gradients(layer, layer.weight(), path)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())


@pytest.mark.parametrize("width", [33, 48, 63])
def test_groups_of_any_number_of_outputs_are_right(width, path):
    problem = ConvProblem("wide", (4, 3), (2, 2), (3, 130), batch=(2,), sparsity=0.5)
    layer = conv_cases.make(problem, f"grouped:{width}")
    y, dx, dvalues = gradients(layer, layer.weight(), path)
    oracle.equal_exactly(y, layer.y())
    oracle.equal_exactly(dx, layer.dx())
    oracle.equal_exactly(dvalues, layer.dvalues())


def test_what_lies_outside_of_blocks_and_groups_is_added(path, rng):
    dense = oracle.small_integers(rng, (3, 2, 4, 6)) * (rng.random((3, 2, 4, 6)) < 0.4)
    x = oracle.small_integers(rng, (2, 5, 4, 4))
    geometry = oracle_conv.geometry((5, 4), (3, 2), (1, 1), [(0, 0)] * 2, (1, 1))
    exact = oracle_conv.forward(x, dense, geometry)
    for format in ("4x2", "grouped:2"):
        w = js.with_residual(jnp.float32(dense), format, filled=0.5)
        assert len(w.parts) == 2
        y = js.conv(jnp.float32(x), w, padding="VALID", implementation=path)
        oracle.equal_exactly(y, exact)


def test_tiny_weights_survive_unless_asked_otherwise(path):
    dense = jnp.full((3, 2, 1), 1e-7)
    w = js.fromdense(dense, "unstructured")
    y = js.conv(jnp.ones((3, 2)), w, padding="VALID", implementation=path)
    np.testing.assert_allclose(y, [[6e-7]], rtol=1e-5)


def test_an_input_of_zeros_and_a_gradient_of_zeros_give_zeros(path):
    for x, g in ((0 * X, G), (X, 0 * G)):
        y, pull_back = jax.vjp(functools.partial(convolve, implementation=path), x, W.values)
        dx, dvalues = pull_back(g)
        if x is not X:
            assert not y.any()
            assert not dvalues.any()
        else:
            assert not dx.any()
            assert not dvalues.any()


def test_an_array_that_is_not_contiguous_is_read_as_it_is(path):
    x = np.float32(LAYER.x).transpose(0, 3, 2, 1).copy().transpose(0, 3, 2, 1)
    assert not x.flags.c_contiguous
    oracle.equal_exactly(convolve(x, W.values, path), LAYER.y())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_example_of_a_batch_has_the_bits_that_it_has_alone(dtype):
    need("cpu_kernels")
    problem = ConvProblem("bits", (9, 7), (3, 3), (16, 24), batch=(5,), sparsity=0.7)
    layer = conv_cases.make(problem, "unstructured", oracle.normals)
    conv = jax.jit(functools.partial(js.conv, implementation="ffi"))
    x, w = layer.array("x", dtype), layer.weight(dtype)
    together = np.asarray(conv(x, w))
    np.testing.assert_array_equal(together, conv(x, w))
    alone = np.stack([conv(one, w) for one in x])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_a_strange_number_reaches_what_sees_it_and_nothing_else(number):
    need("cpu_kernels")
    layer = layer_of("unstructured", strides=(1, 1), sparsity=0.0)
    x = layer.array("x").at[0, 2, 1, 0].set(number)
    y = np.asarray(layer.convolve(x, layer.weight(), implementation="ffi"))
    exact = layer.y()
    seen = np.zeros(y.shape, bool)
    seen[0, 1:4, 0:2] = True
    assert np.isfinite(y[~seen]).all()
    np.testing.assert_array_equal(y[~seen], exact[~seen])
    assert not np.isfinite(y[seen]).any()
