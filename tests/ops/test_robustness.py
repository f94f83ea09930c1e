"""Many threads, many calls, many workers, every instruction set: the same bits, no leaks."""

import concurrent.futures
import functools
import threading

import cases
import jax
import numpy as np
import oracle
import pytest
from machine import need, run_python

import jaxsparse as js
from jaxsparse.core import native

BITS = """
    import functools, hashlib, jax, jax.numpy as jnp, cases, numpy as np, oracle
    import jaxsparse as js
    from jaxsparse.problems import Problem

    def digest(names, dtypes, path):
        bits = hashlib.sha256()
        for name in names:
            for dtype in dtypes:
                layer = cases.make(name, oracle.normals)
                w = layer.weight(dtype)
                product = lambda x, v: js.matmul(x, w.with_values(v), implementation=path)

                @jax.jit
                def all_three(x, v, g):
                    y, pull_back = jax.vjp(product, x, v)
                    return y, *pull_back(g)

                arguments = layer.array("x", dtype), w.values, layer.array("g", dtype)
                for result in all_three(*arguments):
                    bits.update(np.asarray(result).tobytes())
        return bits.hexdigest()

    large = Problem("large", (300,), (520, 700), (32, 32), 0.5, "")
    names = ["wide_batch", "large_ragged", "lying", "odd_blocks", large]
    print(digest(names, ["float32", "bfloat16"], "ffi"))
"""


@functools.cache
def bits_with(nproc: str, repeat: int = 0) -> str:
    return run_python(BITS, NPROC=nproc)


@pytest.mark.parametrize("nproc", ["2", "8"])
def test_results_are_bitwise_equal_for_any_number_of_threads(nproc):
    need("cpu_kernels")
    assert bits_with(nproc) == bits_with("1")


def test_results_are_bitwise_equal_from_process_to_process():
    need("cpu_kernels")
    assert bits_with("2", repeat=1) == bits_with("2")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_results_are_bitwise_equal_from_call_to_call(dtype, path):
    layer = cases.make("wide_batch", oracle.normals)
    x, w, g = layer.array("x", dtype), layer.weight(dtype), layer.array("g", dtype)
    product = lambda x, v: js.matmul(x, w.with_values(v), implementation=path)
    step = jax.jit(lambda x, v, g: (product(x, v), *jax.vjp(product, x, v)[1](g)))
    first = jax.tree.map(np.asarray, step(x, w.values, g))
    for _ in range(30):
        again = jax.tree.map(np.asarray, step(x, w.values, g))
        for one, other in zip(first, again, strict=True):
            assert one.tobytes() == other.tobytes()


# Threads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jit", [False, True], ids=["eager", "jit"])
def test_concurrent_calls_from_many_threads_give_right_results(jit, path):
    names = ["odd_blocks", "tiles", "ragged", "lying"]
    several = [cases.make(name) for name in names]
    product = functools.partial(js.matmul, implementation=path)
    product = jax.jit(product) if jit else product
    arguments = [(one.array("x"), one.weight()) for one in several]
    expected = [one.y() for one in several]
    barrier = threading.Barrier(8)

    def work(worker):
        barrier.wait()
        for i in range(40):
            k = (worker + i) % len(names)
            oracle.equal_exactly(product(*arguments[k]), expected[k])
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_concurrent_tracing_and_gradients_from_many_threads_give_right_results(path):
    layer = cases.make("tiles_ragged")
    x, w, g = layer.array("x"), layer.weight(), layer.array("g")
    barrier = threading.Barrier(6)

    def work(worker):
        barrier.wait()
        product = lambda x, v: js.matmul(x, w.with_values(v), implementation=path)
        gradients = jax.jit(lambda x, v: jax.vjp(product, x, v)[1](g * worker))
        dx, dvalues = gradients(x, w.values)
        oracle.equal_exactly(dx, worker * layer.dx())
        oracle.equal_exactly(dvalues, worker * layer.dvalues())
        return True

    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(1, 7)))


def test_independent_calls_in_one_program_do_not_wait_for_each_other():
    """More calls at once than there are threads, each of which would use several."""
    need("cpu_kernels")
    code = """
        import jax, jax.numpy as jnp, numpy as np, jaxsparse as js
        w = js.fromdense(jnp.ones((512, 512)), "32x32", sparsity=0.5)
        x = jnp.ones((512, 512))
        product = lambda i, x: js.matmul(x * i, w, implementation="ffi")
        program = jax.jit(lambda x: [product(i, x) for i in range(1, 33)])
        for _ in range(3):
            results = jax.block_until_ready(program(x))
        one = np.asarray(results[0])
        assert all(np.array_equal(np.asarray(r), one * (i + 1)) for i, r in enumerate(results))
        print("done")
    """
    assert run_python(code, NPROC="2", timeout=120) == "done\n"


# Memory -------------------------------------------------------------------------------------------


def test_ten_thousand_calls_do_not_grow_memory():
    code = """
        import jax, jax.numpy as jnp, numpy as np, jaxsparse as js

        def resident():
            with open("/proc/self/status") as file:
                (line,) = (line for line in file if line.startswith("VmRSS"))
            return int(line.split()[1]) / 1024

        w = js.fromdense(jnp.ones((256, 256)), "16x16", sparsity=0.5)
        x = jnp.ones((64, 256))
        loss = lambda x, v: js.matmul(x, w.with_values(v)).sum()
        step, eager = jax.jit(jax.grad(loss, (0, 1))), lambda x: js.matmul(x, w)

        def call(times):
            for _ in range(times):
                jax.block_until_ready(step(x, w.values))
            for _ in range(times // 4):
                jax.block_until_ready(eager(x))

        call(1000)
        before = resident()
        call(8000)
        print(resident() - before)
    """
    megabytes = float(run_python(code))
    # One result of a step has 192 KB: a leak of any kind would make gigabytes.
    assert megabytes < 20


# Instruction sets ---------------------------------------------------------------------------------


ONE_ISA = """
    import jax, cases, numpy as np, oracle
    import jaxsparse as js
    from jaxsparse import problems
    from jaxsparse.core import native

    assert native.isa() == {isa!r}, native.isa()

    def check(compare, problem, dtype, draw):
        layer = cases.make(problem, draw, unused=1).rounded(dtype)
        w = layer.weight(dtype)
        product = lambda x, v: js.matmul(x, w.with_values(v), implementation="ffi")
        y, pull_back = jax.vjp(product, layer.array("x", dtype), w.values)
        dx, dvalues = pull_back(layer.array("g", dtype))
        sizes = layer.magnitudes()
        for got, name in ((y, "y"), (dx, "dx"), (dvalues, "dvalues")):
            exact = getattr(layer, name)()
            more = () if compare is oracle.equal_exactly else (getattr(sizes, name)(),)
            compare(got, exact, *more, f"{{name}} of {{problem}} in {{dtype}}")

    # Every problem in one dtype, and the two that have most to go wrong in all of them.
    tried = {{(str(p), cases.DTYPES[i % 4]) for i, p in enumerate(problems.SMALL)}}
    tried |= {{(name, dtype) for name in ("ragged", "tiles_ragged") for dtype in cases.DTYPES}}
    for problem, dtype in sorted(tried):
        with jax.enable_x64(dtype == "float64"):
            check(oracle.equal_exactly, problem, dtype, oracle.small_integers)
            check(oracle.rounds_like_a_dot_product, problem, dtype, oracle.normals)
    print(native.isa(), len(tried))
"""


@pytest.mark.parametrize("isa", native.runnable_isas() or ("none",))
def test_every_instruction_set_computes_the_definition(isa):
    need("cpu_kernels")
    assert run_python(ONE_ISA.format(isa=isa), JAXSPARSE_CPU_ISA=isa) == f"{isa} 26\n"


# XLA's threads take subnormal float32 for zero, so no conversion may pass through one.
EVERY_FLOAT16 = """
    import jax, jax.numpy as jnp, numpy as np
    import jaxsparse as js
    from jaxsparse.core import native

    x = np.arange(2**16, dtype=np.uint16).view(np.float16)[:, None]
    product = jax.jit(lambda x, w: js.matmul(x, w, implementation="ffi"))
    for format in ("1x1", "unstructured"):
        w = js.fromdense(jnp.ones((1, 1), jnp.float16), format)
        y = np.asarray(product(x, w))
        wrong = np.flatnonzero((y != x) & ~(np.isnan(x) & np.isnan(y)))
        print(native.isa(), format, len(wrong), "wrong", x[wrong[:3], 0], y[wrong[:3], 0])
"""


@pytest.mark.parametrize("isa", native.runnable_isas() or ("none",))
def test_every_float16_passes_unchanged_through_every_instruction_set(isa):
    need("cpu_kernels")
    assert run_python(EVERY_FLOAT16, JAXSPARSE_CPU_ISA=isa) == (
        f"{isa} 1x1 0 wrong [] []\n{isa} unstructured 0 wrong [] []\n"
    )
