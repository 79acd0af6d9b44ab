"""Points: CSV files as ANTs and SimpleITK have them, LPS mm, and one line for every wrong file."""

import ants
import numpy as np
import pandas
import pytest
import SimpleITK as sitk

from tvf_core.scans.grids import Grid
from tvf_core.scans.images import read_image
from tvf_core.scans.points import outside, read_points, write_points
from tvf_core.scans.writing import write_image

RNG = np.random.default_rng(3)
OBLIQUE = np.array([[0.9, 0.3, -0.2, 4], [-0.25, 1.0, 0.4, -7], [0.3, -0.35, 1.8, 2], [0, 0, 0, 1]])


def oblique(dim):
    """A grid whose axes are at right angles, but not those of the world."""
    linear, _ = np.linalg.qr(OBLIQUE[:dim, :dim])
    affine = np.eye(dim + 1)
    affine[:dim, :dim], affine[:dim, dim] = linear * [0.7, 1.3, 4][:dim], [4, -7, 2][:dim]
    return Grid((9, 8, 7)[:dim], affine)


def csv(tmp_path, text, name="points.csv", encoding="utf-8"):
    path = tmp_path / name
    path.write_text(text, encoding)
    return path


@pytest.mark.parametrize("dim", [2, 3])
def test_points_of_simpleitk_are_ours(dim, tmp_path):
    """A voxel whose LPS position SimpleITK tells is that voxel again; and back."""
    grid = oblique(dim)
    write_image(tmp_path / "image.nii.gz", RNG.random(grid.shape), grid)
    image, scan = sitk.ReadImage(str(tmp_path / "image.nii.gz")), read_image(tmp_path / "image.nii.gz")
    index = RNG.uniform(0, 6, (5, dim))
    lps = np.array([image.TransformContinuousIndexToPhysicalPoint(p) for p in index.tolist()])
    columns = ["x", "y", "z"][:dim]
    pandas.DataFrame(lps, columns=columns).to_csv(tmp_path / "points.csv", index=False)
    points = read_points(tmp_path / "points.csv", dim)
    np.testing.assert_allclose(scan.grid.index(points.positions), index, atol=1e-3)
    write_points(tmp_path / "again.csv", points.positions, points)
    np.testing.assert_allclose(pandas.read_csv(tmp_path / "again.csv")[columns], lps, atol=1e-6)
    write_points(tmp_path / "bare.csv", points.positions)
    np.testing.assert_allclose(pandas.read_csv(tmp_path / "bare.csv"), lps, atol=1e-6)


def test_an_affine_moves_our_points_as_it_moves_those_of_ants(tmp_path):
    matrix = OBLIQUE
    signs = np.diag([-1, -1, 1, 1])
    lps = signs @ matrix @ signs
    transform = ants.new_ants_transform(dimension=3, transform_type="AffineTransform")
    transform.set_parameters([*lps[:3, :3].ravel(), *lps[:3, 3]])
    ants.write_transform(transform, str(tmp_path / "affine.mat"))
    path = csv(tmp_path, "x,y,z\n1,2,3\n-4,5.5,6\n20,-30,40\n")
    theirs = ants.apply_transforms_to_points(3, pandas.read_csv(path), [str(tmp_path / "affine.mat")])
    ours = read_points(path, 3).positions @ matrix[:3, :3].T + matrix[:3, 3]
    write_points(tmp_path / "moved.csv", ours)
    np.testing.assert_allclose(pandas.read_csv(tmp_path / "moved.csv"), theirs[["x", "y", "z"]], atol=1e-4)


def test_other_columns_are_kept(tmp_path):
    text = 'label,Y,x,comment,z,t\n7,2,1,"left, upper",3,0\n8,-5,4,,6,0\n'
    points = read_points(csv(tmp_path, "\ufeff" + text + "\n  \n"), 3)
    np.testing.assert_array_equal(points.positions, [[-1, -2, 3], [-4, 5, 6]])
    assert points.columns == ("label", "Y", "x", "comment", "z", "t")
    write_points(tmp_path / "b.csv", points.positions + [0, 0, 1], points)
    assert (tmp_path / "b.csv").read_text("utf-8") == (
        'label,Y,x,comment,z,t\n7,2.000000,1.000000,"left, upper",4.000000,0\n'
        "8,-5.000000,4.000000,,7.000000,0\n"
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.csv", "points.csv"]
    with pytest.raises(ValueError, match="1 positions for 2 points"):
        write_points(tmp_path / "c.csv", points.positions[:1], points)


def test_2d_points_of_ants_have_a_z_of_zero(tmp_path):
    points = read_points(csv(tmp_path, "x,y,z,t\n1,2,0,0\n"), 2)
    np.testing.assert_array_equal(points.positions, [[-1, -2]])
    write_points(tmp_path / "b.csv", points.positions * 2, points)
    assert (tmp_path / "b.csv").read_text("utf-8") == "x,y,z,t\n2.000000,4.000000,0,0\n"


@pytest.mark.parametrize(
    "text, dim, message",
    [
        ("", 3, "is empty; the first line names the columns x,y,z"),
        ("\n \n", 3, "is empty"),
        ("x,y,z\n", 3, "has no points"),
        ("x,y\n1,2\n", 3, "column z is missing: its points are 2D, the images 3D"),
        ("x,y,z\n1,2,3\n", 2, "point 1 has z = 3, but the images are 2D"),
        ("1,2,3\n4,5,6\n", 3, "columns x, y, z missing; the first line names"),
        ("x;y;z\n4;5;6\n", 3, "columns x, y, z missing"),
        ("x,x,y,z\n4,4,5,6\n", 3, "occurs twice"),
        ("x,y,z\n1,2,3\n4,five,6\n", 3, "y of point 2 is 'five', not a number"),
        ("x,y,z\n1,2,\n", 3, "z of point 1 is '', not a number"),
        ("x,y,z\n1,nan,3\n", 3, "y of point 1 is 'nan', not a number"),
        ("x,y,z\n1,-inf,3\n", 3, "not a number"),
        ("x,y,z\n1,1e300,3\n", 3, "not a number"),
        ('x,y,z\n1,"a\nb",3\n', 3, "y of point 1 is 'a b', not a number"),
        ("x,y,z\n1,2\n", 3, "point 1 has 2 values, but there are 3 columns"),
        ("x,y,z\n1,2," + "3" * 200_000, 3, "is not a CSV file"),
    ],
)
def test_wrong_files(text, dim, message, tmp_path):
    path = csv(tmp_path, text)
    with pytest.raises(ValueError) as caught:
        read_points(path, dim)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file_and_no_text(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.csv does not exist"):
        read_points(tmp_path / "none.csv", 3)
    with pytest.raises(ValueError, match="is a folder"):
        read_points(tmp_path, 3)
    with pytest.raises(ValueError, match="not a CSV file in UTF-8"):
        read_points(csv(tmp_path, "x,y,z,größe\n1,2,3,4\n", encoding="latin-1"), 3)


def test_points_outside(tmp_path):
    grid = oblique(3)
    index = np.array(
        [[0, 0, 0], [8.49, 7.49, 6.49], [-0.49, 0, 0], [8.51, 0, 0], [0, -0.51, 0], [0, 0, 6.51]]
    )
    lps = grid.world(index) * [-1, -1, 1]
    points = read_points(csv(tmp_path, "x,y,z\n" + "\n".join(",".join(map(str, p)) for p in lps)), 3)
    assert outside(points, grid, "moving") == f"{points.path}: 3 of 6 points lie outside moving"
    inside = read_points(csv(tmp_path, "x,y,z\n" + "\n".join(",".join(map(str, p)) for p in lps[:3])), 3)
    assert outside(inside, grid, "moving") is None
    one = read_points(csv(tmp_path, "x,y,z\n" + "\n".join(",".join(map(str, p)) for p in lps[1:4])), 3)
    assert outside(one, grid, "moving") == f"{points.path}: 1 of 3 points lies outside moving"
    far = Grid(grid.shape, np.diag([1.0, 1, 1, 1]) + np.pad([[100.0], [0], [0]], ((0, 1), (3, 0))))
    with pytest.raises(
        ValueError, match="all 6 points lie outside fixed; coordinates are LPS mm .*not RAS mm and not"
    ):
        outside(points, far, "fixed")
