"""Result of a registration: the map, its inverse, its trajectory; transport of images, labels and points."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from . import fields
from .checks import check_points, one_of
from .integrate import STEPS, flow, trajectory, transport


@dataclass(frozen=True)
class Registration:
    """Result of registering one batch of pairs.

    Attributes
    ----------
    displacement : (B, D, *S) voxels. phi = Id + u takes points of the fixed image to the moving one, and so
        pulls the moving image back.
    warped : (B, 1, *S) the moving image on the fixed grid, ``moving(x + u(x))``. For networks that follow
        the released code, it is warped as that code does (:func:`tvf_core.released.warp`).
    velocity : (B, T, D, *S') voxels per unit time, on the half grid or the image grid; None if the method
        gives no velocity.
    integrator, substeps : how the displacement was computed from the velocity.
    """

    displacement: torch.Tensor
    warped: torch.Tensor
    velocity: torch.Tensor | None = None
    integrator: str = "rk4"
    substeps: int = 1

    def inverse(self) -> torch.Tensor:
        """Displacement of phi^-1: ``fixed(x + inverse(x))`` looks like ``moving(x)``.

        It is the flow of the velocity backwards in time or, without a velocity, a fixed-point iteration. With
        the ``released`` integrator it is the field that the released code calls the inverse, which does not
        invert the map; use ``fields.invert(displacement)`` there.
        """
        if self.velocity is None:
            return fields.invert(self.displacement)
        return flow(self.velocity, self.integrator, self.substeps, 1, 0, self.displacement.shape[2:])

    def trajectory(self, times=None) -> torch.Tensor:
        """Displacements ``(B, len(times), D, *S)`` of phi_t at several times.

        ``times`` must rise and begin at 0; the default is 0, 1/T, ..., 1. A method without a velocity has no
        trajectory and raises a ValueError.
        """
        if self.velocity is None:
            raise ValueError("this method predicts a displacement, not a velocity: there is no trajectory")
        return trajectory(self.velocity, times, self.integrator, self.substeps, self.displacement.shape[2:])

    def transport(self, what: torch.Tensor, kind: str = "image", to: str = "fixed") -> torch.Tensor:
        """Carry an image, a label map or points from the moving image's space to the fixed image's, or back.

        Parameters
        ----------
        what : image (B, C, *S) float, labels (B, 1, *S) integer, or points (B, K, D) in voxels.
        kind : ``image`` (linear interpolation), ``labels`` (nearest) or ``points``.
        to : ``fixed`` carries data of the moving image to the fixed image's space, ``moving`` the reverse.

        Notes
        -----
        Images and labels are pulled back, points are pushed forward: on the way to the fixed image's space,
        images use phi and points use phi^-1. A time-varying velocity moves points directly, without
        interpolating a map. (The ``released`` integrator has no flow, so that its phi^-1 comes from a
        fixed-point iteration.)
        """
        if not isinstance(what, torch.Tensor):
            raise TypeError(f"what: expected a torch.Tensor, got {type(what).__name__}")
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
                f"image: expected floating-point intensities, got {what.dtype}; "
                "for label maps use kind='labels'"
            )
        return {"image": fields.warp, "labels": fields.warp_labels, "points": fields.transform_points}[kind](
            what, u
        )
