"""The user's original files: found below a folder with links, and told apart by what they hold."""

import os
import shutil
import zipfile

import numpy as np
import pytest
import standins

from data_download import oasis, originals, rafd
from tvf_core.data import prepared


def names(folder):
    return [file.relative_to(folder).as_posix() for file in originals.below(folder, folder / "unused")]


def write(file, content=b"x"):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def test_links_that_lead_in_a_circle_list_every_file_once(tmp_path):
    for name in ("imagesTr/1", "labelsTr/1", "b/c/2"):
        write(tmp_path / name)
    (tmp_path / "b" / "c" / "up").symlink_to(tmp_path)  # a circle
    (tmp_path / "a").symlink_to(tmp_path / "b")  # comes first by name, but has the files of the real folder
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert names(tmp_path) == ["b/c/2", "imagesTr/1", "labelsTr/1"]


def test_a_link_to_a_folder_elsewhere_is_followed_also_from_a_linked_folder(tmp_path):
    write(tmp_path / "disk" / "one" / "1")
    write(tmp_path / "other disk" / "2")
    (tmp_path / "disk" / "one" / "more").symlink_to(tmp_path / "other disk")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "imagesTr").symlink_to(tmp_path / "disk" / "one")
    (tmp_path / "named").symlink_to(tmp_path / "here")
    assert names(tmp_path / "named") == ["imagesTr/1", "imagesTr/more/2"]


def test_hidden_files_pipes_and_links_to_nothing_are_left_out(tmp_path):
    write(tmp_path / "1")
    write(tmp_path / "._1")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path) == ["1"]


def test_the_hash_is_of_names_and_contents_whatever_size_and_date_say(tmp_path):
    first, second = write(tmp_path / "a" / "1", b"left"), write(tmp_path / "a" / "2", b"right")
    known, date = originals.digest([first, second], False), first.stat().st_mtime_ns
    assert originals.digest([first, second], False) == known
    write(first, b"lost")
    os.utime(first, ns=(date, date))
    changed = originals.digest([first, second], False)
    write(first, b"leftr")  # the border between two files counts
    write(second, b"ight")
    moved = originals.digest([first, second], False)
    write(first, b"left")
    renamed = originals.digest([first, write(tmp_path / "a" / "3", b"right")], False)
    assert len({known, changed, moved, renamed}) == 4


def zipped(file, folder):
    with zipfile.ZipFile(file, "w") as archive:  # stored, not compressed: the size does not tell
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder))
    return file


def test_another_archive_of_the_same_name_and_size_is_unpacked_again(tmp_path):
    archive, unpacked = tmp_path / "x.zip", tmp_path / "unpacked"
    for content in (b"old", b"new"):
        write(tmp_path / "in" / "file", content)
        zipped(archive, tmp_path / "in")
        os.utime(archive, (10**9, 10**9))
        [file] = originals.below(archive, unpacked, progress=False)
        assert file.read_bytes() == content
    write(unpacked / "mark")  # the same archive again: nothing is unpacked
    assert unpacked / "mark" in originals.below(archive, unpacked, progress=False)


@pytest.mark.parametrize("way", ["folder", "archive"])
def test_a_photograph_that_changed_without_its_size_is_prepared_anew(way, tmp_path):
    source = standins.rafd(tmp_path / "in" / "RafD", cameras_too=False)
    given = lambda: source if way == "folder" else zipped(tmp_path / "RafD.zip", source)  # noqa: E731
    file, other = (source / standins.rafd_name(*key) for key in ((1, "angry"), (2, "happy")))
    images = [file.read_bytes(), other.read_bytes()]
    padded = [
        x.ljust(max(map(len, images)), b"\0") for x in images
    ]  # readers of JPEG ignore what follows the image
    prepared_images = []
    for content in padded:
        file.write_bytes(content)
        os.utime(file, (10**9, 10**9))
        prepared_images.append(np.load(rafd.prepare(given(), tmp_path, progress=False) / prepared.IMAGES))
    first, second = prepared_images
    assert np.array_equal(first[1:], second[1:]) and not np.array_equal(first[0], second[0])


def test_a_scan_that_changed_without_its_size_is_prepared_anew(tmp_path):
    source = standins.pickles(tmp_path / "in", [1, 2, 438, 439])
    folder = oasis.prepare(source, tmp_path, partial=True, progress=False, workers=1)
    before = np.load(folder / prepared.IMAGES)
    image, labels = standins.brain(1)
    standins.write_pickle(source / "All" / "p_0001.pkl", image[::-1][::-1] * np.float32(0.5), labels)
    oasis.prepare(source, tmp_path, partial=True, progress=False, workers=1)
    after = np.load(folder / prepared.IMAGES)
    assert np.array_equal(after[1:], before[1:]) and not np.array_equal(after[0], before[0])


@pytest.mark.parametrize("before", ["nothing", "a damaged archive", "an unpacked one, since replaced"])
def test_a_folder_of_the_user_is_neither_taken_for_the_archive_nor_deleted(before, tmp_path):
    root = tmp_path / "root"
    unpacked = root / "oasis_originals"
    write(tmp_path / "in" / "file")
    first, damaged = zipped(tmp_path / "first.zip", tmp_path / "in"), write(tmp_path / "damaged.zip")
    second = zipped(tmp_path / "second.zip", write(tmp_path / "in 2" / "other").parent)
    if before == "a damaged archive":
        with pytest.raises(ValueError, match=r"damaged\.zip: not a"):
            originals.below(damaged, unpacked, progress=False)
    elif before != "nothing":
        originals.below(first, unpacked, progress=False)
        shutil.rmtree(unpacked)
    write(unpacked / "mine")
    for archive in (first, first, second):
        with pytest.raises(FileExistsError, match="oasis_originals is there already") as error:
            originals.below(archive, unpacked, progress=False)
        assert "\n" not in str(error.value)
        assert [f.relative_to(root).as_posix() for f in root.rglob("*")] == [
            "oasis_originals",
            "oasis_originals/mine",
        ]
