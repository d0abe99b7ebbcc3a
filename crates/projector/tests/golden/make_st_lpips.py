"""Writes the goldens of ST-LPIPS from its package with its published weights, on real photographs.

    pip install torch==2.11.0 torchvision==0.26.0 safetensors pillow
    pip install --no-deps stlpips_pytorch==0.0.2
    infra/published/setup.sh
    python make_st_lpips.py target/published            # writes next to this file

Outputs are computed in float64. The weights are not stored: the tests read them from target/published.

lpips_st-{alex,vgg16}     two pairs of small crops, distances, distance maps and gradients, at crops away from corners (`corners.py`).
                          Stored as float32. Part of the second target is flat
st_lpips_photographs.json crops of SIDE pixels against the same photograph a pixel further and against another photograph: both
                          distances, and of each gradient its norm and its products with noise, which show a difference anywhere
"""

import argparse
import copy
import json
import pathlib
import sys
import types

import numpy as np
import torch
from PIL import Image

from corners import Corners, away, check
from make_nn import HERE, TOLERANCE, save
from make_published import unit

# Name here, name in the package, height and width of the small crops.
NETWORKS = [("st-alex", "alex", 40, 36), ("st-vgg16", "vgg", 20, 18)]
PHOTOGRAPHS = ["astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png"]
SIDE = 96
# Top and left of the large crops.
CORNER = (150, 260)
NOISES = (2000, 2001, 2002)


def reference(net):
    """The package's class without what it imports for notebooks and summaries."""
    for name, attribute in (("IPython", "embed"), ("torchsummary", "summary")):
        module = types.ModuleType(name)
        setattr(module, attribute, None)
        sys.modules[name] = module
    from stlpips_pytorch.stlpips import LPIPS

    return LPIPS(net=net, variant="shift_tolerant", verbose=False)


def read(path):
    """`[3, h, w]` in [-1, 1]."""
    pixels = np.array(Image.open(path).convert("RGB"))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1


def crops(photographs, height, width):
    """Crops on a coarse grid, `[n, 3, height, width]`."""
    starts = lambda size, crop, step: range(0, size - crop, step)
    return torch.stack(
        [
            photograph[:, top : top + height, left : left + width]
            for photograph in photographs
            for top in starts(photograph.shape[1], height, 67)
            for left in starts(photograph.shape[2], width, 71)
        ]
    )


def small(name, model, double, photographs, height, width):
    features = lambda x: double.net(double.scaling_layer(x.double()))
    astronaut, chelsea, coffee, _ = photographs
    x = torch.cat([away(features, crops([photograph], height, width)) for photograph in (astronaut, coffee)])
    # A pixel further than some crop, and another photograph.
    y = torch.stack([astronaut[:, 68 : 68 + height, 72 : 72 + width], chelsea[:, 60 : 60 + height, 90 : 90 + width]])
    y[1, :, :, width // 4 : -(width // 4)] = 0.25

    def outputs(model, x, y):
        x = x.clone().requires_grad_()
        model.spatial = False
        with Corners() as corners:
            model.net(model.scaling_layer(x))
        distance = model(x, y)
        distance.sum().backward()
        model.spatial = True
        with torch.no_grad():
            return {"distance": distance.detach(), "map": model(x, y), "grad_x": x.grad}, corners

    expected, corners = outputs(double, x.double(), y.double())
    single, corners_single = outputs(model, x, y)
    print(name, "distance", expected["distance"].flatten().tolist(), "gradient", expected["grad_x"].norm().item())
    check(expected, single, TOLERANCE, (corners, corners_single))
    expected |= {"x": x, "y": y}
    save(f"lpips_{name}", {f"test.{key}": value for key, value in expected.items()})


def large(model, photographs):
    """The crop of each photograph against the two others."""
    model.spatial = False
    top, left = CORNER
    crop = lambda photograph, further: photograph[:, top + further :, left + further :][:, :SIDE, :SIDE]
    kind = model.scaling_layer.shift.dtype
    noises = [torch.from_numpy(unit(k, (2, 3, SIDE, SIDE)).reshape(2, 3, SIDE, SIDE)).to(kind) for k in NOISES]
    answers = {}
    for i, name in enumerate(PHOTOGRAPHS):
        x = crop(photographs[i], 0).expand(2, -1, -1, -1).to(kind).clone().requires_grad_()
        y = torch.stack([crop(photographs[i], 1), crop(photographs[(i + 1) % len(photographs)], 0)]).to(kind)
        distance = model(x, y).flatten()
        distance.sum().backward()
        along = torch.stack([(x.grad * noise).sum((1, 2, 3)) for noise in noises], 1)
        answers[name] = {
            "distances": distance.tolist(),
            "norms": x.grad.flatten(1).norm(dim=1).tolist(),
            "along_noise": along.tolist(),
        }
    return answers


def differences(answers, single):
    """Prints how much float32 differs: distances relatively, gradients by their norm, most of all where a value crosses a corner."""
    of = lambda found, name, key: torch.tensor(found[name][key], dtype=torch.float64)
    for name in answers:
        apart = lambda key: of(single, name, key) - of(answers, name, key)
        norms = of(answers, name, "norms")
        distance = (apart("distances") / of(answers, name, "distances")).abs().max().item()
        gradient = torch.stack([apart("norms") / norms, *(apart("along_noise") / norms[:, None]).unbind(1)]).abs().max().item()
        print(f"    {name}: {answers[name]['distances']}, float32 differs by {distance:.1e}, its gradients by {gradient:.1e}")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("published", type=pathlib.Path)
    folder = arguments.parse_args().published / "photographs"
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    photographs = [read(folder / name) for name in PHOTOGRAPHS]
    answers = {}
    for name, net, height, width in NETWORKS:
        model = reference(net)
        double = copy.deepcopy(model).double()
        small(name, model, double, photographs, height, width)
        answers[name] = large(double, photographs)
        differences(answers[name], large(model, photographs))
    (HERE / "st_lpips_photographs.json").write_text(json.dumps(answers, indent=1) + "\n")
