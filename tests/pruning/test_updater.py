"""Pruners in a jitted loop: what they store, what they move, and what they leave alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

import jaxsparse as js
from jaxsparse import pruning

BLOCK = "4x4"
X = jax.random.normal(jax.random.key(1), (8, 16))
Y = jax.random.normal(jax.random.key(2), (8, 8))


@pytest.fixture(autouse=True)
def _promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):  # for optax
        yield


@pytest.fixture
def params(rng):
    shapes = {"first": (16, 16), "last": (16, 8)}
    weights = {name: {"kernel": rng.standard_normal(shape)} for name, shape in shapes.items()}
    weights["last"]["bias"] = np.zeros(8)
    return jax.tree.map(lambda w: jnp.asarray(w, "float32"), weights)


def loss(params, x=X, y=Y):
    hidden = jnp.tanh(js.matmul(x, params["first"]["kernel"]))
    return jnp.mean((js.matmul(hidden, params["last"]["kernel"]) + params["last"]["bias"] - y) ** 2)


dense_grads = jax.grad(loss)
sparse_grads = jax.grad(lambda params, patterns: loss(pruning.sparse_weights(params, patterns)))


def make_step(pruner, optimizer, grads=None):
    """A jitted step of training, which counts how often it was traced."""

    @jax.jit
    def step(params, opt_state, state):
        step.traces += 1
        slopes = sparse_grads(params, state.patterns)
        updates, opt_state = optimizer.update(slopes, opt_state, params)
        return pruner.update(optax.apply_updates(params, updates), opt_state, state, grads)

    step.traces = 0
    return step


def train(pruner, params, steps, *, grads=dense_grads, optimizer=None, key=None, patterns=None):
    """All states that a training went through, as (params, opt_state, state)."""
    optimizer = optimizer or optax.adam(1e-2)
    step = make_step(pruner, optimizer, grads)
    history = [(params, optimizer.init(params), pruner.init(params, key=key, patterns=patterns))]
    for _ in range(steps):
        history.append(step(*history[-1]))
    assert step.traces == 1, "patterns that change must not compile anew"
    return history


def masks(state):
    return {name: np.asarray(state.patterns[name]["kernel"].mask()) for name in ("first", "last")}


def sparsities(history):
    both = [np.concatenate([m.ravel() for m in masks(s).values()]) for _, _, s in history]
    return [1 - m.mean() for m in both]


MOVING = {"set": pruning.set_, "rigl": functools.partial(pruning.rigl, end=100)}
every_mover = pytest.mark.parametrize("method", list(MOVING))


# Gradual pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("format", ["unstructured", BLOCK])
def test_gradual_pruning_follows_the_schedule_and_no_weight_returns(format, distribution, params):
    schedule = pruning.cubic(0.75, begin=2, end=10)
    pruner = pruning.gradual(
        schedule, format=format, distribution=distribution, every=2, begin=2, end=10
    )
    history = train(pruner, params, 14)
    parts = {BLOCK: 24, "unstructured": 384}[format]
    for step, (sparsity, before, after) in enumerate(
        zip(sparsities(history)[1:], history, history[1:])
    ):
        due = min(10, step - step % 2)
        expected = float(schedule(due)) if due >= 2 else 0
        assert sparsity == pytest.approx(expected, abs=1.01 / parts)
        for name in ("first", "last"):
            assert not (masks(after[2])[name] & ~masks(before[2])[name]).any()
            kernel = np.asarray(after[0][name]["kernel"])
            assert (kernel[~masks(after[2])[name]] == 0).all()


def test_gradual_pruning_drops_the_smallest(params):
    pruner = pruning.gradual(0.5, format="unstructured", every=1, begin=0)
    after, _, state = pruner.update(params, None, pruner.init(params))
    for name in ("first", "last"):
        size = np.abs(params[name]["kernel"])
        np.testing.assert_array_equal(masks(state)[name], size > np.median(size))
        np.testing.assert_array_equal(
            after[name]["kernel"], np.where(masks(state)[name], params[name]["kernel"], 0)
        )
    np.testing.assert_array_equal(after["last"]["bias"], params["last"]["bias"])


def test_schedules_of_optax_are_schedules(params):
    schedule = optax.linear_schedule(0.0, 0.5, 4)
    history = train(
        pruning.gradual(schedule, format="unstructured", every=1), params, 6, grads=None
    )
    np.testing.assert_allclose(
        sparsities(history)[1:], [0, 0.125, 0.25, 0.375, 0.5, 0.5], atol=1e-2
    )


def test_movement_pruning_keeps_what_moves_away_from_zero(params):
    """Summed over the steps, also over those at which nothing is pruned."""
    pruner = pruning.gradual(
        0.5,
        format="unstructured",
        score=pruning.movement,
        accumulate=True,
        pool="sum",
        every=1,
        begin=2,
    )
    state, total = pruner.init(params), 0
    for step in range(3):
        grads = jax.tree.map(lambda w, step=step: jnp.sin(w * (step + 1)), params)
        before = params
        params, _, state = pruner.update(params, None, state, grads)
        total = total - np.asarray(before["first"]["kernel"] * grads["first"]["kernel"])
    kept = np.sort(total.ravel())[128:]
    np.testing.assert_array_equal(masks(state)["first"], total >= kept[0])


def test_given_patterns_are_the_first_ones(params):
    patterns = pruning.select(pruning.magnitude(params), 0.5, format=BLOCK)
    pruner = pruning.gradual(0.75, every=1, begin=3)
    history = train(pruner, params, 5, patterns=patterns)
    np.testing.assert_allclose(sparsities(history), [0.5] * 4 + [0.75] * 2)
    assert history[-1][2].patterns["first"]["kernel"].capacity == 8


# SET and RigL -------------------------------------------------------------------------------------


@every_mover
@pytest.mark.parametrize("format", ["unstructured", BLOCK])
def test_patterns_move_at_their_steps_and_keep_their_number(method, format, params):
    pruner = MOVING[method](0.5, format=format, every=3)
    history = train(pruner, params, 8)
    states = [state for _, _, state in history]
    for step, (before, after) in enumerate(zip(states, states[1:])):
        moved = any((masks(before)[n] != masks(after)[n]).any() for n in ("first", "last"))
        assert moved == (step in (3, 6)), step
        for name in ("first", "last"):
            assert masks(before)[name].sum() == masks(after)[name].sum()
            assert bool(after.patterns[name]["kernel"].is_valid())  # no duplicates, in order


@every_mover
@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.99, 1.0])
@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9])
def test_regrowth_never_duplicates_and_never_takes_what_was_just_dropped(
    method, fraction, sparsity, params
):
    pruner = MOVING[method](
        sparsity, format="unstructured", every=1, begin=0, fraction=fraction, distribution="uniform"
    )
    state = pruner.init(params)
    masked = pruning.apply_patterns(params, state.patterns)
    _, _, after = jax.jit(functools.partial(pruner.update, grads=dense_grads))(masked, None, state)
    for name in ("first", "last"):
        old, new = masks(state)[name], masks(after)[name]
        places = np.asarray(after.patterns[name]["kernel"].places)
        assert (np.diff(places) > 0).all()
        count = min(int(np.floor(np.float32(fraction) * old.sum())), (~old).sum())
        assert (new & ~old).sum() == (old & ~new).sum() == count
        size = np.abs(np.asarray(masked[name]["kernel"]))
        if 0 < count < old.sum():
            assert size[old & ~new].max() <= size[old & new].min()


def test_rigl_grows_where_the_dense_gradient_is_largest(params):
    pruner = MOVING["rigl"](0.5, format="unstructured", every=1, begin=0, fraction=0.2)
    state = pruner.init(params)
    masked = pruning.apply_patterns(params, state.patterns)
    _, _, after = pruner.update(masked, None, state, dense_grads)
    grads = dense_grads(masked)
    for name in ("first", "last"):
        old, new = masks(state)[name], masks(after)[name]
        slope = np.abs(np.asarray(grads[name]["kernel"]))
        assert slope[new & ~old].min() >= slope[~new & ~old].max()


def test_dense_gradients_are_computed_only_when_patterns_change(params):
    calls = []

    def counted(params):
        jax.debug.callback(lambda: calls.append(1))
        return dense_grads(params)

    history = train(MOVING["rigl"](0.5, format=BLOCK, every=4), params, 10, grads=counted)
    jax.block_until_ready(history)
    jax.effects_barrier()
    assert len(calls) == 2  # steps 4 and 8


@every_mover
def test_regrowth_is_reproducible_by_key(method, params):
    pruner = MOVING[method](0.5, format=BLOCK, every=1)
    runs = [train(pruner, params, 3, key=jax.random.key(k))[-1][2] for k in (0, 0, 1)]
    same = [all((masks(runs[0])[n] == masks(r)[n]).all() for n in masks(r)) for r in runs]
    assert same == [True, True, False]


def test_set_draws_other_places_at_each_step_and_in_each_layer():
    """From one start, each update of one state: only the step and the layer differ."""
    params = {"a": jnp.ones((16, 16)), "b": jnp.ones((16, 16))}
    start = pruning.select(params, 0.5, format="unstructured")
    pruner = pruning.set_(every=1, begin=0, fraction=0.5)
    state = pruner.init(params, patterns=start)
    results = []
    for step in range(2):
        _, _, after = pruner.update(params, None, state._replace(step=jnp.int32(step)))
        results += [np.asarray(after.patterns[name].mask()) for name in ("a", "b")]
    assert len({mask.tobytes() for mask in results}) == 4


def test_set_draws_evenly():
    params = {"w": jnp.ones((8, 8))}
    start = pruning.select(params, 0.5, format="unstructured")
    pruner = pruning.set_(every=1, begin=0, fraction=0.5)
    update = jax.jit(pruner.update)
    state = pruner.init(params, patterns=start)
    grown = np.zeros((8, 8))
    for seed in range(200):
        _, _, after = update(params, None, state._replace(key=jax.random.key(seed)))
        grown += np.asarray(after.patterns["w"].mask() & ~start["w"].mask())
    counts = grown[~np.asarray(start["w"].mask())]
    assert counts.sum() == 200 * 16
    assert 65 < counts.min() <= counts.max() < 135  # 100 each, standard deviation 7


@every_mover
def test_stacked_layers_move_apart(method, rng):
    stack = {"layers": jnp.asarray(rng.standard_normal((3, 8, 8)), "float32")}
    draw = lambda k: js.patterns.random(k, "unstructured", (8, 8), sparsity=0.5)
    patterns = {"layers": jax.vmap(draw)(jnp.stack([jax.random.key(7)] * 3))}
    pruner = MOVING[method](every=1, begin=0, fraction=0.5)
    state = pruner.init(stack, patterns=patterns)
    grads = lambda p: jax.tree.map(lambda w: jnp.sin(7 * stack["layers"] + w), p)
    _, _, after = pruner.update(stack, None, state, grads)
    new = np.asarray(after.patterns["layers"].mask())
    assert (new.sum((1, 2)) == 32).all()
    grown = new & ~np.asarray(patterns["layers"].mask())
    assert (grown[0] != grown[1]).any()
    assert (grown[1] != grown[2]).any()


@every_mover
def test_new_weights_come_from_the_initializer(method, params):
    one = lambda key, shape, dtype: jnp.full(shape, 7, dtype)
    options = {"format": BLOCK, "every": 1, "begin": 0}
    for initializer, value in ((None, 0), (one, 7)):
        pruner = MOVING[method](0.5, initializer=initializer, **options)
        state = pruner.init(params)
        after, _, new = pruner.update(params, None, state, dense_grads)
        grown = masks(new)["first"] & ~masks(state)["first"]
        assert grown.any()
        kernel = np.asarray(after["first"]["kernel"])
        assert (kernel[grown] == value).all()
        kept = masks(new)["first"] & masks(state)["first"]
        np.testing.assert_array_equal(kernel[kept], np.asarray(params["first"]["kernel"])[kept])


# Values and moments -------------------------------------------------------------------------------

OPTIMIZERS = {
    "adam": optax.adam(1e-2),
    "sgd": optax.sgd(1e-2, momentum=0.9),
    "chain": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(1e-2), optax.trace(0.5), optax.scale(1.0)
    ),
    "partition": optax.partition(
        {"a": optax.adam(1e-2), "b": optax.sgd(1e-2, momentum=0.9)}, {"first": "a", "last": "b"}
    ),
    "every second": optax.MultiSteps(optax.adam(1e-2), 2),
}


@every_mover
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_a_move_keeps_values_and_moments_aligned_and_starts_new_ones_from_zero(
    method, optimizer, params
):
    optimizer = OPTIMIZERS[optimizer]
    pruner = MOVING[method](0.5, format="unstructured", every=5)
    history = train(pruner, params, 5, optimizer=optimizer)
    before, opt_before, old = history[-1]
    fill = lambda leaf: jnp.full_like(leaf, 3)  # as if weights off the pattern had moments too
    opt_before = jax.tree.map(fill, opt_before)
    after, opt_after, new = pruner.update(before, opt_before, old, dense_grads)
    kept = {name: masks(old)[name] & masks(new)[name] for name in ("first", "last")}
    assert all((masks(new)[name] & ~masks(old)[name]).any() for name in kept)
    moments = 0
    for (path, a), b in zip(
        jax.tree_util.tree_flatten_with_path(opt_before)[0], jax.tree.leaves(opt_after)
    ):
        owner = next((n for n in kept if n in str(path) and "kernel" in str(path)), None)
        if owner is None:
            np.testing.assert_array_equal(a, b)
        else:
            moments += 1
            np.testing.assert_array_equal(b, np.where(kept[owner], a, 0))
    assert moments >= 2
    for name, mask in kept.items():
        np.testing.assert_array_equal(
            after[name]["kernel"], np.where(mask, before[name]["kernel"], 0)
        )


def test_packed_moments_move_with_the_values(rng):
    """Values in a packed weight change their slots: whatever belongs to them must as well."""
    old, new = (
        js.patterns.random(jax.random.key(k), "unstructured", (8, 8), sparsity=0.5) for k in (0, 1)
    )
    dense = jnp.asarray(rng.standard_normal((8, 8)), "float32")
    move = lambda values: js.SparseWeight(values, old).with_pattern(new).values
    values, moments = (move(old.gather(a)) for a in (dense, 10 * dense))
    np.testing.assert_array_equal(moments, 10 * values)
    kept = np.asarray(old.mask() & new.mask())
    np.testing.assert_array_equal(new.scatter(values), np.where(kept, dense, 0))


def test_moments_belong_to_the_longest_path():
    """A kernel at the root and one of the same shape further in have paths that end alike."""
    params = {"kernel": jnp.ones((2, 2)), "inner": {"kernel": jnp.ones((2, 2))}}
    opt_state = jax.tree.map(jnp.ones_like, optax.adam(1e-3).init(params))
    kept = {"kernel": jnp.zeros((2, 2), bool), "inner": {"kernel": jnp.ones((2, 2), bool)}}
    moments = pruning.reset_moments(opt_state, params, kept)[0]
    for moment in (moments.mu, moments.nu):
        assert (moment["kernel"] == 0).all()
        assert (moment["inner"]["kernel"] == 1).all()
    assert moments.count == 1


def test_masks_of_moments_have_the_shapes_of_parameters():
    with pytest.raises(ValueError, match=r"the parameters' shapes, \(2, 2\), got \(2,\)"):
        pruning.reset_moments({}, {"w": jnp.ones((2, 2))}, {"w": jnp.ones(2, bool)})


def test_the_state_of_nnx_optimizers_is_reset_too():
    from flax import nnx

    model = nnx.Linear(8, 8, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    nnx.update(optimizer, jax.tree.map(jnp.ones_like, nnx.state(optimizer)))
    params = nnx.state(model, nnx.Param)
    pruner = pruning.gradual(0.5, format="unstructured", every=1)
    state = pruner.init(params)
    after, opt_state, state = pruner.update(params, nnx.state(optimizer), state)
    mask = np.asarray(jax.tree.leaves(state.patterns, is_leaf=lambda p: hasattr(p, "mask"))[0].mask())
    nnx.update(model, after)
    nnx.update(optimizer, opt_state)
    assert mask.sum() == 32
    np.testing.assert_array_equal(model.kernel[...] != 0, mask)
    np.testing.assert_array_equal(optimizer.opt_state[0].mu["kernel"][...] == 1, mask)
    assert (np.asarray(optimizer.opt_state[0].mu["bias"][...]) == 1).all()


# ADMM ---------------------------------------------------------------------------------------------


def test_admm_follows_its_three_equations(params):
    pruner = pruning.admm(0.5, format="unstructured", every=1, begin=0)
    state = pruner.init(params)
    z, u = (jax.tree.map(np.asarray, tree) for tree in state.memory)
    for step in range(3):
        params = jax.tree.map(lambda w, step=step: w + 0.3 * jnp.cos(w * 9 + step), params)
        after, _, state = jax.jit(pruner.update)(params, None, state)
        for name in ("first", "last"):
            w = np.asarray(params[name]["kernel"])
            shifted = w + u[name]["kernel"]
            mask = np.abs(shifted) > np.median(np.abs(shifted))
            np.testing.assert_array_equal(masks(state)[name], mask)
            z[name]["kernel"] = np.where(mask, shifted, 0)
            u[name]["kernel"] = shifted - z[name]["kernel"]
            np.testing.assert_array_equal(state.memory[0][name]["kernel"], z[name]["kernel"])
            np.testing.assert_array_equal(state.memory[1][name]["kernel"], u[name]["kernel"])
            np.testing.assert_array_equal(after[name]["kernel"], w)  # nothing is cut yet


def test_admm_draws_weights_to_a_sparse_network(params):
    pruner = pruning.admm(0.5, format="unstructured", every=20)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(params, opt_state, state):
        grads = jax.grad(lambda p: loss(p) + pruning.admm_penalty(p, state, 1.0))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return pruner.update(optax.apply_updates(params, updates), opt_state, state)

    def lost(params, state):
        cut = pruning.apply_patterns(params, state.patterns)
        return float(optax.global_norm(jax.tree.map(jnp.subtract, params, cut)))

    state = pruner.init(params)
    first, carry = lost(params, state), (params, optimizer.init(params), state)
    for _ in range(300):
        carry = step(*carry)
    assert lost(carry[0], carry[2]) < 0.1 * first


def test_admm_penalty_is_half_rho_times_the_squared_distance(params):
    pruner = pruning.admm(0.5, format="unstructured")
    state = pruner.init(params)
    removed = sum(
        np.sum(np.asarray(params[n]["kernel"])[~masks(state)[n]] ** 2) for n in ("first", "last")
    )
    shifted = {**params, "last": {**params["last"], "bias": jnp.full(8, 9.0)}}  # no part of it
    penalty = pruning.admm_penalty(shifted, state, 4.0)
    np.testing.assert_allclose(penalty, 2 * removed, rtol=1e-5)


# The state ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pruner",
    [
        pruning.gradual(0.75, format=BLOCK, every=2),
        pruning.gradual(0.5, format=BLOCK, every=2, score=pruning.snip, accumulate=True),
        pruning.rigl(0.5, format="unstructured", every=2, end=100),
        pruning.admm(0.5, format="grouped:4", every=2),
    ],
    ids=["gradual", "accumulated", "rigl", "admm"],
)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(pruner, params, tmp_path):
    optimizer = optax.adam(1e-2)
    step = make_step(pruner, optimizer, dense_grads)
    carry = params, optimizer.init(params), pruner.init(params, key=jax.random.key(5))
    for _ in range(3):
        carry = step(*carry)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: carry))
    for _ in range(3):
        carry, restored = step(*carry), step(*restored)
    assert jax.tree.structure(carry) == jax.tree.structure(restored)
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(restored), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)


def test_a_whole_training_runs_inside_scan(params):
    pruner = MOVING["rigl"](0.5, format=BLOCK, every=3)
    optimizer = optax.adam(1e-2)
    step = make_step(pruner, optimizer, dense_grads)
    start = params, optimizer.init(params), pruner.init(params)
    scanned, _ = jax.lax.scan(lambda carry, _: (step(*carry), None), start, length=8)
    looped = train(pruner, params, 8)[-1]
    for name in ("first", "last"):
        np.testing.assert_array_equal(masks(scanned[2])[name], masks(looped[2])[name])


# Bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: pruning.gradual(0.5, every=0), "gradual: every counts steps, .* 1 on, got 0"),
        (lambda: pruning.set_(0.5, begin=5, end=3), "set_: end counts steps, .* 5 on, got 3"),
        (lambda: pruning.rigl(0.5, end=0), "cosine: end must come after begin"),
        (lambda: pruning.admm(1.5, format=BLOCK), "admm: sparsity is a share, .* got 1.5"),
        (lambda: pruning.cubic(0.9, begin=5, end=5), "got begin=5 and end=5"),
        (lambda: pruning.cubic(1.1, end=5), "cubic: sparsity is a share, .* got 1.1"),
    ],
    ids=["every", "end", "rigl", "admm", "cubic_end", "cubic_share"],
)
def test_pruners_refuse(make, words):
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("pruner", "options", "words"),
    [
        (
            pruning.gradual(lambda t: 0.01 * t, format=BLOCK, every=50),
            {},
            "gradual: sparsity must stay from 0 to 1, got 1.5 at step 150",
        ),
        (pruning.gradual(lambda t: -0.5, format=BLOCK), {}, "got -0.5 at step 0"),
        (pruning.set_(0.5, format=BLOCK, fraction=2), {}, "set_: fraction must stay .* got 2"),
        (pruning.gradual(0.5), {}, "give a format, or the patterns to start from"),
        (pruning.gradual(0.99, format=BLOCK), {}, "keep a part, got first/kernel with 16 blocks"),
        (pruning.set_(0.99, format=BLOCK, distribution="uniform"), {}, "keep a part, got first"),
        (pruning.set_(format=BLOCK), {}, "set_.init: give sparsity .* or patterns"),
        (pruning.set_(0.5), {}, "set_.init: random patterns need a format"),
        (pruning.rigl(end=900), {"patterns": {"first": None}}, "structure of the parameters"),
        (pruning.admm(0.5, format=BLOCK), {"patterns": {}}, "found by projection"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_init_refuses(pruner, options, words, params):
    with pytest.raises(ValueError, match=words):
        pruner.init(params, **options)


def test_init_refuses_a_schedule_outside_the_range_inside_jit_too(params):
    pruner = pruning.gradual(lambda t: 1.5 + 0 * t, format=BLOCK)
    with pytest.raises(ValueError, match="got 1.5 at step 0"):
        jax.jit(pruner.init)(params)


def test_rigl_says_that_it_needs_gradients(params):
    pruner = pruning.rigl(0.5, format=BLOCK, end=100)
    state = pruner.init(params)
    with pytest.raises(ValueError, match="rigl.update: growing needs .* got grads=None"):
        jax.jit(pruner.update)(params, None, state)


def test_patterns_for_other_shapes_are_refused(params):
    patterns = jax.tree.map(lambda _: None, params)
    patterns["first"]["kernel"] = js.patterns.full(BLOCK, (16, 8))
    with pytest.raises(ValueError, match=r"first/kernel has shape \(16, 16\), got a pattern for"):
        pruning.gradual(0.5).init(params, patterns=patterns)


def test_things_that_are_no_patterns_are_refused(params):
    masks = jax.tree.map(lambda w: jnp.ones(w.shape, bool), params)
    with pytest.raises(TypeError, match=r"first/kernel needs a pattern or None.*from_masks"):
        pruning.apply_patterns(params, masks)
