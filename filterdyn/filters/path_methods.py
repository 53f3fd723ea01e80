"""How a particle filter looks back: what `smooth` and `sample_paths` do with it."""

import abc
import math

import equinox as eqx

from filterdyn._checks import check_count


class AbstractPathMethod(eqx.Module):
    """A way from the filtered particles of all rows to states given the whole series."""

    #: Does it need the transition density of the dynamics?
    needs_density: eqx.AbstractClassVar[bool]

    @abc.abstractmethod
    def describe(self) -> str:
        """In a few words, for messages."""


class BackwardSmoothing(AbstractPathMethod):
    """Forward filtering, backward smoothing or sampling, exactly (Doucet, Godsill, Andrieu 2000; Godsill,
    Doucet, West 2004): particle i of a row is weighted by w_i p(x' | x_i), against all particles x' of
    the next row. O(N^2) a row for `smooth`, O(N S) for S paths."""

    needs_density = True

    def describe(self) -> str:
        return "backward smoothing"


class BackwardChain(AbstractPathMethod):
    """Backward sampling in O(N + S) a row: each path starts at its particle's own ancestor and makes a few
    Metropolis moves towards w_i p(x' | x_i), with proposals from w (Bunch, Godsill 2013; Dau, Chopin
    2023). Already one move does away with the degeneracy of the genealogy."""

    steps: int = eqx.field(static=True)

    needs_density = True

    def __init__(self, steps: int = 4):
        """**Arguments:** `steps`: Metropolis moves in each row.

        **Raises:** `ValueError` unless it is an integer >= 1.
        """
        self.steps = check_count("BackwardChain", "steps", steps)

    def describe(self) -> str:
        return f"backward sampling by {self.steps} moves"


class BackwardRejection(AbstractPathMethod):
    """Backward sampling, exactly, mostly in O(N + S) a row: ancestors are proposed from w and accepted with
    probability p(x' | x_i) / max p (Douc, Garivier, Moulines, Olsson 2011). Paths that are still without
    one after some trials look at every particle, as in `BackwardSmoothing` (Taghavi, Lindsten, Svensson,
    Schön 2013): rejection alone has an expected cost that is infinite for a linear Gaussian model.

    It pays where the transition is wide next to the cloud of particles. Where it is narrow most paths come
    to the second part, and `BackwardChain` is faster.
    """

    trials: int = eqx.field(static=True)
    log_bound: float | None = eqx.field(static=True)

    needs_density = True

    def __init__(self, trials: int = 32, log_bound: float | None = None):
        """**Arguments:**

        - `trials`: proposals for each path and row;
        - `log_bound`: a number that log p(x' | x) never exceeds, over every gap of the series. By default
          it is computed from the particles, which is possible for Gaussian transitions (`LinearTransition`,
          `LinearSDE`, a `Transition` that returns a Gaussian). Too low a bound makes wrong paths.

        **Raises:** `ValueError` unless `trials` is an integer >= 1 and `log_bound` finite.
        """
        self.trials = check_count("BackwardRejection", "trials", trials)
        if log_bound is not None and not math.isfinite(log_bound):
            raise ValueError(
                f"BackwardRejection: `log_bound` is {log_bound!r}; expected a finite number"
            )
        self.log_bound = None if log_bound is None else float(log_bound)

    def describe(self) -> str:
        return "backward sampling by rejection"


class TwoFilter(AbstractPathMethod):
    """A second particle filter, from the last row to the first, whose particles are weighted by how the
    first one predicts them: the generalised two-filter formula (Briers, Doucet, Maskell 2010).

    Unlike the others it moves particles to where later measurements want them, and leaves less to those
    few of the filter that happened to be there. The backward filter needs a density in every row in place
    of the prior: a Student-t with the mean and covariance of the prediction, which the final weights take
    out again. It proposes from the linear regression of each state on the next one, with Student-t noise.
    O(N^2) a row, for `smooth` only. The state must have a density (no counts or regimes), and so must the
    transition, in every direction.
    """

    needs_density = True

    def describe(self) -> str:
        return "two-filter smoothing"


class FixedLag(AbstractPathMethod):
    """States given the data up to `lag` rows later, from the genealogy of the particles (Kitagawa 1996):
    O(N) for each row of the lag, and for dynamics without a density. Too short a lag ignores data, too
    long a one leaves few distinct ancestors. Sampled paths are whole lineages."""

    lag: int = eqx.field(static=True)

    needs_density = False

    def __init__(self, lag: int):
        """**Arguments:** `lag`: how many later rows count.

        **Raises:** `ValueError` unless it is an integer >= 1.
        """
        self.lag = check_count("FixedLag", "lag", lag)

    def describe(self) -> str:
        return f"the genealogy over {self.lag} rows"
