"""Convolutions of random geometry with few and small numbers, for hypothesis."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from jaxsparse.problems import ConvProblem

quiet = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


@st.composite
def problems(draw):
    """Any convolution with few and small numbers."""
    rank = draw(st.integers(1, 3))
    each = lambda low, high: tuple(draw(st.integers(low, high)) for _ in range(rank))
    largest = {1: 9, 2: 5, 3: 3}[rank]
    space, kernel = each(1, largest), each(1, min(4, largest))
    strides, dilation = each(1, 3), each(1, 2)
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    features = tuple(groups * draw(st.integers(1, 4)) for _ in range(2))
    transposed = draw(st.booleans())
    if draw(st.booleans()):
        padding = draw(st.sampled_from(["SAME", "VALID"]))
    else:
        padding = tuple(
            (draw(st.integers(-1, 3)), draw(st.integers(-1 if n > 1 else 0, 3)))
            if n > 2
            else (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
            for n in space
        )
    return ConvProblem(
        f"random{draw(st.integers(0, 10**6))}",
        space,
        kernel,
        features,
        strides,
        padding,
        dilation,
        groups,
        transposed,
        batch=draw(st.sampled_from([(), (1,), (3,), (2, 2)])),
        sparsity=draw(st.sampled_from([0.0, 0.5, 0.9, 1.0])),
    )
