"""Time-varying velocity fields for diffeomorphic image registration, 2D and 3D.

Conventions (everywhere in the package):

- an image is ``(B, C, *S)`` float, intensities in [0, 1];
- a displacement ``u`` is ``(B, D, *S)`` in voxels of its own grid, component ``d`` moves along
  axis ``d``, and ``warped(x) = moving(x + u(x))`` for ``x`` on the fixed grid;
- a velocity ``v`` is ``(B, T, D, *S)`` in voxels per unit time, ``t`` in [0, 1] in ``T`` steps.
"""

__version__ = "0.1.0"
