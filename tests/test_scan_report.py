"""The report of a registration: what the page says and shows, and the lines that repeat the result."""

import base64
import dataclasses
import fnmatch
import io
import itertools
import re
import shlex
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np
import pytest
import scipy.io
import torch
from PIL import Image
from scipy import ndimage

from tvf_core import fields
from tvf_core.scans.grids import Grid
from tvf_core.scans.repeat import AFFINE, INVERSE_WARP, WARP, commands
from tvf_core.scans.report import AffineSummary, ReportCase, folding_numbers, pictures, write

ROOT = Path(__file__).resolve().parents[1]
VOID = {"meta", "img", "br", "input", "link"}
ROLES = ["fixed", "before", "after", "difference-before", "difference-after"]


class Page(HTMLParser):
    """Elements and text of a page; every tag has to be closed in its turn."""

    def __init__(self, path):
        super().__init__()
        self.source = path.read_text("utf-8")
        self.open, self.elements, self.text, self.frames = [], [], "", []
        self.feed(self.source)
        self.close()
        assert not self.open
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)
        if element.get("class") == "frame":
            self.frames.append({"figure": self.open[-2]})
        if tag == "img" and self.open[-1].get("class") == "frame":
            self.frames[-1]["img"] = element

    def handle_endtag(self, tag):
        closed = self.open.pop()
        assert closed["tag"] == tag
        place = closed.get("class", "").removeprefix("edge ")
        if closed.get("class", "").startswith("edge "):
            self.frames[-1][place] = closed["text"]
        if tag == "figcaption":
            self.frames[-1]["caption"] = closed["text"]

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data
        if self.open and self.open[-1]["tag"] not in ("style", "script"):
            self.text += data + " "

    def all(self, tag):
        return [element for element in self.elements if element["tag"] == tag]

    def numbers(self):
        return [float(element["value"]) for element in self.all("data")]

    def shown(self, role):
        return [frame for frame in self.frames if frame["figure"].get("data-role") == role]


def pixels(element):
    source = element["src"].removeprefix("data:image/png;base64,")
    return Image.open(io.BytesIO(base64.b64decode(source, validate=True)))


def bump(shape, seed=0):
    """A smooth image in [0, 1] and a smooth displacement that does not fold, (D, *S) voxels."""
    rng = np.random.default_rng(seed)
    grids = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    image = np.exp(-3 * sum(g**2 for g in grids)) * (0.8 + 0.2 * rng.random(shape))
    wave = np.stack([0.6 * np.sin(2 * g + k) for k, g in enumerate(grids)])
    return image.astype(np.float32), wave.astype(np.float32)


def good_case(shape=(20, 23, 18), **changes):
    """A registration without a fault."""
    dim = len(shape)
    image, u = bump(shape)
    displacement = torch.from_numpy(u)[None]
    affine = np.diag([2.0] * dim + [1.0])
    case = ReportCase(
        moving="moving.nii.gz",
        fixed="fixed.nii.gz",
        method="TM-TVF",
        grid=Grid(shape, affine),
        fixed_image=image,
        before=image[::-1].copy(),
        warped=np.clip(image + 0.01, 0, 1),
        displacement=u,
        determinant=fields.jacobian_determinant(displacement)[0].numpy(),
        folding=folding_numbers(displacement),
        inverse_error=(0.0123456, 0.2345678),
        similarity=(("LNCC", 0.31234, 0.81234), ("SSIM", 0.51234, 0.91234)),
        seconds={"reading": 0.51234, "network": 12.61234},
        versions={"torch": "2.7.0"},
        files={"Warped.nii.gz": "This is the moving image on the grid of the fixed image."},
        commands=commands("moving.nii.gz", "fixed.nii.gz", "out", dim),
    )
    return dataclasses.replace(case, **changes)


OPTIONAL = {
    "notes": ("moving.nii.gz: 12 voxels are not finite; they are taken as 0.",),
    "dice": (("thalamus", 0.61111, 0.82222), ("ventricle", 0.5, 0.7777), ("absent", np.nan, np.nan)),
    "landmarks": (("1", 5.5123, 1.2345), ("2", 3.25, 1.125)),
    "affine": AffineSummary(7.25, 12.125, (1.0625, 1.0, 0.96875)),
}


@pytest.fixture
def page(tmp_path):
    def make(case):
        write(tmp_path / "report.html", case)
        assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
        return Page(tmp_path / "report.html")

    return make


@pytest.mark.parametrize("shape", [(20, 23, 18), (41, 36)])
@pytest.mark.parametrize("optional", [{}, OPTIONAL])
def test_the_page_is_whole_and_needs_no_network(page, shape, optional):
    found = page(good_case(shape, **optional))
    plain = re.sub(r"data:image/png;base64,[\w+/=]+", "", found.source)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", plain)
    sources = {e[key].split(",")[0] for e in found.elements for key in ("src", "href") if key in e}
    assert all(source.startswith("#") or source == "data:image/png;base64" for source in sources)
    assert not found.all("link") and len(found.all("style")) == len(found.all("script")) == 1
    names = [e["id"] for e in found.elements if "id" in e]
    assert len(names) == len(set(names)) and {f"#{name}" for name in names} >= sources - {
        "data:image/png;base64"
    }
    levels = [int(e["tag"][1]) for e in found.elements if re.fullmatch(r"h\d", e["tag"])]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
    assert all(len(e["alt"]) > 10 for e in found.all("img"))
    assert all(e["scope"] in ("row", "col") for e in found.all("th"))
    assert len(found.all("caption")) == len(found.all("table"))
    assert "No warnings" in found.text


@pytest.mark.parametrize("shape, count", [((20, 23, 18), 3), ((41, 36), 1)])
def test_all_pictures_are_there_without_scripts(page, shape, count):
    found = page(good_case(shape))
    for role in ROLES:
        assert len(found.shown(role)) == count
    assert len(found.frames) == 7 * count  # and a grid and a Jacobian map each
    for frame in found.frames:
        assert pixels(frame["img"]).size == (int(frame["img"]["width"]), int(frame["img"]["height"]))


def test_names_are_text_whatever_they_hold(page):
    odd = '<b>&".nii.gz'

    def named(name):
        return good_case(
            moving=name,
            fixed=f"fixed {name}",
            method=f"method {name}",
            versions={name: name},
            files={name: "This is a file."},
            notes=(f"note {name}",),
            dice=((f"label {name}", 0.5, 0.4), ("b", 0.5, 0.6)),
            landmarks=((f"point {name}", 2.0, 1.0),),
            similarity=((f"measure {name}", 0.1, 0.2),),
            commands=commands(name, "fixed.nii.gz", f"out {name}", 3),
            warnings=(f"warning {name}",),
            folding={f"number {name}": 1.5},
        )

    plain, found = page(named("plain.nii.gz")), page(named(odd))
    assert [e["tag"] for e in plain.elements] == [e["tag"] for e in found.elements]
    for kind in ("fixed", "method", "note", "label", "point", "measure", "warning", "number"):
        assert f"{kind} {odd}" in found.text
    assert f"tvf apply -i '{odd}' -r fixed.nii.gz -t 'out {odd}/1Warp.nii.gz'" in found.text
    assert found.all("title")[0]["text"].startswith(f"Registration of {odd} to fixed {odd}")


def test_a_name_that_is_no_text_does_not_stop_the_report(page):
    assert "gr?n.nii.gz" in page(good_case(moving="gr\udcfcn.nii.gz")).text


@pytest.mark.parametrize("shape", [(20, 23, 18), (41, 36)])
def test_numbers_of_the_page_are_those_given(page, shape):
    case = good_case(shape, **OPTIONAL)
    given = [*case.folding.values(), *case.inverse_error, *case.seconds.values()]
    given += [x for rows in (case.similarity, case.dice, case.landmarks) for row in rows for x in row[1:]]
    given += [case.affine.turn, case.affine.shift, *case.affine.singular_values]
    means = [
        np.mean([0.61111, 0.5]),
        np.mean([0.82222, 0.7777]),
        np.mean([5.5123, 3.25]),
        np.mean([1.2345, 1.125]),
    ]
    given += [sum(case.seconds.values()), *means]
    found = page(case)
    np.testing.assert_allclose(np.sort(found.numbers()), np.sort(given), rtol=1e-12)
    text = found.text
    for shown in ("0.822", "+0.211", "0.0123", "0.235", "-4.28", "12.6", "not known"):
        assert shown in text, shown
    assert "1.062, 1.000, 0.969" in [e["text"] for e in found.all("td")]
    assert "LNCC (higher is more alike) went from 0.312 after the affine map to 0.812." in text
    assert "Dice) of 2 labels went from 0.556 to 0.800." in text
    assert "The mean landmark error went from 4.38 to 1.18 mm." in text
    assert "in 13.1 s" in text and "voxels of 2 mm" in text


def test_optional_parts_come_only_with_their_data(page):
    titles = {"dice": "Overlap of labels", "landmarks": "Landmarks", "affine": "Affine"}
    titles["notes"] = "Notes of the readers"
    for chosen in [(), *[(name,) for name in titles], tuple(titles)]:
        found = page(good_case(**{name: OPTIONAL[name] for name in chosen}))
        headings = [e["text"] for e in found.all("h3")]
        assert [name for name in titles if titles[name] in headings] == list(chosen)
        placed = "after the affine" if "affine" in chosen else "as its header places it"
        assert f"is the moving image {placed}." in found.text


def test_folding_has_a_sentence_per_number_and_all_conventions(page):
    case = good_case()
    u = torch.from_numpy(case.displacement)[None]
    assert set(case.folding) == {
        "folding_percent",
        "folding_inner_percent",
        "folding_replicated_percent",
        "ndv_percent",
        "sdlogj",
        "sdlogj_textbook",
    }
    inner = case.determinant[2:-2, 2:-2, 2:-2].astype(float)
    assert case.folding["sdlogj"] == pytest.approx(np.log(inner + 3).std(), rel=1e-4)
    assert case.folding["sdlogj_textbook"] == pytest.approx(np.log(inner).std(), rel=1e-4)
    assert set(folding_numbers(u[..., :4])) == {
        "folding_percent",
        "folding_replicated_percent",
        "ndv_percent",
    }
    cells = [e["text"] for e in page(case).all("td") if e.get("class") == "text"]
    assert len([text for text in cells if re.fullmatch(r"This .+\.", text)]) == len(case.folding) + len(
        case.files
    )


ALARMS = [
    ({"folding": {"folding_percent": 0.25}}, "The map folds: Folded voxels 0.25 %."),
    ({"folding": {"ndv_percent": 1e-4}}, "The map folds: Non-diffeomorphic volume (NDV) 0.0001 %."),
    ({"folding": {"folding_percent": np.nan}}, "The map is not finite everywhere"),
    ({"inverse_error": (0.6, 1.0)}, "The inverse is inexact"),
    ({"inverse_error": (0.1, 4.5)}, "misses its start by 0.1 mm on average and 4.5 mm at most"),
    ({"inverse_error": (np.nan, np.nan)}, "The error of the inverse is not a finite number."),
    ({"similarity": (("SSIM", 0.9, 0.8),)}, "The images became less alike: SSIM fell from 0.900 to 0.800."),
    (
        {"dice": (("a", 0.5, 0.9), ("b", 0.7, 0.6), ("c", 0.5, 0.495))},
        "The overlap (Dice) fell for 1 of 3 labels: b from 0.700 to 0.600.",
    ),
    ({"similarity": (("SSIM", 0.9, np.nan),)}, "SSIM is not a finite number."),
    ({"landmarks": (("a", 1.0, np.nan),)}, "The landmark error is not a finite number."),
    ({"landmarks": (("a", 1.0, 2.0), ("b", 1.0, 0.5))}, "the mean error rose from 1.00 to 1.25 mm"),
    (
        {"affine": AffineSummary(40.0, 3.0, (2.0, 1.0, 1.0), ("It stretches by 100 %.",))},
        "Affine: It stretches by 100 %.",
    ),
    ({"warnings": ("Half of the moving image is outside.",)}, "Half of the moving image is outside."),
]


@pytest.mark.parametrize("changes, sentence", ALARMS)
def test_what_is_alarming_is_said_first(page, changes, sentence):
    found = page(good_case(**changes))
    verdict = next(e["text"] for e in found.elements if e.get("class", "").startswith("verdict"))
    assert sentence in verdict and "No warnings" not in found.text
    assert "The moving image was registered" in found.text
    assert found.source.index("verdict bad") < found.source.index('id="pictures"')


def test_many_labels_that_fell_are_counted(page):
    dice = tuple((f"label {k}", 0.9, 0.1 + 0.01 * k) for k in range(50))
    found = page(good_case(dice=dice))
    assert "fell for 50 of 50 labels: label 0 from 0.900 to 0.100, label 1" in found.text
    assert "and 45 more." in found.text
    assert "Dice per label: 51 rows" in found.text  # folded away


OPPOSITE = {"R": "L", "A": "P", "S": "I"}
SIDES = {"left": (slice(None), slice(None, 4)), "right": (slice(None), slice(-4, None))}
SIDES |= {"top": (slice(None, 4), slice(None)), "bottom": (slice(-4, None), slice(None))}
TURNS = [
    ((0, 1, 2), (1, 1, 1), "RAS"),
    ((0, 1, 2), (-1, -1, 1), "LAI"),
    ((2, 0, 1), (1, -1, -1), "RPS"),
    ((1, 2, 0), (-1, 1, -1), "LPS"),
    ((0, 1), (1, 1), "RA"),
    ((1, 0), (-1, 1), "LA"),
    ((0, 1), (-1, -1), "RP"),
]


@pytest.mark.parametrize("order, signs, corner", TURNS)
@pytest.mark.parametrize("sizes", [(21, 24, 26), (30, 21, 17)])
def test_a_bright_corner_of_the_world_is_at_the_letters_that_name_it(page, order, signs, corner, sizes):
    """Axis a of the array runs along axis ``order[a]`` of the world, forwards or backwards."""
    dim = len(order)
    shape = sizes[:dim]
    affine = np.eye(dim + 1)
    affine[:dim, :dim] = 0
    for a, (w, sign) in enumerate(zip(order, signs)):
        affine[w, a] = 1.5 * sign
    affine[:dim, dim] = [10.0, -20.0, 30.0][:dim]
    grid = Grid(shape, affine)
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:dim, :dim].T + affine[:dim, dim]
    bright = np.ones(shape, bool)
    for w, letter in enumerate(corner):
        x = world[..., w]
        bright &= x > x.max() - 5 if letter in OPPOSITE else x < x.min() + 5
    image = bright.astype(np.float32)
    _, u = bump(shape)
    case = good_case(shape, grid=grid, fixed_image=image, before=image, warped=image, displacement=u)
    frames = page(case).shown("fixed")
    assert len(frames) == (3 if dim == 3 else 1)
    for frame in frames:
        assert set(frame) >= set(SIDES)
        picture = np.asarray(pixels(frame["img"]))
        assert picture.max() == 255
        for side, place in SIDES.items():
            here = picture[place].max() > 128
            assert here == (frame[side] in corner), (frame["caption"], side)
        assert {OPPOSITE.get(frame["left"]), OPPOSITE.get(frame["top"])} == {
            frame["right"],
            frame["bottom"],
        } or ({frame["left"], frame["right"]} in ({"R", "L"}, {"A", "P"}))
        across = {"R": "L", "A": "P"}[frame["left"]]  # radiological: right, or front, is on the left
        up = {"A": "P", "S": "I"}[frame["top"]]
        assert (frame["right"], frame["bottom"]) == (across, up)
        assert f"{frame['left']} is left" in frame["img"]["alt"]


def test_places_of_slices_are_in_the_world(page):
    """Three bright planes cross at one place; the slices go there."""
    shape, affine = (21, 24, 26), np.diag([-2.0, 1.0, 1.5, 1.0])
    affine[:3, 3] = [7.0, -4.0, 2.0]
    image = np.zeros(shape, np.float32)
    image[12:14, 9:11, 15:17] = 1
    case = good_case(shape, grid=Grid(shape, affine), fixed_image=image, before=image, warped=image)
    found = page(case)
    places = {
        e["text"].split()[0]: float(e["text"].split()[-2]) for e in found.all("h3") if "slice" in e["text"]
    }
    assert abs(places["Sagittal"] - (7 - 2 * 12.5)) <= 2
    assert abs(places["Coronal"] - (-4 + 9.5)) <= 1
    assert abs(places["Axial"] - (2 + 1.5 * 15.5)) <= 1.5
    assert all(np.asarray(pixels(frame["img"])).max() == 255 for frame in found.shown("fixed"))


def test_voxels_that_are_no_cubes_and_tilted_grids(page):
    shape, affine = (20, 20, 8), np.diag([1.0, 1.0, 4.0, 1.0])
    turn = np.deg2rad(10)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    image, u = bump(shape)
    changes = dict(fixed_image=image, before=image, warped=image, displacement=u, determinant=image)
    found = page(good_case(shape, grid=Grid(shape, affine), **changes))
    sizes = [pixels(frame["img"]).size for frame in found.shown("fixed")]
    assert sizes == [(20, 20), (20, 32), (20, 32)]
    assert "tilted by 10 degrees" in found.text


def test_photographs_are_shown_as_they_are_stored(page):
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (31, 40)).astype(np.uint8)  # rows, columns
    shape = (40, 31)  # x, y
    image = picture.T.astype(np.float32) / 255
    _, u = bump(shape)
    changes = dict(fixed_image=image, before=image, warped=image, displacement=u, determinant=image + 1)
    found = page(good_case(shape, grid=Grid(shape, np.diag([-1.0, -1.0, 1.0])), pixels=True, **changes))
    [frame] = found.shown("fixed")
    np.testing.assert_array_equal(np.asarray(pixels(frame["img"])), picture)
    assert "left" not in frame and "radiological" not in found.text
    assert "pixels" in found.text and "mm" not in found.text.split("Repeat the result")[1].split("ANTs")[0]
    assert "voxels of 1 pixel." in found.text


def test_differences_have_one_scale(page):
    shape = (30, 33)
    image = np.full(shape, 0.5, np.float32)
    before, warped = image + 0.2, image - 0.1
    found = page(good_case(shape, fixed_image=image, before=before, warped=warped))
    grey = [np.unique(np.asarray(pixels(found.shown(role)[0]["img"]))) for role in ROLES[3:]]
    assert grey[0].tolist() == [255] and grey[1].tolist() == [64]


@pytest.mark.parametrize("seed", [0, 1])
def test_lines_of_the_deformed_grid_are_where_the_warp_brings_those_of_a_regular_grid(seed):
    """The package's own warp brings the number of the nearest line, with its fraction, to every pixel."""
    shape, spacing = (64, 51), 2.0
    step = max(shape) * spacing / pictures.LINES
    places = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    moving = torch.from_numpy(np.stack(places)[None] * spacing / step)
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.normal(0, 1, (1, 2, 5, 5)))
    u = 2.5 * torch.nn.functional.interpolate(coarse, shape, mode="bicubic", align_corners=True)
    warped = fields.warp(moving, u, padding="border")[0].numpy()
    display = pictures.Display(Grid(shape, np.diag([spacing, spacing, 1.0])))
    [view] = display.views(warped[0])

    def covered(displacement):
        """Part of the drawn pixels that are near a line."""
        source = pictures.deformed_grid(
            display, np.zeros(shape, np.float32), display.vectors(displacement[0].numpy()), view
        )
        drawn = np.asarray(pixels({"src": source}).convert("RGB")).astype(int)[..., 0] > 150
        numbers = [display.cut(w, view) for w in warped]
        at = [(k + 0.5) * n / m - 0.5 for k, n, m in zip(np.nonzero(drawn), numbers[0].shape, drawn.shape)]
        inside = np.all([(a > 4) & (a < n - 5) for a, n in zip(at, numbers[0].shape)], axis=0)
        at = [a[inside] for a in at]
        found = [ndimage.map_coordinates(n, at, order=1) for n in numbers]
        assert inside.sum() > 3000
        return (np.min([np.abs(f - np.round(f)) for f in found], axis=0) < 0.1).mean()

    assert covered(u) > 0.99
    assert covered(-u) < 0.6 and covered(0 * u) < 0.6  # another map would be seen


def test_displacements_turn_with_their_axes():
    """A warp of the turned arrays is the turned warp."""
    shape, affine = (12, 15, 17), np.zeros((4, 4))
    affine[[1, 2, 0, 3], [0, 1, 2, 3]] = [-2, 2, -2, 1]
    image, u = bump(shape)
    display = pictures.Display(Grid(shape, affine))

    def warp(moving, displacement):
        return fields.warp(
            torch.from_numpy(moving.copy())[None, None], torch.from_numpy(displacement.copy())[None]
        )

    turned = warp(display.scalars(image), display.vectors(u))[0, 0].numpy()
    np.testing.assert_allclose(turned, display.scalars(warp(image, u)[0, 0].numpy()), atol=1e-5)


@pytest.mark.parametrize("shape", [(20, 23, 18), (41, 36)])
def test_folds_are_yellow_and_counted(page, shape):
    determinant = np.ones(shape, np.float32)
    determinant[(3,) * len(shape)] = -0.5
    determinant[(5,) * len(shape)] = 2.0
    found = page(good_case(shape, determinant=determinant, folding={"folding_percent": 0.01}))
    assert "One voxel folds, marked in yellow." in found.text
    maps = [pixels(f["img"]).convert("RGB") for f in found.frames if f["img"]["alt"].startswith("Map of")]
    yellow = [int((np.asarray(m) == (255, 212, 0)).all(-1).sum()) for m in maps]
    if len(shape) == 3:  # three slices by content, and three through the fold
        assert len(maps) == 6 and min(yellow[3:]) > 0
        assert "It is at (6.0, 6.0, 6.0) mm in RAS coordinates." in found.text
    else:
        assert yellow == [1]


@pytest.mark.parametrize("size", [(30, 30), (8, 8)])
def test_colours_of_the_jacobian(size):
    picture = np.ones((30, 30))
    picture[:10], picture[-10:] = 0.6, 1.4
    picture[15, 15] = 0.0
    picture[15, 4:8] = np.nan
    shown = np.asarray(pixels({"src": pictures.jacobian(picture, 0.5, size)}).convert("RGB")).astype(int)
    n = size[0]
    top, middle, bottom = shown[n // 8, n // 2], shown[n // 2, -1], shown[-n // 8, n // 2]
    assert top[2] > top[0] + 80 and bottom[0] > bottom[2] + 80  # shrunk space blue, grown space red
    assert middle.min() > 240
    assert (shown == (255, 212, 0)).all(-1).sum() == 1
    assert pictures.reach(picture) == 0.5
    assert pictures.reach(np.full((4, 4), np.nan)) == 1.0
    assert pictures.reach(np.ones((4, 4))) == 0.05


@pytest.mark.parametrize("name", ["fixed_image", "before", "warped", "determinant", "displacement"])
def test_an_array_of_another_grid_is_refused_before_anything_is_written(tmp_path, name):
    case = good_case()
    with pytest.raises(
        ValueError, match=rf"^{name}: expected the shape \(.*20, 23, 18\) of the working grid"
    ):
        write(tmp_path / "report.html", dataclasses.replace(case, **{name: np.zeros((4, 4, 4))}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(20, 23, 18), (41, 36)])
def test_values_that_are_not_finite_do_not_stop_the_report(page, shape):
    case = good_case(shape)
    u = case.displacement.copy()
    u[..., :5] = np.nan
    determinant = case.determinant.copy()
    determinant[..., :6] = np.nan
    changes = dict(displacement=u, determinant=determinant, warped=np.full(shape, np.nan, np.float32))
    found = page(dataclasses.replace(case, folding={"folding_percent": np.nan}, **changes))
    assert "The map is not finite everywhere" in found.text
    nothing = np.zeros(shape, np.float32)
    empty = dict(
        fixed_image=nothing, before=nothing, warped=nothing, displacement=nothing[None].repeat(len(shape), 0)
    )
    page(dataclasses.replace(case, determinant=nothing + 1, **empty))


@pytest.mark.filterwarnings("error")
def test_the_style_of_the_caller_does_not_touch_the_pictures(tmp_path):
    plain, styled = tmp_path / "plain.html", tmp_path / "styled.html"
    write(plain, good_case())
    with matplotlib.rc_context(
        {"figure.constrained_layout.use": True, "axes.grid": True, "image.cmap": "gray"}
    ):
        write(styled, good_case())
    assert plain.read_bytes() == styled.read_bytes()


def test_a_large_grid_makes_a_small_file(tmp_path):
    shape = (128, 128, 128)
    rng = np.random.default_rng(0)
    image = rng.random(shape, dtype=np.float32)
    u = np.stack([np.sin(np.arange(128, dtype=np.float32) / 9)[None, None] + 0 * image] * 3)
    arrays = dict(
        fixed_image=image, before=image[::-1], warped=image[:, ::-1], displacement=u, determinant=0.5 + image
    )
    write(tmp_path / "report.html", good_case(grid=Grid(shape, np.eye(4)), **arrays))
    assert (tmp_path / "report.html").stat().st_size < 3e6


def test_colours_have_contrast():
    """WCAG AA: 4.5 to 1 for text, in both modes."""
    css = (ROOT / "tvf_core/scans/report/report.css").read_text("utf-8")
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w{6})", part)) for part in css.split("@media")[:2])
    assert len(light) == len(dark) > 10

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        parts = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot(parts, [0.2126, 0.7152, 0.0722])

    pairs = [(text, "page") for text in ("text", "muted", "link", "worse")]
    pairs += [("text", "panel"), ("bad-text", "bad"), ("good-text", "good")]
    for mode in (light, dark):
        for one, other in pairs:
            low, high = sorted(luminance(mode[name]) for name in (one, other))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (one, other)


def test_an_installed_package_has_the_style_and_the_script():
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"][
        "package-data"
    ]
    others = [f for f in (ROOT / "tvf_core").rglob("*") if f.is_file() and f.suffix not in (".py", ".pyc")]
    assert len(others) >= 2
    for file in others:
        package = ".".join(file.relative_to(ROOT).parts[:-1])
        assert any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns[package]), file


class Files:
    """A pair of ramps with the transforms of a known map: ``moving(x) -> moving(M (x + d))``, in RAS."""

    def __init__(self, folder, dim, flat=False):
        self.folder, self.dim = folder, dim
        turn = np.deg2rad(8)
        self.matrix = np.eye(dim + 1)
        self.matrix[:2, :2] = [[np.cos(turn), -np.sin(turn)], [1.1 * np.sin(turn), np.cos(turn)]]
        self.matrix[:dim, dim] = [1.5, -2.0, 0.7][:dim]
        self.shift = np.array([0.8, -1.3, 0.6])[:dim]
        self.slope = np.array([1.0, -0.7, 0.45])[:dim]
        lps = np.diag([-1.0, -1.0, *[1.0] * (dim - 1)])
        (folder / "out").mkdir()
        grids = {
            "fixed": self.grid([1.0, 1.2, 1.1], (22, 20, 18)),
            "moving": self.grid([0.9, 1, 1.3], (40, 38, 34)),
        }
        for name, (affine, shape) in grids.items():
            world = self.world(affine, shape)
            values = (world @ self.slope).astype(np.float32)
            self.save(folder / f"{name}.nii.gz", values[..., None] if flat else values, affine)
        labels = (self.world(*grids["moving"])[..., 0] > 0).astype(np.uint8)
        self.save(folder / "labels.nii.gz", labels[..., None] if flat else labels, grids["moving"][0])
        affine, shape = grids["fixed"]
        self.fixed_world = self.world(affine, shape)
        for name, sign in ((WARP, 1), (INVERSE_WARP, -1)):
            field = np.broadcast_to(sign * self.shift * np.array([-1, -1, 1])[:dim], (*shape, dim)).astype(
                np.float32
            )
            field = field.reshape(*shape, *[1] * (4 - dim), dim)
            self.save(folder / "out" / name, field, affine, vector=True)
        m = lps @ self.matrix @ lps
        parameters = np.r_[m[:dim, :dim].ravel(), m[:dim, dim]][:, None]
        content = {f"AffineTransform_double_{dim}_{dim}": parameters, "fixed": np.zeros((dim, 1))}
        scipy.io.savemat(folder / "out" / AFFINE, content, format="4")
        self.points = np.array([[1.0, 2.0, 0.5], [-2.0, 1.5, 1.0]])[:, :dim]  # moving, LPS
        rows = [",".join("xyz"[:dim]), *(",".join(map(str, p)) for p in self.points)]
        (folder / "points.csv").write_text("\n".join(rows) + "\n", "utf-8")

    def grid(self, spacing, shape):
        affine = np.eye(4)
        affine[:3, :3] = np.diag(spacing)
        affine[: self.dim, 3] = -np.multiply(spacing, shape)[: self.dim] / 2
        return affine, shape[: self.dim]

    def world(self, affine, shape):
        index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
        return index @ affine[: self.dim, : self.dim].T + affine[: self.dim, 3]

    @staticmethod
    def save(path, values, affine, vector=False):
        image = nib.Nifti1Image(values, affine)
        if vector:
            image.header.set_intent(1007)
        image.header.set_xyzt_units("mm")
        image.set_qform(affine, 1)
        image.set_sform(affine, 1)
        nib.save(image, path)

    def wanted(self):
        """Warped ramp, and the points moved to the fixed image, in closed form."""
        d = self.dim
        there = (self.fixed_world + self.shift) @ self.matrix[:d, :d].T + self.matrix[:d, d]
        inverse = np.linalg.inv(self.matrix)
        sign = np.array([-1, -1, 1])[:d]
        back = (self.points * sign) @ inverse[:d, :d].T + inverse[:d, d] - self.shift
        return there, back * sign


@pytest.mark.parametrize("dim, flat", [(3, False), (2, False), (2, True)])
def test_the_simpleitk_program_repeats_the_result(tmp_path, monkeypatch, dim, flat):
    sitk = pytest.importorskip("SimpleITK")
    files = Files(tmp_path, dim, flat)
    monkeypatch.chdir(tmp_path)
    options = dict(labels="labels.nii.gz", points="points.csv", moving_flat=flat, fixed_flat=flat)
    made = commands("moving.nii.gz", "fixed.nii.gz", "out", dim, **options)
    [program] = [c.text for c in made if c.program == "SimpleITK"]
    names = {}
    exec(compile(program, "program", "exec"), names)
    inner = (slice(4, -4),) * dim
    there, back = files.wanted()
    warped = sitk.GetArrayFromImage(sitk.ReadImage("warped.nii.gz")).T
    np.testing.assert_allclose(warped[inner], (there @ files.slope)[inner], atol=1e-3)
    labels = sitk.GetArrayFromImage(sitk.ReadImage("labels_warped.nii.gz")).T
    clear = np.abs(there[..., 0]) > 0.6  # within half a voxel of the border the nearest may be either
    np.testing.assert_array_equal(labels[inner][clear[inner]], (there[..., 0] > 0)[inner][clear[inner]])
    np.testing.assert_allclose(names["moved"], back, atol=1e-4)


@pytest.mark.parametrize("dim", [3, 2])
def test_the_lines_for_ants_name_the_right_transforms_in_the_right_order(tmp_path, monkeypatch, dim):
    ants = pytest.importorskip("ants")
    pandas = pytest.importorskip("pandas")
    files = Files(tmp_path, dim)
    monkeypatch.chdir(tmp_path)
    made = commands("moving.nii.gz", "fixed.nii.gz", "out", dim, labels="labels.nii.gz", points="points.csv")
    image, labels, points = (shlex.split(c.text) for c in made if c.program == "ANTs")
    assert {line[line.index("-d") + 1] for line in (image, labels, points)} == {str(dim)}
    for line, name in ((image, "moving.nii.gz"), (labels, "labels.nii.gz"), (points, "points.csv")):
        assert line[line.index("-i") + 1] == name

    def chain(line):
        listed = [line[k + 1] for k, word in enumerate(line) if word == "-t"]
        return [t.strip("[]").removesuffix(",1") for t in listed], [t.startswith("[") for t in listed]

    fixed, moving = ants.image_read("fixed.nii.gz"), ants.image_read("moving.nii.gz")
    inner = (slice(4, -4),) * dim
    there, back = files.wanted()
    names, inverted = chain(image)
    assert chain(labels) == (names, inverted)
    warped = ants.apply_transforms(fixed, moving, names, whichtoinvert=inverted).numpy()
    np.testing.assert_allclose(warped[inner], (there @ files.slope)[inner], atol=1e-3)
    names, inverted = chain(points)
    frame = pandas.DataFrame(files.points, columns=list("xyz"[:dim]))
    moved = ants.apply_transforms_to_points(dim, frame, names, whichtoinvert=inverted)
    np.testing.assert_allclose(moved[list("xyz"[:dim])], back, atol=1e-4)


def test_without_an_affine_no_line_names_one():
    made = commands("moving.nii.gz", "fixed.nii.gz", "out", 3, affine=False)
    assert made and not [c for c in made if AFFINE in c.text or "affine" in c.text.lower()]
    assert {c.program for c in made} == {"tvf", "ANTs", "SimpleITK", "Slicer"}
    compile(next(c.text for c in made if c.program == "SimpleITK"), "program", "exec")


def test_paths_are_quoted():
    odd = 'it\'s "my" [scan].nii.gz'
    made = commands(odd, odd, "out folder", 3)
    for line in (c.text for c in made if c.program in ("tvf", "ANTs") and "POINTS" not in c.text):
        words = shlex.split(line)
        assert words[words.index("-r") + 1] == odd
        assert f"out folder/{WARP}" in words
    compile(next(c.text for c in made if c.program == "SimpleITK"), "program", "exec")
