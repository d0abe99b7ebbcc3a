"""Numbers that tell why orderings fail, of the runs of a study. Needs numpy, pillow and safetensors.

    python benchmarks/studies/causes.py out/study/centred > benchmarks/studies/centred/causes.txt

1. How far the seeds' class vectors end from their class's (told by Adam's, which end within 0.06 of it), and how many end nearer to
   another class.
2. What a transform costs that nothing needs: Adam's answers as they are, and put through the transform that another row found and
   through its inverse; then only where the inverse has something to show. L1 and L2 to the targets inside the boxes, as in the tables.
"""

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import load_file


def results(row: Path):
    """Records of a row and the folders of their objects, by image."""
    for path in sorted(row.glob("images/**/result.json")):
        record = json.loads(path.read_text())
        yield record, path.parent / f"attempt-{record['attempt']}"


def class_vectors(row: Path):
    """Class and c of all seeds, [seeds, width], of each result."""
    return [(record["class_name"], load_file(folder / "projection.safetensors")["c"]) for record, folder in results(row)]


def picture(folder: Path, name: str):
    """[h, w, 3] in [-1, 1]."""
    return np.asarray(Image.open(folder / name).convert("RGB")).astype(float) / 127.5 - 1


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


def box(image, record):
    """The part of an image inside its object's box."""
    x, y, width, height = (round(record["target_bbox"][name]) for name in ("x", "y", "width", "height"))
    return image[y : y + height, x : x + width]


def leave(study: Path):
    """Prints how far class vectors go."""
    adam = class_vectors(study / "adam")
    own = {name: np.mean([c.mean(0) for other, c in adam if other == name], 0) for name, _ in adam}
    apart = [np.linalg.norm(a - b) for a, b in itertools.combinations(own.values(), 2)]
    rms = np.sqrt(np.mean(np.square(list(own.values()))))
    print(f"class vectors: {np.mean(apart):.1f} apart ({min(apart):.1f} to {max(apart):.1f}); their entries' root mean square is {rms:.2f}")
    draws = np.random.default_rng(0).standard_normal((1000, len(next(iter(own.values())))))
    nearest = np.linalg.norm(draws[:, None] - np.array(list(own.values())), axis=2).min(1)
    print(f"draws from N(0, I) to the nearest class: {nearest.mean():.1f} on average, {nearest.min():.1f} at least")
    for row in ("adam", "lbfgs", "basincma"):
        far, left = [], 0
        for name, c in class_vectors(study / row):
            far += list(np.linalg.norm(c - own[name], axis=1))
            nearest = [min(own, key=lambda other: np.linalg.norm(seed - own[other])) for seed in c]
            left += sum(other != name for other in nearest)
        print(f"{row}: {np.mean(far):.3f} from their class (median {np.median(far):.3f}, at most {max(far):.1f}); {left} of {len(far)} seeds nearer to another")


def resampling(study: Path):
    """Prints what transforms cost."""
    adam = {record["image"]: folder for record, folder in results(study / "adam")}
    for row in ("adam-spatial", "basincma-spatial"):
        kinds, scales, moved = {"as they are": [], "through the transform and back": [], "the same, where there is something": []}, [], []
        for record, _ in results(study / row):
            folder = adam[record["image"]]
            scale, shift = (np.array(record["transform"][name]) for name in ("scale", "shift"))
            target, answer = (picture(folder, name) for name in ("target.png", "generated.png"))
            there_and_back = lambda image: warp(warp(image, scale, shift), 1 / scale, -shift / scale)
            seen = box(there_and_back(np.ones_like(target)), record)[..., 0] > 0.99
            for kind, image, where in zip(kinds, (answer, there_and_back(answer), there_and_back(answer)), (None, None, seen)):
                error = box(image - target, record)
                error = error.reshape(-1, 3) if where is None else error[where]
                kinds[kind].append((abs(error).sum(-1).mean(), (error**2).sum(-1).mean()))
            scales.append(scale[0])
            moved.append(abs(shift).max() * target.shape[0] / 2)
        print(f"{row}: scale {np.mean(scales):.2f} ({min(scales):.2f} to {max(scales):.2f}), shift {np.mean(moved):.1f} pixels on average, at most {max(moved):.1f}")
        for kind, errors in kinds.items():
            print("  Adam's answers {}: L1 {:.3f}, L2 {:.3f}".format(kind, *np.mean(errors, 0)))


leave(Path(sys.argv[1]))
resampling(Path(sys.argv[1]))
