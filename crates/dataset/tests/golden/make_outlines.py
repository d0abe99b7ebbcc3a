"""Writes outlines.json: polygons and the pixels that pycocotools makes of them, as uncompressed run lengths.

    pip install pycocotools numpy
    python make_outlines.py      # writes next to this file
"""

import json
import pathlib

import numpy as np
from pycocotools import mask


def lengths(bitmap):
    """Run lengths column by column, beginning with zeros."""
    flat = bitmap.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    bounds = [0, *edges.tolist(), len(flat)]
    runs = np.diff(bounds).tolist()
    return [0, *runs] if flat[0] else runs


def case(name, width, height, polygons):
    rle = mask.merge(mask.frPyObjects(polygons, height, width))
    bitmap = mask.decode(rle)
    counts = rle["counts"].decode()
    return {
        "name": name, "width": width, "height": height, "polygons": polygons, "runs": lengths(bitmap),
        "area": int(bitmap.sum()), "compressed": counts,
    }


random = np.random.default_rng(1)
cases = [
    case("a rectangle on pixel borders", 12, 9, [[2, 3, 8, 3, 8, 7, 2, 7]]),
    case("a rectangle between them", 12, 9, [[2.4, 3.3, 8.7, 3.3, 8.7, 6.6, 2.4, 6.6]]),
    case("a triangle", 20, 15, [[3.2, 1.1, 17.9, 6.4, 5.5, 13.8]]),
    case("beyond the image", 10, 10, [[-4.5, -3.5, 6.5, 2.5, 3.5, 14.5]]),
    case("two that overlap", 16, 16, [[1, 1, 9, 1, 9, 9, 1, 9], [5.5, 5.5, 14.2, 6.1, 12.9, 13.3]]),
    case("crossing itself", 14, 14, [[1, 1, 12, 12, 12, 1, 1, 12]]),
    case("less than a pixel", 8, 8, [[3.1, 3.1, 3.3, 3.1, 3.3, 3.3]]),
    case("the whole image", 7, 5, [[0, 0, 7, 0, 7, 5, 0, 5]]),
]
for i in range(8):
    width, height = (int(n) for n in random.integers(5, 60, 2))
    angles = np.sort(random.uniform(0, 2 * np.pi, 9))
    radius = random.uniform(0.2, 0.6, 9)
    points = np.stack([width / 2 + radius * width * np.cos(angles), height / 2 + radius * height * np.sin(angles)], 1)
    cases.append(case(f"random {i}", width, height, [[round(float(v), 2) for v in points.flatten()]]))
path = pathlib.Path(__file__).with_name("outlines.json")
path.write_text("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
