"""Procedural stand-in for the Radboud Faces Database (RaFD).

These are drawings computed from a few dozen numbers per face, not photographs of people.
They exist because RaFD itself cannot be redistributed: 67 made-up subjects show the eight
RaFD expressions, so that registration between two expressions of one subject can be trained
and demonstrated anywhere. No result on them should be quoted as a result on RaFD.

The expression list follows Langner et al. (2010), "Presentation and validation of the
Radboud Faces Database", Cognition & Emotion 24(8), 1377-1388.
"""

import sys
from dataclasses import fields

import numpy as np
from tqdm import tqdm

from . import face_painter, face_parameters
from .face_painter import paint
from .face_parameters import ACTIONS, EXPRESSIONS, N_SUBJECTS, SEED, Action, identity

# The modules that determine how a face looks.
MODULES = [face_parameters, face_painter, sys.modules[__name__]]


def render(subject: int, expression: str, size: int = 256) -> np.ndarray:
    """Render one face.

    Parameters
    ----------
    subject : int
        0 .. N_SUBJECTS - 1.
    expression : str
        One of EXPRESSIONS.
    size : int
        Side length in pixels, 32 .. 512.

    Returns
    -------
    numpy.ndarray
        (size, size) float32 in [0, 1]. The same arguments always give the same image.

    Raises
    ------
    ValueError
        If an argument is out of range.
    """
    if subject not in range(N_SUBJECTS):
        raise ValueError(f"subject must be 0..{N_SUBJECTS - 1}, got {subject!r}")
    if expression not in EXPRESSIONS:
        raise ValueError(f"expression must be one of {', '.join(EXPRESSIONS)}, got {expression!r}")
    if size not in range(32, 513):
        raise ValueError(f"size must be 32..512, got {size!r}")
    subject, size, p = int(subject), int(size), identity(int(subject))
    index = EXPRESSIONS.index(expression)
    rng = np.random.default_rng([SEED, subject, 2, index])
    base = ACTIONS[expression]
    a = Action(
        **{f.name: getattr(base, f.name) * p.strength * rng.uniform(0.92, 1.08) for f in fields(Action)}
    )
    shift = tuple(rng.uniform(-1.2, 1.2, 2))
    angle = np.deg2rad(rng.uniform(-0.7, 0.7) + a.tilt)
    gain = 1 + rng.uniform(-0.025, 0.025)
    n = max(size, 256)
    img = gain * paint(p, a, subject, n, shift, angle) + 0.005 * rng.standard_normal((n, n))
    if size < n:  # exact area average, for any ratio
        cuts = np.linspace(0, n, size + 1)
        left = np.arange(n)
        cover = np.minimum(cuts[1:, None], left + 1) - np.maximum(cuts[:-1, None], left)
        cover = np.clip(cover, 0, 1) * size / n
        img = cover @ img @ cover.T
    return np.clip(img, 0, 1).astype(np.float32)


def render_all(size: int, progress: bool = False) -> np.ndarray:
    """Render every subject and expression as ``(67, 8, size, size)`` uint8, where 255 is white.

    ``progress`` shows a progress bar.
    """
    subjects = tqdm(range(N_SUBJECTS), desc="drawing demo faces", disable=not progress)
    return np.stack(
        [[np.round(render(s, e, size) * 255).astype(np.uint8) for e in EXPRESSIONS] for s in subjects]
    )
