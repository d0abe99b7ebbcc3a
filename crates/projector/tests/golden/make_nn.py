"""Writes the goldens of the networks and the transform, from the reference code, with fixed seeds.

    pip install torch==2.11.0 torchvision==0.26.0 lpips==0.1.4 pytorch-pretrained-biggan==0.1.1 safetensors
    python make_nn.py            # writes next to this file

Tensors whose name starts with `test.` are inputs and expected outputs; all others are weights under the names of the
reference's state_dict. All float32 on the CPU, one thread.

biggan_deep   the class BigGAN of huggingface/pytorch-pretrained-BigGAN, tiny and random, and the checkpoint's own
              config.json beside it
fine_tune     some steps of Equation 6 on that BigGAN by torch.optim.Adam, with L1 alone for the image
lpips_alex    the class LPIPS (v0.1) of richzhang/PerceptualSimilarity with its published heads. The trunk (AlexNet's
              `features`, 2.5 million floats) is not stored: `alexnet` below makes it, and so does `weights.rs`
sampling      torch.nn.functional.affine_grid and grid_sample
colour        torchvision.transforms.functional.adjust_*
"""

import importlib
import json
import pathlib
import sys
import types

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def save(name, tensors):
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    for key, value in tensors.items():
        assert value.dtype == torch.float32 and torch.isfinite(value).all(), key
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

    z = torch.randn(3, 8)
    onehot = torch.eye(7)[[4, 0, 6]]
    c = model.embeddings(onehot).detach()
    weighting = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        output = model(z, onehot, 1.0)
        truncated = model(z, onehot, 0.43)
        truncated_off_middle = model(z, onehot, 0.437)
    z_leaf, c_leaf = z.clone().requires_grad_(), c.clone().requires_grad_()
    (model.generator(torch.cat((z_leaf, c_leaf), dim=1), 1.0) * weighting).sum().backward()
    print("output deviation", output.std().item(), "between samples", output.std(0).mean().item())
    save(
        "biggan_deep",
        {
            **model.state_dict(),
            "test.z": z,
            "test.class": onehot,
            "test.c": c,
            "test.output": output,
            "test.output_truncation_043": truncated,
            # 0.43 is half-way between two rows, where exchanged weights would not be seen; this one is not.
            "test.output_truncation_0437": truncated_off_middle,
            "test.weighting": weighting,
            "test.grad_z": z_leaf.grad,
            "test.grad_c": c_leaf.grad,
        },
    )
    (HERE / "biggan_deep.config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


# --- fine-tuning -----------------------------------------------------------------------------------------------------


def fine_tune():
    """Equation 6, with the reading of `weight_regularization` (mean of squares, added over the weights)."""
    from safetensors.torch import load_file
    from torch.nn.utils import remove_spectral_norm

    stored = load_file(HERE / "biggan_deep.safetensors")
    config_class, model_class = reference_biggan()
    model = model_class(config_class.from_dict(CONFIG))
    model.load_state_dict({key: value for key, value in stored.items() if not key.startswith("test.")})
    model.eval()
    for module in model.modules():
        if hasattr(module, "weight_orig"):
            remove_spectral_norm(module)
    # As the generator is folded: gamma in the last convolution of attention, and the three channels that are used.
    generator = model.generator
    with torch.no_grad():
        for layer in generator.layers:
            if hasattr(layer, "gamma"):
                layer.snconv1x1_o_conv.weight *= layer.gamma
                layer.gamma.fill_(1.0)
        generator.conv_to_rgb.weight = torch.nn.Parameter(generator.conv_to_rgb.weight[:3].clone())
        generator.conv_to_rgb.bias = torch.nn.Parameter(generator.conv_to_rgb.bias[:3].clone())
    names = [n for n, _ in generator.named_parameters() if ".bn" not in n and not n.startswith("bn") and "gamma" not in n]
    theta = [dict(generator.named_parameters())[n] for n in names]
    base = [t.detach().clone() for t in theta]
    cond = torch.cat((stored["test.z"][:1].clamp(-2, 2), stored["test.c"][:1]), dim=1)
    target = stored["test.output"][1:2]
    optimiser = torch.optim.Adam(theta, lr=1e-3)
    losses = []
    for _ in range(6):
        image = generator(cond, 1.0)
        penalty = sum(((t - b) ** 2).mean() for t, b in zip(theta, base))
        loss = (image - target).abs().sum(1).mean() + 1e3 * penalty
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    print("fine-tuning", losses, len(names), "weights")
    with torch.no_grad():
        image = generator(cond, 1.0)
    save("fine_tune", {"test.losses": torch.tensor(losses), "test.image": image})


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


def lpips_alex():
    import lpips

    torch.manual_seed(2)
    trunk = alexnet()
    model = lpips.LPIPS(net="alex", version="0.1", pnet_rand=True, verbose=False).eval()
    state = model.net.state_dict()
    for key in state:
        state[key] = trunk["features." + key.split(".", 1)[1]]
    model.net.load_state_dict(state)

    # Smooth images with some noise; the second pair has flat parts, one of them the same in both.
    def images(seed):
        smooth = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(seed))
        noise = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(seed + 1))
        smooth = F.interpolate(smooth, size=64, mode="bicubic", align_corners=False)
        return (0.5 * smooth + 0.05 * noise).clamp(-1, 1)

    x, y = images(20), images(30)
    x[1, :, :32] = 0.25
    y[1, :, :, 16:48] = 0.25
    x.requires_grad_()
    distance = model(x, y)
    distance.sum().backward()
    with torch.no_grad():
        model.spatial = True
        map_ = model(x, y)
        features = model.net(model.scaling_layer(x))
    print("distance", distance.flatten().tolist(), "feature means", [f.mean().item() for f in features])
    save(
        "lpips_alex",
        {
            **{f"lin{i}.model.1.weight": model.state_dict()[f"lin{i}.model.1.weight"] for i in range(5)},
            # First and last four elements of each generated tensor, for a test of the generator itself.
            "test.probe": torch.stack([torch.cat((t.flatten()[:4], t.flatten()[-4:])) for t in trunk.values()]),
            "test.x": x,
            "test.y": y,
            "test.distance": distance,
            "test.map": map_,
            "test.grad_x": x.grad,
        },
    )


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
