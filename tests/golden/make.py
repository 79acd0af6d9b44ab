"""Make the small golden files here from the whole ones: ``TVF_GOLDEN=FOLDER python tests/golden/make.py``.

Arrays are copied as they are; of an array that holds several independent cases, only some cases are kept.
"""

import io
import os
import zipfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
CASES = [1, 5]  # of the pairs in ssim_fsim.npz: a photograph with its blurred copy, and with a constant image
# File -> {array: cases that are kept, or None for the whole array}. README.md says why these.
KEPT = {
    "l2r_evaluation": dict.fromkeys(["fixed", "moving", "warped", "dice", "dice_mean", "hd95", "hd95_mean"]),
    "ndv": dict.fromkeys(
        f"{name}_{what}"
        for name in ("folded3d", "smooth2d", "folded2d")
        for what in (
            "displacement",
            "volume",
            "percent",
            "nondiffeomorphic_voxels",
            "nondiffeomorphic_voxels_percent",
        )
    ),
    "released_losses": dict.fromkeys(
        [
            "meta",
            "fixed",
            "moving",
            "displacement",
            "moving_labels",
            "fixed_labels",
            "ncc",
            "diffusion",
            "lddmm",
            "dice",
            "warped_label_mass",
            "lapirn_ncc_win3_scale1",
            "lapirn_ncc_win5_scale2",
            "lapirn_ncc_win7_scale3",
        ]
    ),
    "ssim_fsim": dict.fromkeys(["a", "b", "ssim", "fsim"], CASES),
}


def part(whole, name: str) -> dict[str, np.ndarray]:
    """The kept arrays of one whole golden file."""
    return {key: whole[key] if cases is None else whole[key][cases] for key, cases in KEPT[name].items()}


def main() -> None:
    folder = Path(os.environ["TVF_GOLDEN"])
    for name in KEPT:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as whole:
            arrays = part(whole, name)
        with zipfile.ZipFile(
            HERE / f"{name}.npz", "w", zipfile.ZIP_LZMA
        ) as archive:  # smaller than NumPy's own
            for key, array in arrays.items():
                content = io.BytesIO()
                np.lib.format.write_array(content, array, allow_pickle=False)
                archive.writestr(zipfile.ZipInfo(f"{key}.npy"), content.getvalue(), zipfile.ZIP_LZMA)


if __name__ == "__main__":
    main()
