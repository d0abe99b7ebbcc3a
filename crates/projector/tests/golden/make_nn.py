"""Writes the goldens of the networks and the transform, from the reference code, with fixed seeds.

    pip install torch==2.11.0 torchvision==0.26.0 lpips==0.1.4 pytorch-pretrained-biggan==0.1.1 safetensors
    python make_nn.py            # writes next to this file

Tensors whose name starts with `test.` are inputs and expected outputs; all others are weights under the names of the
reference's state_dict. Stored as float32; outputs of networks are computed in float64 at inputs away from corners (`corners.py`).

biggan_deep   the class BigGAN of huggingface/pytorch-pretrained-BigGAN, tiny and random, and the checkpoint's own
              config.json beside it
fine_tune     some steps of Equation 6 on that BigGAN by torch.optim.Adam, with L1 alone for the image
lpips_alex    the class LPIPS (v0.1) of richzhang/PerceptualSimilarity with its published heads. The trunk (AlexNet's
              `features`, 2.5 million floats) is not stored: `alexnet` below makes it, and so does the crate `seeded`
sampling      torch.nn.functional.affine_grid and grid_sample
colour        torchvision.transforms.functional.adjust_*
"""

import copy
import functools
import importlib
import json
import pathlib
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from corners import AWAY, Corners, away, check

HERE = pathlib.Path(__file__).parent
# `assert_close` of the tests: largest difference over largest value.
TOLERANCE = 1e-4


def save(name, tensors):
    tensors = {key: value.detach().float().clone().contiguous() for key, value in tensors.items()}
    for key, value in tensors.items():
        assert torch.isfinite(value).all(), key
    path = HERE / f"{name}.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)
    print(name, path.stat().st_size, "bytes")


# --- BigGAN-deep -----------------------------------------------------------------------------------------------------

CONFIG = {
    "output_dim": 32,
    "z_dim": 8,
    "class_embed_dim": 8,
    "channel_width": 4,
    "num_classes": 7,
    "layers": [
        [False, 16, 16],
        [True, 16, 8],
        [False, 8, 8],
        [True, 8, 4],
        [False, 4, 4],
        [True, 4, 2],
        [False, 2, 1],
    ],
    "attention_layer_position": 4,
    "eps": 1e-4,
    "n_stats": 51,
}


@functools.cache
def reference_biggan():
    """The package's modules without its downloader, which wants boto3."""
    spec = importlib.util.find_spec("pytorch_pretrained_biggan")
    package = types.ModuleType("pytorch_pretrained_biggan")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["pytorch_pretrained_biggan"] = package
    downloader = types.ModuleType("pytorch_pretrained_biggan.file_utils")
    downloader.cached_path = None
    sys.modules["pytorch_pretrained_biggan.file_utils"] = downloader
    config = importlib.import_module("pytorch_pretrained_biggan.config").BigGANConfig
    model = importlib.import_module("pytorch_pretrained_biggan.model").BigGAN
    return config, model


def biggan_deep():
    torch.manual_seed(1)
    config_class, model_class = reference_biggan()
    model = model_class(config_class.from_dict(CONFIG))
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name == "generator.bn.weight":
                value.copy_(0.4 + 0.1 * torch.randn_like(value))
            elif name.endswith(".gamma"):
                value.fill_(0.7)
            elif name.endswith("bias"):
                value.copy_(0.2 * torch.randn_like(value))
            elif name == "embeddings.weight":
                value.copy_(torch.randn_like(value))
            else:
                value.copy_(torch.randn_like(value) / value[0].numel() ** 0.5)
        for name, value in model.named_buffers():
            if name.endswith("running_means"):
                value.copy_(0.3 * torch.randn_like(value))
            elif name.endswith("running_vars"):
                value.copy_(0.1 + 0.6 * torch.rand_like(value))
        # In training mode each pass does one power iteration on every u and v, as the published weights have seen.
        model.train()
        for _ in range(5):
            model(torch.randn(1, 8), torch.eye(7)[:1], 1.0)
    model.eval()

    # On the other side of a corner the third digit of a gradient is another.
    double = copy.deepcopy(model).double()
    onehot = torch.eye(7)[[4, 0, 6]]
    samples = torch.randn(3, 200, 8)
    each = lambda label: lambda z: double(z.double(), label.double().expand(len(z), -1), 1.0)
    z = torch.cat([away(each(label), z) for label, z in zip(onehot, samples)])
    c = model.embeddings(onehot).detach()
    weighting = torch.randn(3, 3, 32, 32)

    def outputs(model, z, c, onehot, weighting):
        z, c = z.clone().requires_grad_(), c.clone().requires_grad_()
        with Corners() as corners:
            output = model.generator(torch.cat((z, c), dim=1), 1.0)
        (output * weighting).sum().backward()
        with torch.no_grad():
            # 0.43 is half-way between two rows, where exchanged weights would not be seen; 0.437 is not.
            truncated = {f"output_truncation_{name}": model(z, onehot, float(f"0.{name[1:]}")) for name in ("043", "0437")}
        return {"output": output.detach(), **truncated, "grad_z": z.grad, "grad_c": c.grad}, corners

    inputs = (z, c, onehot, weighting)
    expected, corners = outputs(double, *(t.double() for t in inputs))
    single, corners_single = outputs(model, *inputs)
    output = expected["output"]
    print("output deviation", output.std().item(), "between samples", output.std(0).mean().item())
    check(expected, single, TOLERANCE, (corners, corners_single))
    save(
        "biggan_deep",
        {
            **model.state_dict(),
            **{f"test.{name}": value for name, value in zip(("z", "c", "class", "weighting"), inputs)},
            **{f"test.{name}": value for name, value in expected.items()},
        },
    )
    (HERE / "biggan_deep.config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def folded_generator():
    """The stored one in float64, as basin folds it: gamma in the last convolution of attention, and the three channels that are used."""
    from torch.nn.utils import remove_spectral_norm

    config_class, model_class = reference_biggan()
    model = model_class(config_class.from_dict(CONFIG)).eval()
    stored = load_file(HERE / "biggan_deep.safetensors")
    model.load_state_dict({key: value for key, value in stored.items() if not key.startswith("test.")})
    model.double()
    for module in model.modules():
        if hasattr(module, "weight_orig"):
            remove_spectral_norm(module)
    generator = model.generator
    with torch.no_grad():
        for layer in generator.layers:
            if hasattr(layer, "gamma"):
                layer.snconv1x1_o_conv.weight *= layer.gamma
                layer.gamma.fill_(1.0)
        generator.conv_to_rgb.weight = torch.nn.Parameter(generator.conv_to_rgb.weight[:3].clone())
        generator.conv_to_rgb.bias = torch.nn.Parameter(generator.conv_to_rgb.bias[:3].clone())
    return generator, stored


def equation_6(generator, cond, target):
    """The losses before each of six steps of Adam and the image after them, with the reading of `weight_regularization` (mean of
    squares, added over the weights). None as soon as float64 comes near a corner."""
    moves = lambda name: ".bn" not in name and not name.startswith("bn") and "gamma" not in name
    theta = [value for name, value in generator.named_parameters() if moves(name)]
    base = [t.detach().clone() for t in theta]
    optimiser = torch.optim.Adam(theta, lr=1e-3)
    losses, corners = [], Corners()
    for _ in range(6):
        with corners:
            image = generator(cond, 1.0)
            l1 = (image - target).abs().sum(1).mean()
        if cond.dtype == torch.float64 and corners.nearest() < AWAY:
            return None
        loss = l1 + 1e3 * sum(((t - b) ** 2).mean() for t, b in zip(theta, base))
        losses.append(loss.detach())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.no_grad():
        return {"losses": torch.stack(losses), "image": generator(cond, 1.0)}, corners


def fine_tune():
    """Steps of Equation 6. A value on the other side of a corner in one step moves the loss of all later ones by 2e-5: the start is
    the first of many that keeps away from all corners in all steps."""
    generator, stored = folded_generator()
    c, target = stored["test.c"][:1], stored["test.output"][1:2]
    torch.manual_seed(6)
    for z in torch.randn(2000, 1, 8).clamp(-2, 2):
        found = equation_6(copy.deepcopy(generator), torch.cat((z, c), dim=1).double(), target.double())
        if found:
            break
    expected, corners = found
    single, corners_single = equation_6(copy.deepcopy(generator).float(), torch.cat((z, c), dim=1), target)
    print("fine-tuning", expected["losses"].tolist())
    # The test's tolerance of losses.
    check({"losses": expected["losses"]}, single, 2e-6, (corners, corners_single))
    check({"image": expected["image"]}, single, TOLERANCE)
    save("fine_tune", {"test.z": z, **{f"test.{name}": value for name, value in expected.items()}})


# --- LPIPS -----------------------------------------------------------------------------------------------------------

ALEXNET = [
    ("features.0.weight", (64, 3, 11, 11)),
    ("features.0.bias", (64,)),
    ("features.3.weight", (192, 64, 5, 5)),
    ("features.3.bias", (192,)),
    ("features.6.weight", (384, 192, 3, 3)),
    ("features.6.bias", (384,)),
    ("features.8.weight", (256, 384, 3, 3)),
    ("features.8.bias", (256,)),
    ("features.10.weight", (256, 256, 3, 3)),
    ("features.10.bias", (256,)),
]


def alexnet():
    """Element i (flat) of tensor k: the 32-bit mix of i * 0x9E3779B9 xor (k + 1) * 0x85EBCA6B, of which the upper 24
    bits give a float in [-1, 1) without rounding; times the bound, one rounding in float32. The bound of a weight is
    sqrt(6 / fan_in), computed in float64 and rounded to float32; that of a bias 0.1."""
    tensors = {}
    for k, (name, shape) in enumerate(ALEXNET):
        x = np.arange(np.prod(shape), dtype=np.uint32)
        with np.errstate(over="ignore"):
            x = x * np.uint32(0x9E3779B9) ^ np.uint32(((k + 1) * 0x85EBCA6B) & 0xFFFFFFFF)
            x ^= x >> np.uint32(16)
            x *= np.uint32(0x7FEB352D)
            x ^= x >> np.uint32(15)
            x *= np.uint32(0x846CA68B)
            x ^= x >> np.uint32(16)
        unit = ((x >> np.uint32(8)).astype(np.int32) - 2**23).astype(np.float32) / np.float32(2**23)
        bound = np.float32(np.sqrt(np.float64(6) / np.prod(shape[1:]))) if name.endswith("weight") else np.float32(0.1)
        tensors[name] = torch.from_numpy((unit * bound).reshape(shape))
        assert tensors[name].dtype == torch.float32
    return tensors


def lpips_golden(net, trunk, height, width):
    """Two pairs of images, and what the class LPIPS says of them with its published heads and `trunk`. Of many first images those
    whose features keep away from corners. The second pair has parts that are nearly flat and flat."""
    import lpips

    model = lpips.LPIPS(net=net, version="0.1", pnet_rand=True, verbose=False).eval()
    model.net.load_state_dict({key: trunk["features." + key.split(".", 1)[1]] for key in model.net.state_dict()})
    double = copy.deepcopy(model).double()
    random = torch.Generator().manual_seed(20)

    def images(n):
        # Smooth, with some noise.
        smooth = torch.randn(n, 3, 9, 9, generator=random)
        noise = torch.randn(n, 3, height, width, generator=random)
        smooth = F.interpolate(smooth, size=(height, width), mode="bicubic", align_corners=False)
        return (0.5 * smooth + 0.05 * noise).clamp(-1, 1)

    candidates, nearly_flat, y = images(400), images(400), images(2)
    top = nearly_flat[:, :, : height // 2]
    top.copy_(0.25 + 0.02 * torch.randn(top.shape, generator=random))
    y[1, :, :, width // 4 : -(width // 4)] = 0.25
    features = lambda x: double.net(double.scaling_layer(x.double()))
    x = torch.cat([away(features, candidates), away(features, nearly_flat)])

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
    print("distance", expected["distance"].flatten().tolist())
    check(expected, single, TOLERANCE, (corners, corners_single))
    heads = {key: value for key, value in model.state_dict().items() if key.startswith("lin") and not key.startswith("lins")}
    expected |= {"x": x, "y": y}
    return {**heads, **{f"test.{key}": value for key, value in expected.items()}}


def lpips_alex():
    save("lpips_alex", lpips_golden("alex", alexnet(), 64, 64))


# --- Transform -------------------------------------------------------------------------------------------------------


def sampling():
    torch.manual_seed(3)
    image = torch.rand(1, 3, 20, 28) * 2 - 1
    # scale x, scale y, shift x, shift y: the identity, small and large objects, both axes apart, partly outside.
    parameters = torch.tensor(
        [
            [1.0, 1.0, 0.0, 0.0],
            [0.36, 0.36, 0.1, -0.075],
            [1.3, 1.3, -0.2, 0.05],
            [0.8, 1.25, 0.0, 0.3],
            [1.7, 0.45, -0.6, 0.2],
            [1.0, 1.0, 0.75, -0.5],
        ]
    )

    def warp(scale, shift, align_corners):
        theta = torch.zeros(len(scale), 2, 3)
        theta[:, [0, 1], [0, 1]] = scale
        theta[:, :, 2] = shift
        batch = image.expand(len(scale), -1, -1, -1)
        grid = F.affine_grid(theta, batch.shape, align_corners=align_corners)
        return F.grid_sample(batch, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)

    scale, shift = parameters[:, :2], parameters[:, 2:]
    save(
        "sampling",
        {
            "test.image": image,
            "test.parameters": parameters,
            "test.forward.align_corners": warp(scale, shift, True),
            "test.forward.align_edges": warp(scale, shift, False),
            "test.inverse.align_corners": warp(1 / scale, -shift / scale, True),
            "test.inverse.align_edges": warp(1 / scale, -shift / scale, False),
        },
    )


def colour():
    import torchvision.transforms.functional as TF

    torch.manual_seed(4)
    image = torch.rand(2, 3, 12, 16)
    # A grey row, black, white, and pure colours with ties between channels.
    image[0, :, 0] = torch.rand(1, 16)
    image[1, :, 0, :8] = torch.tensor(
        [[0, 1, 1, 0, 0, 1, 0, 1], [0, 1, 0, 1, 0, 1, 1, 0], [0, 1, 0, 0, 1, 0, 1, 1]], dtype=torch.float32
    )
    cases = {
        "brightness": (TF.adjust_brightness, [0.667, 0.9, 1.0, 1.2, 1.5]),
        "contrast": (TF.adjust_contrast, [0.667, 0.9, 1.0, 1.2, 1.5]),
        "saturation": (TF.adjust_saturation, [0.667, 0.9, 1.0, 1.2, 1.5]),
        "hue": (TF.adjust_hue, [-0.5, -0.2, 0.0, 0.05, 0.3]),
        "gamma": (TF.adjust_gamma, [0.667, 0.9, 1.0, 1.2, 1.5]),
    }
    tensors = {"test.image": image}
    for name, (adjust, factors) in cases.items():
        tensors[f"test.{name}.factors"] = torch.tensor(factors)
        # [factors, 2, 3, 12, 16], values in [0, 1] as torchvision has them
        tensors[f"test.{name}"] = torch.stack([adjust(image, factor) for factor in factors])
    save("colour", tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    biggan_deep()
    fine_tune()
    lpips_alex()
    sampling()
    colour()
