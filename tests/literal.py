"""Slow literal versions of fields, metrics and losses, in NumPy and SciPy.

Each takes the arrays of one pair, float64 and without a batch axis.
"""

import numpy as np
from scipy import ndimage


def grid(shape):
    return np.indices(shape).astype(float)


def read(image, places, order=1, padding="zeros"):
    """Values of an image (C, *S) at places (D, *P); an axis of one voxel is read at that voxel."""
    places = np.array([p if s > 1 else 0 * p for p, s in zip(places, image.shape[1:])])
    mode = {"zeros": "grid-constant", "border": "nearest"}[padding]
    return np.stack([ndimage.map_coordinates(c, places, order=order, mode=mode) for c in image])


def warp(image, u, order=1, padding="zeros"):
    return read(image, grid(u.shape[1:]) + u, order, padding)


def warp_labels(labels, u):
    """Nearest neighbours, background outside; along an axis of one voxel nothing is outside."""
    last = np.array(u.shape[1:]).reshape(-1, *[1] * len(u)) - 1
    places = grid(u.shape[1:]) + u * (last > 0)
    nearest = np.rint(places.clip(0, last)).astype(int)
    return np.where(((places >= 0) & (places <= last)).all(0), labels[0][tuple(nearest)], 0)[None]


def compose(outer, inner):
    return inner + warp(outer, inner, padding="border")


def transform_points(points, u):
    return points + read(u, points.T, padding="border").T


def landmark_error(u, fixed, moving):
    return np.sqrt(((transform_points(fixed, u) - moving) ** 2).sum(1))


def resize(u, shape):
    """Linear interpolation between the centres of voxels, in voxels of the new grid."""
    ratio = np.array(u.shape[1:]) / np.array(shape)
    ratio = ratio.reshape(-1, *[1] * len(shape))
    return read(u, (grid(shape) + 0.5) * ratio - 0.5, padding="border") / ratio


def double(u, shape):
    return resize(u, [2 * n for n in u.shape[1:]])[(..., *map(slice, shape))]


def halve(image):
    for axis in range(1, image.ndim):
        n = image.shape[axis]
        image = np.stack(
            [image.take(range(2 * k, min(2 * k + 2, n)), axis).mean(axis) for k in range(-(-n // 2))], axis
        )
    return image


def average_down(image):
    for axis in range(1, image.ndim):
        n = image.shape[axis]
        starts = [(max(2 * k - 1, 0), min(2 * k + 2, n)) for k in range(-(-n // 2))]
        image = np.stack([image.take(range(a, b), axis).mean(axis) for a, b in starts], axis)
    return image


def pool(image):
    """Means of width 3 at every second voxel, zeros beyond the border; of a shorter axis its whole length."""
    for axis in range(1, image.ndim):
        n = image.shape[axis]
        if n > 2:
            sums = [
                image.take(range(max(2 * k - 1, 0), min(2 * k + 2, n)), axis).sum(axis)
                for k in range(-(-n // 2))
            ]
            image = np.stack(sums, axis) / 3
        else:
            image = image.mean(axis, keepdims=True)
    return image


def slope(u, axis):
    """Central differences, one-sided at the border; 0 along an axis of one voxel."""
    return np.gradient(u, axis=axis) if u.shape[axis] > 1 else np.zeros_like(u)


def jacobian(u):
    rank = len(u)
    columns = np.stack([slope(u, 1 + axis) for axis in range(rank)], 1)
    return columns + np.eye(rank).reshape(rank, rank, *[1] * rank)


def determinant(matrix):
    return np.linalg.det(np.moveaxis(matrix, (0, 1), (-2, -1)))


def jacobian_determinant(u):
    return determinant(jacobian(u))


def invert(u):
    inverse = np.zeros_like(u)
    for _ in range(30):
        inverse = -warp(u, inverse, padding="border")
    return inverse


def inverse_consistency_error(forward, inverse):
    return np.linalg.norm(compose(inverse, forward), axis=0)


INNER = slice(2, -2)


def sdlogj(u):
    det = jacobian_determinant(u)[(INNER,) * len(u)]
    return np.log(np.clip(det + 3, 1e-9, 1e9)).std()


def sdlogj_textbook(u):
    det = jacobian_determinant(u)[(INNER,) * len(u)]
    return np.log(det[det > 0]).std()


def folding(u, convention):
    if convention == "replicated":
        padded = np.pad(u, [(0, 0), *[(1, 1)] * len(u)], mode="edge")
        det = jacobian_determinant(padded)[(slice(1, -1),) * len(u)]
    else:
        det = jacobian_determinant(u)[(INNER,) * len(u) if convention == "inner" else ...]
    return 100 * (det <= 0).mean()


def dice(warped, fixed, moving, labels):
    found = []
    for k in labels:
        w, f, m = ((x == k) for x in (warped, fixed, moving))
        found.append(2 * (w & f).sum() / (w.sum() + f.sum()) if f.any() and m.any() else np.nan)
    return np.array(found)


def ssim(a, b):
    """Of (1, *S) images; along an axis of fewer than 11 voxels the mean over slices."""
    for axis in range(1, a.ndim):
        if a.shape[axis] < 11:
            return np.mean([ssim(x, y) for x, y in zip(np.moveaxis(a, axis, 0), np.moveaxis(b, axis, 0))])
    bell = np.exp(-((np.arange(-5, 6) / 1.5) ** 2) / 2)

    def smooth(x):
        for axis in range(1, x.ndim):
            x = ndimage.correlate1d(x, bell / bell.sum(), axis)
        return x[(..., *[slice(5, -5)] * (x.ndim - 1))]

    ma, mb = smooth(a), smooth(b)
    va, vb, cross = smooth(a * a) - ma**2, smooth(b * b) - mb**2, smooth(a * b) - ma * mb
    c1, c2 = 0.01**2, 0.03**2
    return ((2 * ma * mb + c1) * (2 * cross + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))).mean()


def mse(a, b):
    return ((a - b) ** 2).mean()


def lncc(a, b, window=9, eps=1e-5):
    volume = window ** (a.ndim - 1)

    def total(x):
        return volume * ndimage.uniform_filter(x[0], window, mode="constant")

    sa, sb = total(a), total(b)
    va, vb, cross = (total(x) - y / volume for x, y in ((a * a, sa * sa), (b * b, sb * sb), (a * b, sa * sb)))
    return -(cross**2 / (va.clip(0) * vb.clip(0) + eps)).mean()


def multiscale_lncc(a, b):
    total = 0
    for scale, window in enumerate((7, 5, 3)):
        total += lncc(a, b, window) / 2**scale
        a, b = average_down(a), average_down(b)
    return total


def shares(labels, u, number):
    """How much of each voxel, read linearly, has the label ``number``."""
    return warp((labels == number).astype(float), u)[0]


def _overlaps(moving, u, fixed):
    """Warped and fixed map of every label that occurs in the pair."""
    return [(shares(moving, u, k), fixed[0] == k) for k in np.union1d(moving, fixed).tolist()]


def soft_dice(moving, u, fixed):
    each = [2 * (p * f).sum() / ((p**2).sum() + f.sum()) for p, f in _overlaps(moving, u, fixed)]
    return 1 - np.mean(each)


def label_mse(moving, u, fixed):
    return np.mean([((p - f) ** 2).mean() for p, f in _overlaps(moving, u, fixed)])


def diffusion(u):
    steps = [np.diff(u, axis=axis) for axis in range(1, u.ndim)]
    return sum((step**2).mean() for step in steps if step.size) / len(u)


def operator(v, alpha=0.3, gamma=0.2, beta=2):
    for _ in range(beta):
        v = np.stack([gamma * c - alpha * ndimage.laplace(c, mode="nearest") for c in v])
    return v


def energy(v, alpha=0.3, gamma=0.2, beta=2):
    """Of a path of velocities (T, D, *S)."""
    return np.mean([(operator(one, alpha, gamma, beta) ** 2).sum(0).mean() for one in v])


def velocity_kl(mean, log_variance, prior=3.0):
    shape = mean.shape[1:]
    neighbours = sum((x > 0).astype(int) + (x < n - 1) for x, n in zip(np.indices(shape), shape))
    roughness = sum((np.diff(mean, axis=axis) ** 2).sum() for axis in range(1, mean.ndim))
    spread = (prior * neighbours * np.exp(log_variance) - log_variance).sum()
    return (spread + prior * roughness) / (2 * np.prod(shape))
