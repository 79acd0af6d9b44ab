"""The learning curve of a training in a notebook: shown once, then updated in place, not too often."""

import math

import IPython.display
import numpy as np
import pytest

from tvf_core.reporting import figures


@pytest.fixture
def shown(monkeypatch):
    """Calls that a notebook would get: ``display`` of the figure, then ``update``, each with its curves."""
    calls = []

    class Handle:
        def update(self, figure):
            calls.append(("update", curves(figure)))

    def display(figure, display_id):
        assert display_id
        calls.append(("display", curves(figure)))
        return Handle()

    def curves(figure):
        # There are always two axes, so that the stored output and a later one have the same text.
        losses, scores = figure.axes
        return [line.get_xydata().tolist() for line in (losses.lines[0], *scores.lines)]

    monkeypatch.setattr(IPython.display, "display", display)
    return calls


def test_the_curve_is_shown_at_once_updated_later_and_complete_at_the_end(shown, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(figures.time, "monotonic", lambda: clock[0])
    records = [
        {"step": k, "loss": 1 / (k + 1), **({"validation": k / 10} if k % 2 else {})} for k in range(7)
    ]
    records[4]["loss"] = math.nan  # a step that was skipped
    with figures.LiveCurve("dice") as watch:
        for record in records:
            watch(record)
            clock[0] += 0.4
    # The curve is drawn at 0, 1.2 and 2.4 seconds, and at the end.
    assert [kind for kind, _ in shown] == ["display", "update", "update", "update"]
    assert shown[0][1] == [[[0, 1]]]
    loss, validation = shown[-1][1]
    np.testing.assert_allclose(loss, [[k, 1 / (k + 1)] for k in (0, 1, 2, 3, 5, 6)])
    np.testing.assert_allclose(validation, [[1, 0.1], [3, 0.3], [5, 0.5]])


def test_nothing_is_shown_without_records(shown):
    with figures.LiveCurve("dice"):
        pass
    assert shown == []
