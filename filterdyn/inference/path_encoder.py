"""What a posterior knows of a series at each of its rows: by a network for all series, or by numbers of
each series' own."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from filterdyn._checks import check_count, check_key
from filterdyn.fields.base import Normalization


class PathEncoder(eqx.Module):
    """A gated recurrent unit that reads a series backwards (Li et al. 2020, section 5): its output at a
    row knows the measurements of this row and of all later ones, and is a linear function of the unit's
    state and of what was measured next.

    At a row it sees the measurements, which of them there are, the input, and the time until the next
    row at which anything was measured. Rows without a measurement change nothing but that time, so the
    padding of `stack` changes nothing at all.
    """

    cell: eqx.nn.GRUCell
    last: eqx.nn.Linear
    observation: Normalization
    input: Normalization | None
    time_scale: float = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __init__(
        self,
        dy: int,
        du: int = 0,
        *,
        key: Array,
        width: int = 32,
        size: int = 8,
        observation_center: Any = 0.0,
        observation_scale: Any = 1.0,
        input_center: Any = 0.0,
        input_scale: Any = 1.0,
        time_scale: float = 1.0,
    ):
        """**Arguments:**

        - `dy`, `du`: number of observed quantities and of inputs;
        - `key`: a JAX random key for the weights; `width`: of the recurrent state; `size`: of its output;
        - `*_center`, `*_scale`: numbers or vectors that normalise measurements and inputs; `time_scale`: a
          typical gap. They are not trained.

        **Raises:** `ValueError` for counts that are not whole numbers and scales that are not positive.
        """
        owner = "PathEncoder"
        check_count(owner, "dy", dy)
        if du:
            check_count(owner, "du", du)
        check_count(owner, "width", width)
        self.size = check_count(owner, "size", size)
        check_key(owner, key)
        if not time_scale > 0:
            raise ValueError(f"{owner}: `time_scale` is {time_scale!r}; expected a positive number")
        of_cell, of_last = jax.random.split(key)
        self.cell = eqx.nn.GRUCell(2 * dy + du + 1, width, key=of_cell)
        self.last = eqx.nn.Linear(width + 2 * dy + du, size, key=of_last)
        self.observation = Normalization(
            owner, "observation", dy, observation_center, observation_scale
        )
        self.input = Normalization(owner, "input", du, input_center, input_scale) if du else None
        self.time_scale = float(time_scale)

    def __call__(
        self,
        gaps: Float[Array, " T"],
        observations: Float[Array, "T dy"],
        inputs: Float[Array, "T du"] | None,
        index: Int[Array, ""],
    ) -> Float[Array, "T size"]:
        """The output at every row. `gaps` are the times since the row before."""
        there = ~jnp.isnan(observations)
        known = jax.vmap(self.observation)(jnp.where(there, observations, 0.0))
        zero = jnp.zeros((), observations.dtype)
        seen = [jnp.where(there, known, zero), there.astype(observations.dtype)]
        if self.input is not None:
            if inputs is None:
                raise ValueError("PathEncoder: the series has no inputs; expected inputs (T, du)")
            seen.append(jax.vmap(self.input)(inputs))
        until = jnp.concatenate([gaps[1:], jnp.zeros_like(gaps[:1])]) / self.time_scale

        def back(carry: tuple[Array, Array, Array], row: Any) -> Any:
            state, since, latest = carry
            features, until, used = row
            since = since + until
            moved = self.cell(jnp.append(features, jnp.log1p(since)), state).astype(state.dtype)
            state, latest = jnp.where(used, moved, state), jnp.where(used, features, latest)
            return (state, jnp.where(used, 0.0, since), latest), jnp.append(state, latest)

        state = jnp.zeros(self.cell.hidden_size, observations.dtype)
        rows = jnp.concatenate(seen, axis=1), until, there.any(1)
        carry = state, zero, jnp.zeros_like(rows[0][0])
        _, states = jax.lax.scan(back, carry, rows, reverse=True)
        return jax.vmap(self.last)(states).astype(observations.dtype)


class SeriesContext(eqx.Module):
    """Numbers of each series' own at each of its rows, trained with the rest: no network has to find
    them, and a new series has none."""

    values: Float[Array, "S T size"]

    def __init__(self, number: int, rows: int, size: int = 8):
        """**Arguments:** how many series (`number`), of how many rows, and numbers a row.

        **Raises:** `ValueError` for counts that are not whole numbers.
        """
        counts = dict(number=number, rows=rows, size=size)
        shape = tuple(check_count("SeriesContext", name, n) for name, n in counts.items())
        self.values = jnp.zeros(shape)

    @property
    def size(self) -> int:
        return self.values.shape[-1]

    def __call__(
        self,
        gaps: Float[Array, " T"],
        observations: Float[Array, "T dy"],
        inputs: Float[Array, "T du"] | None,
        index: Int[Array, ""],
    ) -> Float[Array, "T size"]:
        """The numbers of series `index`; NaN for one that there is not, so that its bound fails.

        **Raises:** `ValueError` for a series of another length."""
        if len(gaps) != self.values.shape[1]:
            raise ValueError(
                f"SeriesContext: the series has {len(gaps)} rows; expected {self.values.shape[1]}, the "
                "`rows` it was made for"
            )
        there = (0 <= index) & (index < self.values.shape[0])
        return jnp.where(there, self.values[index], jnp.nan).astype(observations.dtype)
