r"""The derivative of a predicted state with respect to everything that the system is made of, in closed form.

A function L of s_k has the gradient Σ_j λ_{j+1}ᵀ ∂F(p, s_j)/∂p, with F(p, s) = M(p) s + b(p) one round, and the
adjoint λ_j = (Mᵀ)^{k−j} ∇L. States and adjoints each live in a Krylov space, s_j = s_0 + V c_j and λ_j = U d_j, and F
is affine in s, so that all rounds enter through one small matrix,

    Σ_j λ_{j+1}ᵀ ∂F(p, s_j) = Σ_ab Ω_ab U_aᵀ ∂M(p) V_b + Σ_a ω_a U_aᵀ ∂F(p, s_0),    Ω = Σ_j d_{j+1} c_jᵀ,

which is a corner of a power of a block matrix (Van Loan, "Computing integrals involving the matrix exponential", 1978):
of its exponential for the flow, where the sum is an integral.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.core import Tracer
from jax.tree_util import Partial
from jaxtyping import Array, Float, PyTree

from ntkp2p.base.errors import InputTypeError
from ntkp2p.dynamics.krylov import Time
from ntkp2p.dynamics.system import LinearSystem, advanced, linear
from ntkp2p.dynamics.windows import reduction_for

#: Up to so many times the size of the basis the rounds are summed one by one, which is quicker than powers.
DIRECT = 10


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def propagate(
    like: LinearSystem, time: Time, rtol: float, parameters: PyTree, rounds: Array, initial: Float[Array, " n"]
) -> Float[Array, " n"]:
    """The state of a system after so many rounds, as a function that JAX differentiates in reverse mode.

    Parameters
    ----------
    like
        A system of this form and structure (symmetric or not), whose own parameters do not matter.
    time
        "rounds", or "flow", in which `rounds` may be any real number ≥ 0 and has a derivative.
    rtol
        The accuracy of states and adjoints.
    parameters
        What M and b are made of.
    rounds
        How many, k ≥ 0.
    initial
        s_0.

    Raises
    ------
    TypeError
        Inside `jax.jit` or `jax.vmap`: the size of the bases depends on the numbers.
    ValueError
        If a basis that reaches the accuracy does not fit into memory.
    """
    return _forward(like, time, rtol, parameters, rounds, initial)[0]


def _forward(like, time, rtol, parameters, rounds, initial):
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves((parameters, rounds, initial))):
        raise InputTypeError(
            "a closed form chooses its basis by the numbers it is given, so that it cannot be compiled, mapped or "
            "differentiated twice: leave jax.jit and jax.vmap out around it"
        )
    system = like.with_parameters(parameters, np.asarray(initial))
    start = system.apply(system.initial) + system.offset - system.initial
    reduction = reduction_for(system, start, float(rounds), time, rtol)
    change = reduction.coefficients(np.array([float(rounds)]), time)[0]
    state = jnp.asarray(system.initial + reduction.expand(change))
    # A pytree without leaves carries what is no array of JAX's from here to the way back.
    return state, (parameters, rounds, initial, state, Partial(lambda: reduction))


def _backward(like, time, rtol, kept, cotangent):
    parameters, rounds, initial, state, kept_reduction = kept
    reduction = kept_reduction()
    system = like.with_parameters(parameters, np.asarray(initial))
    adjoint = reduction_for(system, np.asarray(cotangent), float(rounds), time, rtol, transposed=True)
    sums = _sums(adjoint, reduction, float(rounds), time)
    # The last column of the sums belongs to the constant part of the affine round.
    weights = adjoint.expand(sums.T)
    basis = np.eye(system.size) if reduction.basis is None else reduction.basis
    pulled = _pullback(system.advance, parameters, initial, jnp.asarray(basis), jnp.asarray(weights))
    to_initial = jnp.asarray(adjoint.expand(adjoint.coefficients(np.array([float(rounds)]), time, driven=False)[0]))
    # In units of rounds the flow is ds/dk = F(s) − s; whole rounds have no derivative.
    speed = advanced(system.advance, parameters, state) - state
    to_rounds = cotangent @ speed if time == "flow" else jnp.zeros(())
    return pulled, to_rounds.astype(jnp.result_type(rounds)), to_initial


propagate.defvjp(_forward, _backward)


def _sums(adjoint, reduction, rounds: float, time: Time) -> Float[np.ndarray, "a b"]:
    """(Ω, ω): sums over the rounds, or integrals, of d cᵀ and of d."""
    if time == "rounds" and rounds <= DIRECT * len(reduction.start):
        k = np.arange(rounds)
        c = np.pad(reduction.coefficients(k, time), ((0, 0), (0, 1)), constant_values=1.0)
        return adjoint.coefficients(k[::-1], time, driven=False).T @ c
    first, second = adjoint.matrix, reduction.augmented
    a, b = len(first), len(second)
    start = np.append(np.zeros(b - 1), 1.0)
    block = np.block([[first, np.outer(adjoint.start, start)], [np.zeros((b, a)), second.T]])
    if time == "rounds":
        power = np.linalg.matrix_power(block, int(rounds))
    else:
        power = scipy.linalg.expm(rounds * (block - np.diag(np.append(np.ones(a), np.ones(b)))))
    return power[:a, a:] * np.append(np.full(b - 1, reduction.scale), 1.0)


@partial(jax.jit, static_argnums=0)
def _pullback(advance, parameters, initial, basis, weights) -> Any:
    def paired(parameters):
        moved = jax.vmap(partial(linear, advance, parameters))(basis)
        return jnp.sum(moved * weights[:-1]) + advance(parameters, initial) @ weights[-1]

    return jax.grad(paired, allow_int=True)(parameters)
