"""The data sets of the companion: their purpose, size and terms, and whether they are on this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tvf_core.data import prepared
from tvf_core.paths import cache


@dataclass(frozen=True)
class Entry:
    """One data set. Prepared, it lies in ``folders`` below the data root; an embedded one has none."""

    name: str
    title: str
    purpose: str
    size: str
    terms: str
    get: str
    folders: tuple[str, ...] = ()


ENTRIES = [
    Entry(
        "demo_faces",
        "67 drawn subjects x 8 expressions",
        "Table 1 anywhere",
        "embedded",
        "part of this package (MIT)",
        "generated at first use",
    ),
    Entry(
        "demo_brains",
        "the MNI152 template under 50 known diffeomorphisms",
        "Table 2 anywhere",
        "embedded",
        "made from the ICBM 152 template that ships with nilearn",
        "generated at first use",
    ),
    Entry(
        "anatomies",
        "20 real anatomies with painted T1-like intensities",
        "Table 2 on real anatomical variability",
        "32 MB to fetch, 15 MB prepared (1 mm: 300 MB)",
        "Apache-2.0 (label maps of BBillot/SynthSeg)",
        "python -m data_download anatomies",
        ("anatomies/2.5mm", "anatomies/2mm", "anatomies/1mm"),
    ),
    Entry(
        "london",
        "Face Research Lab London Set: 102 people, neutral and smiling; london_people: pairs of two people",
        "Table 1 on real faces",
        "95 MB to fetch, 14 MB prepared",
        "CC BY 4.0 (DeBruine & Jones 2017)",
        "python -m data_download london",
        ("london",),
    ),
    Entry(
        "rafd",
        "Radboud Faces Database, 536 photographs",
        "the paper's Table 1",
        "35 MB prepared",
        "on request to researchers, no redistribution",
        "python -m data_download rafd --help",
        ("rafd",),
    ),
    Entry(
        "oasis",
        "OASIS brains as in Learn2Reg, 414 labelled scans",
        "the paper's Table 2",
        "6.6 GB to fetch, as much unpacked, 5.7 GB prepared",
        "OASIS data use agreement",
        "python -m data_download oasis --help",
        ("oasis",),
    ),
]


def states(entry: Entry, root: Path) -> list[str]:
    """For each folder of a data set: whether it is ready, begun or damaged; empty if there is none."""
    if not entry.folders:
        size = sum(f.stat().st_size for f in cache().glob(f"{entry.name}_*.npz"))
        return [f"ready, {size / 1e6:.0f} MB in {cache()}"] if size else []
    found = []
    for folder in (Path(root) / name for name in entry.folders):
        try:
            found.append(_state(folder))
        except (ValueError, OSError) as error:  # one damaged data set does not end the list of all
            found.append(f"damaged: {error}")
    return [state for state in found if state]


def _state(folder: Path) -> str:
    """State of the data set in a folder; empty if it is not there, ValueError if it is damaged."""
    known = prepared.about(folder)
    if known is None:
        begun = folder.with_name(f".{folder.name}.part").is_dir()
        return f"begun in {folder}; the same command continues" if begun else ""
    hashes = known.get("sha256", {})
    if not isinstance(hashes, dict):
        raise ValueError(f"{folder / prepared.ABOUT}: sha256 is no JSON object")
    missing = [name for name in (prepared.IMAGES, *hashes) if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"{folder} has no {missing[0]}")
    return f"ready in {folder}"


def table(root: Path) -> str:
    """One block of lines per data set."""
    lines = []
    for entry in ENTRIES:
        here = states(entry, root) or [f"not here yet: {entry.get}" if entry.folders else entry.get]
        lines += [f"{entry.name:12s} {entry.title}"]
        lines += [
            f"{'':12s} {key + ':':7s} {value}"
            for key, value in [
                ("for", entry.purpose),
                ("size", entry.size),
                ("terms", entry.terms),
                *[("state", s) for s in here],
            ]
        ]
    return "\n".join(lines)
