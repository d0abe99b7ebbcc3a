"""Numbers that tell why orderings fail, of the runs of a study. Needs numpy, pillow and safetensors.

    python causes.py out/study/centred

1. How long class vectors are, and how far the rows' end from Adam's (which moves them by 0.03): whether a row leaves its class.
2. What a row's transform and its inverse alone do to the target inside the box (L1 and L2 as in the tables): what resampling costs.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file


def results(row: Path):
    """Records of a row with the folders of their objects, by image."""
    for path in sorted(row.glob("images/**/result.json")):
        record = json.loads(path.read_text())
        yield record["image"], record, path.parent / f"attempt-{record['attempt']}"


def class_vectors(row: Path):
    """c of all seeds, [seeds, width], by image."""
    return {image: load_file(folder / "projection.safetensors")["c"] for image, _, folder in results(row)}


def warp(image, scale, shift):
    """Bilinear, zero outside, corners aligned: torch's affine_grid and grid_sample. [h, w, 3]."""
    (height, width, _), out = image.shape, np.zeros_like(image)
    across = ((np.linspace(-1, 1, width) * scale[0] + shift[0]) + 1) / 2 * (width - 1)
    down = ((np.linspace(-1, 1, height) * scale[1] + shift[1]) + 1) / 2 * (height - 1)
    for dy, dx in itertools.product((0, 1), (0, 1)):
        y, x = np.floor(down).astype(int) + dy, np.floor(across).astype(int) + dx
        of_y = (1 - abs(down - y)) * ((y >= 0) & (y < height))
        of_x = (1 - abs(across - x)) * ((x >= 0) & (x < width))
        picked = image[np.clip(y, 0, height - 1)][:, np.clip(x, 0, width - 1)]
        out += picked * (of_y[:, None] * of_x[None])[..., None]
    return out


def resampling(row: Path):
    """Mean L1 and L2 between the targets and what T^-1(T(target)) is, inside the boxes."""
    errors = []
    for _, record, folder in results(row):
        scale, shift = (np.array(record["transform"][name]) for name in ("scale", "shift"))
        target = np.asarray(Image.open(folder / "target.png").convert("RGB")).astype(float) / 127.5 - 1
        again = warp(warp(target, scale, shift), 1 / scale, -shift / scale)
        box = record["target_bbox"]
        x, y, width, height = (round(box[name]) for name in ("x", "y", "width", "height"))
        error = (again - target)[y : y + height, x : x + width]
        errors.append((abs(error).sum(-1).mean(), (error**2).sum(-1).mean()))
    return np.mean(errors, 0)


def main(study: Path):
    own = {image: c[0] for image, c in class_vectors(study / "adam").items()}
    apart = np.mean([np.linalg.norm(a - b) for a, b in itertools.combinations(own.values(), 2)])
    print(f"class vectors of two images: {apart:.2f} apart, numbers of a root mean square of {np.sqrt(np.mean(np.square(list(own.values())))):.2f}")
    for row in ("adam", "lbfgs", "basincma"):
        far = [np.linalg.norm(c - own[image], axis=1).mean() for image, c in class_vectors(study / row).items()]
        print(f"{row}: {np.mean(far):.3f} from Adam's")
    for row in ("adam-spatial", "basincma-spatial"):
        print("{}: the transform and its inverse alone cost L1 {:.3f}, L2 {:.3f}".format(row, *resampling(study / row)))


main(Path(sys.argv[1]))
