"""The protocol of an approximate posterior over paths, and what a bound is made of."""

import abc
from typing import Any, NamedTuple

import equinox as eqx
import jax
from jaxtyping import Array, Bool, Float, Int

from filterdyn.dynamics import Interval, Plan
from filterdyn.filters.rows import Row
from filterdyn.model import StateSpaceModel


class PathTerms(NamedTuple):
    """The parts of a lower bound on log p(y) for one series, of T rows.

    A *unit* is one of the independent standard normal numbers that drive the model: those of the start,
    and those of the noise, which over a row are the increments of one Brownian motion divided by their
    standard deviation. A *shift* is the posterior mean of a unit, whose prior is N(0, 1).
    """

    log_likelihoods: Float[Array, " T"]
    kl_start: Float[Array, " dx"]
    kl_moves: Float[Array, "moves dw"]  # moves = T - 1
    shift_start: Float[Array, " dx"]
    shift_moves: Float[Array, "moves dw"]
    mean: Float[Array, "T dx"]
    variance: Float[Array, "T dx"]
    #: log p(y, path) - log q(path) of the path that was drawn: `value` has the same expectation.
    log_weight: Float[Array, ""]
    #: Is the posterior the best of its family, where one looks for that?
    converged: Bool[Array, ""]

    @property
    def value(self) -> Float[Array, "*S"]:
        """The bound, of one series or of many with leading axes."""
        kl = self.kl_start.sum(-1) + self.kl_moves.sum((-2, -1))
        return self.log_likelihoods.sum(-1) - kl


class AbstractPathPosterior(eqx.Module):
    """A family of distributions over the path of the state, given a series."""

    @property
    @abc.abstractmethod
    def is_random(self) -> bool:
        """Is the bound an average over paths that are drawn, so that it needs a key?"""

    @abc.abstractmethod
    def check_prior(self, model: StateSpaceModel) -> None:
        """**Raises:** `TypeError` for a model whose paths this family cannot follow."""

    @abc.abstractmethod
    def terms(
        self,
        model: StateSpaceModel,
        rows: Row,
        plan: Plan,
        key: Array | None,
        index: Int[Array, ""],
    ) -> tuple[PathTerms, Bool[Array, ""]]:
        """The bound for one series, by one path if it `is_random`, and whether all of it is finite.
        `index` says which series it is, for what is kept series by series."""


def interval_of(row: Row, table: Any) -> Interval:
    """The move into a row."""
    return Interval(row.time_from, row.gap, row.input_from, row.plan, table)


def first_of(rows: Row) -> Row:
    """The first row."""
    return jax.tree.map(lambda x: x[0], rows)


def after_first(rows: Row) -> Row:
    """The rows after the first."""
    return jax.tree.map(lambda x: x[1:], rows)
