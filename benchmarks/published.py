"""Likelihoods that others have published: several filters, combined, and how far they are from it."""

import argparse
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from harness import Aim, aims, number, surroundings, table, write_section

PACKAGES = ("filterdyn", "jax", "jaxlib", "numpyro", "numpy", "pypomp")


class Published(NamedTuple):
    """A log-likelihood, and what is said to be its standard error."""

    log_likelihood: float
    error: str


def compare(
    section: str,
    data: str,
    description: str | None,
    likelihoods: Callable[[int, int, int | None], np.ndarray],
    published: Published,
    size: int,
    filters: int,
) -> None:
    """Runs `likelihoods(size, filters, rows)` and ends the program: with 1 if the logarithm of the mean
    likelihood is further than 2.5 from what is published."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--size", type=int, default=size)
    parser.add_argument("--filters", type=int, default=filters)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    options = parser.parse_args()
    size, filters, rows = (100, 2, 20) if options.quick else (options.size, options.filters, None)
    began = time.process_time()
    values = likelihoods(size, filters, rows)
    seconds = time.process_time() - began
    relative = np.exp(values - values.max())
    found = values.max() + np.log(relative.mean())
    error = relative.std(ddof=1) / relative.mean() / np.sqrt(len(values))
    off = abs(found - published.log_likelihood)
    text = table(
        [data, "log-likelihood"],
        [
            [f"filterdyn, {filters} filters of {size:,}", f"{found:.2f} ± {error:.2f}"],
            ["each of them", f"{values.mean():.2f}, sd {values.std(ddof=1):.2f}"],
            ["published", f"{published.log_likelihood:.1f} {published.error}".strip()],
        ],
    )
    text += f"\n\nCPU seconds of all: {number(seconds)}.\n\n"
    text += aims([Aim("distance to what is published", off, 2.5)])
    text += f"\n\n{surroundings(*PACKAGES)}"
    print(text)
    if options.write:
        write_section(section, text)
    sys.exit(int(off > 2.5 and not options.quick))
