"""The options that every op has."""

from jaxsparse.core import dispatch

GRADS = ("exact", "sparse", "dense")


def check_options(function: str, implementation, grad: str = "exact") -> None:
    """Raises ValueError for an `implementation` or `grad` that no op has."""
    if not _is_one_of(implementation, dispatch.IMPLEMENTATIONS):
        raise ValueError(
            f'{function}: implementation is None, "ffi", "xla" or "dense", got {implementation!r}.'
        )
    if not _is_one_of(grad, GRADS):
        raise ValueError(f'{function}: grad is "exact", "sparse" or "dense", got {grad!r}.')


def _is_one_of(given, options) -> bool:
    """Whether it is there, also of what cannot be compared or hashed, such as arrays."""
    return (given is None or isinstance(given, str)) and given in options
