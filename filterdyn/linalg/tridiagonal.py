"""Gaussian Markov chains from block-tridiagonal precision matrices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Tridiagonal(NamedTuple):
    """exp(-x^T J x / 2 + h^T x) over chains of N states, J block-tridiagonal: its blocks on the diagonal,
    those below it, and h."""

    diagonal: Float[Array, "N d d"]
    below: Float[Array, "moves d d"]  # moves = N - 1
    linear: Float[Array, "N d"]


class Chain(NamedTuple):
    """x_0 ~ N(mean_0, cov_0), x_k+1 = gain_k x_k + offset_k + N(0, noise_k), and all marginals."""

    mean: Float[Array, "N d"]
    cov: Float[Array, "N d d"]
    gain: Float[Array, "moves d d"]
    offset: Float[Array, "moves d"]
    noise: Float[Array, "moves d d"]

    def pairs(self) -> tuple[Float[Array, "moves e"], Float[Array, "moves e e"]]:
        """Means and covariances of two neighbours, e = 2 d."""
        mean = jnp.concatenate([self.mean[:-1], self.mean[1:]], axis=1)
        cross = self.gain @ self.cov[:-1]
        above = jnp.concatenate([self.cov[:-1], cross.mT], axis=2)
        return mean, jnp.concatenate(
            [above, jnp.concatenate([cross, self.cov[1:]], axis=2)], axis=1
        )


def chain_of(natural: Tridiagonal) -> Chain:
    """The chain, by elimination from its end; NaN if the precision is not positive definite."""

    def inverse(j: Array) -> Array:
        factor = jnp.linalg.cholesky(0.5 * (j + j.T))
        half = jax.scipy.linalg.solve_triangular(factor, jnp.eye(len(j), dtype=j.dtype), lower=True)
        return half.T @ half

    def back(later: tuple[Array, Array], block: tuple[Array, Array, Array]) -> Any:
        precision, linear = later
        diagonal, below, here = block
        cov = inverse(precision)
        gain, offset = -cov @ below, cov @ linear
        earlier = diagonal + below.T @ gain, here - below.T @ offset
        return earlier, (gain, offset, cov)

    last = natural.diagonal[-1], natural.linear[-1]
    blocks = natural.diagonal[:-1], natural.below, natural.linear[:-1]
    (precision, linear), (gain, offset, noise) = jax.lax.scan(back, last, blocks, reverse=True)
    first = inverse(precision)

    def ahead(
        belief: tuple[Array, Array], move: tuple[Array, Array, Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        mean, cov = belief
        gain, offset, noise = move
        moved = gain @ mean + offset, gain @ cov @ gain.T + noise
        return moved, moved

    start = first @ linear, first
    _, (means, covs) = jax.lax.scan(ahead, start, (gain, offset, noise))
    mean = jnp.concatenate([start[0][None], means])
    return Chain(mean, jnp.concatenate([start[1][None], covs]), gain, offset, noise)
