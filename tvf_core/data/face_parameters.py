"""Parameters of the procedural faces: those of each subject and those of each expression.

All lengths are in pixels of a 256 x 256 image. Face coordinates have x to the right, y down and
the origin midway between the eyes.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

EXPRESSIONS: tuple[str, ...] = (
    "angry",
    "contemptuous",
    "disgusted",
    "fearful",
    "happy",
    "neutral",
    "sad",
    "surprised",
)
N_SUBJECTS = 67
EYE_ROW = 116.0  # image row of the eye line
SEED = 20100824


@dataclass(frozen=True)
class Action:
    """Facial action of one expression; lengths are in pixels, and positive means up, outward or more."""

    brow_in: float = 0.0  # inner brow raise
    brow_out: float = 0.0  # outer brow raise
    squeeze: float = 0.0  # brows drawn together
    lid: float = 0.0  # change of the upper-lid opening, fraction
    low_lid: float = 0.0  # lower lid raise
    gaze: float = 0.0  # pupils down
    corner_l: float = 0.0  # lip-corner raise, image left
    corner_r: float = 0.0  # lip-corner raise, image right
    stretch: float = 0.0  # widening of each mouth half
    opening: float = 0.0  # gap between the lips
    lip_raise: float = 0.0  # upper lip raise
    lip_thin: float = 0.0  # lips pressed, fraction of thickness lost
    teeth_up: float = 0.0  # visible height of the upper teeth
    teeth_low: float = 0.0  # visible height of the lower teeth
    jaw: float = 0.0  # chin drop
    chin: float = 0.0  # chin boss raise (pout)
    nose: float = 0.0  # nose wrinkling and wing raise
    cheek: float = 0.0  # cheek raise
    fold: float = 0.0  # nasolabial fold depth, 0..1
    brow_lines: float = 0.0  # horizontal forehead lines, 0..1
    frown_lines: float = 0.0  # vertical lines between the brows, 0..1
    tilt: float = 0.0  # head tilt, degrees


ACTIONS = {
    "angry": Action(
        brow_in=-9,
        brow_out=-1,
        squeeze=5,
        lid=-0.12,
        low_lid=1.8,
        corner_l=-3.5,
        corner_r=-3.5,
        stretch=-1,
        lip_thin=0.5,
        chin=3,
        nose=1.5,
        fold=0.35,
        frown_lines=1.0,
    ),
    "contemptuous": Action(
        brow_out=1.5,
        lid=-0.18,
        low_lid=0.8,
        corner_l=-1,
        corner_r=8.5,
        stretch=2,
        lip_thin=0.2,
        cheek=1.5,
        fold=0.3,
        tilt=-1.0,
    ),
    "disgusted": Action(
        brow_in=-6,
        brow_out=-4,
        squeeze=3,
        lid=-0.38,
        low_lid=3,
        corner_l=-2,
        corner_r=-2,
        stretch=0,
        opening=4.5,
        lip_raise=6.5,
        teeth_up=6,
        jaw=1,
        chin=1,
        nose=8,
        cheek=5,
        fold=0.9,
        frown_lines=0.6,
    ),
    "fearful": Action(
        brow_in=10,
        brow_out=4,
        squeeze=4,
        lid=0.45,
        low_lid=0.3,
        corner_l=-4,
        corner_r=-4,
        stretch=6,
        opening=12,
        teeth_up=3,
        teeth_low=1.5,
        jaw=6,
        fold=0.2,
        brow_lines=0.8,
        frown_lines=0.3,
    ),
    "happy": Action(
        brow_out=1,
        lid=-0.22,
        low_lid=2.2,
        corner_l=8.5,
        corner_r=8.5,
        stretch=7,
        opening=8.5,
        lip_raise=1.5,
        lip_thin=0.25,
        teeth_up=7.5,
        jaw=3,
        cheek=6,
        fold=0.7,
    ),
    "neutral": Action(),
    "sad": Action(
        brow_in=8,
        brow_out=-4,
        squeeze=3,
        lid=-0.25,
        gaze=1.2,
        corner_l=-8,
        corner_r=-8,
        stretch=-2,
        lip_thin=-0.1,
        chin=4,
        fold=0.3,
        brow_lines=0.35,
        frown_lines=0.4,
    ),
    "surprised": Action(
        brow_in=12,
        brow_out=12,
        lid=0.5,
        low_lid=-0.4,
        corner_l=-8,
        corner_r=-8,
        stretch=-6,
        opening=19,
        lip_raise=3,
        teeth_up=3,
        jaw=14,
        brow_lines=0.9,
    ),
}


@dataclass(frozen=True)
class Identity:
    """Parameters that are fixed for one subject: geometry in pixels, tones in 0..1, unit light vector."""

    face_w: float
    face_up: float
    face_low: float
    taper: float
    square: float
    eye_dx: float
    eye_w: float
    eye_h: float
    eye_tilt: float
    iris: float
    brow_y: float
    brow_thick: float
    brow_arch: float
    brow_tone: float
    nose_w: float
    nose_len: float
    nose_depth: float
    mouth_y: float
    mouth_w: float
    lip_up: float
    lip_low: float
    lip_tone: float
    skin: float
    hair: float
    hairline: float
    recede: float
    arc: float
    part: float
    volume: float
    hair_end: float
    curtain: float
    curl: float
    beard: float
    freckles: float
    age: float
    light: tuple[float, float, float]
    ambient: float
    backdrop: float
    backdrop_slope: float
    shirt: float
    neck_w: float
    strength: float


@lru_cache(maxsize=N_SUBJECTS)
def identity(subject: int) -> Identity:
    """Draw the fixed parameters of one subject (0..66)."""
    rng = np.random.default_rng([SEED, subject])
    u = lambda lo, hi: float(rng.uniform(lo, hi))  # noqa: E731
    female, child = subject % 5 in (1, 3), subject % 7 == 5
    soft = female or child
    skin = u(0.60, 0.75) if rng.random() < 0.75 else u(0.42, 0.56)
    hair = u(0.05, 0.22) if skin < 0.58 or rng.random() < 0.55 else u(0.25, 0.62)
    age = 0.0 if child else u(0.0, 1.0) ** 2
    if soft and rng.random() < 0.65:  # long hair, some of it with a fringe
        fringe = rng.random() < 0.4
        style = dict(
            hairline=u(-40, -33) if fringe else u(-62, -54),
            recede=u(10, 20) if fringe else u(28, 45),
            arc=0.0 if fringe else u(0.7, 1),
            volume=u(9, 17),
            hair_end=u(45, 135),
            curtain=u(2, 9),
        )
    elif soft:  # tied back
        style = dict(
            hairline=u(-62, -54),
            recede=u(25, 45),
            arc=u(0.2, 0.7),
            volume=u(4, 7),
            hair_end=-5.0,
            curtain=0.0,
        )
    elif rng.random() < 0.15:  # shaved or bald
        style = dict(
            hairline=u(-90, -72), recede=u(55, 70), arc=0.5, volume=u(-2, 1), hair_end=-8.0, curtain=0.0
        )
    else:
        style = dict(
            hairline=u(-64, -46),
            recede=u(28, 50),
            arc=u(0, 0.6),
            volume=u(5, 15),
            hair_end=u(-10, 4),
            curtain=0.0,
        )
    light = np.array([u(0.12, 0.5) * rng.choice([-1, 1]), u(-0.5, -0.2), 0.85])
    light /= np.linalg.norm(light)
    k = 0.93 if child else 1.0
    return Identity(
        face_w=u(54, 64) if soft else u(57, 69),
        face_up=u(74, 86),
        face_low=k * u(87, 106),
        taper=u(0.12, 0.3) if soft else u(0.02, 0.2),
        square=u(0.0, 0.35) if soft else u(0.2, 0.65),
        eye_dx=u(26, 31),
        eye_w=u(11.5, 14.5),
        eye_h=u(4.6, 6.8) + 0.6 * soft,
        eye_tilt=u(-1.5, 2.2),
        iris=u(0.08, 0.2) if skin < 0.58 or rng.random() < 0.5 else u(0.25, 0.5),
        brow_y=u(-21, -16.5) - soft,
        brow_thick=u(1.6, 2.6) if soft else u(2.4, 3.9),
        brow_arch=u(1.0, 5.5),
        brow_tone=0.6 * hair + 0.04,
        nose_w=u(9, 12) if soft else u(10, 14.5),
        nose_len=k * u(33, 41),
        nose_depth=u(12, 18) if soft else u(14, 22),
        mouth_y=k * u(57, 64),
        mouth_w=u(19, 24) if soft else u(20, 27),
        lip_up=u(3.6, 6.5),
        lip_low=u(5.0, 8.5),
        skin=skin,
        lip_tone=u(0.62, 0.78) if female else u(0.72, 0.86),
        hair=min(0.66, hair + 0.35 * max(0.0, age - 0.6)),
        part=u(-30, 30),
        curl=u(0, 1) ** 2 * 1.2,
        beard=0.0 if soft else max(0.0, u(-0.4, 0.55)),
        freckles=u(0, 1) if rng.random() < 0.3 else 0.0,
        age=age,
        light=tuple(light),
        ambient=u(0.28, 0.42),
        backdrop=u(0.5, 0.72),
        backdrop_slope=u(-0.1, 0.1),
        shirt=u(0.1, 0.4),
        neck_w=u(32, 38) if soft else u(37, 45),
        strength=u(0.85, 1.15),
        **style,
    )
