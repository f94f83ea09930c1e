"""What the Flax layers of `jaxsparse.nnx` and `jaxsparse.linen` share."""
