"""``tvf claims`` and ``tvf draw``."""

from __future__ import annotations

from pathlib import Path

from ..checks import one_of
from ..data import load_pairs
from ..evaluation.evaluate import check_choices, load_model
from ..methods import METHODS
from ..paths import must_be_writable, write_then_rename
from ..reporting import tables
from ..training import profiles
from .app import app


@app.command(name="claims")
def list_claims(results: Path | None = None, names: dict[str, str] | None = None) -> None:
    """List every claim of the paper that can be measured, with what was measured and the verdict.

    A claim that one method is better than another is *reproduced* if the mean is on the claim's side and a
    t-test over persons gives a p below 0.05. It is *not reproduced* if the mean is on the other side with
    such a p. Otherwise it is *inconclusive*, on whichever side the mean lies. A bound on a mean is judged by
    the same test. A bound on the largest value holds or fails without one. What needs data that are not here
    is *not testable here*. book/claims.yml has the rules in full, with examples; chapter 7 of the book shows
    them, and the paper's numbers too.

    Args:
        results: folder of results; default book/results, for data that is not there runs/results.
        names: a method and the name of the result that is to stand for it, for as many methods as you like,
            e.g. `--names tm-tvf wide`; default the results under the methods' own names.
    """
    names = names or {}
    for method in names:
        one_of(method, METHODS, "method")
    from ..reporting import claims  # SciPy's statistics again

    for entry in tables.ledger()["claims"]:
        print(f"{entry['id']}: {entry['says']} ({entry['where']})")
        for finding in claims.claim(entry, results, names):
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
        data: a data set: a name (python -m data_download list), or the folder of your own.
        pair: number of the test pair.
        weights: a .safetensors file or a released checkpoint; default the shipped weights.
        profile: use the constants that this profile names for a method without a network (lddmm, convexadam);
            default the method's own.
        image_size: edge of the images, as in training; 0 is the data set's own size.
        out: PNG to write.
    """
    from matplotlib import pyplot as plt  # slow to import, and the other commands need none of it

    from ..reporting import figures

    constants = profiles.to_register(profile, method)
    check_choices(method, weights, constants)
    pairs = load_pairs(data, "test", image_size or None, progress=True)
    model = load_model(method, pairs, weights, constants)
    if not 0 <= pair < len(pairs):
        raise ValueError(f"pair: expected 0 to {len(pairs) - 1}, got {pair}")
    must_be_writable(out.parent, "choose another out file")
    item = pairs.batch([pair])
    figures.use_style()
    fig = figures.forward_and_backward(
        [("", item["moving"], item["fixed"], model.register(item["moving"], item["fixed"]))],
        credit=pairs.credit,
    )
    with write_then_rename(out) as temporary:
        fig.savefig(temporary, format="png")
    plt.close(fig)
    print(f"{out}: {pairs.pair_name(pair)}")
