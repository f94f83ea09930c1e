"""Whole programs: patterns that change inside `jit`, ahead-of-time compilation, export, caches."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax import export
from machine import compiled, handler_calls, members, need, run_python, why_absent

import jaxsparse as js
from jaxsparse import patterns

LAYER = cases.make("tiles_ragged", unused=1)
X, G = LAYER.array("x"), LAYER.array("g")


def loss(x, w, path=None):
    return jnp.sum(js.matmul(x, w, implementation=path) ** 2)


# Patterns as arguments ----------------------------------------------------------------------------


def test_one_compiled_program_serves_every_pattern_of_its_capacity(path):
    traces = []

    @jax.jit
    def product(x, w):
        traces.append(w)
        return js.matmul(x, w, implementation=path)

    for seed in range(4):
        layer = cases.make("tiles_ragged", seed=seed)
        oracle.equal_exactly(product(layer.array("x"), layer.weight()), layer.y())
    assert len(traces) == 1


def test_gradients_by_a_whole_weight_need_no_splitting_of_it(path):
    w = LAYER.weight(garbage=False)
    trainable, rest = js.split(w)
    gradient = jax.grad(lambda t: jnp.vdot(js.matmul(X, js.merge(t, rest), implementation=path), G))
    oracle.equal_exactly(gradient(trainable).values, LAYER.dvalues())
    whole = jax.grad(lambda w: jnp.vdot(js.matmul(X, w, implementation=path), G), allow_int=True)
    oracle.equal_exactly(whole(w).values, LAYER.dvalues())


def test_a_training_loop_whose_pattern_changes_each_step_compiles_once(path):
    """SET: each step trains, drops the blocks of least norm and grows others, all inside jit."""
    traces = []
    shape, block, rate = (32, 48), (8, 8), 1e-3
    key = jax.random.key(0)
    target = jax.random.normal(key, shape)
    x = jax.random.normal(jax.random.fold_in(key, 1), (16, 32))

    @jax.jit
    def step(w, key):
        traces.append(w)
        error = lambda v: jnp.sum(
            (js.matmul(x, w.with_values(v), implementation=path) - x @ target) ** 2
        )
        before, gradient = jax.value_and_grad(error)(w.values)
        w = w.with_values(w.values - rate * gradient)
        keep = js.block_norms(w, block)
        pattern = patterns.exchange(w.pattern, keep, jax.random.uniform(key, w.pattern.grid), 2)
        return w.with_pattern(pattern), before

    pattern = patterns.random(key, block, shape, sparsity=0.5)
    w = js.SparseWeight(jnp.zeros(pattern.values_shape), pattern)
    seen, errors = set(), []
    for i in range(12):
        seen.add(np.asarray(w.pattern.grid_mask()).tobytes())
        w, before = step(w, jax.random.fold_in(key, i))
        errors.append(float(before))
        assert int(w.pattern.grid_mask().sum()) == pattern.capacity
    assert len(traces) == 1
    assert len(seen) == 12
    assert errors[-1] < 0.5 * errors[0]


def test_a_pattern_made_inside_jit_gives_the_same_product_as_outside(path):
    dense = jnp.float32(LAYER.dense())
    product = lambda w: js.matmul(X, js.fromdense(w, "16x16", sparsity=0.5), implementation=path)
    outside = product(dense)
    np.testing.assert_array_equal(jax.jit(product)(dense), outside)


def test_a_pattern_that_lost_blocks_inside_jit_is_never_silently_wrong(path):
    dense = jnp.ones((70, 90))
    product = jax.jit(
        lambda w: js.matmul(X, js.fromdense(w, "16x16", capacity=29), implementation=path)
    )
    if why_absent("cpu_kernels") is None:  # whatever the path: kernels also copy the blocks
        with pytest.raises((ValueError, jax.errors.JaxRuntimeError), match="lost blocks"):
            jax.block_until_ready(product(dense))
    else:
        assert np.isnan(product(dense)).all()


def test_a_scan_over_layers_takes_stacked_weights(path):
    several = [cases.make("full", seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[one.weight() for one in several])
    x = several[0].array("x")
    apply = lambda x, w: (js.matmul(x, w, implementation=path), None)
    y = jax.jit(lambda x: jax.lax.scan(apply, x, stacked)[0])(x)
    exact = several[0].x
    for one in several:
        exact = oracle.forward(exact, one.values, *one.places)
    oracle.equal_exactly(y, exact)


# Compilation --------------------------------------------------------------------------------------


def test_ahead_of_time_compiled_program_gives_the_same_bits(path):
    function = functools.partial(js.matmul, implementation=path)
    program = jax.jit(function).lower(X, LAYER.weight()).compile()
    np.testing.assert_array_equal(program(X, LAYER.weight()), function(X, LAYER.weight()))


def test_lowering_from_shapes_alone_needs_no_arrays(path):
    like = lambda tree: jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), tree)
    w = LAYER.weight()
    function = functools.partial(js.matmul, implementation=path)
    program = jax.jit(function).lower(like(X), like(w)).compile()
    oracle.equal_exactly(program(X, w), LAYER.y())


def test_eval_shape_gives_shapes_and_dtypes_of_results_and_gradients(path):
    w = LAYER.weight("bfloat16")
    x = LAYER.array("x", "bfloat16")
    gradients = lambda x, v: jax.grad(
        lambda x, v: loss(x, w.with_values(v), path).astype(jnp.float32), (0, 1)
    )(x, v)
    dx, dv = jax.eval_shape(gradients, x, w.values)
    assert (dx.shape, dx.dtype) == (x.shape, x.dtype)
    assert (dv.shape, dv.dtype) == (w.values.shape, w.values.dtype)


def test_a_donated_input_is_consumed_and_the_result_right(path):
    x = jnp.array(LAYER.array("x"))
    step = jax.jit(
        lambda x, w: x + jnp.resize(js.matmul(x, w, implementation=path), x.shape), donate_argnums=0
    )
    exact = LAYER.x + np.resize(LAYER.y(), LAYER.x.shape)
    oracle.equal_exactly(step(x, LAYER.weight()), exact)
    assert x.is_deleted()


def test_donated_values_are_updated_in_place_by_a_training_step(path):
    w = jax.tree.map(jnp.array, LAYER.weight(garbage=False))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(values):
        product = lambda v: jnp.vdot(js.matmul(X, w.with_values(v), implementation=path), G)
        return values - jax.grad(product)(values)

    values = jnp.array(w.values)
    oracle.equal_exactly(step(values), LAYER.clean - LAYER.dvalues())
    assert values.is_deleted()


def test_debug_nans_finds_the_nan_of_an_op(path):
    with jax.debug_nans(True), pytest.raises(FloatingPointError, match="nan"):
        jax.block_until_ready(
            jax.jit(functools.partial(js.matmul, implementation=path))(X * jnp.nan, LAYER.weight())
        )


def test_debug_nans_is_quiet_about_garbage_where_nothing_is_read(path):
    w = LAYER.weight()
    with jax.debug_nans(True):
        jax.block_until_ready(js.matmul(X, w, implementation=path))


def test_unused_results_cost_no_call():
    need("cpu_kernels")
    function = lambda x, w: (js.matmul(x, w, implementation="ffi"), x)[1]
    assert handler_calls(compiled(function, X, LAYER.weight())) == []


def test_equal_calls_are_made_once():
    need("cpu_kernels")
    product = functools.partial(js.matmul, implementation="ffi")
    twice = lambda x, w: product(x, w) + product(x, w)
    assert handler_calls(compiled(twice, X, LAYER.weight())) == ["forward"]


@pytest.mark.parametrize(
    ("policy", "calls"),
    [
        (None, ["forward", "forward", "input_grad", "weight_grad"]),
        (jax.checkpoint_policies.everything_saveable, ["forward", "input_grad", "weight_grad"]),
        (
            lambda primitive, *_, **__: primitive.name == "jaxsparse_block_matmul_forward",
            ["forward", "input_grad", "weight_grad"],
        ),
    ],
    ids=["nothing_saved", "everything_saved", "our_primitive_saved"],
)
def test_remat_recomputes_what_its_policy_says(policy, calls):
    w = LAYER.weight()
    f = lambda x, v: jnp.sum(jnp.sin(js.matmul(jnp.sin(x), w.with_values(v))))
    gradients = jax.grad(jax.checkpoint(f, policy=policy), (0, 1))
    assert members(gradients, X, w.values) == calls


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_a_platform_without_kernels_lowers_to_plain_jax(platform):
    traced = jax.jit(jax.grad(loss)).trace(X, LAYER.weight())
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "jaxsparse." not in text


def test_a_program_for_two_platforms_holds_a_kernel_and_plain_jax():
    need("cpu_kernels")
    traced = jax.jit(js.matmul).trace(X, LAYER.weight())
    text = traced.lower(lowering_platforms=("cpu", "tpu")).as_text()
    assert "jaxsparse.block_matmul_forward" in text
    assert "dot_general" in text


# Options ------------------------------------------------------------------------------------------


def test_ffi_is_strict_where_the_dtype_has_no_kernel():
    w = LAYER.weight("float32", garbage=False).astype(jnp.int32)
    with pytest.raises(NotImplementedError, match="ffi"):
        js.matmul(LAYER.array("x", "int32"), w, implementation="ffi")


@pytest.mark.parametrize("platform", ["tpu", "rocm"])
def test_ffi_is_strict_where_the_platform_has_no_kernels(platform):
    product = functools.partial(js.matmul, implementation="ffi")
    with pytest.raises(NotImplementedError, match=rf"(?i){platform}.*implementation=None"):
        jax.jit(product).trace(X, LAYER.weight()).lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("implementation", ["xla", "dense"])
def test_plain_implementations_make_no_handler_call_for_the_product(implementation):
    function = lambda x, v: js.matmul(
        x, LAYER.weight().with_values(v), implementation=implementation
    )
    gradients = lambda x, v: jax.vjp(function, x, v)[1](G)
    calls = handler_calls(compiled(gradients, X, LAYER.weight().values))
    assert not {"forward", "input_grad", "weight_grad"} & set(calls)


def test_the_dense_implementation_unpacks_with_compiled_copies():
    need("cpu_kernels")
    function = lambda x, v: js.matmul(x, LAYER.weight().with_values(v), implementation="dense")
    gradients = lambda x, v: jax.vjp(function, x, v)[1](G)
    calls = handler_calls(compiled(gradients, X, LAYER.weight().values))
    assert set(calls) == {"gather", "scatter"}


def test_the_dense_implementation_takes_patterns_that_vmap_stacks():
    layers = [cases.make("tiles_ragged", seed=seed) for seed in range(3)]
    w = jax.tree.map(lambda *a: jnp.stack(a), *(layer.weight(garbage=False) for layer in layers))
    function = lambda w, x: js.matmul(x, w, implementation="dense")
    ys, pull_back = jax.vjp(
        jax.vmap(lambda v, w, x: function(w.with_values(v), x), (0, 0, None)), w.values, w, X
    )
    dvalues = pull_back(jnp.stack([G] * 3))[0]
    for layer, y, dv in zip(layers, ys, dvalues, strict=True):
        alone, pull_back = jax.vjp(
            lambda v, layer=layer: js.matmul(
                X, layer.weight().with_values(v), implementation="xla"
            ),
            layer.weight(garbage=False).values,
        )
        np.testing.assert_array_equal(y, alone)
        np.testing.assert_array_equal(dv, pull_back(G)[0])


def test_gradients_take_the_implementation_of_the_call(path):
    function = lambda x, v: js.matmul(x, LAYER.weight().with_values(v), implementation=path)
    gradients = lambda x, v: jax.vjp(function, x, v)[1](G)
    calls = handler_calls(compiled(gradients, X, LAYER.weight().values))
    assert calls == (["input_grad", "weight_grad"] if path == "ffi" else [])


@pytest.mark.parametrize("precision", ["highest", "default", jax.lax.Precision.HIGH, None])
def test_every_precision_is_taken_and_exact_on_the_cpu(precision, path):
    y = js.matmul(X, LAYER.weight(), precision=precision, implementation=path)
    oracle.equal_exactly(y, LAYER.y())


def test_explain_names_every_call_and_its_reason():
    w = LAYER.weight()
    gradients = lambda x, v: jax.vjp(lambda *a: js.matmul(a[0], w.with_values(a[1])), x, v)[1](G)
    calls = js.explain(jax.jit(gradients), X, w.values)
    assert {call.member for call in calls} >= {
        "block_matmul_input_grad",
        "block_matmul_weight_grad",
    }
    for call in calls:
        assert call.path in ("ffi", "xla", "dense")
        assert call.dtype == "float32"
        assert call.density == w.density
        assert len(call.reason) > 10


def test_explain_agrees_with_the_compiled_program():
    need("cpu_kernels")
    w = LAYER.weight()
    calls = js.explain(js.matmul, X, w)
    assert [call.path == "ffi" for call in calls] == [
        bool(handler_calls(compiled(js.matmul, X, w)))
    ]


# Export and caches: the loading process is another one --------------------------------------------


LOAD = """
    import jax, numpy as np, jaxsparse
    from jax import export
    x, values, rows, cols, y, dx = np.load({arrays!r}).values()
    exported = export.deserialize(bytearray(open({file!r}, "rb").read()))
    assert np.array_equal(exported.call(x, values, rows, cols), y)
    exported = exported.call
    gradient = jax.grad(lambda x: (exported(x, values, rows, cols)).sum())(x)
    assert np.array_equal(gradient, dx), (gradient, dx)
    print("same")
"""


@pytest.mark.parametrize("batch", ["2", "symbolic"])
def test_an_exported_program_gives_the_same_in_another_process(batch, path, tmp_path):
    need("flatbuffers")
    w = LAYER.weight(garbage=False)

    def product(x, values, rows, cols):
        pattern = js.BlockPattern(rows, cols, LAYER.shape, js.Block(LAYER.block))
        return js.matmul(x, js.SparseWeight(values, pattern), implementation=path)

    arrays = (X, w.values, w.pattern.rows, w.pattern.cols)
    kinds = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    if batch == "symbolic":
        kinds[0] = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 70"), X.dtype)
    exported = export.export(jax.jit(product), disabled_checks=js.disabled_export_checks())(*kinds)
    file, saved = tmp_path / "program", tmp_path / "arrays.npz"
    file.write_bytes(exported.serialize(vjp_order=1))
    dx = oracle.input_grad(np.ones_like(LAYER.g), LAYER.values, *LAYER.places)
    np.savez(saved, *arrays, LAYER.y().astype(np.float32), dx.astype(np.float32))
    code = LOAD.format(file=str(file), arrays=str(saved))
    assert run_python(code) == "same\n"


def test_exporting_without_the_list_of_checks_says_which_one_is_needed():
    need("cpu_kernels")
    function = jax.jit(functools.partial(js.matmul, implementation="ffi"))
    with pytest.raises(ValueError, match=r"jaxsparse\.block_matmul_forward\.v1"):
        export.export(function)(X, LAYER.weight())


CACHED = """
    import jax, jax.numpy as jnp, logging
    events = []
    jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
    jax.config.update("jax_compilation_cache_dir", {folder!r})
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    import jaxsparse as js
    w = js.fromdense(jnp.ones((64, 64)), "16x16")

    @jax.jit
    def the_step(x, v):
        return jax.value_and_grad(
            lambda x, v: js.matmul(x, w.with_values(v), implementation={path!r}).sum(), (0, 1)
        )(x, v)

    arguments = jnp.ones((8, 64)), w.values
    lowered = the_step.lower(*arguments)
    events.clear()
    value, _ = lowered.compile()(*arguments)
    assert float(value) == 8 * 64 * 64
    ends = [name.rsplit("/", 1)[1] for name in events]
    print([end for end in ends if end in ("cache_hits", "cache_misses")])
"""


def test_the_persistent_compilation_cache_hits_in_a_second_process(path, tmp_path):
    code = CACHED.format(folder=str(tmp_path), path=path)
    assert run_python(code) == "['cache_misses']\n"
    assert run_python(code) == "['cache_hits']\n"
