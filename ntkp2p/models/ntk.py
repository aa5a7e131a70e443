r"""The empirical neural tangent kernel, Θ(x, x') = J(x) J(x')ᵀ with J = ∂f/∂θ at θ₀, summed over the leaves of θ.

A weight matrix that is used once, in one product h = a W of one sample's row a, has ∂f/∂W = a ⊗ δ with δ = ∂f/∂h, so
that its share of the kernel is a product of two small Grams,

    (a · a') (δ · δ'),

and its Jacobian is never formed. Such weights are found in the network's own jaxpr, for one sample, so that any network
profits: nothing has to be declared, and every other leaf goes through its Jacobian. Work is done in blocks of samples,
and only half of a symmetric kernel's blocks.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, jaxpr_as_fun
from jax.extend.core import Literal as Constant
from jaxtyping import Array, Float, PyTree

from ntkp2p.precision import in_float64

Apply = Callable[[PyTree, Array], Array]


class Factors(NamedTuple):
    """A block's Jacobian, by leaf of θ: `inputs[l] ⊗ deltas[l]` for weight matrices, `rest[l]` for other leaves.

    Shapes (N, n_l), (N, C, m_l) and (N, C, p_l).
    """

    inputs: list[Float[Array, "N _"]]
    deltas: list[Float[Array, "N C _"]]
    rest: list[Float[Array, "N C _"]]


@in_float64
def empirical_ntk(
    apply: Apply,
    params: PyTree,
    x1: np.ndarray,
    x2: np.ndarray | None = None,
    /,
    *,
    outputs: str = "exact",
    memory: int = 2**31,
) -> Float[np.ndarray, "rows1 rows2"]:
    """The tangent kernel between two sets of inputs.

    Parameters
    ----------
    apply
        `apply(params, x) -> (N, C)`.
    params
        θ₀, any pytree.
    x1, x2
        Inputs, shapes (N1, ...) and (N2, ...); x2 defaults to x1.
    outputs
        "exact": all pairs of outputs, shape (N1·C, N2·C), row n·C + c for output c of sample n.
        "shared": the mean over outputs of the kernel of each, shape (N1, N2).
    memory
        Bytes that two blocks of Jacobian factors may take together.

    Returns
    -------
    kernel
        float64.

    Raises
    ------
    ValueError
        If `outputs` is neither.
    """
    if outputs not in ("exact", "shared"):
        raise ValueError(f'outputs must be "exact" or "shared", found {outputs!r}')
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float64), params)
    rows1 = jnp.asarray(x1, jnp.float64)
    factors, bytes_per_sample = _factors(apply, params, rows1)
    factors = jax.jit(factors)
    product = jax.jit(partial(_product, outputs == "shared"))

    size = max(1, int(memory // (2 * bytes_per_sample)))
    blocks1 = _blocks(rows1, size)
    blocks2 = blocks1 if x2 is None else _blocks(jnp.asarray(x2, jnp.float64), size)
    grid: list[list[np.ndarray]] = [[] for _ in blocks1]
    for i, xi in enumerate(blocks1):
        rows = factors(params, xi)
        for j, xj in enumerate(blocks2):
            if x2 is None and j < i:
                grid[i].append(grid[j][i].T)
            else:
                columns = rows if x2 is None and i == j else factors(params, xj)
                grid[i].append(np.asarray(product(rows, columns)))
    return np.block(grid)


def jacobian(apply: Apply, params: PyTree, x: Array, /) -> Float[Array, "rows P"]:
    """∂f(x)/∂θ as a matrix, one row for each sample and output; for networks of few parameters."""
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    leaves = jax.tree.leaves(jax.vmap(jax.jacrev(lambda p, x: apply(p, x[None])[0]), in_axes=(None, 0))(params, x))
    rows = [leaf.reshape(*leaf.shape[:2], -1) for leaf in leaves]
    return jnp.concatenate(rows, axis=2).reshape(-1, size)


def _product(shared: bool, one: Factors, two: Factors) -> Array:
    def gram(a, b):  # (N1, C, m), (N2, C, m) → (N1, C1, N2, C2), or (N1, 1, N2, 1) for the mean over outputs
        if shared:
            mean = a.reshape(len(a), -1) @ b.reshape(len(b), -1).T / a.shape[1]
            return mean[:, None, :, None]
        flat = a.reshape(-1, a.shape[2]) @ b.reshape(-1, b.shape[2]).T
        return flat.reshape(*a.shape[:2], *b.shape[:2])

    kernel = jnp.zeros(())
    for a, b in zip(one.rest, two.rest, strict=True):
        kernel += gram(a, b)
    for a1, d1, a2, d2 in zip(one.inputs, one.deltas, two.inputs, two.deltas, strict=True):
        kernel += (a1 @ a2.T)[:, None, :, None] * gram(d1, d2)
    n1, c1, n2, c2 = kernel.shape
    return kernel.reshape(n1 * c1, n2 * c2)


def _factors(apply: Apply, params: PyTree, x: Array):
    """The function (params, x) -> Factors for a network and inputs like x, and its bytes per sample."""
    leaves, structure = jax.tree.flatten(params)

    def output(leaves, x):
        return apply(jax.tree.unflatten(structure, leaves), x[None])[0]

    closed = jax.make_jaxpr(output)(leaves, x[0])
    products = _single_products(closed.jaxpr, len(leaves))
    dense = sorted(products)
    others = [i for i in range(len(leaves)) if i not in products]
    taps_at = {products[i].equation: products[i].vector for i in dense}
    results = [closed.jaxpr.eqns[e].outvars[0].aval for e in taps_at]
    count, dtype = closed.out_avals[0].shape[0], closed.out_avals[0].dtype

    def one(leaves, x):
        def tapped(rest, taps):
            values = dict(zip(others, rest, strict=True)) | {i: leaves[i] for i in dense}
            arguments = [*(values[i] for i in range(len(leaves))), x]
            return _evaluate(closed, arguments, dict(zip(taps_at, taps, strict=True)), taps_at)

        # A network may compute in less than float64; its kernel is then as good as that.
        taps = [jnp.zeros(result.shape, result.dtype) for result in results]
        _, pull, inputs = jax.vjp(tapped, [leaves[i] for i in others], taps, has_aux=True)
        rest, deltas = jax.vmap(pull)(jnp.eye(count, dtype=dtype))
        return Factors(
            [a.reshape(-1).astype(jnp.float64) for a in inputs],
            [d.reshape(count, -1).astype(jnp.float64) for d in deltas],
            [r.reshape(count, -1).astype(jnp.float64) for r in rest],
        )

    entries = count * sum(leaves[i].size for i in others)
    for i, result in zip(dense, results, strict=True):
        outputs = math.prod(result.shape)
        entries += leaves[i].size // outputs + count * outputs
    return lambda params, x: jax.vmap(partial(one, jax.tree.leaves(params)))(x), 8 * entries


class Product(NamedTuple):
    """Where a weight matrix is used: the number of the equation, and the position of the vector in it."""

    equation: int
    vector: int


def _single_products(jaxpr, count: int) -> dict[int, Product]:
    """For each of the first `count` arguments that is used once, as the matrix of one vector: that product.

    Anything else about an argument (a second use, a reshape, a product with many rows) leaves it out.
    """
    uses: dict = {variable: [] for variable in jaxpr.invars[:count]}
    for number, equation in enumerate(jaxpr.eqns):
        for position, variable in enumerate(equation.invars):
            if not isinstance(variable, Constant) and variable in uses:
                uses[variable].append((number, position))
    returned = {v for v in jaxpr.outvars if not isinstance(v, Constant)}
    found: dict[int, Product] = {}
    for index, (variable, places) in enumerate(uses.items()):
        if len(places) != 1 or variable in returned or len(variable.aval.shape) != 2:
            continue
        number, position = places[0]
        equation = jaxpr.eqns[number]
        if equation.primitive is not jax.lax.dot_general_p:
            continue
        contracted, batched = equation.params["dimension_numbers"]
        vector = equation.invars[1 - position].aval.shape
        length = math.prod(vector[d] for d in contracted[1 - position])
        taken = any(product.equation == number for product in found.values())  # by the other factor, a matrix too
        if not batched[0] and len(contracted[position]) == 1 and math.prod(vector) == length and not taken:
            found[index] = Product(number, 1 - position)
    return found


def _evaluate(closed, arguments, taps, positions):
    """Evaluate a jaxpr with `taps` added to the results of some products; also the vectors that enter these."""
    jaxpr = closed.jaxpr
    environment = dict(zip(jaxpr.constvars, closed.consts, strict=True))
    environment |= dict(zip(jaxpr.invars, arguments, strict=True))

    def read(variable):
        return variable.val if isinstance(variable, Constant) else environment[variable]

    readers = [jaxpr.outvars, *(equation.invars for equation in jaxpr.eqns)]
    used = {v for variables in readers for v in variables if not isinstance(v, Constant)}
    vectors = {}
    for number, equation in enumerate(jaxpr.eqns):
        needed = list(dict.fromkeys(v for v in equation.invars if not isinstance(v, Constant)))
        made = [v for v in equation.outvars if v in used]
        alone = jaxpr.replace(constvars=[], invars=needed, outvars=made, eqns=[equation])
        results = jaxpr_as_fun(ClosedJaxpr(alone, []))(*map(read, needed))
        if number in taps:
            vectors[number] = read(equation.invars[positions[number]])
            results = [results[0] + taps[number]]
        environment |= dict(zip(made, results, strict=True))
    (output,) = map(read, jaxpr.outvars)
    return output, [vectors[number] for number in taps]


def _blocks(x: Array, size: int) -> list[Array]:
    return jnp.array_split(x, -(-len(x) // size))
