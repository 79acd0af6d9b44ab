"""``python -m data_download list``: every data set, its licence, what it is for, whether it is ready here."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tvf_core.paths import cache


@dataclass(frozen=True)
class Source:
    """One data set: where it is from and under which terms."""

    name: str
    purpose: str
    terms: str
    embedded: bool


SOURCES = [
    Source("demo_faces", "Table 1 on embedded data: 67 drawn subjects x 8 expressions", "part of this package (MIT)", True),
    Source("demo_brains", "Table 2 on embedded data: MNI152 under known diffeomorphisms",
           "made from the ICBM 152 template that ships with nilearn", True),
    Source("rafd", "the paper's Table 1", "on request to researchers, no redistribution: rafd.socsci.ru.nl", False),
    Source("oasis", "the paper's Table 2", "OASIS data use agreement: oasis-brains.org, learn2reg.grand-challenge.org", False),
]


def state(source: Source) -> str:
    """Whether a data set can be used right now."""
    if not source.embedded:
        return "this version has no loader for it"
    found = list(cache().glob(f"{source.name}*.npz"))
    return f"ready ({sum(f.stat().st_size for f in found) / 1e6:.0f} MB in the cache)" if found else "generated at first use, no network"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m data_download", description="Data sets of the companion.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="every data set: what it is for, its terms, whether it is ready here")
    parser.parse_args()
    for source in SOURCES:
        print(f"{source.name:12s} {source.purpose}\n{'':12s} terms: {source.terms}\n{'':12s} state: {state(source)}")


if __name__ == "__main__":
    main()
