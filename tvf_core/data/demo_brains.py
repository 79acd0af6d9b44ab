"""Demo brains: the MNI152 template warped by known random diffeomorphisms (known up to integration error).

The anatomy is the ICBM 152 nonlinear 2009 symmetric template (Fonov et al. 2011, NeuroImage 54,
313-327), whose T1, grey and white matter maps ship inside ``nilearn``, so that nothing is downloaded.
Subject i is ``template(phi_i(x))``, where phi_i is the flow of a random time-varying velocity, plus a
contrast change, a bias field and noise. All subjects therefore share one topology, which real brains do
not. Results on them show that a method works, not how well it works on patients.

The labels are parcels cut out of the template's tissue maps by rules in MNI coordinates (planes for
the lobes and the tentorium, boxes for the deep structures). They are NOT a manual segmentation, and
their borders are not those of an anatomical atlas.

Axes are MNI x (left to right), y (back to front), z (bottom to top).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy import ndimage as ndi
from skimage.segmentation import watershed

from ..fields import compose, warp
from ..integrate import flow

_PARCELS = (
    "frontal cortex",
    "parietal and occipital cortex",
    "temporal cortex",
    "cerebral white matter",
    "deep grey matter",
    "lateral ventricle",
    "cerebellum",
)
LABELS: dict[int, str] = {
    2 * k + s + 1: f"{'LR'[s]} {name}" for k, name in enumerate(_PARCELS) for s in (0, 1)
}
LABELS[len(LABELS) + 1] = "brainstem"

SHAPE = (52, 64, 56)
SPACING_MM = 3.0
N_SUBJECTS = 50

_CENTRE_MM = (0.0, -17.0, 5.0)  # middle of the brain; x = 0 lies between two voxels, so that L mirrors R
_SEED = 20090152
_STEPS = 4  # time intervals with a constant velocity
_SCALES = ((8.0, 2.6), (3.5, 1.5))  # (sigma of the smoothing, standard deviation of the speed), voxels
_MARGIN = 7.0  # voxels over which the velocity fades to zero at the border; a faster fade squeezes the map


def _coordinates() -> np.ndarray:
    """MNI coordinates in mm of every voxel, ``(3, *SHAPE)``."""
    axes = [c + SPACING_MM * (np.arange(n) - (n - 1) / 2) for c, n in zip(_CENTRE_MM, SHAPE)]
    return np.stack(np.meshgrid(*axes, indexing="ij"))


def _resample(image) -> np.ndarray:
    """Resample a 1 mm nibabel image to the 3 mm grid after a low-pass filter (FWHM of about one voxel)."""
    start = _coordinates()[:, 0, 0, 0] - image.affine[:3, 3]
    smooth = ndi.gaussian_filter(np.asarray(image.dataobj, dtype=np.float32), 1.2)
    return ndi.affine_transform(smooth, np.full(3, SPACING_MM), offset=start, output_shape=SHAPE, order=1)


def _largest(mask: np.ndarray) -> np.ndarray:
    """Largest connected component of a mask (face neighbours)."""
    parts, count = ndi.label(mask)
    return parts == 1 + np.argmax(np.bincount(parts.ravel())[1:]) if count else mask


def _parcellate(t1: np.ndarray, gm: np.ndarray, wm: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """Labels from tissue maps by rules in MNI mm; later rules take precedence over earlier ones."""
    x, y, z = _coordinates()
    side, x = (x > 0), np.abs(x)
    grey = brain & (gm >= wm) & (gm + wm > 0.5)
    white = brain & (wm > gm) & (gm + wm > 0.5)
    csf = brain & (1 - gm - wm > 0.5)

    # Tentorium: highest at the midline, falling to the sides, to the back and to the front.
    tentorium = 2 - 0.65 * x - 0.5 * np.maximum(0, -55 - y) - 0.5 * np.maximum(0, y + 48)
    above = np.where(y < -30, z - tentorium, 99)
    # That surface is a guess, so within 8 mm of it the border follows the dark gap between the two sides.
    below = watershed(1 - t1, np.where(above < -8, 1, np.where(above > 8, 2, 0)), mask=brain) == 1
    stem = (x < 16) & (z < -8) & (y < -8) & (y > -37 - 0.4 * np.maximum(0, -32 - z)) & (gm + wm > 0.5)

    # Sylvian fissure seen from the side is a line that rises to the back; so is the central sulcus.
    temporal = (z < -12 - 0.54 * (y - 15)) & (z < 16) & (x > 14) & (y > -58) & (y < 24)
    frontal = y > -8 - 0.5 * (z - 15)

    deep = (gm + wm > 0.6) & (gm > 0.3) & (y > -34) & (y < 22) & (z < 24)
    deep &= (x < 33 - 0.2 * np.maximum(0, y)) & (z > np.where(y < -8, -4, -9))
    deep &= ((z < 16) | (x > 8)) & ((y < 4) | (x > 5))  # neither cingulate nor subcallosal cortex
    ventricle = csf & (x < 34) & (y > -52) & (y < 36) & (z > -6) & (z < 32)
    ventricle &= ~((x < 3) & (z < 12)) & ~((x < 15) & (y < -26) & (z < 10))  # third ventricle, cistern

    masks = [
        grey & frontal & ~temporal,
        grey & ~frontal & ~temporal,
        grey & temporal,
        white,
        deep,
        ventricle,
        below & (gm + wm > 0.5),
    ]
    labels = np.zeros(SHAPE, np.uint8)
    for k, mask in enumerate(masks):
        labels[mask] = 2 * k + 1
    labels[stem] = 2 * len(masks) + 1
    labels = np.where((labels > 0) & (labels < 2 * len(masks)), labels + side, labels).astype(np.uint8)
    for k in LABELS:
        labels[(labels == k) & ~_largest(labels == k)] = 0
    return labels


@lru_cache(maxsize=1)
def _template() -> tuple[np.ndarray, np.ndarray]:
    from nilearn import datasets  # imported here because the import is slow

    loaders = (
        datasets.load_mni152_template,
        datasets.load_mni152_gm_template,
        datasets.load_mni152_wm_template,
        datasets.load_mni152_brain_mask,
    )
    t1, gm, wm, inside = (_resample(load(resolution=1)) for load in loaders)
    brain = _largest(inside > 0.5)
    # The template's tissues lie between 0.35 (fluid) and 0.9 (white matter); they are stretched to [0, 1].
    image = np.where(brain, np.clip((t1 - 0.3) / 0.65, 0.02, 1), 0).astype(np.float32)
    return image, _parcellate(image, gm, wm, brain)


def template() -> tuple[np.ndarray, np.ndarray]:
    """Skull-stripped T1 ``SHAPE`` float32 in [0, 1] (0 outside the brain) and labels ``SHAPE`` uint8."""
    image, labels = _template()
    return image.copy(), labels.copy()


def _generator(subject: int, stream: int) -> np.random.Generator:
    if not 0 <= subject < N_SUBJECTS:
        raise ValueError(f"subject: expected 0 to {N_SUBJECTS - 1}, got {subject}")
    return np.random.default_rng([_SEED, subject, stream])


def _velocity(subject: int) -> torch.Tensor:
    """Random velocity ``(1, _STEPS, 3, *SHAPE)`` in voxels per unit time, zero at the border."""
    rng = _generator(subject, 0)
    velocity = np.zeros((_STEPS, 3, *SHAPE), np.float32)
    for sigma, speed in _SCALES:
        for field in velocity.reshape(-1, *SHAPE):
            noise = ndi.gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), sigma, truncate=3)
            field += speed * noise / noise.std()
    for axis, n in enumerate(SHAPE):
        depth = np.minimum(np.arange(n), np.arange(n)[::-1]) / _MARGIN
        fade = np.sin(np.pi / 2 * np.minimum(depth, 1)) ** 2
        velocity *= fade.astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
    return torch.from_numpy(velocity)[None]


def true_displacement(subject: int, inverse: bool = False) -> torch.Tensor:
    """Displacement ``(1, 3, *SHAPE)`` in voxels of the map that made a subject.

    Parameters
    ----------
    subject : 0 to ``N_SUBJECTS - 1``; ValueError otherwise.
    inverse : if False, the map from the subject's grid to the template's,
        ``subject(x) = template(x + u(x))``; if True, the inverse map, from the template's grid to the
        subject's.
    """
    t0, t1 = (1, 0) if inverse else (0, 1)
    return flow(_velocity(subject), t0=t0, t1=t1)


def true_pair_displacement(moving: int, fixed: int) -> torch.Tensor:
    """Displacement ``(1, 3, *SHAPE)`` in voxels that registers two subjects.

    The map is ``phi_moving^-1 o phi_fixed``, so that ``moving(x + u(x)) = fixed(x)`` in anatomy, not in
    contrast. Warping labels by it with nearest neighbours gives a Dice of about 0.89, not 1, because the two
    resamplings cost thin parcels that much at 3 mm. ValueError for an unknown subject.
    """
    return compose(true_displacement(moving, inverse=True), true_displacement(fixed))


def make_subject(subject: int) -> tuple[np.ndarray, np.ndarray]:
    """Image ``SHAPE`` float32 in [0, 1] (0 outside the brain) and labels ``SHAPE`` uint8 of one subject.

    ValueError unless ``subject`` is between 0 and ``N_SUBJECTS - 1``.
    """
    t1, labels = _template()
    u = true_displacement(subject)
    # One map per label is warped linearly and the largest wins: its borders are smoother than with nearest.
    maps = np.stack([t1, t1 > 0] + [labels == k for k in range(len(LABELS) + 1)]).astype(np.float32)
    maps = warp(torch.from_numpy(maps)[None], u)[0].numpy()
    image, brain = maps[0], maps[1] > 0.5
    warped = maps[2:].argmax(0).astype(np.uint8)

    rng = _generator(subject, 1)
    image = ndi.gaussian_filter(image, rng.uniform(0.0, 0.4)) ** rng.uniform(0.8, 1.25)
    bias = ndi.gaussian_filter(rng.standard_normal(SHAPE, dtype=np.float32), 12, mode="reflect", truncate=2)
    image = image * (1 + 0.12 * bias / np.abs(bias).max())
    noise = rng.normal(0, 0.02, (2, *SHAPE))
    image = np.hypot(image + noise[0], noise[1])  # Rician, as in magnitude images
    image, labels = np.where(brain, np.clip(image, 0, 1), 0), np.where(brain, warped, 0)
    return image.astype(np.float32), labels.astype(np.uint8)


def make_all(progress: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """All subjects: images ``(N_SUBJECTS, *SHAPE)`` uint8 (0 to 255) and labels of the same shape, uint8."""
    from tqdm import tqdm

    images, labels = (np.zeros((N_SUBJECTS, *SHAPE), np.uint8) for _ in range(2))
    for i in tqdm(range(N_SUBJECTS), desc="brains", disable=not progress):
        image, labels[i] = make_subject(i)
        images[i] = np.round(255 * image)
    return images, labels
