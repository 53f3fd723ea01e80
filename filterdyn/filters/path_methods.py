"""How a particle filter looks back: what `smooth` and `sample_paths` do with it."""

import abc

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
    """Backward sampling in O(S) a row: each path starts at its particle's own ancestor and makes a few
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
