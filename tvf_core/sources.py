"""The numbers with which the methods are trained, each with its source.

:mod:`tvf_core.methods` says which method uses which of them.
"""

from __future__ import annotations

from typing import NamedTuple


class Sourced(NamedTuple):
    """A number of a method (for solvers also a name, or a number per scale), and where it is from."""

    value: float | str | tuple
    source: str


EQ2, EQ3 = "Chen, Frey & Du 2022, eq. 2", "Chen, Frey & Du 2022, eq. 3"
OASIS = "released OASIS script of TM and TM-TVF"
FACES = "eq. 3; open: the released 2D script of TM has -SSIM (try: --losses ssim 1 diffusion 1)"
# The penalty is on the final displacement, as in the released code; the paper's eq. 3 writes it for v_1.
ON_DISPLACEMENT = "; on the displacement (eq. 3: on the velocity; try: velocity_diffusion)"
NCC = {
    2: {
        "lncc": Sourced(1.0, FACES),
        "diffusion": Sourced(1.0, "released 2D script of TM" + ON_DISPLACEMENT),
    },
    3: {
        "lncc": Sourced(1.0, OASIS),
        "dice": Sourced(1.0, OASIS),
        "diffusion": Sourced(1.0, OASIS + ON_DISPLACEMENT),
    },
}
LDDMM = {
    2: {
        "alpha": Sourced(0.01, "paper, section 3"),
        "gamma": Sourced(0.01, "paper, section 3, RaFD"),
        "beta": Sourced(2, "paper, section 3"),
    },
    3: {
        "alpha": Sourced(0.01, "paper, section 3"),
        "gamma": Sourced(0.001, "paper, section 3, OASIS"),
        "beta": Sourced(2, "paper, section 3"),
    },
}
# Eq. 2 prints no weight. Ours make the energy a sum over the half grid of the paper's images beside a
# mean over their voxels, as the released script adds its terms; losses.lddmm_energy derives them, and
# says what the other readings of eq. 2 would give. The two numbers are kept at every image size.
LDDMM_WEIGHT = {2: 2e3, 3: 1e5}
SUM_BESIDE_MEAN = (
    "ours, rounded from {}: eq. 2, which prints no weight, with its energy as a sum over half-grid voxels "
    "beside an image term that is a mean, as in the released script (both sums: {}; both means: 1/8; "
    "the script's own energy: lddmm_released)"
)
# Settings of LDDMM pair by pair. The paper does not use it, so it gives only alpha, gamma, beta and N.
ALONE = {
    "similarity": "Beg et al. 2005, the paper's eq. 1 (lncc: ours, the window of 9 voxels of TM-TVF's loss)",
    "steps": "paper, section 3: N",
    "weight": "ours: the number of TM-TVF_LDDMM's weight; the paper prints none",
    "scales": "ours: coarse to fine, to the grid of half the image's resolution that TM-TVF has",
}
NEUTRAL = "ours: not tuned to any data"
FLOW_BACK = "exact: flow of -v, backwards"
FROZEN = (
    "part of the training for which the coarser levels stay frozen once a new level has begun; "
    "{}: {} of 120,003 iterations"
)
CHOSEN_3D = "ours: the paper's row used labels (Learn2Reg 2021), its weight is not public"
NO_FACES = "ours: nothing is published for the faces; the 3D value"


def everywhere(**numbers: Sourced) -> dict[int, dict[str, Sourced]]:
    """The same numbers in 2D and 3D."""
    return {2: numbers, 3: numbers}


def pyramid(diffusion: Sourced) -> dict[int, dict[str, Sourced]]:
    """Losses of LapIRN. The authors' smoothness term is of twice the field, squared: four times ours."""
    ncc = Sourced(1.0, "Mok & Chung 2020, for brains; windows 3, 5-3 and 7-5-3 as in their code")
    return {
        2: {"multiscale_lncc": ncc, "diffusion": diffusion},
        3: {"multiscale_lncc": ncc, "dice": Sourced(1.0, CHOSEN_3D), "diffusion": diffusion},
    }


# What all trained methods share here: (what, value, source).
RECIPE = (
    ("optimiser", "Adam with AMSGrad", "released scripts of TM and TM-TVF (CycleMorph, LapIRN: plain Adam)"),
    (
        "learning rate",
        "the profile's, times (1 - step/steps)^0.9",
        "released TM scripts; 1e-4 there (CycleMorph 2e-4 and LapIRN 1e-4, constant), 1e-3 in our short runs",
    ),
    (
        "budget",
        "the profile's steps x batch ordered pairs (paper profiles: 500 epochs, as the paper)",
        "ours: the same for every method (published: 400 or 500 epochs of TM, 30 to 130 of CycleMorph, "
        "120,003 steps of LapIRN)",
    ),
    (
        "epoch",
        "every pair once; paper_oasis: every image once, with a random partner",
        "released scripts, 2D and OASIS (the shipped weights: pairs drawn one by one)",
    ),
    (
        "directions",
        "both of every pair, in turn",
        "released scripts of TM and TM-TVF; CycleMorph has both in one loss, so half the steps",
    ),
    (
        "kept weights",
        "best of 8 validations (paper profiles: of every epoch)",
        "released scripts of TM and TM-TVF: best of every epoch",
    ),
    (
        "augmentation",
        "none (paper_rafd: mirrored with chance 1/2)",
        "released OASIS script (2D script, VM-2, VM-diff and CycleMorph: flips)",
    ),
    (
        "arithmetic",
        "float32",
        "released scripts; the shipped 3D weights of VM-2 and CycleMorph: bfloat16, fields in float32",
    ),
    ("N of TVF", "8", "paper, section 3 (released TM-TVF scripts: 12)"),
    (
        "integrator of TVF",
        "rk4, a step per interval (paper profiles: euler)",
        "ours (paper: Euler; released code: a rule of its own)",
    ),
    ("squarings", "7", "VM-diff, LapIRN: their code"),
)
