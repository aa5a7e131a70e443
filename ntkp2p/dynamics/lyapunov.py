r"""A proof of stability that is checked in numbers: a weighted norm that no step expands.

With agents' weights π > 0, the Lyapunov function V(s) = Σ_q π_q ‖z_q‖² obeys

    flow:    ‖s(t)‖_π ≤ e^{μ t} ‖s(0)‖_π,   μ = λ_max of the symmetric part of Π^½ A Π^{-½}   (logarithmic norm),
    rounds:  ‖s_k‖_π ≤ c^k ‖s_0‖_π,         c = ‖Π^½ M Π^{-½}‖₂                               (contraction factor),

for the deviation s from the steady state. Where μ ≤ 0 or c ≤ 1, no transient grows beyond √(max π / min π), in the
plain norm. Uniform weights do for doubly stochastic W, the left Perron vector for row-stochastic W: for DGD's flow

    Π A + Aᵀ Π = −(Π(I − W) + (I − W)ᵀΠ)/η − 2 Π H ⪯ 0,

since Π − ΠW/2 − WᵀΠ/2 is the Laplacian of a graph with weights (π_q W_qr + π_r W_rq)/2.

References
----------
Söderlind, "The logarithmic norm. History and modern theory", BIT 2006.
Trefethen and Embree, "Spectra and Pseudospectra", 2005 (numerical abscissa, transient growth).
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
from jaxtyping import Float

from ntkp2p.base.errors import InputError
from ntkp2p.dynamics.spectrum import extremes
from ntkp2p.dynamics.system import LinearSystem
from ntkp2p.dynamics.windows import DENSE_SIZE

#: By how much rounding may make a norm that is kept exceed 1.
ROUNDING = 1e-10


@dataclass(frozen=True, eq=False)
class Certificate:
    """What a weighted norm proves.

    Iterated, both numbers are lower bounds, which prove nothing unless the residual is smaller than the margin.

    Attributes
    ----------
    weights
        π, shape (Q,), summing to one.
    logarithmic_norm
        μ, per unit of flow time.
    contraction
        c, per round.
    residual
        Of the iterations that found them, ‖K v − κ v‖ of unit v, for a round; 0 for a small system.
    step_size
        η.
    """

    weights: Float[np.ndarray, " Q"]
    logarithmic_norm: float
    contraction: float
    residual: float
    step_size: float

    @property
    def flow(self) -> bool:
        """Whether it proves that the flow does not expand the norm: within rounding, and beyond the residual."""
        return bool(self.logarithmic_norm * self.step_size + self.residual <= ROUNDING)

    @property
    def rounds(self) -> bool:
        """Whether it proves that the rounds do not."""
        return bool(self.contraction + self.residual <= 1 + ROUNDING)

    @property
    def growth(self) -> float:
        """√(max π / min π), which bounds ‖exp(A t)‖₂ where it holds for the flow, and ‖M^k‖₂ for the rounds."""
        return float(np.sqrt(self.weights.max() / self.weights.min()))


def certificate(system: LinearSystem, weights: Float[np.ndarray, " Q"], /, *, dense: int = DENSE_SIZE) -> Certificate:
    """Verify the Lyapunov function with these weights, by the extreme eigenvalues of two symmetric matrices.

    Parameters
    ----------
    weights
        π.
    dense
        Up to so many states all eigenvalues are computed; beyond, the extreme ones by iteration.

    Raises
    ------
    ValueError
        If the mixing changes over time, a weight is not positive, or the state is not the agents' models alone.
    """
    if system.varying:
        raise InputError("a certificate is of one mixing matrix: ask for that of each")
    if not (np.isfinite(weights).all() and weights.min() > 0):
        raise InputError(f"the weights of a Lyapunov function are positive, found {weights.min():g}")
    models = system.model(system.initial)
    if models.size != system.size:
        raise InputError("a certificate is for states that are the agents' models, and this algorithm keeps more")
    root = np.repeat(np.sqrt(weights), models.shape[1])

    def scaled(s):  # Π^½ M Π^{-½}
        return root * system.apply(s / root)

    def adjoint(s):
        return system.transposed(s * root) / root

    if system.size <= dense:
        M = root[:, None] * system.matrix() / root
        right = scipy.linalg.eigvalsh((M + M.T) / 2)[-1]
        contraction, residual = np.sqrt(scipy.linalg.eigvalsh(M.T @ M)[-1]), 0.0
    else:
        pairs = [
            extremes(product, system.size, "LA", symmetric=True)
            for product in (lambda s: (scaled(s) + adjoint(s)) / 2, lambda s: adjoint(scaled(s)))
        ]
        right, contraction = pairs[0].values[0], np.sqrt(pairs[1].values[0])
        residual = max(pair.residuals[0] for pair in pairs)
    eta = system.step_size
    return Certificate(weights / weights.sum(), float((right - 1) / eta), float(contraction), float(residual), eta)


def largest_transient(system: LinearSystem, /, *, doublings: int = 40) -> tuple[float, float]:
    """The largest ‖exp(A t)‖₂ and ‖M^k‖₂ at the times 1, 2, 4, … rounds: what a small system really does.

    A lower bound of the supremum over all times, beside a certificate's upper one. It ends with the first norm below
    one, since ‖M^{jk}‖ ≤ ‖M^k‖^j.

    Parameters
    ----------
    doublings
        After which a system that does not decay is left; its norms may then be inf.
    """
    M = system.matrix()

    def peak(power):
        largest = 1.0
        for _ in range(doublings):
            size = float(np.linalg.norm(power, 2))
            largest = max(largest, size)
            if size < 1 or size > 1 / np.finfo(float).eps:
                return largest
            power = power @ power
        return largest

    return peak(scipy.linalg.expm(M - np.eye(len(M)))), peak(M)
