"""The rules by which a claim is judged; ``book/claims.yml`` has them in words.

A claim about means is reproduced, or not reproduced, only where a test over persons excludes that chance
alone put the mean on its side of the claim. Where the test does not exclude that, the verdict is
inconclusive.
"""

from __future__ import annotations

import math

from .tables import p_value

VERDICTS = ("reproduced", "not reproduced", "inconclusive", "not testable here")
REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE, NOT_TESTABLE = VERDICTS


def side(tests: dict, sign: int, limit: float) -> int:
    """Which side of a claim the evidence is on: 1 for it, -1 against it, 0 for neither.

    Parameters
    ----------
    tests : ``difference`` over pairs (optional), ``subject_difference`` and ``subject_t_test`` over
        ``subjects``, as ``compare`` gives them.
    sign : 1 where a positive difference speaks for the claim, else -1.
    limit : the p value over persons must be below it.
    """
    gains = {sign * tests[key] for key in ("difference", "subject_difference") if key in tests}
    p = tests["subject_t_test"]
    if math.isnan(p) and tests["subjects"] > 1:
        p = 0.0  # all persons have the same difference: nothing is left to chance
    if min(gains) > 0 and p < limit:
        return 1
    return -1 if max(gains) <= 0 and p < limit else 0


def judge_order(
    tests: dict[str, dict],
    titles: dict[str, str],
    first: str,
    sign: int,
    limit: float,
    p_below: float = math.inf,
) -> tuple[str, str, str]:
    """Does one method score better than each of the others?

    Parameters
    ----------
    tests : other method -> outcome of ``compare`` of the first with it.
    titles : of all methods. first : name of the first method.
    sign, limit : as in :func:`side`.
    p_below : limit of the p value over pairs, where the claim names one.

    Returns
    -------
    What was measured, of the comparison that decides or is closest; the verdict (one of ``VERDICTS``); its
    reason where the values do not show it.
    """
    if not all(t["subjects"] for t in tests.values()):
        return "–", NOT_TESTABLE, "the rows do not tell the persons; evaluate again"
    sides = {m: side(t, sign, limit) for m, t in tests.items()}
    ahead = [m for m, t in tests.items() if sides[m] > 0 and not t["t_test"] >= p_below]
    behind = [m for m in tests if sides[m] < 0]
    undecided = [m for m in tests if m not in (*ahead, *behind)]
    verdict = NOT_REPRODUCED if behind else INCONCLUSIVE if undecided else REPRODUCED
    closest = min(behind or undecided or ahead, key=lambda m: sign * tests[m]["difference"])
    t, how = tests[closest], "closest"
    if verdict != REPRODUCED:
        how = "not better than" if behind else "undecided for"
    text = (
        f"{titles[first]} {t['a']:.4f}, {titles[closest]} {t['b']:.4f} "
        f"(p {p_value(t['t_test'])} over {t['n']} pairs, "
        f"{p_value(t['subject_t_test'])} over {t['subjects']} persons)"
    )
    if len(tests) > 1:
        text = f"better than {len(ahead)} of {len(tests)}; {how} {titles[closest]}: {text}"
    if lost := max(t["left_out"] for t in tests.values()):
        return text, NOT_TESTABLE, f"{lost} pairs have no finite value, as where a warp loses a label"
    why = _why_undecided(t, titles[first], titles[closest], sign, limit, p_below)
    return text, verdict, why if verdict == INCONCLUSIVE else ""


def _why_undecided(t: dict, first: str, other: str, sign: int, limit: float, p_below: float) -> str:
    """Why a comparison does not decide about a claim, in a sentence that names who is better."""
    if side(t, sign, limit) > 0:
        return f"{first} is better, also over persons, but p over pairs is not below the claim's {p_below:g}"
    gain = sign * t["difference"]
    if gain == 0:
        return "the means are equal"
    who = f"{first if gain > 0 else other} has the better mean, but "
    if t["subjects"] < 2:
        return who + "one person is too few for a test"
    return who + "the test over persons does not exclude chance"


def judge_bound(tests: dict, title: str, over: str, bound: float, limit: float) -> tuple[str, str, str]:
    """Does the mean, or the largest value, of a result keep a bound? Returns the same as :func:`judge_order`.

    Parameters
    ----------
    tests : outcome of ``against`` with the bound.
    over : ``mean`` or ``max``. A largest value is a fact about these pairs, without a test: one pair refutes
        the claim.
    """
    value = tests[over]
    text = f"{title} {value:.3g} ({over} over {tests['n']} pairs"
    if lost := tests["left_out"]:
        return f"{text})", NOT_TESTABLE, f"{lost} pairs have no finite value"
    if over == "max":
        return f"{text})", REPRODUCED if value <= bound else NOT_REPRODUCED, ""
    p, persons = tests["subject_t_test"], tests["subjects"]
    if not persons:
        return f"{text})", NOT_TESTABLE, "the rows do not tell the persons; evaluate again"
    if math.isnan(p) and persons > 1:
        text += f"; the same for all {persons} persons)"
    else:
        text += f"; against {bound:g}, p {p_value(p)} over {persons} persons)"
    found = side(tests | {"difference": value - bound}, -1, limit)
    if found < 0 and value <= bound:  # all persons lie on the bound, which keeps it
        found = 1
    if found == 0:
        where = "below" if value < bound else "above"
        why = f"the mean is {where} the bound, but the test over persons does not exclude chance"
        return text, INCONCLUSIVE, why
    return text, REPRODUCED if found > 0 else NOT_REPRODUCED, ""
