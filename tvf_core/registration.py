"""The outcome of a registration: the map, its inverse, its course in time, and what it carries."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import fields
from .checks import check_points, one_of
from .integrate import STEPS, flow, trajectory, transport


@dataclass(frozen=True)
class Registration:
    """The outcome of registering one batch of pairs.

    Attributes
    ----------
    displacement : (B, D, *S) voxels. phi = Id + u takes points of the fixed image to the moving one, and so
        pulls the moving image back.
    warped : (B, 1, *S) the moving image on the fixed grid, ``moving(x + u(x))``; for networks that follow
        the released code as *that code* warps it, mismatched at the border.
    velocity : (B, T, D, *S') on the half grid or on the image's, or None.
    integrator, substeps : that made the displacement of the velocity.
    """

    displacement: torch.Tensor
    warped: torch.Tensor
    velocity: torch.Tensor | None = None
    integrator: str = "rk4"
    substeps: int = 1

    def inverse(self) -> torch.Tensor:
        """Displacement of phi^-1: ``fixed(x + inverse(x))`` looks like ``moving(x)``.

        From the velocity, run backwards, where there is one; else by fixed point iteration. With the
        ``released`` integrator it is what that code calls the inverse and is none; there
        ``fields.invert(displacement)`` inverts.
        """
        if self.velocity is None:
            return fields.invert(self.displacement)
        return flow(self.velocity, self.integrator, self.substeps, 1, 0, self.displacement.shape[2:])

    def trajectory(self, times=None) -> torch.Tensor:
        """phi_t at rising times, the first of them 0 (default 0, 1/T, ..., 1): displacements ``(B, len(times), D, *S)``."""
        if self.velocity is None:
            raise ValueError("this method predicts a displacement, not a velocity: there is no trajectory")
        return trajectory(self.velocity, times, self.integrator, self.substeps, self.displacement.shape[2:])

    def transport(self, what: torch.Tensor, kind: str = "image", to: str = "fixed") -> torch.Tensor:
        """Carry an image, a label map or points from the moving to the fixed image's space, or back.

        Parameters
        ----------
        what : image (B, C, *S) float, labels (B, 1, *S) integer, or points (B, K, D) in voxels.
        kind : ``image`` (linear interpolation), ``labels`` (nearest) or ``points``.
        to : ``fixed``: what lies on the moving image; ``moving``: what lies on the fixed one.

        Notes
        -----
        Images are pulled back and points pushed forward: to the fixed space images take phi, points
        phi^-1. Points follow a velocity that changes in time by themselves: no map is interpolated. (With the
        ``released`` integrator there is no flow: phi^-1 comes from a fixed point iteration.)
        """
        if not isinstance(what, torch.Tensor):
            raise TypeError(f"what to carry: expected a torch.Tensor, got {type(what).__name__}")
        one_of(kind, ("image", "labels", "points"), "kind")
        to_fixed = one_of(to, ("fixed", "moving"), "target") == "fixed"
        flows = self.velocity is not None and self.integrator != "released"
        if kind == "points" and self.integrator in STEPS and flows:
            check_points(what, self.displacement)
            moved = transport(
                self.velocity,
                what.movedim(1, -1),
                self.integrator,
                self.substeps,
                *((1, 0) if to_fixed else (0, 1)),
                self.displacement.shape[2:],
            )
            return moved.movedim(-1, 1)
        if (kind == "points") == to_fixed:
            u = self.inverse() if flows else fields.invert(self.displacement)
        else:
            u = self.displacement
        if kind == "image" and not what.is_floating_point():
            raise TypeError(
                f"image: expected floating-point intensities, got {what.dtype}; for label maps say kind='labels'"
            )
        return {"image": fields.warp, "labels": fields.warp_labels, "points": fields.transform_points}[kind](
            what, u
        )
