"""The annual flow of the Nile at Aswan."""

import numpy as np

from filterdyn.series import Series

_FIRST_YEAR = 1871
_FLOWS_BY_DECADE = (
    (1120, 1160, 963, 1210, 1160, 1160, 813, 1230, 1370, 1140),  # 1871-1880
    (995, 935, 1110, 994, 1020, 960, 1180, 799, 958, 1140),  # 1881-1890
    (1100, 1210, 1150, 1250, 1260, 1220, 1030, 1100, 774, 840),  # 1891-1900
    (874, 694, 940, 833, 701, 916, 692, 1020, 1050, 969),  # 1901-1910
    (831, 726, 456, 824, 702, 1120, 1100, 832, 764, 821),  # 1911-1920
    (768, 845, 864, 862, 698, 845, 744, 796, 1040, 759),  # 1921-1930
    (781, 865, 845, 944, 984, 897, 822, 1010, 771, 676),  # 1931-1940
    (649, 846, 812, 742, 801, 1040, 860, 874, 848, 890),  # 1941-1950
    (744, 749, 838, 1050, 918, 986, 797, 923, 975, 815),  # 1951-1960
    (1020, 906, 901, 1170, 912, 746, 919, 718, 714, 740),  # 1961-1970
)


def nile() -> Series:
    """Annual flow of the Nile at Aswan, 1871 to 1970.

    The classic record of a level that changes: from 1899 on the mean flow is about 850 where it
    was about 1098 before, three years ahead of the first dam at Aswan (1902).

    **Returns** a `filterdyn.Series` of 100 rows: `times` are calendar years, `observations`
    `(100, 1)` are flows in 1e8 cubic metres a year, named `("flow",)`. Nothing is missing and
    there are no inputs.

    **Source**: measurements at Aswan as printed by Cobb, and by Durbin and Koopman since; the same
    numbers are `Nile` in R and `statsmodels.datasets.nile` in Python. They are 100 published facts
    about a river, to which no licence applies; statsmodels marks them as public domain.

    **References**

    - G. W. Cobb (1978). The problem of the Nile: conditional solution to a changepoint problem.
      *Biometrika* 65(2), 243-251.
    - J. Durbin and S. J. Koopman (2012). *Time Series Analysis by State Space Methods*, second
      edition, chapter 2. Oxford University Press.
    """
    flows = np.array(_FLOWS_BY_DECADE, dtype=float).ravel()
    years = _FIRST_YEAR + np.arange(flows.size, dtype=float)
    return Series(years, flows, observation_names=("flow",))
