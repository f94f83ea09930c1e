"""Twenty lines: a sparse weight, its product, its gradients, and training by them. No framework."""

import jax
import jax.numpy as jnp

import jaxsparse as js

keys = jax.random.split(jax.random.key(0), 3)
x = jax.random.normal(keys[0], (256, 512))
teacher = js.fromdense(jax.random.normal(keys[1], (512, 512)), "32x32", sparsity=0.9)
pattern = js.patterns.random(keys[2], "32x32", (512, 512), sparsity=0.5)
student = js.SparseWeight(jnp.zeros(pattern.values_shape), pattern)


@jax.jit
def step(student):
    error = lambda values: jnp.mean((js.matmul(x, student.with_values(values)) - y) ** 2)
    loss, gradient = jax.value_and_grad(error)(student.values)
    return student.with_values(student.values - 100.0 * gradient), loss


y = js.matmul(x, teacher)
for i in range(101):
    student, loss = step(student)
    if i % 25 == 0:
        print(f"step {i:3d}  loss {loss:.3f}")
print(student, js.patterns.picture(student, width=16), sep="\n")
