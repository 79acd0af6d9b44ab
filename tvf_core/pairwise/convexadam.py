"""ConvexAdam (Siebert et al. 2021, 2024) with MIND features: an adapter on the authors' package, 3D only.

Two stages, no training: a dense search over displacements of a coarse grid, regularised by coupled convex
optimisation; then Adam on a finer grid of displacements. Both compare MIND-SSC descriptors (Heinrich et al.
2013), twelve per voxel, of how alike the patches around it are.

This is **not** the ConvexAdam of the paper's Table 2. That row is the entry to Learn2Reg 2021, which compared
one-hot label maps that an nnU-Net had predicted: a network trained on the data's own labels, so a stronger,
supervised input. Here it is the package's unsupervised version, which sees intensities only. (The
package has a module for nnU-Net features as well; it calls ``.cuda()`` whatever the device.)

What the adapter adds to ``convexAdam.convex_adam_MIND.convex_adam_pt``, version 0.2.0:

- **Place.** The package counts grid cells as ``size // spacing`` and then stretches them over the whole
  size. Where sizes are no multiples, fields land up to a voxel off: 0.3 to 0.9 voxels for a bump in images of
  edge 47 and 53, 0.3 at most once edge values fill the size up to a multiple of both spacings, as here.
- **Size.** With n cells along an axis, its Adam stage turns displacements to [-1, 1] by 2/(n - 1) but samples
  in the convention where a cell is 2/n wide. What it returns is thus too small by (n - 1)/n along each axis:
  by 2% to 5% for n of 50 to 20. Dividing by that gives voxels: known translations come back within 3% instead
  of 3% to 8% short, and validation Dice of the demo brains rises by 0.003 to 0.005. ``rescale=False`` leaves
  the division out.
- **Quiet.** float32 on any device (the package's float16 stores 4 voxels in steps of 0.004), the
  caller's warning filters, random numbers and gradient mode as they were.
"""

from __future__ import annotations

import math
import warnings

import torch
import torch.nn.functional as F

from .. import fields
from ..checks import check_number, check_pair, one_of, spatial_rank
from ..registration import Registration

INSTALL = "pip install convexadam==0.2.0"

# The defaults of the authors' package, made for voxels of 1 mm. Profiles name other values for other data.
# mind_r, mind_d : radius of the descriptor's patches and how far apart they lie, voxels.
# grid_sp, disp_hw : spacing of the search's cells in voxels, and its reach, +-disp_hw cells along each axis.
# grid_sp_adam, selected_niter : spacing and iterations of the Adam stage.
# lambda_weight : of its diffusion penalty; 0 leaves the stage out.
# selected_smooth : odd width of three box filters that end the Adam stage; 0 is none.
DEFAULTS = dict(
    mind_r=1,
    mind_d=2,
    lambda_weight=1.25,
    grid_sp=6,
    disp_hw=4,
    selected_niter=80,
    selected_smooth=0,
    grid_sp_adam=2,
)

SMALLEST = 3  # cells along an axis, of the search and of Adam: torch refuses to smooth fewer by 3 cells


def register(moving: torch.Tensor, fixed: torch.Tensor, *, rescale: bool = True, **settings) -> Registration:
    """Align each pair of a batch with the authors' ConvexAdam on MIND features.

    Parameters
    ----------
    moving, fixed : (B, 1, *S) float in [0, 1], three spatial axes, on any one device.
    rescale : give displacements in voxels; False: as the package returns them, a few per cent smaller.
    settings : any of ``DEFAULTS``, with another value.

    Returns
    -------
    Registration with a float32 displacement and no velocity.

    Raises
    ------
    ValueError : an unknown setting, or one with a value that it cannot have; images that are not 3D, too
        small, or of one intensity.
    ImportError : the authors' package is not installed.

    Notes
    -----
    Gives the same numbers each time on a CPU. On a GPU the gradient of the sampler adds in any order, and
    the last digits vary.

    Examples
    --------
    >>> import torch
    >>> from tvf_core.pairwise import convexadam
    >>> moving = torch.rand(1, 1, 20, 18, 17, generator=torch.Generator().manual_seed(0))
    >>> convexadam.register(moving, moving.roll(1, dims=2), selected_niter=5).displacement.shape
    torch.Size([1, 3, 20, 18, 17])
    """
    check(settings)
    settings = DEFAULTS | settings
    _check_images(moving, fixed, settings)
    convex_adam_pt = _package()

    moving, fixed = moving.detach(), fixed.detach()
    shape = moving.shape[2:]
    multiple = math.lcm(settings["grid_sp"], settings["grid_sp_adam"])
    # Filled up at the far end only: the first voxel, and so every place, stays where it is.
    fill = [n for s in reversed(shape) for n in (0, -s % multiple)]
    # The search is exact in voxels; what follows it is not.
    cells = [(s + -s % multiple) // settings["grid_sp_adam"] for s in shape]
    scale = [n / (n - 1) if rescale and settings["lambda_weight"] > 0 else 1.0 for n in cells]

    displacements = []
    for pair in zip(moving, fixed):
        # Adam needs gradients, whatever mode the caller is in, and float32; a layer that the package makes
        # only to overwrite its weights draws random numbers; its calls without align_corners= make torch
        # warn.
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast(moving.device.type, enabled=False),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            filled = [F.pad(image[None].float(), fill, mode="replicate")[0, 0] for image in pair]
            found = convex_adam_pt(
                img_moving=filled[0],
                img_fixed=filled[1],
                dtype=torch.float32,
                device=moving.device,
                **settings,
            )
        found = torch.from_numpy(found).float().movedim(-1, 0)[(slice(None), *map(slice, shape))]
        displacements.append(found * found.new_tensor(scale).view(3, 1, 1, 1))
    displacement = torch.stack(displacements).to(moving.device)
    return Registration(displacement, fields.warp(moving, displacement))


def check(settings: dict, dim: int = 3) -> None:
    """Raise a ValueError for an unknown name among ``settings``, or a value that it cannot have."""
    for name, value in settings.items():
        one_of(name, DEFAULTS, "setting of ConvexAdam")
        least = 0 if name in ("lambda_weight", "selected_smooth") else 1
        check_number(value, f"ConvexAdam: {name}", least, whole=name != "lambda_weight")
    settings = DEFAULTS | settings
    smooth = settings["selected_smooth"]
    if smooth and smooth % 2 == 0:
        raise ValueError(f"ConvexAdam: selected_smooth must be odd, or 0 for none, got {smooth}")
    if smooth and settings["lambda_weight"] == 0:
        raise ValueError(f"ConvexAdam: selected_smooth {smooth} has no effect where lambda_weight is 0")


def _check_images(moving: torch.Tensor, fixed: torch.Tensor, settings: dict) -> None:
    """One-line errors for what the package cannot do, or does wrongly without a word."""
    if spatial_rank(moving, "moving") != 3:
        raise ValueError(f"ConvexAdam: the authors' package is 3D only, got moving {tuple(moving.shape)}")
    check_pair(moving, fixed, 3)
    multiple = math.lcm(settings["grid_sp"], settings["grid_sp_adam"])
    # Images are filled up to a multiple, so one voxel begins the last one.
    widest = max(settings["grid_sp"], settings["grid_sp_adam"])
    smallest = multiple * (math.ceil(SMALLEST * widest / multiple) - 1) + 1
    if min(moving.shape[2:]) < smallest:
        raise ValueError(
            f"ConvexAdam: with grid_sp={settings['grid_sp']} and grid_sp_adam={settings['grid_sp_adam']} "
            f"each axis needs at least {smallest} voxels, got {tuple(moving.shape[2:])}"
        )
    for name, images in (("moving", moving), ("fixed", fixed)):
        flat = images.flatten(1)
        if (flat.amin(1) == flat.amax(1)).any():  # MIND divides by its own variance
            raise ValueError(f"{name}: all voxels have one value, ConvexAdam's features need some structure")


def _package():
    """The package's function, imported on first use, without its filter for all warnings of the process."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from convexAdam.convex_adam_MIND import convex_adam_pt
    except ImportError as error:
        raise ImportError(f"ConvexAdam needs the authors' package: {INSTALL} ({error})") from error
    return convex_adam_pt
