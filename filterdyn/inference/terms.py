"""A library of named terms, and vector fields that are sums of them."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from filterdyn._checks import batch_hint, check_shape, float_array

_NAME = "inference.TermLibrary"


class TermLibrary(eqx.Module):
    """Candidate terms theta_1(t, x, u), ..., theta_p(t, x, u) of a vector field, each with a name.

    Monomials of states and inputs come first, by degree ("1", "x", "y", "x^2", "x y", "y^2"), then sines
    and cosines of single ones ("sin(x)", "cos(2 x)"), then functions of one's own.
    """

    state_names: tuple[str, ...] = eqx.field(static=True)
    input_names: tuple[str, ...] = eqx.field(static=True)
    names: tuple[str, ...] = eqx.field(static=True)
    _powers: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    _waves: tuple[tuple[str, int, float], ...] = eqx.field(static=True)
    _functions: tuple[Callable[..., Any], ...]

    def __init__(
        self,
        state_names: Sequence[str],
        input_names: Sequence[str] = (),
        *,
        degree: int = 2,
        constant: bool = True,
        sines: Sequence[float] = (),
        cosines: Sequence[float] = (),
        functions: Mapping[str, Callable[[Any, Array, Any], Any]] | None = None,
    ):
        """**Arguments:**

        - `state_names`, `input_names`: one name a state and an input;
        - `degree`: of the monomials, 0 for none but the constant; `constant`: is 1 a term?
        - `sines`, `cosines`: frequencies (radians per unit), each for every state and input;
        - `functions`: terms by name, each a function of `(t, x, u)` that returns a number.

        **Raises:** `ValueError` for names that are not distinct, a negative degree and a library without
        terms; `TypeError` for a function that cannot be called.
        """
        self.state_names = _distinct("state_names", state_names)
        self.input_names = _distinct("input_names", input_names)
        if not self.state_names:
            raise ValueError(f"{_NAME}: `state_names` is empty; expected one name a state")
        if isinstance(degree, bool) or not isinstance(degree, (int, np.integer)) or degree < 0:
            raise ValueError(f"{_NAME}: `degree` is {degree!r}; expected an integer >= 0")
        variables = (*self.state_names, *self.input_names)
        powers = []
        for total in range(0 if constant else 1, degree + 1):
            for chosen in combinations_with_replacement(range(len(variables)), total):
                powers.append(tuple(chosen.count(i) for i in range(len(variables))))
        self._powers = tuple(powers)
        self._waves = tuple(
            (kind, i, float(frequency))
            for kind, frequencies in (("sin", sines), ("cos", cosines))
            for frequency in frequencies
            for i in range(len(variables))
        )
        functions = dict(functions or {})
        for name, function in functions.items():
            if not callable(function):
                raise TypeError(
                    f"{_NAME}: `functions[{name!r}]` is {type(function).__name__}; expected a function "
                    "of (t, x, u)"
                )
        self._functions = tuple(functions.values())
        self.names = _distinct(
            "names of terms",
            (
                *(_monomial(variables, power) for power in self._powers),
                *(_wave(variables, *wave) for wave in self._waves),
                *functions,
            ),
        )
        if not self.names:
            raise ValueError(f"{_NAME}: the library has no terms; expected at least one")

    def __len__(self) -> int:
        return len(self.names)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " p"]:
        """All terms at one state."""
        z = jnp.asarray(x)
        check_shape(_NAME, "x", z, (len(self.state_names),), "one entry a state name")
        if self.input_names:
            if u is None:
                raise ValueError(
                    f"{_NAME}: `u` is None; expected inputs ({len(self.input_names)},)"
                )
            given = jnp.asarray(u, z.dtype)
            check_shape(_NAME, "u", given, (len(self.input_names),), "one entry an input name")
            z = jnp.concatenate([z, given])
        found = [_product(z, power) for power in self._powers]
        for kind, i, frequency in self._waves:
            found.append((jnp.sin if kind == "sin" else jnp.cos)(frequency * z[i]))
        for name, function in zip(self._own_names, self._functions, strict=True):
            value = jnp.asarray(function(t, x, u), z.dtype)
            if value.shape not in ((), (1,)):
                raise ValueError(
                    f"{_NAME}: `functions[{name!r}](t, x, u)` has shape {value.shape}; expected "
                    f"()" + batch_hint(value.ndim > 1)
                )
            found.append(value.reshape(()))
        return jnp.stack(found)

    @property
    def _own_names(self) -> tuple[str, ...]:
        return self.names[len(self._powers) + len(self._waves) :]

    def evaluate(
        self,
        states: Float[Array, "n dx"],
        inputs: Float[Array, "n du"] | None = None,
        times: Float[Array, " n"] | None = None,
    ) -> Float[Array, "n p"]:
        """All terms at many states; without `times` they are at time 0.

        **Raises:** `ValueError` for shapes that disagree with the names, or with each other.
        """
        return _evaluate(self, *checked_points(self, states, inputs, times))

    def take(self, names: Sequence[str]) -> "TermLibrary":
        """The library of these terms only, in the order of this one.

        **Raises:** `KeyError` for a name that is none of its terms.
        """
        for name in names:
            if name not in self.names:
                raise KeyError(f"{_NAME}: no term {name!r}; the terms are {list(self.names)}")
        kept = [i for i, name in enumerate(self.names) if name in set(names)]
        if not kept:
            raise ValueError(f"{_NAME}: `names` is empty; expected at least one term")
        first, second = len(self._powers), len(self._powers) + len(self._waves)
        part = object.__new__(TermLibrary)
        for field, value in {
            "state_names": self.state_names,
            "input_names": self.input_names,
            "names": tuple(self.names[i] for i in kept),
            "_powers": tuple(self._powers[i] for i in kept if i < first),
            "_waves": tuple(self._waves[i - first] for i in kept if first <= i < second),
            "_functions": tuple(self._functions[i - second] for i in kept if i >= second),
        }.items():
            object.__setattr__(part, field, value)
        return part


@eqx.filter_jit
def _evaluate(library: TermLibrary, states: Array, inputs: Array | None, times: Array) -> Array:
    return jax.vmap(library, (0, 0, None if inputs is None else 0))(times, states, inputs)


def checked_points(
    library: TermLibrary, states: Any, inputs: Any, times: Any
) -> tuple[Float[Array, "n dx"], Float[Array, "n du"] | None, Float[Array, " n"]]:
    """States, inputs and times as arrays, checked against the names of a library."""
    states = float_array(_NAME, "states", states)
    if states.ndim != 2 or states.shape[1] != len(library.state_names):
        raise ValueError(
            f"{_NAME}: `states` has shape {states.shape}; expected (n, {len(library.state_names)}), a "
            f"column for each of {list(library.state_names)}"
        )
    count = len(states)
    if inputs is not None:
        inputs = float_array(_NAME, "inputs", inputs)
        inputs = inputs[:, None] if inputs.ndim == 1 else inputs
        if inputs.ndim != 2 or len(inputs) != count:
            raise ValueError(
                f"{_NAME}: `inputs` has shape {inputs.shape}; expected ({count}, du), a row a state"
            )
    if library.input_names:
        if inputs is None:
            raise ValueError(
                f"{_NAME}: `inputs` is None; expected ({count}, {len(library.input_names)})"
            )
        check_shape(_NAME, "inputs", inputs, (count, len(library.input_names)))
    times = jnp.zeros(count, states.dtype) if times is None else times
    times = float_array(_NAME, "times", times).astype(states.dtype)
    check_shape(_NAME, "times", times, (count,), "one time a state")
    return states, inputs, times


class TermField(eqx.Module):
    """A vector field whose entries are sums of terms of a library: dx_i/dt = sum of c_k theta_k(t, x, u).

    `coefficients` (k,) holds the numbers of the terms that occur and no others, in the order of `terms`:
    they are leaves that `fit` trains, and `with_coefficients` gives the field other ones, such as draws
    of NumPyro.
    """

    library: TermLibrary
    coefficients: Float[Array, " k"]
    #: For every coefficient: of which equation, and which term of the library.
    where: tuple[tuple[int, int], ...] = eqx.field(static=True)

    def __init__(self, library: TermLibrary, coefficients: Any):
        """**Arguments:** a library, and coefficients (dx, p), a row for every state; where one is 0 the
        term does not occur.

        **Raises:** `ValueError` for another shape, and for numbers that are not finite.
        """
        owner = "inference.TermField"
        table = np.asarray(coefficients, float)
        check_shape(owner, "coefficients", table, (len(library.state_names), len(library)))
        if not np.isfinite(table).all():
            raise ValueError(f"{owner}: `coefficients` has NaN or infinite entries")
        used = np.flatnonzero(table.any(0))
        names = [library.names[i] for i in used] or list(library.names[:1])
        self.library = library.take(names)
        self.where = tuple(
            (int(i), self.library.names.index(library.names[j])) for i, j in np.argwhere(table != 0)
        )
        values = table[table != 0]
        self.coefficients = jnp.asarray(values, jnp.result_type(float))

    @property
    def terms(self) -> tuple[tuple[str, str], ...]:
        """(state, term) of every coefficient, such as ("x", "x y") in the equation of dx/dt."""
        library = self.library
        return tuple((library.state_names[i], library.names[j]) for i, j in self.where)

    def with_coefficients(self, coefficients: Float[Array, " k"]) -> "TermField":
        """The same terms with other numbers (k,), in the order of `terms`."""
        coefficients = float_array("inference.TermField", "coefficients", coefficients)
        check_shape("inference.TermField", "coefficients", coefficients, (len(self.where),))
        return eqx.tree_at(lambda f: f.coefficients, self, coefficients)

    def __call__(self, t: Any, x: Float[Array, " dx"], u: Any = None) -> Float[Array, " dx"]:
        terms = self.library(t, x, u)
        parts: list[Any] = [jnp.zeros((), terms.dtype)] * len(self.library.state_names)
        for k, (i, j) in enumerate(self.where):
            parts[i] = parts[i] + self.coefficients[k].astype(terms.dtype) * terms[j]
        return jnp.stack(parts)


def _distinct(what: str, names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        names = (names,)
    names = tuple(str(name) for name in names)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{_NAME}: {what} {twice} occur more than once; expected distinct ones")
    return names


def _monomial(variables: Sequence[str], power: Sequence[int]) -> str:
    factors = [
        name if k == 1 else f"{name}^{k}" for name, k in zip(variables, power, strict=True) if k
    ]
    return " ".join(factors) or "1"


def _wave(variables: Sequence[str], kind: str, i: int, frequency: float) -> str:
    factor = "" if frequency == 1 else f"{frequency:g} "
    return f"{kind}({factor}{variables[i]})"


def _product(z: Float[Array, " n"], power: Sequence[int]) -> Float[Array, ""]:
    found = jnp.ones((), z.dtype)
    for i, k in enumerate(power):
        if k:
            found = found * jax.lax.integer_pow(z[i], k)
    return found
