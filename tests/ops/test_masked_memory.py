"""What ops on sparse inputs need beside their arrays.

Programs by what XLA plans; all of it, what kernels allocate included, by what the process comes to
hold.
"""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from machine import compiled, need, run_python

import jaxsparse as js

LAYERS = {
    # shape of x, shape of the kernel, whether transposed
    "2d": ((2, 14, 14, 64), (3, 3, 64, 64), False),
    "1d": ((3, 200, 16), (7, 16, 32), False),
    "transposed": ((2, 8, 8, 64), (4, 4, 64, 32), True),
}


@pytest.mark.parametrize("given", [False, True], ids=["found", "given"])
@pytest.mark.parametrize("name", LAYERS)
def test_the_sparse_side_plans_no_more_than_lists_of_places(name, given):
    need("cpu_kernels")
    shape, kernel, is_transposed = LAYERS[name]
    function = js.masked_conv
    if is_transposed:
        function = functools.partial(js.masked_conv_transpose, strides=2)
    x, w = jnp.ones(shape), jnp.ones(kernel)
    mask = jnp.ones(shape[:-1], bool) if given else None

    def run(x, w, mask, g, result):
        op = functools.partial(function, mask=mask, grad="masked", implementation="ffi")
        if result == "y":
            return op(x, w)
        return jax.vjp(op, x, w)[1](g)["xw".index(result)]

    g = jnp.ones(jax.eval_shape(function, x, w).shape)
    for result in ("y", "x", "w"):
        planned = compiled(functools.partial(run, result=result), x, w, mask, g).memory_analysis()
        held = planned.argument_size_in_bytes + planned.output_size_in_bytes
        # A count for each place, which has sixteen channels or more, twice: found, and as bool.
        assert planned.temp_size_in_bytes <= held / 8


PEAKS = """
    import functools, json
    import jax, jax.numpy as jnp, numpy as np
    import jaxsparse as js

    def status(key):
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(key)) * 1024

    def beside(function, *arrays):
        '''Memory that a call takes at most, beside its arrays, as a share of these.'''
        program = jax.jit(function).lower(*arrays).compile()
        jax.block_until_ready(arrays)
        before = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak starts anew
        result = jax.block_until_ready(program(*arrays))
        peak = status("VmHWM")
        more = sum(a.nbytes for a in jax.tree.leaves(result))
        return (peak - before - more) / (more + sum(a.nbytes for a in arrays))

    draw, shares = np.random.default_rng(0), {}
    for name, (space, inputs, outputs, taps, strides) in {
        "2d": ((8, 96, 96), 64, 64, (3, 3), 1),
        "few_channels": ((8, 160, 160), 16, 32, (3, 3), 1),
        "transposed": ((8, 32, 32), 256, 128, (4, 4), 2),
    }.items():
        function = functools.partial(js.masked_conv_transpose, strides=2)
        function = js.masked_conv if strides == 1 else function
        op = functools.partial(function, implementation="ffi", grad="masked")
        w = jnp.ones((*taps, inputs, outputs))
        for zeros, sizes in (("places", (*space, 1)), ("numbers", (*space, inputs))):
            x = np.where(draw.random(sizes, np.float32) < 0.1, np.float32(1), np.float32(0))
            x = jax.block_until_ready(jnp.asarray(x) * jnp.ones((*space, inputs)))
            g = jnp.ones(jax.eval_shape(op, x, w).shape)
            pull = lambda x, w, g, of: jax.vjp(op, x, w)[1](g)[of]
            shares[f"{name} {zeros} y"] = beside(op, x, w)
            shares[f"{name} {zeros} dx"] = beside(functools.partial(pull, of=0), x, w, g)
            shares[f"{name} {zeros} dw"] = beside(functools.partial(pull, of=1), x, w, g)
    shares["a copy"] = beside(lambda x: jnp.sort(jnp.sort(x, 1)[:, ::-1], -1)[:1], x)
    print(json.dumps(shares))
"""


def test_no_call_takes_more_than_a_quarter_of_its_input_and_output_beside_them():
    need("cpu_kernels")
    # All larger blocks come from the system and go back to it, so that the peak is what is held.
    shares = json.loads(run_python(PEAKS, NPROC="2", MALLOC_MMAP_THRESHOLD_=str(2**17)))
    assert shares.pop("a copy") > 0.25  # the test sees what it looks for
    assert len(shares) == 18
    assert {name: share for name, share in shares.items() if share > 0.25} == {}


def test_a_thousand_calls_and_gradients_do_not_grow_memory():
    need("cpu_kernels")
    code = """
        import jax, jax.numpy as jnp, jaxsparse as js

        def resident():
            with open("/proc/self/status") as file:
                (line,) = (line for line in file if line.startswith("VmRSS"))
            return int(line.split()[1]) / 1024

        x, w = jnp.ones((2, 16, 16, 32)).at[:, 2:].set(0), jnp.ones((3, 3, 32, 32))
        step = jax.jit(jax.grad(lambda x, w: js.masked_conv(x, w).sum(), (0, 1)))

        def call(times):
            for _ in range(times):
                jax.block_until_ready(step(x, w))

        call(200)
        before = resident()
        call(1000)
        print(resident() - before)
    """
    # The input has 64 KB: one that is lost in each call would make 64 MB.
    assert float(run_python(code)) < 10
