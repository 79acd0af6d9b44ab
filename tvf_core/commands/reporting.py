"""``tvf claims`` and ``tvf draw``."""

from __future__ import annotations

from pathlib import Path

from ..data import load
from ..evaluation.evaluate import check_choices, load_model
from ..paths import write_then_rename
from ..reporting import tables
from ..training import profiles
from .app import app


@app.command(name="claims")
def list_claims(results: Path | None = None) -> None:
    """List every claim of the paper that can be measured, with what was measured and the verdict; chapter 7 has its numbers too.

    Args:
        results: folder of results; default book/results, for data that is not there runs/results.
    """
    from ..reporting import claims  # SciPy's statistics again

    for entry in tables.ledger()["claims"]:
        print(f"{entry['id']}: {entry['says']} ({entry['where']})")
        for finding in claims.claim(entry, results):
            print(
                f"    {finding.data or '-':12s} {finding.verdict:17s} "
                + "; ".join(t for t in (finding.measured, finding.why) if t not in ("", "–"))
            )


@app.command
def draw(
    method: str,
    data: str,
    pair: int = 0,
    weights: Path | None = None,
    profile: str = "",
    image_size: int = 0,
    out: Path = Path("registration.png"),
) -> None:
    """Draw one registered test pair: warped images, deformed grids forward and backward, Jacobian.

    Args:
        method: one of `tvf methods`.
        data: a data set, e.g. demo_faces, demo_brains or anatomies; python -m data_download list tells which are here.
        pair: number of the test pair.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        profile: use the constants that this profile names for a method without a network (lddmm, convexadam);
            default the method's own.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: PNG to write.
    """
    from ..reporting import figures  # matplotlib is slow to import, and the other commands need none of it

    constants = profiles.to_register(profile, method)
    check_choices(method, weights, constants)
    pairs = load(data, "test", image_size or None, progress=True)
    model = load_model(method, pairs, weights, constants)
    if not 0 <= pair < len(pairs):
        raise ValueError(f"pair: expected 0 to {len(pairs) - 1}, got {pair}")
    item = pairs.batch([pair])
    figures.use_style()
    fig = figures.forward_and_backward(
        [("", item["moving"], item["fixed"], model.register(item["moving"], item["fixed"]))]
    )
    with write_then_rename(out) as temporary:
        fig.savefig(temporary, format="png")
    print(f"{out}: {pairs.pair_name(pair)}")
