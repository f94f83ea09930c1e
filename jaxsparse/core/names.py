"""Which layer a sparse call belongs to, for what a check says of it."""

import contextlib
import contextvars
from collections.abc import Iterator

from jaxsparse.core import compat

_layer = contextvars.ContextVar("jaxsparse_layer", default="")


@contextlib.contextmanager
def layer(name: str) -> Iterator[None]:
    """Names the layer whose calls are traced inside a `with` block.

    `jax.named_scope` alone does not reach what a gradient contract traces apart; it does reach the
    backward pass, which is traced when the layer has returned.
    """
    token = _layer.set(name)
    try:
        yield
    finally:
        _layer.reset(token)


def current() -> str:
    """The layer here, or the name stack as far as the innermost trace knows it."""
    return _layer.get() or compat.current_name_stack()
