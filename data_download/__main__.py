"""The command ``python -m data_download``: it lists the data sets, fetches, checks and prepares them."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import textwrap
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tvf_core import metrics
from tvf_core.console import print_any_text
from tvf_core.data import PairData, folder_checks, prepared
from tvf_core.paths import data_root

from . import anatomies, catalogue, london, oasis, rafd
from .fetch import fetch


def before(folder: Path, split: str, progress: bool) -> str:
    """Mean Dice of a labelled split's pairs as they are, before any registration, in words."""
    data = PairData(folder.name, split, **prepared.read(folder, split))
    if not len(data):
        return f"{split}: no pairs"
    scores = []
    for k in tqdm(range(len(data)), desc="Dice before", disable=not progress):
        pair = data.batch([k])
        moving, fixed = pair["moving_labels"], pair["fixed_labels"]
        scores.append(np.nanmean(metrics.dice(moving, fixed, moving, list(data.label_names))))
    return (
        f"{split}: {len(data)} ordered pairs, mean Dice over {len(data.label_names)} structures "
        f"before registration {np.mean(scores):.3f} ± {np.std(scores):.3f}"
    )


def counts(folder: Path) -> str:
    """Numbers of images, and of pairs in every list, of a prepared data set; ``pairs_*.csv`` come first."""
    images = np.load(folder / prepared.IMAGES, mmap_mode="r", allow_pickle=False)
    lists = {"pairs": {}}
    for split in folder_checks.SPLITS:
        for file in sorted(folder.glob(prepared.pairs_file(split, "[!.]*"))):
            of_list = lists.setdefault(file.stem.removesuffix(f"_{split}"), {})
            of_list[split] = sum(1 for _ in open(file, encoding="utf-8")) - 1
    told = [f"{len(images)} images of {' x '.join(map(str, images.shape[1:]))}"]
    for listing, pairs in lists.items():
        numbers, splits = "/".join(map(str, pairs.values())), "/".join(pairs)
        told.append(f"{listing}: " * (listing != "pairs") + f"{numbers} ordered pairs ({splits})")
    return "; ".join(told)


def list_all(options) -> None:
    print(catalogue.table(options.root))


def get_anatomies(options) -> None:
    folder, what = anatomies.prepare(options.root, options.spacing, options.workers, options.progress)
    print(f"{folder}: {what}\n{counts(folder)}\n{before(folder, 'test', options.progress)}")


def get_london(options) -> None:
    folder, what = london.prepare(options.root, options.progress)
    print(f"{folder}: {what}\n{counts(folder)}\n{london.NOTICE}")


def get_oasis(options) -> None:
    if options.download and options.source:
        raise ValueError("--download fetches a release, --source names one that is here: give one of the two")
    if options.accept_terms and not options.download:
        raise ValueError(
            "--accept-terms has no effect without --download: add --download neurite, "
            "or leave it out and add --source"
        )
    if options.download and not options.accept_terms:
        print(oasis.ACCESS)
        raise ValueError("to download under these terms add --accept-terms")
    if options.download:
        [options.source], _ = fetch([oasis.NEURITE], options.root / "downloads", options.progress)
    _explain_or(oasis, options)
    folder = options.root / "oasis"
    if options.source:
        _told(
            folder,
            lambda: oasis.prepare(
                options.source, options.root, options.partial, options.progress, options.workers
            ),
        )
    print(
        f"{folder}: {counts(folder)}\n{oasis.subject_lists(folder)}\n"
        f"{before(folder, 'val', options.progress)} (the challenge's release: about 0.57)"
    )


def get_rafd(options) -> None:
    _explain_or(rafd, options)
    crop = tuple(options.crop) if options.crop else None
    folder = options.root / "rafd"
    if options.source:
        _told(folder, lambda: rafd.prepare(options.source, options.root, crop, options.progress))
    print(
        f"{folder}: {counts(folder)}\n"
        f"look at {folder / 'preview.png'}: does the crop fit the faces? If not: --crop LEFT TOP SIDE"
    )


def _told(folder: Path, prepare) -> None:
    """Prepare a data set, and say so where it was there already."""
    file = folder / prepared.ABOUT

    def written():
        return file.stat().st_mtime_ns if file.is_file() else 0

    before = written()
    prepare()
    if written() == before:
        print("already there and verified")


def _explain_or(module, options) -> None:
    """Without ``--source``: verify what is there, or explain how the data are got and stop."""
    if options.source:
        return
    for name in ("crop", "partial", "workers"):
        if getattr(options, name, None):
            raise ValueError(
                f"--{name.replace('_', '-')} has no effect without the data to prepare: add --source"
            )
    folder = options.root / options.command
    if prepared.about(folder) is None:
        print(module.ACCESS)
        root = f" --root {shlex.quote(str(options.root))}" * (
            options.root != Path(os.path.abspath(data_root()))
        )
        sys.exit(
            f"{options.command} is not in {options.root} yet; once you have it: "
            f"python -m data_download {options.command} --source FOLDER_OR_ARCHIVE{root}"
        )
    bad = prepared.damaged(folder)
    if bad:
        raise ValueError(f"{folder} is damaged ({', '.join(bad)}); prepare it again with --source")
    print("already there and verified")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    main = argparse.ArgumentParser(
        prog="python -m data_download",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Get, check and prepare the data sets. A command that was stopped continues when it is\n"
        "given again; a command that finds everything in its place only verifies it.",
        epilog=textwrap.dedent("""\
            environment:
              TVF_DATA         default of --root
              TVF_DATA_MIRROR  take the files from this folder instead of the network"""),
    )
    commands = main.add_subparsers(
        dest="command", required=True, metavar="{list,anatomies,london,oasis,rafd}"
    )

    def command(name, run, text, description=""):
        sub = commands.add_parser(
            name,
            help=text,
            description=description or text,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        sub.add_argument(
            "--root", type=Path, default=data_root(), help="folder of the data sets (default: %(default)s)"
        )
        sub.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bars")
        sub.set_defaults(run=run)
        return sub

    command("list", list_all, "every data set: size, terms, what it is for, whether it is here")
    sub = command(
        "anatomies",
        get_anatomies,
        "20 real anatomies as T1-like images (no permission needed; 32 MB)",
        anatomies.__doc__,
    )
    sub.add_argument(
        "--spacing", type=float, default=2.5, help="voxel spacing: 1, 2 or 2.5 mm (default: %(default)s)"
    )
    sub.add_argument("--workers", type=int, default=0, help="number of processes (default: one per core)")
    command(
        "london",
        get_london,
        "102 real faces, neutral and smiling, with landmarks (no permission needed; 95 MB)",
        f"{london.__doc__}\n{london.NOTICE}",
    )
    sub = command(
        "oasis",
        get_oasis,
        "OASIS, the paper's brains: Learn2Reg's, neurite's or TransMorph's release",
        oasis.ACCESS,
    )
    sub.add_argument("--source", type=Path, help="folder or archive of one of the releases")
    sub.add_argument("--download", choices=["neurite"], help="fetch the neurite release (6.6 GB)")
    sub.add_argument("--accept-terms", action="store_true", help="you agree to the OASIS data use agreement")
    sub.add_argument("--workers", type=int, default=0, help="number of processes (default: one per core)")
    sub.add_argument(
        "--partial", action="store_true", help="accept fewer subjects or smaller volumes than the release has"
    )
    sub = command(
        "rafd", get_rafd, "RaFD, the paper's faces: how to get it; prepare the originals", rafd.ACCESS
    )
    sub.add_argument("--source", type=Path, help="folder or archive of the original photographs")
    sub.add_argument(
        "--crop",
        type=int,
        nargs=3,
        metavar=("LEFT", "TOP", "SIDE"),
        help="square to keep, in pixels of the originals",
    )
    return main


def main() -> None:
    print_any_text()
    options = parser().parse_args()
    try:
        options.root = Path(os.path.abspath(options.root.expanduser()))
        options.run(options)
    except (ValueError, OSError) as error:
        sys.exit(f"data_download: {error}")
    except KeyboardInterrupt:
        sys.exit("data_download: stopped; the same command continues")


if __name__ == "__main__":
    main()
