"""Paint one procedural face: relief, albedo and light, feature by feature, on any pixel grid."""

from functools import lru_cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.special import expit

from .face_parameters import EYE_ROW, SEED, Action, Identity, identity


@lru_cache(maxsize=4)
def textures(subject: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Skin albedo factor and soft noise, both (256, 256), and hair strands (4096,), fixed for a subject."""
    p, rng = identity(subject), np.random.default_rng([SEED, subject, 1])
    noise = lambda s: (lambda a: a / a.std())(gaussian_filter(rng.standard_normal((256, 256)), s))  # noqa: E731
    y, x = np.mgrid[:256, :256] + 0.5 - np.array([EYE_ROW, 128.0])[:, None, None]
    skin = 1 + 0.012 * noise(0.8) + 0.02 * noise(3) + 0.02 * noise(12)
    cheeks = np.exp(-(((np.abs(x) - 27) / 18) ** 2) - ((y - 24) / 16) ** 2)
    skin -= 0.05 * cheeks  # blood in the cheeks
    spots = cheeks + np.exp(-((x / 12) ** 2) - ((y - 22) / 10) ** 2)  # cheeks and nose bridge
    skin -= p.freckles * 0.35 * np.clip(noise(1.1) - 1.7, 0, 1) * spots
    ring = np.hypot(x / (p.mouth_w + 4), (y - p.mouth_y) / 13)
    top = p.nose_len + 5 + 15 * _gauss(np.abs(x) - 36, 10) - 40 * _ramp((np.abs(x) - 44) / 24)
    stubble = expit((y - top) / 3) * expit((ring - 0.85) / 0.1)
    skin *= 1 - p.beard * stubble * np.clip(0.8 + 0.25 * noise(0.7), 0, 1.3)
    strands = gaussian_filter(rng.standard_normal(4096), 2.0, mode="wrap")
    strands = strands / strands.std() + gaussian_filter(rng.standard_normal(4096), 12, mode="wrap") * 4
    return skin.astype(np.float32), noise(7).astype(np.float32), strands.astype(np.float32)


def _gauss(d: np.ndarray, width: float) -> np.ndarray:
    """Gaussian profile of a distance."""
    return np.exp(-0.5 * (d / width) ** 2)


def _edge(d: np.ndarray, soft: float = 0.7) -> np.ndarray:
    """Anti-aliased inside mask of a signed distance (positive inside)."""
    return expit(d / soft)


def _ramp(d: np.ndarray) -> np.ndarray:
    """Smooth step from 0 at d = 0 to 1 at d = 1."""
    d = np.clip(d, 0, 1)
    return d * d * (3 - 2 * d)


class Face:
    """One face on one pixel grid; its relief z, albedo and unshaded overlays grow feature by feature."""

    def __init__(self, p: Identity, a: Action, x: np.ndarray, y: np.ndarray):
        self.p, self.a, self.x, self.y = p, a, x, y
        # Skin follows the bones and muscles under it: (hx, hy) is where each pixel sits at rest.
        drop = a.jaw * _ramp((y - 8) / (p.mouth_y + 20))
        brow = 0.5 * (a.brow_in + a.brow_out) * _gauss(y + 26, 14) * _gauss(x, 40)
        cheek = a.cheek * _gauss(np.abs(x) - 30, 14) * _gauss(y - 30, 13)
        self.hy = y - drop + brow + cheek
        self.hx = x * (1 - 0.004 * (a.cheek - 0.4 * a.jaw) * _gauss(y - 45, 22))
        w = p.face_w * (1 - p.taper * _ramp(self.hy / p.face_low))
        yc = self.hy + 6
        u, v = (self.hx / w) ** 2, (yc / np.where(yc < 0, p.face_up, p.face_low)) ** 2
        self.r2 = u + v - p.square * np.minimum(u, 1) * np.minimum(v, 1) * (yc > 0)
        self.head = _edge((1 - np.sqrt(self.r2)) * 68, 0.9)
        self.z = 58 * (np.sqrt(np.clip(1 - self.r2, 0, None) + 0.03) - 2.9 * np.clip(self.r2 - 1, 0, None))
        self.dark = np.ones_like(x)  # multiplies the shaded skin
        self.layers = []  # (window, mask, value) painted over the shaded skin

    def window(self, cx: float, cy: float, hw: float, hh: float):
        """Slices of the grid around a point, so that small features are computed on few pixels."""
        n = len(self.x)
        k = n / 256
        lo = lambda c, h: max(0, int((c - h) * k))  # noqa: E731
        r0, c0 = self.y[n // 2, n // 2], self.x[n // 2, n // 2]
        cy, cx = cy - r0 + 128, cx - c0 + 128
        rows = slice(lo(cy, hh + 4), int((cy + hh + 4) * k) + 1)
        return rows, slice(lo(cx, hw + 4), int((cx + hw + 4) * k) + 1)

    def eye(self, m: int) -> None:
        """Socket, lids, eyeball, lashes and brow of one side (m = -1 image left, +1 right)."""
        p, a = self.p, self.a
        s = self.window(m * (p.eye_dx + 2), -12, 46, 38)
        x, y = m * self.x[s], self.y[s]
        t = (x - p.eye_dx) / p.eye_w
        c = np.clip(1 - t * t, 0, 1)
        arch = 0.5 * (c + np.sqrt(c))
        mid = -p.eye_tilt * t
        upper = mid - p.eye_h * (1 + a.lid) * arch * (1 - 0.12 * t)
        lower = mid + np.maximum(0.55 * p.eye_h - 0.7 * a.low_lid, 0.3) * c
        ends = _edge((1 - np.abs(t)) * p.eye_w, 0.8)
        slit = _edge(y - upper, 0.6) * _edge(lower - y, 0.6) * ends
        # relief: deep inner corner, globe under the lids, pouch below
        self.z[s] += (
            -7 * _gauss(x - p.eye_dx + 8, 11) * _gauss(y + 4, 8)
            - 3 * _gauss(t, 1.0) * _gauss(y + 9, 4)
            + 4.5 * _gauss(t, 0.8) * _gauss(y - 0.5, 6.5)
        )
        pouch = _gauss(y - lower - 6.5 + 0.5 * a.cheek, 1.6) * c
        crease = _gauss(y - upper + 3.6 - 1.2 * a.lid, 0.9) * _edge((1.08 - np.abs(t)) * p.eye_w, 1.5)
        crow = _gauss(np.sin((y + 0.35 * (x - p.eye_dx)) * 0.9), 0.35)
        crow *= _gauss(x - p.eye_dx - p.eye_w - 8, 3.5) * _gauss(y - 2, 5)
        self.dark[s] *= (
            (1 - (0.10 + 0.25 * p.age + 0.03 * a.low_lid) * pouch)
            * (1 - 0.32 * crease)
            * (1 - (0.05 * p.age + 0.02 * a.cheek) * crow)
        )
        # eyeball
        iy = -0.2 * p.eye_h + a.gaze
        rad = np.hypot(x - p.eye_dx, y - iy)
        ball = (0.80 - 0.28 * np.clip(t * t, 0, 1)) * (0.5 + 0.5 * _ramp((y - upper) / 5))
        iris = p.iris * (0.75 + 0.5 * _ramp((y - iy + 4) / 9)) * (0.45 + 0.55 * _edge(5.0 - rad, 0.5))
        ball += (iris - ball) * _edge(6.0 - rad, 0.5)
        ball *= 1 - 0.9 * _edge(2.4 - rad, 0.4)
        glint = _edge(1.2 - np.hypot(self.x[s] - m * p.eye_dx - 6 * p.light[0], y - iy + 2.6), 0.35)
        self.layers.append((s, slit, ball + (0.95 - ball) * glint))
        lash = _gauss(y - upper, 0.9) * ends + 0.35 * _gauss(y - lower, 0.7) * ends * _edge(t, 0.5)
        self.layers.append((s, np.clip(0.85 * lash, 0, 1), 0.08))
        # brow: a tapered band that follows the frontalis and corrugator
        b0, b1 = p.eye_dx - 16 - a.squeeze, p.eye_dx + 17
        q = (x - b0) / (b1 - b0)
        bulge = (p.brow_arch + 0.15 * abs(a.brow_in - a.brow_out)) * 3.6 * (q - 0.1 * q * q) * (1 - q)
        line = p.brow_y - a.brow_in * (1 - q) - a.brow_out * q - bulge
        thick = p.brow_thick * (1.15 - 0.75 * np.clip(q, 0, 1) ** 2)
        band = _edge(thick - np.abs(y - line), 0.8) * _edge((x - b0), 1.8) * _edge((b1 - x), 2.0)
        u = x + 0.8 * (y - line) * (1.4 - q)  # hairs lean outwards
        hairs = 0.8 + 0.08 * np.sin(1.9 * u) + 0.07 * np.sin(3.1 * u + 1) + 0.06 * np.sin(1.1 * u + 2)
        self.layers.append((s, np.clip(band * hairs, 0, 1), p.brow_tone))
        self.z[s] += 3.5 * _gauss(y - line - 1, 6) * _gauss(q - 0.45, 0.45)

    def nose(self) -> None:
        """Bridge, tip, wings and nostrils; wrinkling shortens it and flares the wings."""
        p, a = self.p, self.a
        s = self.window(0, 18, 34, 48)
        x, y = self.x[s], self.y[s]
        tip = p.nose_len - 0.45 * a.nose
        wing = p.nose_w + 0.35 * a.nose
        q = np.clip((y + 8) / (tip + 8), 0, 1.2)
        fall = _edge(tip + 4 - y, 2.8)
        rise = p.nose_depth * (0.15 + 0.7 * q * q) * fall * _ramp((y + 22) / 25)
        self.z[s] += rise * _gauss(x, 5.5 + 0.38 * wing * q)
        self.z[s] += 0.22 * p.nose_depth * _gauss(x, 0.42 * wing) * _gauss(y - tip + 1, 5)
        for m in (-1, 1):
            self.z[s] += 6 * _gauss(x - m * (wing - 1.5), 3.6) * _gauss(y - tip + 0.6 * a.nose, 4.6)
            side = np.hypot((x - m * 0.52 * wing) / 3.6, (y - tip - 5.2 + 0.3 * a.nose) / 1.9)
            self.dark[s] *= 1 - 0.72 * expit((1 - side) * 4)
            rim = _gauss(m * x - wing - 2.6 + 0.05 * (y - tip) ** 2, 1.2) * _gauss(
                y - tip + 0.5 * a.nose, 4.2
            )
            self.dark[s] *= 1 - 0.28 * rim
        self.dark[s] *= 1 - 0.22 * _gauss(x, 0.8 * wing) * _gauss(y - tip - 8.5, 2.4)
        lines = (
            _gauss(np.sin((y - 0.5 * np.abs(x)) * 0.62), 0.4) * _gauss(np.abs(x) - 6, 4) * _gauss(y - 3, 6)
        )
        self.dark[s] *= 1 - 0.02 * a.nose * lines

    def mouth(self) -> None:
        """Lips, cavity, teeth, philtrum, chin crease and the nasolabial folds."""
        p, a = self.p, self.a
        s = self.window(0, p.mouth_y + 12, 62, 52)
        x, y = self.x[s], self.y[s]
        half = p.mouth_w + a.stretch
        t = x / half
        c = np.clip(1 - t * t, 0, 1)
        root = np.sqrt(c)
        wide = min(max(a.opening - 6, 0) / 14, 1)  # the more open, the rounder
        round_ = (0.55 - 0.5 * wide) * c + (0.45 + 0.5 * wide) * root
        corner = 0.5 * (a.corner_l + a.corner_r) + 0.5 * (a.corner_r - a.corner_l) * np.tanh(2.5 * t)
        bend = p.mouth_y - corner * (np.clip(t * t, 0, 1.3) - 0.25) - 0.5 * a.chin * c
        seam_up = bend - a.lip_raise * (0.5 * c + 0.5 * root) + 0.7 * _gauss(t, 0.16)
        seam_low = bend + a.opening * round_ - 0.3 * a.lip_raise * c + 0.7 * _gauss(t, 0.16)
        bow = 1 - 0.22 * _gauss(t, 0.13) + 0.12 * _gauss(np.abs(t) - 0.28, 0.15)
        top = seam_up - p.lip_up * (1 - a.lip_thin) * bow * (0.9 * c + 0.1 * root)
        bottom = seam_low + p.lip_low * (1 - a.lip_thin) * (0.8 * c + 0.2 * root)
        ends = _edge((1 - np.abs(t)) * half, 1.0)
        up = _edge(y - top, 1.0) * _edge(seam_up - y, 0.7) * ends
        low = _edge(y - seam_low, 0.7) * _edge(bottom - y, 1.1) * ends
        self.dark[s] *= 1 - (1 - p.lip_tone) * np.clip(1.5 * up + 0.9 * low, 0, 1.5)
        pout = _gauss(y - 0.5 * (top + seam_up), 3.4) + 4 * _gauss(y - 0.5 * (seam_low + bottom), 3.8)
        self.z[s] += pout * c * c
        self.z[s] -= 1.2 * _gauss(x, 2.6) * _gauss(y - 0.5 * (p.nose_len + 6) - 0.5 * top, 5)
        gap = bend + a.opening * _gauss(t, 0.8) + p.lip_low * (1 - a.lip_thin) + 5 - 0.4 * a.chin
        boss = p.mouth_y + 24 + 0.95 * a.jaw - a.chin
        self.z[s] += 4.5 * _gauss(x, 13) * _gauss(y - boss, 8) - 3.0 * _gauss(y - gap, 3.6) * _gauss(t, 0.7)
        self.dark[s] *= 1 - (0.10 + 0.03 * abs(a.chin)) * _gauss(y - gap, 2.2) * _gauss(t, 0.55)
        # cavity with teeth: bright near their lips, lost in shadow towards the corners
        hole = _edge(y - seam_up, 0.6) * _edge(seam_low - y, 0.6) * ends * _ramp(a.opening / 3)
        teeth = np.maximum(
            _edge(seam_up + a.teeth_up - y) * (a.teeth_up > 0),
            0.85 * _edge(y - seam_low + a.teeth_low) * (a.teeth_low > 0),
        )
        enamel = (0.86 - 0.5 * np.clip(t * t, 0, 1)) * (0.72 + 0.28 * _ramp((y - seam_up) / 3))
        enamel *= 1 - 0.18 * _gauss(np.sin(x * np.pi / 6.4), 0.16)  # gaps between the teeth
        tongue = 0.07 + 0.16 * _gauss(t, 0.5) * _ramp((y - 0.5 * (seam_up + seam_low)) / 10)
        self.layers.append(
            (s, hole, tongue + (enamel - tongue) * teeth * _edge((0.86 - np.abs(t)) * half, 1.5))
        )
        seam = _gauss(y - seam_up, 0.9) * ends * (1 - 0.6 * _ramp(a.opening / 3)) * (0.3 + 0.45 * root)
        self.layers.append((s, np.clip(seam, 0, 1), 0.12))
        for m, k in ((-1, a.corner_l), (1, a.corner_r)):  # fold from nose wing round the mouth corner
            pit = _gauss(x - m * (half + 0.5), 2.0) * _gauss(
                y - p.mouth_y + 0.85 * k + 0.5, 2.0 + 0.12 * abs(k)
            )
            self.dark[s] *= 1 - 0.25 * pit
            start = p.nose_len - 4 - 0.7 * a.nose
            q = (y - start) / (p.mouth_y - 0.75 * k - start)
            bent = np.clip(q, -0.3, 1.33)
            path = p.nose_w + 4 + (half + 3 - p.nose_w) * bent * (1.6 - 0.6 * bent)
            depth = np.clip(0.12 + 0.5 * p.age + a.fold + 0.07 * (max(k, 0) if a.fold < 0.5 else 0), 0, 1.2)
            d = m * x - path
            line = _ramp(q / 0.3 + 0.3) * _ramp((1.35 - q) / 0.6)
            self.dark[s] *= 1 - 0.22 * depth * _gauss(d, 2.0) * line
            self.z[s] += 1.7 * depth * _gauss(d - 7, 5) * line

    def wrinkles(self) -> None:
        """Forehead and frown lines, temples, cheekbones."""
        p, a, x, y = self.p, self.a, self.x, self.y
        self.z += (5 + 0.6 * a.cheek) * _gauss(np.abs(x) - 33, 13) * _gauss(y - 24 + 0.8 * a.cheek, 12)
        s = self.window(0, -34, 50, 26)
        x, y = x[s], self.hy[s]
        rows = _gauss(np.sin((y + 0.004 * x * x) * np.pi / 8), 0.22) * _gauss(y + 42, 10) * _gauss(x, 24)
        self.dark[s] *= 1 - 0.2 * np.clip(a.brow_lines + 0.45 * p.age, 0, 1.2) * rows
        frown = _gauss(np.abs(x) - 5, 1.1) * _gauss(self.y[s] + 18 + 0.6 * a.brow_in, 5.5)
        self.dark[s] *= 1 - 0.3 * np.clip(a.frown_lines + 0.3 * p.age, 0, 1.2) * frown

    def shade(self, skin: np.ndarray) -> np.ndarray:
        """Shade the relief (Lambert), darken hollows, then paint the overlays."""
        p = self.p
        zy, zx = np.gradient(self.z, 256 / len(self.z))
        lam = (p.light[2] - zx * p.light[0] - zy * p.light[1]) / np.sqrt(1 + zx * zx + zy * zy)
        hollow = np.clip(
            (self.z - gaussian_filter(self.z, 7 * len(self.z) / 256, truncate=2.5)) / 18, -0.35, 0.15
        )
        light = p.ambient + (1 - p.ambient) * (np.clip(lam, 0, None) * 0.9 + 0.1)
        out = p.skin * skin * light * (1 + 0.8 * hollow) * self.dark
        out += 0.15 * np.clip(lam, 0, None) ** 12 * (0.4 + 0.6 * p.skin)  # sheen
        for s, mask, value in self.layers:
            out[s] += mask * (value * (0.45 + 0.55 * light[s]) - out[s])
        return out


def paint(
    p: Identity, a: Action, subject: int, n: int, shift: tuple[float, float], angle: float
) -> np.ndarray:
    """Compose backdrop, hair, neck, ears and face on an (n, n) grid."""
    c = ((np.arange(n) + 0.5) * 256 / n).astype(np.float32)
    gx, gy = c[None, :] - 128, c[:, None] - np.float32(EYE_ROW)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    x = cos * gx + sin * (gy - 90) - np.float32(shift[0])  # the head turns about the neck
    y = cos * (gy - 90) - sin * gx + np.float32(90 - shift[1])
    skin_tex, blotch, strands = textures(subject)
    f = Face(p, a, x, y)
    for m in (-1, 1):
        f.eye(m)
    f.nose(), f.mouth(), f.wrinkles()

    def look(tex, u, v):  # texture at face coordinates
        return map_coordinates(tex, [v + (EYE_ROW - 0.5), u + 127.5], order=1, mode="nearest")

    def put(mask, value):  # paint over what is there
        np.add(img, mask * (value - img), out=img)

    face = f.shade(look(skin_tex, f.hx, f.hy))
    fuzz = look(blotch, x, y)
    side = 1 + 0.5 * p.light[0] * np.clip(x / 70, -1.2, 1.2)

    img = p.backdrop + p.backdrop_slope * gx / 128 - 0.08 * gy / 128 + 0 * x
    # hair: strands fan out from the parting, then hang
    fan = (x - p.part) / np.maximum(np.minimum(y, 0) + 128, 14) * 430 + fuzz * (4 + 9 * p.curl)
    strand = np.interp(fan % 4096, np.arange(4096), strands).astype(np.float32)
    wv = p.face_w + max(p.volume, 0) * 0.6
    ro = np.sqrt((x / wv) ** 2 + ((np.minimum(y, 0) + 6) / (p.face_up + p.volume)) ** 2)
    shine = (0.55 - 0.6 * p.hair) * _gauss(ro - 0.72, 0.13)
    hair_tone = (p.hair + 0.03) * side * (0.88 + (0.13 - 0.12 * p.hair) * strand + shine)
    ragged = 1.2 * fuzz + 0.8 * strand
    outer = _edge((1 - ro) * 70 + 0.6 * ragged + 0.03 * np.maximum(y, 0), 1.1)
    hanging = _edge(p.hair_end + 4 * ragged - y, 2.5)
    put(outer * hanging, 0.8 * hair_tone)
    # neck and shoulders
    flare = p.neck_w + 0.0035 * np.maximum(y - 70, 0) ** 2
    nx = np.clip(x / flare, -0.98, 0.98)
    lam = np.clip(p.light[0] * nx + 0.75 * np.sqrt(1 - nx * nx), 0, 1)
    neck = 0.88 * p.skin * (p.ambient + (1 - p.ambient) * lam)
    chin = p.face_low - 6 + a.jaw
    neck *= 1 - 0.62 * expit((chin + 15 - 0.004 * x * x - y) / 8)  # shadow of the chin
    put(_edge(flare - np.abs(x), 1.2) * _edge(y - 40, 2), neck)
    ax = np.abs(gx)
    rim = 32 - 0.012 * np.minimum(ax, 45) ** 2 + 0.10 * np.maximum(ax - 40, 0) + 0.00108 * ax * ax
    collar = y - p.face_low - rim
    put(_edge(collar, 1.0), p.shirt * side * (0.85 + 0.05 * fuzz - 0.15 * _gauss(collar - 5, 1.2)))
    # ears, then the head in front of them
    for m in (-1, 1):
        ex, ey = m * x - p.face_w - 1.5 - 0.12 * (4 - y) * 0.5, y - 10
        er = np.sqrt((ex / 8.5) ** 2 + (ey / 19) ** 2)
        tone = p.skin * (0.62 + 0.3 * m * p.light[0])
        tone = tone * (1 - 0.35 * _gauss(er - 0.55, 0.14) + 0.12 * _gauss(er - 0.85, 0.1))
        put(_edge((1 - er) * 11, 0.9), tone)
    put(f.head, face)
    # front hair: above the hairline, and curtains of long hair beside the face
    rel = np.clip(np.abs(x) / p.face_w, 0, 1.2)
    line = p.hairline + (p.recede + 10) * rel * rel * (p.arc + (1 - p.arc) * rel * rel)
    line += 0.25 * p.part * x / p.face_w + (1.5 if p.curtain else 0.8) * ragged
    drapes = _edge(np.abs(x) - p.face_w + p.curtain + 0.6 * ragged, 1.2) * (p.curtain > 0)
    front = np.maximum(_edge(line - y, 1.6), drapes)
    face_cast = _edge(line + 5 - y, 3.0) * f.head * (p.volume > 2)
    put(0.22 * face_cast, 0.05)
    put(front * outer * hanging, hair_tone)
    return img
