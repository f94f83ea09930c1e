"""What reports, benchmarks, checks and modes say of sparse inputs is what runs."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax import linen as nn
from flax import nnx
from machine import compiled, need

import jaxsparse as js
import jaxsparse.linen as jslinen
import jaxsparse.nnx as jsnnx
from jaxsparse.tune import timing

MASK = jnp.asarray(np.random.default_rng(0).random((2, 8, 7)) < 0.1)
X = jnp.asarray(
    oracle.small_integers(np.random.default_rng(1), (2, 8, 7, 4)) * np.asarray(MASK)[..., None],
    jnp.float32,
)
DENSE = jnp.ones_like(X)
HANDLERS = {"down": "places_conv_forward", "up": "places_conv_input_grad"}


@pytest.fixture(autouse=True)
def _kernels():
    need("cpu_kernels")


class Net(nnx.Module):
    def __init__(self, **options):
        rngs = nnx.Rngs(0)
        self.down = jsnnx.MaskedConv(4, 6, (3, 3), strides=2, rngs=rngs, **options)
        self.up = jsnnx.MaskedConvTranspose(6, 3, (2, 2), strides=(2, 2), rngs=rngs, **options)

    def __call__(self, x, mask=None):
        y = self.down(x, mask)
        return self.up(y, None if mask is None else self.down.output_mask(mask))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = jslinen.MaskedConv(6, (3, 3), strides=2, name="down")(x)
        return jslinen.MaskedConvTranspose(3, (2, 2), strides=(2, 2), name="up")(x)


def handlers(function, *args):
    """The handlers of sparse inputs in a compiled program, and whether it may take others."""
    text = compiled(function, *args).as_text()
    return {name for name in HANDLERS.values() if name in text}, " conditional(" in text


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_a_report_counts_masked_layers_and_says_by_what_they_decide(framework):
    sample = (Net(), X)
    if framework == "linen":
        sample = (LinenNet(), LinenNet().init(jax.random.key(0), X), X)
    report = js.report(*sample)
    assert [row.path for row in report] == ["down", "up"]
    down, up = report["down"], report["up"]
    assert (down.kind, up.kind) == ("MaskedConv", "MaskedConvTranspose")
    assert (down.shape, up.shape) == ((3, 3, 4, 6), (2, 2, 6, 3))
    # Two samples: 4 x 4 results of 9 taps; 4 x 4 inputs that each reach 4 results.
    assert (down.macs, up.macs) == (2 * 16 * 9 * 4 * 6, 2 * 16 * 4 * 6 * 3)
    assert (down.nbytes, up.nbytes) == (4 * 9 * 4 * 6, 4 * 4 * 6 * 3)
    for row in report:
        assert row.path_taken == "ffi"
        assert row.reason.startswith("decided when it runs: sparse up to ")
    assert handlers(lambda x: sample[0](x) if framework == "nnx" else sample[0].apply(
        sample[1], x), X) == (set(HANDLERS.values()), True)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "path", "reason"),
    [
        ({"implementation": "ffi"}, "ffi", 'implementation="ffi"'),
        ({"implementation": "dense"}, "dense", 'implementation="dense"'),
        ({"implementation": "xla"}, "xla", 'implementation="xla"'),
        ({"threshold": 0.7}, "ffi", "decided when it runs: sparse from 0.7 zeros on"),
    ],
    ids=["ffi", "dense", "xla", "threshold"],
)
def test_the_path_that_a_report_names_is_that_of_the_program(options, path, reason):
    net = Net(**options)
    for row in js.report(net, X):
        assert row.path_taken == path
        assert row.reason.startswith(reason)
    found, may_change = handlers(lambda x: net(x), X)
    assert found == (set(HANDLERS.values()) if path == "ffi" else set())
    assert may_change == ("threshold" in options)


@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_modes_decide_for_masked_layers_and_reports_know_them(mode):
    net = Net()
    with js.mode(mode):
        rows = list(js.report(net, X))
        found, may_change = handlers(lambda x: net(x), X)
        result = net(X)
    assert {row.path_taken for row in rows} == {"ffi" if mode == "sparse" else "dense"}
    assert {row.reason for row in rows} == {f'mode("{mode}")'}
    assert found == (set(HANDLERS.values()) if mode == "sparse" else set())
    assert not may_change
    np.testing.assert_allclose(result, net(X), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("x", "expected"), [(X, True), (DENSE, False)], ids=["sparse", "dense"])
def test_what_a_model_decides_is_read_back_call_by_call(x, expected):
    net = Net(threshold=0.5)
    with js.decisions() as taken:
        jax.block_until_ready(net(x))
    assert taken[0].is_sparse == expected
    assert {one.member for one in taken} == {"masked_conv_forward", "masked_conv_input_grad"}


def test_with_a_mask_reports_and_gradients_say_that_nothing_runs_dense():
    graph, state = nnx.split(Net())
    gradients = jax.grad(lambda state, x, mask: nnx.merge(graph, state)(x, mask).sum(), (0, 1))
    rows = list(js.report(gradients, state, X, MASK))
    assert {row.path_taken for row in rows} == {"ffi"}
    assert len(rows) >= 4


def test_a_benchmark_of_a_masked_model_compares_the_dense_op_with_the_kernel(monkeypatch):
    programs = {}

    def interleaved(functions, **_):
        programs.update(functions)
        return {name: [1.0] * 5 for name in functions}

    monkeypatch.setattr(timing, "interleaved", interleaved)
    paths = {}
    lowered = type(jax.jit(lambda x: x).lower(X)).compile

    def compile_and_look(self, *args, **kwargs):
        program = lowered(self, *args, **kwargs)
        text = program.as_text()
        paths[len(paths)] = ("places_conv" in text, " conditional(" in text)
        return program

    monkeypatch.setattr(type(jax.jit(lambda x: x).lower(X)), "compile", compile_and_look)
    result = js.benchmark(Net(), X)
    assert [row.name for row in result] == ["dense", "sparse", "chosen"]
    assert list(paths.values()) == [(False, False), (True, False), (True, True)]


def test_a_benchmark_does_not_time_a_masked_layer_that_is_wrong(monkeypatch):
    from jaxsparse.ops import masked

    run = masked.nonzeros  # a sample that counts as empty though it is not
    monkeypatch.setattr(masked, "nonzeros", lambda x: run(x).at[0].set(0))
    with pytest.raises(ArithmeticError, match="sparse"):
        js.benchmark(Net(), DENSE, seconds=0.01)


@pytest.mark.parametrize("framework", ["nnx", "linen"])
def test_check_names_the_masked_layer_that_is_wrong_and_no_other(framework, monkeypatch):
    from jaxsparse.ops import masked

    names = ("MaskedConv", "MaskedConvTranspose")  # nnx knows its paths in reports only
    loss = lambda net, x: jnp.sum(net(x))
    run = lambda: nnx.grad(loss)(Net(), X)
    if framework == "linen":
        variables, names = LinenNet().init(jax.random.key(0), X), ("down", "up")
        run = lambda: jax.grad(lambda v: jnp.sum(LinenNet().apply(v, X)))(variables)
    with js.check() as checked:  # without a trace around them, too
        jax.block_until_ready(Net()(X) if framework == "nnx" else LinenNet().apply(variables, X))
    assert {row.name.split("/")[-1] for row in checked.rows} == set(names)
    with js.check() as checked:
        run()
    assert {row.name.split("/")[-1] for row in checked.rows} == set(names)
    assert {row.name.split("/")[-1] for row in checked.rows if row.way == "ffi"} == set(names)
    nonzeros = masked.nonzeros
    wrong = lambda x: nonzeros(x).at[0].set(0) if x.shape[-1] == 6 else nonzeros(x)  # the second
    monkeypatch.setattr(masked, "nonzeros", wrong)
    with js.check(raises=False) as checked:
        run()
    assert {row.name.split("/")[-1] for row in checked.bad} == {names[1]}
