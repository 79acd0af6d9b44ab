"""The 35 structures of OASIS as in Learn2Reg: their numbers, their names, and where they lie."""

from __future__ import annotations

_SIDED = (
    "cerebral white matter",
    "cerebral cortex",
    "lateral ventricle",
    "inferior lateral ventricle",
    "cerebellum white matter",
    "cerebellum cortex",
    "thalamus",
    "caudate",
    "putamen",
    "pallidum",
)
_SIDED_TOO = ("hippocampus", "amygdala", "accumbens", "ventral DC", "vessel", "choroid plexus")
LABELS: dict[int, str] = dict(
    enumerate(
        [f"L {n}" for n in _SIDED]
        + ["3rd ventricle", "4th ventricle", "brain stem"]
        + [f"L {n}" for n in _SIDED_TOO]
        + [f"R {n}" for n in _SIDED + _SIDED_TOO],
        1,
    )
)

# Middle of each structure in RAS millimetres (right, front, up), relative to the mean of all: the average of
# the 14 training anatomies, rounded (``middles_mm`` of their dataset.json). Vessels and choroid plexus have
# no entry.
MIDDLES: dict[int, tuple[int, int, int]] = {
    1: (-26, -6, 21),
    2: (-30, -5, 19),
    3: (-14, -2, 19),
    4: (-31, -2, -5),
    5: (-18, -28, -29),
    6: (-24, -35, -34),
    7: (-12, -3, 11),
    8: (-14, 21, 19),
    9: (-25, 15, 9),
    10: (-20, 12, 7),
    11: (0, 6, 5),
    12: (-1, -21, -28),
    13: (0, -8, -23),
    14: (-24, -3, -6),
    15: (-23, 15, -8),
    16: (-9, 27, 5),
    17: (-11, 2, -1),
    20: (27, -5, 21),
    21: (31, -4, 19),
    22: (14, -2, 19),
    23: (30, 2, -8),
    24: (16, -28, -29),
    25: (22, -36, -34),
    26: (12, -2, 11),
    27: (16, 22, 19),
    28: (26, 16, 8),
    29: (20, 12, 7),
    30: (24, -2, -8),
    31: (23, 15, -8),
    32: (10, 27, 5),
    33: (11, 3, -2),
}
