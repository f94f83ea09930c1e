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


SHAPE = (16, 8)
ONE = {"kernel": jax.random.normal(jax.random.key(3), SHAPE), "bias": jnp.zeros(8)}
MOVING = {"set": pruning.set_, "rigl": functools.partial(pruning.rigl, end=100)}


# Gradual pruning ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("format", "distribution"), [("unstructured", "global"), (BLOCK, "erk")], ids=str
)
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
    after, _, state = jax.jit(pruner.update)(params, None, pruner.init(params))
    for name in ("first", "last"):
        size = np.abs(params[name]["kernel"])
        np.testing.assert_array_equal(masks(state)[name], size > np.median(size))
        np.testing.assert_array_equal(
            after[name]["kernel"], np.where(masks(state)[name], params[name]["kernel"], 0)
        )
    np.testing.assert_array_equal(after["last"]["bias"], params["last"]["bias"])


def test_schedules_of_optax_are_schedules_and_given_patterns_the_first_ones(params):
    patterns = pruning.select(pruning.magnitude(params), 0.25, format="unstructured")
    pruner = pruning.gradual(optax.linear_schedule(0.0, 0.5, 4), every=1)
    history = train(pruner, params, 6, grads=None, patterns=patterns)
    expected = [0.25, 0.25, 0.25, 0.25, 0.375, 0.5, 0.5]  # what is gone stays gone
    np.testing.assert_allclose(sparsities(history), expected, atol=1e-2)
    assert history[-1][2].patterns["first"]["kernel"].capacity == 192


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
    state, total, update = pruner.init(params), 0, jax.jit(pruner.update)
    for step in range(3):
        grads = jax.tree.map(lambda w, step=step: jnp.sin(w * (step + 1)), params)
        before = params
        params, _, state = update(params, None, state, grads)
        total = total - np.asarray(before["first"]["kernel"] * grads["first"]["kernel"])
    kept = np.sort(total.ravel())[128:]
    np.testing.assert_array_equal(masks(state)["first"], total >= kept[0])


# SET and RigL -------------------------------------------------------------------------------------


def one_loss(params):
    return jnp.mean((js.matmul(X, params["kernel"]) + params["bias"] - Y) ** 2)


def counted_grads(params):
    jax.debug.callback(lambda: CALLS.append(1))
    return jax.grad(one_loss)(params)


CALLS = []


def one_step(pruner, optimizer):
    """A jitted step of training one layer: what the optimizer made, then what `update` returns."""

    @jax.jit
    def step(params, opt_state, state):
        step.traces += 1
        grads = jax.grad(lambda p: one_loss(pruning.sparse_weights(p, state.patterns)))(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        stepped = optax.apply_updates(params, updates)
        return stepped, *pruner.update(stepped, opt_state, state, counted_grads)

    step.traces = 0
    return step


@functools.cache
def moving(method, format):
    """Ten steps, as (the optimizer's parameters, all before, all after) for each.

    Also how often dense gradients were asked for, the step and the pruner.
    """
    pruner, optimizer = MOVING[method](0.5, format=format, every=4), optax.adam(1e-2)
    step = one_step(pruner, optimizer)
    CALLS.clear()
    carry, history = (ONE, optimizer.init(ONE), pruner.init(ONE)), []
    for _ in range(10):
        stepped, *after = step(*carry)
        history.append((stepped, carry, after))
        carry = after
    jax.block_until_ready(carry)
    jax.effects_barrier()
    return history, len(CALLS), step, pruner


def mask_of(state):
    return np.asarray(state.patterns["kernel"].mask())


every_run = pytest.mark.parametrize(
    ("method", "format"), [("set", "unstructured"), ("rigl", "unstructured"), ("rigl", BLOCK)]
)


@every_run
def test_patterns_move_at_their_steps_and_keep_their_number(method, format):
    history, *_ = moving(method, format)
    for step, (_, (*_, old), (*_, new)) in enumerate(history):
        assert (mask_of(old) != mask_of(new)).any() == (step in (4, 8)), step
        assert mask_of(old).sum() == mask_of(new).sum() == 64
        assert bool(new.patterns["kernel"].is_valid())


@every_run
def test_patterns_that_move_do_not_compile_anew(method, format):
    assert moving(method, format)[2].traces == 1


@pytest.mark.parametrize(("method", "calls"), [("rigl", 2), ("set", 0)])
def test_dense_gradients_are_computed_only_when_patterns_grow_by_them(method, calls):
    assert moving(method, "unstructured")[1] == calls


@every_run
def test_what_is_not_stored_is_zero_after_every_step(method, format):
    for _, _, (params, _, state) in moving(method, format)[0]:
        assert (np.asarray(params["kernel"])[~mask_of(state)] == 0).all()


@every_run
def test_a_move_keeps_values_and_moments_aligned_and_starts_new_ones_from_zero(method, format):
    history, *_ = moving(method, format)
    for step in (4, 8):
        stepped, (_, _, old), (params, (adam, *_), new) = history[step]
        kept = mask_of(old) & mask_of(new)
        assert kept.any()
        grown = mask_of(new) & ~mask_of(old)
        assert grown.any()
        expected = np.where(kept, stepped["kernel"], 0)
        np.testing.assert_array_equal(params["kernel"], expected)
        for moment in (adam.mu, adam.nu):
            assert (np.asarray(moment["kernel"])[~kept] == 0).all()
            assert (np.asarray(moment["kernel"])[kept] != 0).all()
            assert (np.asarray(moment["bias"]) != 0).all()
        assert adam.count == step + 1


def test_rigl_drops_the_smallest_and_grows_where_the_dense_gradient_is_largest():
    history, *_ = moving("rigl", "unstructured")
    stepped, (_, _, old), (_, _, new) = history[4]
    old, new = mask_of(old), mask_of(new)
    masked = {**stepped, "kernel": jnp.where(old, stepped["kernel"], 0)}
    slope = np.abs(np.asarray(jax.grad(one_loss)(masked)["kernel"]))
    assert slope[new & ~old].min() >= slope[~new & ~old].max()
    size = np.abs(np.asarray(masked["kernel"]))
    assert size[old & ~new].max() <= size[old & new].min()
    share = 0.15 * (1 + np.cos(np.pi * 4 / 100))
    assert (new & ~old).sum() == int(share * 64)


def test_regrowth_is_reproducible_by_key_and_differs_between_keys_and_steps():
    _, _, step, pruner = moving("set", "unstructured")
    start = pruner.init(ONE)
    opt_state = optax.adam(1e-2).init(ONE)

    def grown(seed, number):
        state = start._replace(key=jax.random.key(seed), step=jnp.int32(number))
        return mask_of(step(ONE, opt_state, state)[-1]).tobytes()

    assert grown(0, 4) == grown(0, 4)
    assert len({grown(0, 4), grown(1, 4), grown(0, 8)}) == 3
    first, other = (pruner.init(ONE, key=jax.random.key(k)) for k in (0, 1))
    assert (mask_of(start) == mask_of(first)).all()
    assert (mask_of(first) != mask_of(other)).any()


@pytest.mark.parametrize("sparsity", [0.1, 0.9])
def test_regrowth_never_duplicates_and_never_takes_what_was_just_dropped(sparsity):
    """From nothing to everything exchanged, and with less room than there is to exchange."""
    fractions = jnp.asarray([0.0, 0.2, 0.99, 1.0], "float32")
    pruner = pruning.set_(
        sparsity, format="unstructured", every=1, begin=0, fraction=lambda t: fractions[t % 4]
    )
    state, update = pruner.init(ONE), jax.jit(pruner.update)
    for number, fraction in enumerate(fractions):
        _, _, after = update(ONE, None, state._replace(step=jnp.int32(number)))
        old, new = mask_of(state), mask_of(after)
        assert (np.diff(np.asarray(after.patterns["kernel"].places)) > 0).all()
        count = min(int(np.floor(fraction * np.float32(old.sum()))), (~old).sum())
        assert (new & ~old).sum() == (old & ~new).sum() == count


def test_set_draws_evenly():
    start = pruning.select(ONE, 0.5, format="unstructured")
    pruner = pruning.set_(every=1, begin=0, fraction=0.5)
    state, update = pruner.init(ONE, patterns=start), jax.jit(pruner.update)
    grown = np.zeros(SHAPE)
    for seed in range(200):
        _, _, after = update(ONE, None, state._replace(key=jax.random.key(seed)))
        grown += mask_of(after) & ~mask_of(state)
    counts = grown[~mask_of(state)]
    assert counts.sum() == 200 * 32
    assert 60 < counts.min() <= counts.max() < 140  # 100 each, standard deviation 7


def test_stacked_layers_and_layers_alike_draw_apart(rng):
    weights = {"a": jnp.ones((3, 8, 8)), "b": jnp.ones((8, 8))}
    same = js.patterns.random(jax.random.key(7), "unstructured", (8, 8), sparsity=0.5)
    patterns = {"a": jax.tree.map(lambda i: jnp.stack([i] * 3), same), "b": same}
    pruner = pruning.set_(every=1, begin=0, fraction=0.5)
    state = pruner.init(weights, patterns=patterns)
    _, _, after = jax.jit(pruner.update)(weights, None, state)
    masks = [*np.asarray(after.patterns["a"].mask()), np.asarray(after.patterns["b"].mask())]
    assert [mask.sum() for mask in masks] == [32] * 4
    assert len({mask.tobytes() for mask in masks}) == 4


def test_new_weights_come_from_the_initializer():
    sevens = lambda key, shape, dtype: jnp.full(shape, 7, dtype)
    pruner = pruning.set_(0.5, format=BLOCK, every=1, begin=0, initializer=sevens)
    state = pruner.init(ONE)
    after, _, new = jax.jit(pruner.update)(ONE, None, state)
    kept, grown = mask_of(state) & mask_of(new), mask_of(new) & ~mask_of(state)
    assert grown.any()
    np.testing.assert_array_equal(
        after["kernel"], np.where(grown, 7, np.where(kept, ONE["kernel"], 0))
    )


# Moments ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "num_moments"),
    [
        (optax.sgd(1e-2, momentum=0.9), 1),
        (optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2), optax.trace(0.5)), 3),
        (optax.partition({"a": optax.adam(1e-2)}, "a"), 2),
        (optax.masked(optax.adam(1e-2), {"kernel": True, "bias": False}), 2),
        (optax.MultiSteps(optax.adam(1e-2), 2), 3),
        (optax.adafactor(1e-2, min_dim_size_to_factor=4, momentum=0.9), 1),  # rows and columns stay
    ],
    ids=["sgd", "chain", "partition", "masked", "multi_steps", "adafactor"],
)
def test_moments_of_any_optimizer_are_reset_where_weights_are_new(optimizer, num_moments):
    kept = {"kernel": jnp.asarray(np.arange(128).reshape(SHAPE) % 3 > 0), "bias": None}
    before = jax.tree.map(jnp.ones_like, optimizer.init(ONE))
    after = pruning.reset_moments(before, ONE, kept)
    assert jax.tree.structure(after) == jax.tree.structure(before)
    changed = 0
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        if a.shape == SHAPE:
            np.testing.assert_array_equal(b, kept["kernel"])
            changed += 1
        else:
            np.testing.assert_array_equal(b, a)
    assert changed == num_moments


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
    after, opt_state, state = jax.jit(pruner.update)(params, nnx.state(optimizer), state)
    mask = np.asarray(
        jax.tree.leaves(state.patterns, is_leaf=lambda p: hasattr(p, "mask"))[0].mask()
    )
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
    update = jax.jit(pruner.update)
    for step in range(3):
        params = jax.tree.map(lambda w, step=step: w + 0.3 * jnp.cos(w * 9 + step), params)
        after, _, state = update(params, None, state)
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
        return float(optax.tree.norm(jax.tree.map(jnp.subtract, params, cut)))

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
        pruning.gradual(0.5, format=BLOCK, every=2, score=pruning.snip, accumulate=True),
        pruning.rigl(0.5, format="unstructured", every=2, end=100),
        pruning.admm(0.5, format="grouped:4", every=2),
    ],
    ids=["accumulated", "rigl", "admm"],
)
def test_training_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(pruner, tmp_path):
    optimizer = optax.adam(1e-2)
    step = one_step(pruner, optimizer)
    carry = ONE, optimizer.init(ONE), pruner.init(ONE, key=jax.random.key(5))
    for _ in range(3):
        carry = tuple(step(*carry)[1:])
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", carry)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(lambda: carry))
    for _ in range(3):
        carry, restored = step(*carry)[1:], step(*restored)[1:]
    assert jax.tree.structure(carry) == jax.tree.structure(restored)
    for a, b in zip(jax.tree.leaves(carry), jax.tree.leaves(restored), strict=True):
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            a, b = map(jax.random.key_data, (a, b))
        np.testing.assert_array_equal(a, b)


def test_a_whole_training_runs_inside_scan():
    history, _, step, pruner = moving("rigl", "unstructured")
    start = ONE, optax.adam(1e-2).init(ONE), pruner.init(ONE)
    scanned, _ = jax.lax.scan(lambda carry, _: (step(*carry)[1:], None), start, length=10)
    np.testing.assert_array_equal(mask_of(scanned[2]), mask_of(history[-1][-1][-1]))


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


def test_what_is_no_share_is_told_by_the_method_that_was_asked(params):
    with pytest.raises(TypeError, match="gradual: sparsity is a number or a function of the step"):
        pruning.gradual("x", format="2x2")
    with pytest.raises(TypeError, match="rigl: fraction is a number or a function"):
        pruning.rigl(0.5, fraction=[0.3], format="2x2", end=1000)
    with pytest.raises(ValueError, match=r"rigl: sparsity is a share, from 0 to 1, got 1\.5"):
        pruning.rigl(1.5, format="2x2", end=1000).init(params)
