"""The options that every op has."""

from jaxsparse.core import dispatch

GRADS = ("exact", "sparse", "dense")


def check_options(function: str, implementation, grad: str = "exact") -> None:
    """Raises ValueError for an `implementation` or `grad` that no op has."""
    if implementation not in dispatch.IMPLEMENTATIONS:
        raise ValueError(
            f'{function}: implementation is None, "ffi", "xla" or "dense", got {implementation!r}.'
        )
    if grad not in GRADS:
        raise ValueError(f'{function}: grad is "exact", "sparse" or "dense", got {grad!r}.')
