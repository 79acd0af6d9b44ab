"""Time-varying velocity fields for diffeomorphic image registration, 2D and 3D.

Conventions (everywhere in the package):

- B is the batch, C the channels, D = 2 or 3 the dimensions, ``*S`` the spatial sizes, T the time steps;
- an image is ``(B, C, *S)`` float, intensities in [0, 1];
- a displacement ``u`` is ``(B, D, *S)`` in voxels of its own grid; component ``d`` moves along
  axis ``d``, and ``warped(x) = moving(x + u(x))`` for ``x`` on the fixed grid;
- a velocity ``v`` is ``(B, T, D, *S)`` in voxels per unit time, ``t`` in [0, 1] in ``T`` steps.

This module offers the names that most users need. All others are imported from the subpackages; the first
line of each module says what it is for.
"""

from importlib import import_module

__version__ = "0.1.0"

# Name offered here -> module that defines it, and its name in that module. Names are loaded at first use, so
# that ``import tvf_core`` is quick and the Colab cell can import its own module before PyTorch is installed.
OFFERED = {
    "load_data": ("tvf_core.data", "load"),
    "load_weights": ("tvf_core.checkpoints", "load"),
    "PairData": ("tvf_core.data", "PairData"),
    "Registration": ("tvf_core.registration", "Registration"),
    "METHODS": ("tvf_core.methods", "METHODS"),
}
__all__ = ["OFFERED", "__version__", *OFFERED]


def __getattr__(name: str):
    if name in OFFERED:
        module, attribute = OFFERED[name]
        return getattr(import_module(module), attribute)
    raise AttributeError(f"module 'tvf_core' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
