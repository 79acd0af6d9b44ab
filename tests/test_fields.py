"""Fields: sampling, composition, resizing, Jacobians and inverses against closed forms and SciPy."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from tvf_core import fields, metrics, released

SIZES = [(8, 11), (7, 6), (9, 8, 7), (6, 7, 10)]
each_size = pytest.mark.parametrize("shape", SIZES, ids=str)
MATRIX = np.array([[1.02, 0.03, -0.02], [-0.04, 0.97, 0.05], [0.01, -0.03, 1.04]])
OTHER = np.array([[0.96, -0.05, 0.03], [0.06, 1.03, 0.02], [-0.02, 0.04, 0.98]])


def grid(shape):
    return fields.identity_grid(shape, dtype=torch.float64)


def affine(matrix, shape, offset=0.0):
    """Displacement of the map x -> matrix (x - centre) + centre + offset."""
    dim = len(shape)
    x = grid(shape) - torch.tensor([(s - 1) / 2 for s in shape], dtype=torch.float64).view(1, -1, *[1] * dim)
    return torch.einsum("ij,bj...->bi...", torch.tensor(matrix[:dim, :dim]), x) - x + offset


def inside(tensor, margin, dim):
    return tensor[(..., *[slice(margin, -margin)] * dim)]


def noise(shape, channels=1, batch=1, seed=0, dtype=torch.float32):
    return torch.tensor(np.random.default_rng(seed).random((batch, channels, *shape)), dtype=dtype)


def scipy_warp(image, displacement, order, mode):
    points = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij")) + displacement
    return ndimage.map_coordinates(image, points, order=order, mode=mode)


def extrude(plane_field, depth):
    """A 2D field as a 3D one that does not change along a new first axis."""
    lifted = torch.cat([torch.zeros_like(plane_field[:, :1]), plane_field], dim=1)
    return lifted[:, :, None].expand(-1, -1, depth, -1, -1).contiguous()


@pytest.mark.parametrize("shape", [*SIZES, (1, 5), (4, 257), (160, 31), (5, 6, 224)], ids=str)
def test_zero_displacement_is_the_identity(shape):
    image, zero = noise(shape, 2), torch.zeros(1, len(shape), *shape)
    image = (image - image.min()) / (image.max() - image.min())  # intensities in [0, 1], as everywhere
    worst = (fields.warp(image, zero) - image).abs().max()
    # float32 sampling coordinates resolve about 6e-8 of an axis, which shows in white noise on long axes.
    assert worst <= max(1e-6, 1e-7 * sum(shape)), f"differs by {worst:.1e}"
    assert (fields.warp(image.double(), zero.double()) - image).abs().max() <= 1e-12
    assert torch.equal(fields.warp(image, zero, "nearest"), image)


@pytest.mark.parametrize("shape,shift", [((8, 11), (2, -3)), ((7, 6), (-1, 2)), ((6, 7, 10), (1, -2, 3))])
def test_integer_shift_equals_slicing_and_zeros(shape, shift):
    image = noise(shape, 2)
    displacement = (
        torch.tensor(shift, dtype=torch.float32).view(1, -1, *[1] * len(shape)).expand(1, -1, *shape)
    )
    expected = torch.zeros_like(image)
    to = [slice(max(0, -s), n - max(0, s)) for s, n in zip(shift, shape)]
    origin = [slice(max(0, s), n - max(0, -s)) for s, n in zip(shift, shape)]
    expected[(..., *to)] = image[(..., *origin)]
    torch.testing.assert_close(fields.warp(image, displacement), expected, atol=2e-6, rtol=0)


@each_size
@pytest.mark.parametrize("padding,mode", [("zeros", "grid-constant"), ("border", "nearest")])
def test_warp_equals_scipy_inside_and_outside(shape, padding, mode):
    image, u = noise(shape, 2, 2, dtype=torch.float64), 6 * noise(shape, len(shape), 2, 1, torch.float64) - 3
    ours = fields.warp(image, u, padding=padding)
    for b, c in itertools.product(range(2), range(2)):
        expected = scipy_warp(image[b, c].numpy(), u[b].numpy(), 1, mode)
        np.testing.assert_allclose(ours[b, c].numpy(), expected, atol=1e-12)


@each_size
def test_label_warp_equals_scipy_nearest(shape):
    labels = (noise(shape) * 36).long()
    u = 6 * noise(shape, len(shape), seed=1) - 3
    x = grid(shape) + u
    assert ((x - x.floor() - 0.5).abs() > 1e-4).all(), "ties are undefined: choose another seed"
    warped = fields.warp_labels(labels, u)
    assert warped.dtype == labels.dtype
    # As in Learn2Reg, voxels from outside [0, n - 1] become 0.
    expected = scipy_warp(labels[0, 0].numpy(), u[0].numpy(), 0, "constant")
    np.testing.assert_array_equal(warped[0, 0].numpy(), expected)


NUMBERS = (-(2**63), -(2**31) - 7, -129, -3, -1, 0, 1, 127, 129, 255, 2035, 2**16 - 1, 2**24 + 1, 614_454_277)
NUMBERS += (2**31 - 1, 2**31 + 5, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**63 + 3, 2**64 - 1)
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("shape", [(8, 11), (1, 9), (17, 1), (6, 7, 10), (5, 1, 4), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_labels_of_every_integer_type_come_back_exactly(dtype, shape, batch):
    rng, dim = np.random.default_rng(0), len(shape)
    limits = np.iinfo(dtype)
    numbers = np.array([k for k in NUMBERS if limits.min <= k <= limits.max], dtype=dtype)
    labels = numbers[rng.integers(0, len(numbers), (batch, 1, *shape))]
    for name, steps in {
        "identity": np.zeros((batch, dim, *shape), int),
        "whole voxels": rng.integers(-3, 4, (batch, dim, *shape)),
        "outside": np.full((batch, dim, *shape), 20),
    }.items():
        sources = np.indices(shape) + steps  # NumPy reads the voxels themselves
        sources[:, np.array(shape) == 1] = 0  # an axis of one voxel has no outside
        inside = ((sources >= 0) & (sources < np.reshape(shape, (-1, *[1] * dim)))).all(1)
        expected = np.zeros_like(labels)
        for b, x in zip(*np.nonzero(inside.reshape(batch, -1))):
            place = np.unravel_index(x, shape)
            expected[b, 0][place] = labels[b, 0][tuple(sources[(b, slice(None), *place)])]
        near = rng.uniform(-0.4, 0.4, steps.shape) * (name == "whole voxels")
        near *= inside[:, None] & (sources > 0) & (sources < np.reshape(shape, (-1, *[1] * dim)) - 1)
        for u in (torch.tensor(steps + near), torch.tensor(steps + near, dtype=torch.float32)):
            warped = fields.warp_labels(torch.from_numpy(labels), u)
            assert warped.dtype == getattr(torch, dtype) and warped.shape == labels.shape
            np.testing.assert_array_equal(warped.numpy(), expected, err_msg=name)


@pytest.mark.parametrize("kind", ["far", "halves", "half a voxel", "quarters", "small"])
@pytest.mark.parametrize("shape", [(1, 31), (28, 17), (96, 5), (9, 10, 11), (5, 1, 16)], ids=str)
def test_labels_are_read_where_an_image_is_read_by_nearest_neighbour(shape, kind):
    # Ties included: floating-point images of labels that float32 can hold are the older way to warp them.
    labels = torch.tensor(np.random.default_rng(0).integers(-9, 2**23, (2, 1, *shape)))
    u = torch.randn(2, len(shape), *shape, generator=torch.Generator().manual_seed(1))
    u = {"far": 30 * u, "halves": (4 * u).round() / 2, "half a voxel": 0 * u + 0.5, "small": u / 2}.get(
        kind, (4 * u).round() / 4
    )
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        field = u.to(dtype)
        x = fields.identity_grid(shape) + field
        last = torch.tensor(shape).view(1, -1, *[1] * len(shape)) - 1
        inside = ((x >= 0) & (x <= last) | (last == 0)).all(1, keepdim=True)
        expected = fields.warp(labels.float(), field, "nearest", "border").long() * inside
        assert torch.equal(fields.warp_labels(labels, field), expected)


def test_one_label_map_is_warped_by_many_maps_and_many_by_one():
    labels = torch.arange(2 * 6 * 7, dtype=torch.int32).view(2, 1, 6, 7) + 2**30
    u = 3 * noise((6, 7), 2, 2) - 1.5
    for many, one in ((labels, u[:1]), (labels[:1], u)):
        expected = [fields.warp_labels(many[k % len(many)][None], one[k % len(one)][None]) for k in range(2)]
        assert torch.equal(fields.warp_labels(many, one), torch.cat(expected))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("shape", [(5, 6), (4, 1, 3)], ids=str)
def test_labels_are_not_warped_by_a_displacement_that_is_not_finite(shape, value):
    labels = torch.ones(2, 1, *shape, dtype=torch.uint8)
    for place in ((0, 0, *[0] * len(shape)), (1, len(shape) - 1, *[s - 1 for s in shape])):
        u = torch.zeros(2, len(shape), *shape)
        u[place] = value
        with pytest.raises(ValueError, match="displacement: has NaN or infinite values"):
            fields.warp_labels(labels, u)


@each_size
def test_component_d_moves_along_axis_d(shape):
    ramps = grid(shape)  # channel a holds the coordinate along axis a
    for axis in range(len(shape)):
        u = torch.zeros_like(ramps)
        u[:, axis] = 0.25
        moved = inside(fields.warp(ramps, u) - ramps, 1, len(shape))
        expected = torch.zeros_like(moved)
        expected[:, axis] = 0.25
        torch.testing.assert_close(moved, expected)


def test_each_sample_of_a_batch_gets_its_own_displacement():
    image, u = noise((6, 7), batch=3), torch.randn(3, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    together = fields.warp(image, u)
    for k in range(3):
        torch.testing.assert_close(together[k : k + 1], fields.warp(image[k : k + 1], u[k : k + 1]))


@pytest.mark.parametrize("shape", [(20, 23), (14, 15, 16)], ids=str)
def test_warping_twice_equals_warping_by_the_composition(shape, smooth_field):
    dim = len(shape)
    image = (grid(shape) * torch.arange(1.0, dim + 1, dtype=torch.float64).view(1, -1, *[1] * dim)).sum(
        1, keepdim=True
    )
    outer, inner = (smooth_field(shape, amplitude=2, sigma=2, seed=s, dtype=torch.float64) for s in (1, 2))
    twice = fields.warp(fields.warp(image, outer), inner)
    torch.testing.assert_close(
        inside(fields.warp(image, fields.compose(outer, inner)), 3, dim), inside(twice, 3, dim)
    )
    swapped = fields.warp(image, fields.compose(inner, outer))
    assert (inside(swapped - twice, 3, dim)).abs().max() > 0.1  # so that the test depends on the order


@pytest.mark.parametrize("shape", [(20, 23), (14, 15, 16)], ids=str)
def test_composition_of_affine_maps_is_the_matrix_product(shape):
    dim = len(shape)
    product = np.eye(3)
    product[:dim, :dim] = MATRIX[:dim, :dim] @ OTHER[:dim, :dim]
    ours = fields.compose(affine(MATRIX, shape), affine(OTHER, shape))
    torch.testing.assert_close(inside(ours, 3, dim), inside(affine(product, shape), 3, dim))


@pytest.mark.parametrize(
    "small,large",
    [((6, 7), (12, 14)), ((6, 8), (9, 20)), ((5, 6, 7), (10, 12, 14)), ((6, 8, 5), (9, 10, 15))],
    ids=str,
)
def test_resize_keeps_an_affine_map_and_scales_its_values(small, large):
    dim = len(small)
    ratio = torch.tensor([b / a for a, b in zip(small, large)], dtype=torch.float64).view(1, -1, *[1] * dim)
    matrix, offset = (
        torch.tensor(MATRIX[:dim, :dim] - np.eye(dim)),
        torch.linspace(0.3, 0.9, dim, dtype=torch.float64),
    )

    def in_large_voxels(x):
        return torch.einsum("ij,bj...->bi...", matrix, x) + offset.view(1, -1, *[1] * dim)

    centres = (grid(small) + 0.5) * ratio - 0.5  # centres of the small voxels on the large grid
    ours = fields.resize(in_large_voxels(centres) / ratio, large)
    margin = int(np.ceil(float(ratio.max()) / 2))  # nearer to the edge, interpolation lacks neighbours
    torch.testing.assert_close(inside(ours, margin, dim), inside(in_large_voxels(grid(large)), margin, dim))


def test_resize_to_twice_the_size_doubles_a_translation():
    u = torch.tensor([1.5, -0.5]).view(1, 2, 1, 1).expand(1, 2, 5, 7)
    assert torch.equal(fields.resize(u, (10, 14)), 2 * u[..., :1, :1].expand(1, 2, 10, 14))


@each_size
def test_halve_averages_pairs_and_leaves_an_odd_last_voxel_alone(shape):
    image = noise(shape, 2)
    ours = fields.halve(image)
    assert ours.shape[2:] == tuple(-(-s // 2) for s in shape)
    for where in np.ndindex(*ours.shape[2:]):
        block = image[(..., *[slice(2 * w, 2 * w + 2) for w in where])]
        torch.testing.assert_close(ours[(..., *where)], block.flatten(2).mean(2))


@pytest.mark.parametrize("shape", [(1, 7), (6, 1), (6, 7, 1), (1, 1, 5)], ids=str)
def test_labels_and_images_do_not_leave_along_an_axis_of_one_voxel(shape):
    """A network gives some small number there; it must not make all labels background."""
    labels = torch.arange(1, 1 + int(np.prod(shape))).view(1, 1, *shape)
    flat = torch.tensor([s == 1 for s in shape]).view(1, -1, *[1] * len(shape))
    u = (1.5 * noise(shape, len(shape)) - 0.7) * flat
    assert u.abs().max() > 0.1
    assert torch.equal(fields.warp_labels(labels, u), labels)
    for mode in ("linear", "nearest"):
        torch.testing.assert_close(fields.warp(labels.float(), u, mode), labels.float())


def block(image, where, before):
    """The voxels of an image from ``before`` voxels before twice a place to one voxel after it."""
    return image[(..., *[slice(max(0, 2 * w - before), 2 * w + 2) for w in where])].flatten(2)


@pytest.mark.parametrize("dim", [2, 3])
def test_images_of_every_size_are_halved(dim):
    for shape in itertools.product((1, 2, 3, 6)[: 6 - dim], repeat=dim):
        image = noise(shape, 2)
        half, averaged, theirs = fields.halve(image), fields.average_down(image), released.halve(image)
        assert half.shape == averaged.shape == theirs.shape
        for where in np.ndindex(*half.shape[2:]):
            place = (..., *where)
            torch.testing.assert_close(half[place], block(image, where, 0).mean(2))
            torch.testing.assert_close(averaged[place], block(image, where, 1).mean(2))
            torch.testing.assert_close(theirs[place], block(image, where, 1).sum(2) / 3**dim)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize("shape", [(7, 6), (5, 6, 4)], ids=str)
def test_images_of_every_type_are_halved(dtype, shape):
    image = (200 * noise(shape, 2)).to(dtype)
    for halve in (fields.halve, fields.average_down, released.halve):
        half, expected = halve(image), halve(image.double())
        assert half.dtype == (dtype if dtype.is_floating_point else torch.float32)
        torch.testing.assert_close(half.double(), expected, rtol=torch.finfo(half.dtype).eps, atol=0)


def test_a_field_is_doubled_along_axes_of_one_voxel():
    for half in ((1, 4), (3, 1), (1, 1), (1, 4, 3), (2, 1, 1), (1, 1, 1)):
        u = noise(half, len(half))[:1].double()
        flat = [axis for axis, s in enumerate(half) if s == 1]
        for shape in itertools.product(*[(2 * s - 1, 2 * s) for s in half]):
            fine = fields.double(u, shape)
            assert fine.shape == (*u.shape[:2], *shape)
            for axis in flat:  # nothing to interpolate with: the values are repeated
                torch.testing.assert_close(fine, fine.narrow(2 + axis, 0, 1).expand_as(fine))
            if len(flat) == len(half):
                torch.testing.assert_close(fine, 2 * u.expand_as(fine))
        wide = fields.resize(u, [5 * s for s in half])
        for axis in flat:  # five voxels where there was one: five times the value, everywhere
            narrow = fields.resize(u, [s if a == axis else 5 * s for a, s in enumerate(half)])
            torch.testing.assert_close(wide[:, axis], 5 * narrow[:, axis].expand_as(wide[:, axis]))


@pytest.mark.parametrize("shape", [(12, 15), (11, 10), (9, 12, 11)], ids=str)
def test_an_affine_map_survives_halving_and_doubling(shape):
    dim = len(shape)
    u = affine(MATRIX, shape, offset=0.7)
    back = fields.double(fields.halve(u) / 2, shape)
    assert back.shape == u.shape
    # The margin is 3 because an odd last voxel is a block of its own.
    torch.testing.assert_close(inside(back, 3, dim), inside(u, 3, dim))


@each_size
def test_jacobian_of_an_affine_map_is_its_matrix_up_to_the_border(shape):
    dim = len(shape)
    ours = fields.jacobian(affine(MATRIX, shape, 1.3))
    expected = torch.tensor(MATRIX[:dim, :dim]).view(1, dim, dim, *[1] * dim).expand_as(ours)
    torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize("dim", [2, 3])
def test_determinant_equals_linalg(dim):
    matrices = torch.randn(2, dim, dim, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = torch.linalg.det(matrices.permute(0, 3, 4, 1, 2))
    torch.testing.assert_close(fields.determinant(matrices), expected)


@each_size
def test_a_mirrored_axis_has_determinant_minus_one(shape):
    u = torch.zeros(1, len(shape), *shape)
    u[:, 1] = -2 * fields.identity_grid(shape)[:, 1]
    torch.testing.assert_close(fields.jacobian_determinant(u), torch.full((1, *shape), -1.0))


@pytest.mark.parametrize("shape", [(40, 37), (24, 27, 26)], ids=str)
def test_fixed_point_inverse_composes_to_the_identity_on_both_sides(shape, smooth_field):
    u = smooth_field(shape, amplitude=1.2, sigma=6)
    inverse = fields.invert(u)
    assert fields.compose(u, inverse).abs().max() < 1e-4  # this side is exact where the iteration converged
    assert fields.compose(inverse, u).abs().max() < 0.06  # this side resamples the inverse
    assert u.abs().max() > 1


def test_inverse_consistency_error_is_a_distance_in_voxels():
    u = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1).expand(1, 2, 8, 9)
    torch.testing.assert_close(metrics.inverse_consistency_error(u, -u), torch.zeros(1, 8, 9))
    torch.testing.assert_close(metrics.inverse_consistency_error(u, u), torch.full((1, 8, 9), 10.0))


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 3)], ids=str)
def test_gradients_of_warp_are_right_for_image_and_displacement(shape):
    rng = np.random.default_rng(0)
    # Within one cell the interpolation has no kink.
    cell = np.stack([rng.integers(0, s - 1, shape) for s in shape])
    u = torch.tensor(cell + rng.uniform(0.2, 0.8, cell.shape))[None] - grid(shape)
    image = noise(shape, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(fields.warp, (image.requires_grad_(), u.requires_grad_()))


def test_a_2d_problem_equals_the_same_problem_extruded_to_3d(smooth_field, smooth_image):
    shape, depth = (13, 16), 5
    image = smooth_image(shape)
    u, w = (smooth_field(shape, amplitude=2, sigma=2, seed=s) for s in (1, 2))
    u3, w3 = extrude(u, depth), extrude(w, depth)
    deep = image[:, :, None].expand(-1, -1, depth, -1, -1)
    middle = depth // 2
    torch.testing.assert_close(fields.warp(deep, u3)[:, :, middle], fields.warp(image, u), atol=1e-5, rtol=0)
    composed = fields.compose(u3, w3)[:, :, middle]
    torch.testing.assert_close(composed[:, 1:], fields.compose(u, w), atol=1e-5, rtol=0)
    torch.testing.assert_close(fields.jacobian_determinant(u3)[:, middle], fields.jacobian_determinant(u))


FLAWS = [math.nan, math.inf, -math.inf]
each_flaw = pytest.mark.parametrize("flaw", FLAWS, ids=str)
each_flawed = pytest.mark.parametrize("shape", [(5, 4), (1, 6), (4, 3, 5), (3, 1, 4)], ids=str)


def places(shape):
    """First voxel, last voxel and one between them."""
    return [tuple(int(share * (s - 1)) for s in shape) for share in (0, 0.5, 1)]


def spoilt(field, where, component, flaw):
    """A copy with one value that is not finite."""
    field = field.clone()
    field[(0, component, *where)] = flaw
    return field


@each_flaw
@each_flawed
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_a_place_that_is_not_finite_gives_nan_and_all_others_what_they_gave(dtype, shape, flaw):
    dim, image = len(shape), noise(shape, 2, dtype=dtype)
    u = (4 * noise(shape, dim, seed=1) - 2).to(dtype)
    for padding, mode in itertools.product(("zeros", "border"), fields.MODES):
        whole = fields.warp(image, u, mode, padding)
        assert whole.isfinite().all()
        for where, component in itertools.product(places(shape), range(dim)):
            expected = whole.clone()
            expected[(..., *where)] = math.nan
            ours = fields.warp(image, spoilt(u, where, component, flaw), mode, padding)
            torch.testing.assert_close(ours, expected, rtol=0, atol=0, equal_nan=True)


@each_flaw
@each_flawed
def test_compositions_points_and_inverses_of_a_map_that_is_not_finite_are_not_finite(shape, flaw):
    dim = len(shape)
    u, v = (noise(shape, dim, seed=seed) - 0.5 for seed in (1, 2))
    for where, component in itertools.product(places(shape), range(dim)):
        bad, here = spoilt(u, where, component, flaw), (0, slice(None), *where)
        expected = fields.compose(v, u)
        expected[here] = math.nan
        torch.testing.assert_close(fields.compose(v, bad), expected, rtol=0, atol=0, equal_nan=True)
        still = torch.zeros_like(u)
        assert not fields.compose(bad, still)[0, component][where].isfinite()
        assert not fields.invert(bad)[0, component][where].isfinite()
        point = torch.tensor([where], dtype=torch.float32)[None]
        assert not fields.transform_points(point, bad)[0, 0, component].isfinite()
        points = torch.stack([point[0, 0], spoilt(point[0], (), component, flaw)[0]])[None]
        moved = fields.transform_points(points, u)
        assert moved[0, 0].isfinite().all() and moved[0, 1].isnan().all()


@each_flaw
@each_flawed
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_a_value_that_is_not_finite_is_not_averaged_away(padding, shape, flaw):
    image, u = noise(shape), 2 * noise(shape, len(shape), seed=1) - 1
    x = fields.identity_grid(shape) + u
    for where in places(shape):
        centre = torch.tensor(where, dtype=torch.float32).view(1, -1, *[1] * len(shape))
        read = ((x - centre).abs() < 1).all(1, keepdim=True)  # it has a weight in these voxels
        assert read.any()
        warped = fields.warp(spoilt(image, where, 0, flaw), u, padding=padding)
        assert not warped[read].isfinite().any()


def test_sampling_makes_no_host_wait():
    """A meta tensor has no values that the host could ask for."""
    with torch.device("meta"):
        for shape in ((6, 5), (4, 5, 6)):
            u = torch.rand(2, len(shape), *shape)
            assert fields.warp(torch.rand(2, 3, *shape), u).shape == (2, 3, *shape)
            assert fields.compose(u, u).shape == fields.invert(u).shape == u.shape


def literal_jacobian(u):
    """Voxel by voxel: (B, D, D, *S), NaN where a voxel or what it is compared with is not finite."""
    u = u.masked_fill(~u.isfinite(), math.nan)
    dim, shape = u.shape[1], u.shape[2:]
    out = torch.zeros(len(u), dim, *u.shape[1:], dtype=u.dtype)
    for x, a in itertools.product(np.ndindex(*shape), range(dim)):
        before, after = list(x), list(x)
        before[a], after[a] = max(x[a] - 1, 0), min(x[a] + 1, shape[a] - 1)
        here = (slice(None), slice(None))
        slope = (u[(*here, *after)] - u[(*here, *before)]) / max(after[a] - before[a], 1)
        out[(*here, a, *x)] = slope + 0 * u[(*here, *x)]
        out[(slice(None), a, a, *x)] += 1
    return out


@pytest.mark.parametrize(
    "shape", [*itertools.product(range(1, 6), repeat=2), *itertools.product((1, 2, 4), repeat=3)], ids=str
)
def test_jacobian_equals_differences_voxel_by_voxel_at_every_size(shape):
    u = 4 * noise(shape, len(shape), 2, dtype=torch.float64)
    torch.testing.assert_close(fields.jacobian(u), literal_jacobian(u))
    expected = torch.linalg.det(literal_jacobian(u).movedim((1, 2), (-2, -1)))
    torch.testing.assert_close(fields.jacobian_determinant(u), expected)
    for flaw in FLAWS:
        bad = spoilt(u, tuple(s // 2 for s in shape), 1, flaw)
        torch.testing.assert_close(fields.jacobian(bad), literal_jacobian(bad), equal_nan=True)
        det = fields.jacobian_determinant(bad)
        assert torch.equal(det.isnan(), literal_jacobian(bad).isnan().any(1).any(1))


@pytest.mark.parametrize("shape", [(4, 3), (1, 3), (2, 1, 3), (1, 1, 1)], ids=str)
def test_gradients_of_the_jacobian_are_right(shape):
    u = noise(shape, len(shape), 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(fields.jacobian, (u,))
