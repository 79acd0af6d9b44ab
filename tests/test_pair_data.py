"""A data set of pairs is checked when it is made: what it takes and keeps, and what it refuses in one line.

The rules are written out here once more, in a slow form, and tried on every kind of array.
"""

import itertools
import math

import numpy as np
import pytest
import torch

from tvf_core import data
from tvf_core.data import folder_checks, prepared
from tvf_core.data.pairs import PairData, in_size

INTEGERS = [
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    ">i2",
    ">u4",
    "ulonglong",
]
IMAGE_TYPES = ["bool", *INTEGERS, "float16", "float32", "float64", ">f4", "longdouble", "complex64", "O"]
RANGES = {
    "0 to 1": (0, 1),
    "0 to 0.6": (0, 0.6),
    "0 to 100": (0, 100),
    "-1 to 1": (-1, 1),
    "0 to 4000": (0, 4000),
    "NaN": (0, math.nan),
    "infinite": (0, math.inf),
}
SHAPES = [(3,), (3, 5), (3, 1, 1), (3, 5, 6), (2, 0, 4), (3, 1, 4, 3), (2, 9, 8, 7), (1, 2, 2, 2, 2)]
PAIRS = [(0, 0)]


def one_line(error) -> str:
    message = str(error.value)
    assert "\n" not in message and len(message) < 400, message
    return message


def image_array(kind, span, shape):
    """Values from one end of the range to the other, or None where the type cannot hold them."""
    low, high = RANGES[span]
    kind = np.dtype(kind)
    if kind.kind in "biu":
        least, most = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
        if not (math.isfinite(high) and float(high).is_integer() and least <= low and high <= most):
            return None
    values = (
        np.linspace(low, high, math.prod(shape)) if math.isfinite(high) else np.full(math.prod(shape), high)
    )
    return values.reshape(shape).astype(kind)


def takes_images(array) -> bool:
    if array.ndim not in (3, 4) or array.size == 0:
        return False
    if array.dtype == np.uint8:
        return array.max() != 1  # zeros and ones are meant as intensities
    return array.dtype.kind == "f" and all(0 <= float(v) <= 1 for v in array.ravel())  # NaN: no


def are_bytes_of(stored, array) -> bool:
    """Whether every byte is the nearest one; halves may go either way."""
    scale = 1 if array.dtype == np.uint8 else 255
    return all(abs(int(b) - scale * float(v)) <= 0.5 + 1e-4 for b, v in zip(stored.ravel(), array.ravel()))


HELD = [(k, r) for k in IMAGE_TYPES for r in RANGES if image_array(k, r, (3, 4, 5)) is not None]


@pytest.mark.parametrize("kind, span", HELD)
def test_images_are_kept_as_bytes_or_refused_and_written_likewise(kind, span, tmp_path):
    for number, shape in enumerate(SHAPES):
        array = image_array(kind, span, shape)
        for form in (array, list(array)):
            folder = tmp_path / f"{number}{type(form).__name__}"
            if takes_images(array):
                part = PairData("x", "val", form, PAIRS)
                assert part.images.dtype == np.uint8 and are_bytes_of(part.images, array)
                assert part.shape == shape[1:] and part.names == [str(k) for k in range(shape[0])]
                prepared.write(folder, form, {"val": PAIRS})
                np.testing.assert_array_equal(np.load(folder / "images.npy"), part.images)
                continue
            with pytest.raises(ValueError) as by_itself:
                PairData("x", "val", form, PAIRS)
            with pytest.raises(ValueError) as written:
                prepared.write(folder, form, {"val": PAIRS})
            assert one_line(by_itself) == f"x: {one_line(written)}"
            assert not list(tmp_path.glob(f"*{folder.name}*"))


def test_a_refused_type_says_how_to_scale():
    with pytest.raises(ValueError) as told:
        PairData("scans", "test", [np.linspace(-1024, 4000, 30).reshape(5, 6).astype(np.int16)], [])
    message = one_line(told)
    assert message.startswith(
        "scans: image 0: int16 with intensities from -1024 to 4000, expected float in [0, 1]"
    )
    x = np.linspace(-32768, 32767, 30).reshape(5, 6).astype(np.int16)
    scope = {"x": x}
    exec(message.split("such as by ")[1], scope)  # what it says works, also where int16 would overflow
    part = PairData("scans", "test", scope["x"][None], [(0, 0)])
    np.testing.assert_array_equal(part.images[0], np.round((x.astype(float) + 32768) / 65535 * 255))


def test_a_pair_may_stand_twice_in_training_only():
    images = np.zeros((2, 5, 6), np.uint8)
    assert len(PairData("x", "train", images, [(0, 1), (0, 1)])) == 2
    for split in ("val", "test"):
        with pytest.raises(ValueError, match=f"x: pairs: the pair 0->1 of {split} stands there twice"):
            PairData("x", split, images, [(0, 1), (1, 0), (0, 1)])


def test_float_images_come_out_as_they_went_in():
    images = np.random.default_rng(0).random((2, 6, 7), np.float32)
    item = PairData("x", "train", images, [(0, 1)])[0]
    for role, image in zip(("moving", "fixed"), images):
        assert (
            item[role].dtype == torch.float32 and abs(item[role][0].numpy() - image).max() <= 0.5 / 255 + 1e-6
        )


LABELS = {
    "few": (0, 1, 5),
    "gaps": (0, 1000, 2035),
    "Allen": (0, 614454277),
    "beyond int32": (2**31 + 5, 2**63 - 1),
}


def label_array(kind, numbers, shape=(2, 5, 6)):
    kind = np.dtype(kind)
    if kind.kind in "iu" and max(numbers) > np.iinfo(kind).max:
        return None
    return np.resize(np.array(numbers, np.uint64), shape).astype(kind)


def smallest(number: int) -> str:
    return next(f"uint{8 * size}" for size in (1, 2, 4, 8) if number < 256**size)


@pytest.mark.parametrize(
    "kind, numbers", [(k, n) for k in INTEGERS for n in LABELS if label_array(k, LABELS[n]) is not None]
)
def test_labels_of_every_type_come_back_exactly(kind, numbers, tmp_path):
    labels = label_array(kind, LABELS[numbers])
    images = np.zeros(labels.shape, np.uint8)
    expected = [[[int(v) for v in row] for row in one] for one in labels]
    occurring = sorted({*itertools.chain(*itertools.chain(*expected))} - {0})
    np.save(tmp_path / "labels.npy", labels)
    mapped = np.load(tmp_path / "labels.npy", mmap_mode="r")
    folder = prepared.write(tmp_path / "written", images, {"val": [(0, 1)]}, labels=labels)
    stored = np.load(folder / "labels.npy")
    assert stored.dtype == smallest(max(occurring)) and stored.tolist() == expected
    by_hand = tmp_path / "by_hand"
    by_hand.mkdir()
    np.save(by_hand / "images.npy", images)
    np.save(by_hand / "labels.npy", labels)
    (by_hand / "dataset.json").write_text("{}")
    (by_hand / "pairs_val.csv").write_text("moving,fixed\n0,1\n")
    made = [PairData("x", "val", images, [(0, 1)], labels=form) for form in (labels, mapped, list(labels))]
    made += [data.load(folder, "val"), data.load(by_hand, "val")]
    for part in made:
        assert part.label_names == {number: f"label {number}" for number in occurring}
        batch = part.batch([0])
        [loaded] = data.batches(part, [[(0, 1)]])
        for of_batch in (batch, loaded):
            assert of_batch["moving_labels"].dtype == torch.int64
            assert of_batch["moving_labels"][0, 0].tolist() == expected[0]
            assert of_batch["fixed_labels"][0, 0].tolist() == expected[1]
        assert part.pair_bytes == sum(x.numel() * x.element_size() for x in part.stored(0, 1).values())
    assert [part.labels.dtype for part in made[:2]] == [labels.dtype] * 2
    assert np.shares_memory(made[1].labels, mapped)


def test_workers_bring_labels_of_every_type():
    for kind in ("int16", "uint16", "uint32", "uint64", ">i4"):
        labels = label_array(kind, (0, 1000, 2035))
        part = PairData("x", "train", np.zeros(labels.shape, np.uint8), [(0, 1)], labels=labels)
        [batch] = data.batches(part, [[(0, 1), (1, 0)]], workers=1)
        assert batch["fixed_labels"][:, 0].tolist() == labels[[1, 0]].tolist()


@pytest.mark.parametrize("kind", ["bool", "float16", "float32", "float64", ">f4", "tensor"])
def test_whole_numbers_in_other_types_become_labels(kind, tmp_path):
    values = np.array([[[0, 1], [1, 0]]] * 2)
    labels = torch.tensor(values, dtype=torch.float32) if kind == "tensor" else values.astype(kind)
    part = PairData("x", "train", np.zeros((2, 2, 2), np.uint8), [(0, 1)], labels=labels)
    assert part.labels.dtype == np.uint8 and part.labels.tolist() == values.tolist()
    folder = prepared.write(tmp_path / "x", np.zeros((2, 2, 2)), {"train": [(0, 1)]}, labels=labels)
    assert np.load(folder / "labels.npy").tolist() == values.tolist()


WRONG_LABELS = {  # values of one label map, words of the message
    "fractions": ([0.0, 0.9997, 1.9997], ["whole numbers", "float64", "nearest"]),
    "NaN": ([0.0, math.nan, 1.0], ["whole numbers"]),
    "infinite": ([0.0, math.inf, 1.0], ["whole numbers"]),
    "negative": ([0, -3, 1], ["label map 1", "-3 to 1"]),
    "negative float": ([0.0, -3.0, 1.0], ["label map 1", "-3 to 1"]),
    "beyond int64": (np.array([0, 2**63, 1], np.uint64), [str(2**63), "2**63 - 1"]),
    "beyond int64, as float": ([0.0, 2.0**63, 1.0], [str(2**63), "2**63 - 1"]),
    "text": (["a", "b", "c"], ["whole numbers", "<U1"]),
    "complex": ([0j, 1j, 0j], ["whole numbers", "complex128"]),
}


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("case", WRONG_LABELS)
def test_what_are_no_labels_is_refused(case, as_list, tmp_path):
    values, words = WRONG_LABELS[case]
    one = np.resize(np.asarray(values), (3, 4))
    labels = [np.zeros_like(one) if one.dtype.kind != "U" else one, one]
    images = np.zeros((2, 3, 4), np.uint8)
    for make in (
        lambda given: PairData("x", "train", images, [(0, 1)], labels=given),
        lambda given: prepared.write(tmp_path / "x", images, {"train": [(0, 1)]}, labels=given),
    ):
        with pytest.raises(ValueError) as told:
            make(labels if as_list else np.stack(labels))
        assert not [word for word in words if word not in one_line(told)], told.value
    assert not list(tmp_path.iterdir())


def test_mixed_types_of_label_maps_keep_their_numbers():
    maps = [np.full((2, 2), 2**60 + 1), np.full((2, 2), 3, np.uint8), np.full((2, 2), 2**63 - 1, np.uint64)]
    part = PairData("x", "train", np.zeros((3, 2, 2), np.uint8), [(0, 2)], labels=maps)
    assert [int(one[0, 0]) for one in part.labels] == [2**60 + 1, 3, 2**63 - 1]


IMAGES, ONES = np.zeros((3, 4, 5), np.uint8), np.ones((3, 4, 5), np.uint8)
POINTS = np.array([[[0, 0], [3, 4]]] * 3)  # two landmarks of each image


def points(image, number, place):
    """``POINTS`` with one landmark elsewhere."""
    changed = POINTS.astype(float)
    changed[image, number] = place
    return changed


WRONG = {  # changes of the arguments, words of the message
    "one image alone": ({"images": np.zeros((4, 5))}, ["(4, 5)", "(images, *space)"]),
    "images of two shapes": (
        {"images": [np.zeros((4, 5)), np.zeros((5, 4))]},
        ["(4, 5)", "(5, 4)", "one shape"],
    ),
    "no images": ({"images": []}, ["images", "at least one"]),
    "nothing": ({"images": None}, ["images", "NoneType"]),
    "a number": ({"images": np.float32(0.5)}, ["images", "float32"]),
    "rows of many lengths": ({"images": [[[1.0, 2.0], [3.0]]]}, ["image 0", "an array"]),
    "images that need a gradient": ({"images": torch.zeros(3, 4, 5, requires_grad=True)}, ["images", "grad"]),
    "labels of another shape": ({"labels": ONES[:, :3]}, ["(3, 3, 5)", "(3, 4, 5)", "do not fit"]),
    "labels of too many": ({"labels": np.ones((4, 4, 5), int)}, ["(4, 4, 5)", "do not fit"]),
    "one label map alone": ({"labels": ONES[0]}, ["(4, 5)", "do not fit"]),
    "a pair without labels": ({"labels": ONES[:2]}, ["image 2", "first 2", "label map"]),
    "a label without a name": ({"labels": 7 * ONES, "label_names": {1: "rim"}}, ["7", "label_names"]),
    "names of labels that are not there": ({"label_names": {1: "rim"}}, ["label_names", "no effect"]),
    "background named": ({"labels": ONES, "label_names": {0: "air", 1: "rim"}}, ["label_names", "above 0"]),
    "a fraction named": ({"labels": ONES, "label_names": {1.0: "rim"}}, ["label_names", "whole"]),
    "a number beyond int64 named": (
        {"labels": ONES, "label_names": {1: "rim", 2**63: "far"}},
        ["label_names", "whole"],
    ),
    "one name twice": ({"labels": ONES, "label_names": {1: "rim", 2: "rim"}}, ["label_names", "same name"]),
    "landmarks of another rank": (
        {"landmarks": np.ones((3, 2, 3))},
        ["landmarks", "2) numbers", "(3, 2, 3)"],
    ),
    "the landmarks of one image": ({"landmarks": POINTS[0]}, ["landmarks", "all 3 images", "(2, 2)"]),
    "landmarks of too many": ({"landmarks": np.ones((4, 2, 2))}, ["all 3 images", "(4, 2, 2)"]),
    "landmarks of no image": ({"landmarks": POINTS[:0]}, ["landmarks", "(0, 2, 2)"]),
    "landmarks without points": ({"landmarks": POINTS[:, :0]}, ["landmarks", "(3, 0, 2)"]),
    "many and few landmarks": ({"landmarks": [POINTS[0], POINTS[1, :1]]}, ["(2, 2)", "(1, 2)", "one shape"]),
    "landmarks in rows of many lengths": ({"landmarks": [[[1, 2], [3]]]}, ["landmarks of image 0", "array"]),
    "landmarks that are texts": ({"landmarks": POINTS.astype(str)}, ["landmarks", "numbers", "<U"]),
    "a name for landmarks": ({"landmarks": "pupils"}, ["landmarks", "str"]),
    "a landmark below the image": (
        {"landmarks": points(2, 1, (3.6, 4))},
        ["point 1 of image 2", "[3.59", "outside the image of 4 x 5", "row, then column"],
    ),
    "a landmark before the image": (
        {"landmarks": points(0, 1, (2, -0.6))},
        ["point 1 of image 0", "outside"],
    ),
    "landmarks as x and y": (
        {"landmarks": POINTS[..., ::-1]},
        ["point 1 of image 0", "[4.0, 3.0]", "row, then"],
    ),
    "a landmark that is not there": (
        {"landmarks": points(1, 0, math.nan)},
        ["point 0 of image 1", "nan", "only points that every image has"],
    ),
    "an infinite landmark": ({"landmarks": points(1, 0, math.inf)}, ["point 0 of image 1", "inf"]),
    "a pair without landmarks": (
        {"landmarks": POINTS[:2], "labels": ONES},
        ["image 2 has no landmark", "first 2", "leave out the landmarks"],
    ),
    "a scale without landmarks": ({"landmark_scale": (0, 1)}, ["landmark_scale", "no effect"]),
    "one landmark as scale": (
        {"landmarks": POINTS, "landmark_scale": [0]},
        ["two different", "0 to 1", "[0]"],
    ),
    "a number as scale": ({"landmarks": POINTS, "landmark_scale": 1}, ["two different", "[1]"]),
    "a landmark twice as scale": (
        {"landmarks": POINTS, "landmark_scale": (1, 1)},
        ["two different", "[1, 1]"],
    ),
    "a scale of no landmark": ({"landmarks": POINTS, "landmark_scale": (0, 2)}, ["0 to 1", "[0, 2]"]),
    "a scale of fractions": ({"landmarks": POINTS, "landmark_scale": (0.0, 1.0)}, ["0 to 1", "[0.0, 1.0]"]),
    "a text as scale": ({"landmarks": POINTS, "landmark_scale": "01"}, ["landmark_scale", "[01]"]),
    "a scale of length 0": (
        {"landmarks": points(2, 1, (0, 0)), "landmark_scale": (0, 1)},
        ["landmark_scale", "image 2", "same place"],
    ),
    "names": ({"names": ["a", "b"]}, ["names", "3 images", "got 2"]),
    "a name twice": ({"names": ["a", "b", "a"]}, ["two images", "'a'"]),
    "subjects": ({"subjects": ["a"]}, ["subjects", "3 images", "got 1"]),
    "a pair that is too far": ({"pairs": [(0, 1), (2, 3)]}, ["no image 3", "0 to 2"]),
    "a pair before the first": ({"pairs": [(0, -1)]}, ["no image -1", "0 to 2"]),
    "pairs of names": ({"pairs": [("0", "1")]}, ["(moving, fixed)", "[(0, 1), (1, 0)]"]),
    "pairs of fractions": ({"pairs": [(0.0, 1.0)]}, ["(moving, fixed)"]),
    "three of a pair": ({"pairs": [(0, 1, 2)]}, ["(moving, fixed)"]),
    "numbers for pairs": ({"pairs": [0, 1]}, ["(moving, fixed)"]),
    "split": ({"split": "all"}, ["split", "'all'", "test, train, val"]),
    "axes": ({"axes": "RRS"}, ["axes", "'RRS'"]),
    "a path as name": ({"name": "a/b"}, ["'a/b'", "plain"]),
    "no name": ({"name": ""}, ["''", "plain"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_in_one_line(case):
    change, words = WRONG[case]
    with pytest.raises(ValueError) as told:
        PairData(**{"name": "x", "split": "train", "images": IMAGES, "pairs": [(0, 2)]} | change)
    assert not [word for word in words if word not in one_line(told)], told.value


def test_the_usual_forms_are_taken():
    pairs = np.array(list(itertools.permutations(range(3), 2)))
    part = PairData("x", "train", torch.rand(3, 4, 5), pairs, np.array(["a", "b", "c"]), subjects=(1, 1, 2))
    assert part.pairs == [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    assert part.names == ["a", "b", "c"] and part.person(1) == "2" and part.pair_name(1) == "a->c"
    some = PairData("x", "train", (row for row in np.zeros((3, 4, 5))), [(0, 1)], labels=ONES[:2, ::-1, ::-1])
    assert some.take(0, 1)["moving_labels"].tolist() == [ONES[0].tolist()] and some.label_names == {
        1: "label 1"
    }
    assert len(PairData("x", "test", IMAGES, [])) == 0


def test_prepared_data_are_not_read_when_they_are_opened(tmp_path, monkeypatch):
    images = np.zeros((3, 4, 5), np.uint8)
    folder = prepared.write(tmp_path / "x", images, {"train": [(0, 2)]}, labels=2035 * ONES.astype(int))

    def read(*args):
        raise AssertionError("the arrays were read")

    for name in ("occurring", "_image_bytes", "_label_map"):
        monkeypatch.setattr(folder_checks, name, read)
    part = data.load(folder, "train")
    assert part.label_names == {2035: "label 2035"}
    for array in (part.images, part.labels):
        assert isinstance(array, np.memmap) or isinstance(array.base, np.memmap)
    np.save(tmp_path / "images.npy", images)
    PairData("y", "train", np.load(tmp_path / "images.npy", mmap_mode="r"), [(0, 1)])


@pytest.mark.parametrize("shape", [(4, 5), (5, 4, 7)])
def test_landmarks_are_taken_in_the_usual_forms_up_to_the_border(shape):
    rng, dim = np.random.default_rng(0), len(shape)
    images = np.zeros((3, *shape), np.uint8)
    values = rng.uniform(-0.5, np.array(shape) - 0.5, (3, 6, dim))
    values[0, 0], values[0, 1] = -0.5, np.array(shape) - 0.5  # the corners of the first and the last voxel
    forms = [values, values.astype(np.float32), values.tolist(), list(values), torch.tensor(values)]
    forms += [(one for one in values), values.astype(">f8")]
    for form in forms:
        part = PairData("x", "test", images, [(0, 2)], landmarks=form, landmark_scale=np.array([5, 0]))
        assert part.landmarks.dtype == np.float32 and part.landmark_scale == (5, 0)
        np.testing.assert_allclose(part.landmarks, values, rtol=1e-6)
    whole = PairData("x", "test", images, [(1, 0)], landmarks=np.floor(values[:2]).clip(0).astype(np.uint16))
    assert len(whole.landmarks) == 2 and whole.landmark_scale == ()
    assert PairData("x", "test", images, [(1, 2)]).landmarks is None
    moved = values.copy()
    moved[1, 2, 0] = 0.25
    prints = {
        PairData("x", "test", images, [(0, 1)], landmarks=given).fingerprint()
        for given in (None, values, moved, values[:2])
    }
    assert len(prints) == 4


def squares(edge):
    """Random square images with labels and landmarks."""
    rng = np.random.default_rng(edge)
    images = rng.integers(0, 256, (3, edge, edge), np.uint8)
    labels = rng.integers(0, 3, (3, edge, edge), np.uint8)
    places = rng.uniform(-0.5, edge - 0.5, (3, 4, 2))
    return PairData("x", "test", images, [(0, 2)], labels=labels, landmarks=places, landmark_scale=(0, 3))


@pytest.mark.parametrize("edge, size", [(12, 6), (12, 4), (12, 3), (15, 5), (15, 3), (12, 1)])
def test_smaller_images_are_means_of_blocks_and_keep_labels_and_landmarks_in_place(edge, size):
    part = squares(edge)
    small, width = in_size(part, size), edge // size
    assert small.shape == (size, size) and small.pairs == part.pairs and small.landmark_scale == (0, 3)
    for k, row, column in itertools.product(range(3), range(size), range(size)):
        block = part.images[k, row * width : (row + 1) * width, column * width : (column + 1) * width]
        mean = sum(int(value) for value in block.ravel()) / width**2
        assert abs(int(small.images[k, row, column]) - mean) <= 0.5
        middle = (row * width + width // 2, column * width + width // 2)
        assert small.labels[k, row, column] == part.labels[(k, *middle)]
    # In parts of the image's edge, from its border on, a landmark stays where it was.
    np.testing.assert_allclose((small.landmarks + 0.5) / size, (part.landmarks + 0.5) / edge, atol=1e-6)
    assert in_size(part, edge) is in_size(part, None) is part


@pytest.mark.parametrize(
    "shape, size, told",
    [
        ((12, 12), 5, "comes in 12 x 12 pixels, or smaller: 6, 4, 3, 2; got size=5"),
        ((12, 12), 0, "got size=0"),
        ((12, 12), 24, "got size=24"),
        ((45, 45), 22, "comes in 45 x 45 pixels, or smaller: 15, 9; got size=22"),
        ((13, 13), 6, "comes in one size, (13, 13); got size=6"),
        ((12, 10), 6, "comes in one size, (12, 10); got size=6"),
        ((12, 12, 12), 6, "comes in one size, (12, 12, 12); got size=6"),
    ],
)
def test_sizes_that_cannot_be_had_are_refused_and_no_wrong_one_is_offered(shape, size, told):
    part = PairData("x", "test", np.zeros((2, *shape), np.uint8), [(0, 1)])
    with pytest.raises(ValueError) as error:
        in_size(part, size)
    assert one_line(error).endswith(told) and one_line(error).startswith("x: ")
    offered = one_line(error).split("smaller: ")
    for number in offered[1].split(";")[0].split(", ") if len(offered) > 1 else ():
        assert in_size(part, int(number)).shape == (int(number),) * 2
