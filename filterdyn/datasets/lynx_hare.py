"""The pelts of snowshoe hare and Canada lynx that the Hudson's Bay Company collected."""

import numpy as np

from filterdyn.series import Series

_YEAR_HARE_LYNX = (
    (1900, 30.0, 4.0),
    (1901, 47.2, 6.1),
    (1902, 70.2, 9.8),
    (1903, 77.4, 35.2),
    (1904, 36.3, 59.4),
    (1905, 20.6, 41.7),
    (1906, 18.1, 19.0),
    (1907, 21.4, 13.0),
    (1908, 22.0, 8.3),
    (1909, 25.4, 9.1),
    (1910, 27.1, 7.4),
    (1911, 40.3, 8.0),
    (1912, 57.0, 12.3),
    (1913, 76.6, 19.5),
    (1914, 52.3, 45.7),
    (1915, 19.5, 51.1),
    (1916, 11.2, 29.7),
    (1917, 7.6, 15.8),
    (1918, 14.6, 9.7),
    (1919, 16.2, 10.1),
    (1920, 24.7, 8.6),
)


def lynx_hare() -> Series:
    """Pelts of hare and lynx collected each year by the Hudson's Bay Company, 1900 to 1920.

    The classic record of a predator and its prey: two cycles of about ten years, the lynx
    following the hare. A count of pelts stands for a population only up to the (unknown) share
    that was trapped.

    **Returns** a `filterdyn.Series` of 21 rows: `times` are calendar years, `observations`
    `(21, 2)` are thousands of pelts, named `("hare", "lynx")` in this order, prey first. Nothing
    is missing and there are no inputs.

    **Source**: trading records of the Hudson's Bay Company, in the figures tabulated by Howard
    and used by Carpenter's Stan case study. They are 42 published facts about trade a century
    ago, to which no licence applies.

    **References**

    - C. Elton and M. Nicholson (1942). The ten-year cycle in numbers of the lynx in Canada.
      *Journal of Animal Ecology* 11(2), 215-244.
    - P. Howard (2009). *Modeling basics*. Lecture notes for Math 442, Texas A&M University.
    - B. Carpenter (2018). *Predator-prey population dynamics: the Lotka-Volterra model in
      Stan*. Stan case studies.
    """
    table = np.array(_YEAR_HARE_LYNX)
    return Series(table[:, 0], table[:, 1:], observation_names=("hare", "lynx"))
