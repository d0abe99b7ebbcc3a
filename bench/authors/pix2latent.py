"""Projects targets with the authors' own optimiser classes (minyoungg/pix2latent, branch master), for `basin-bench authors`.

None of their code is here: --checkout names a checkout of it. What is ours: the bundled model in the place of
pytorch-pretrained-BigGAN's download, with what their wrapper does to it; the model's perceptual network in the place of AlexNet, run by
lpips' own forward pass; a square root without NaN in its gradient (richzhang/PerceptualSimilarity#69), without which the
search ends in NaN on flat backgrounds; and `.cuda()` that stays on the CPU where that was asked for.

Reads a safetensors file with `image.{i}` [3, r, r] in [-1, 1], `weight.{i}` [1, r, r] and `class.{i}` [1]; then numbers of images, a
line for each, from standard input, and answers each with a line of JSON.
"""

import argparse
import collections
import json
import resource
import sys
import time
from pathlib import Path

import safetensors.torch
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--checkout", required=True)
parser.add_argument("--model", required=True)
parser.add_argument("--targets", required=True)
parser.add_argument("--device", default="cpu")
parser.add_argument("--threads", type=int, default=0, help="0: torch's choice")
parser.add_argument("--generations", type=int, default=30)
parser.add_argument("--steps", type=int, default=30)
parser.add_argument("--final-steps", type=int, default=300)
parser.add_argument("--batch", type=int, default=9, help="their default")
args = parser.parse_args()

sys.path.insert(0, args.checkout)
device = torch.device(args.device)
if device.type == "cpu":
    torch.Tensor.cuda = lambda self, *_, **__: self
    torch.nn.Module.cuda = lambda self, *_, **__: self
if args.threads:
    torch.set_num_threads(args.threads)

import lpips  # noqa: E402
import pytorch_pretrained_biggan as ppb  # noqa: E402
from pytorch_pretrained_biggan.config import BigGANConfig  # noqa: E402

from pix2latent import VariableManager  # noqa: E402
from pix2latent import distribution as dist  # noqa: E402
from pix2latent import loss_functions  # noqa: E402
from pix2latent.optimizer import BasinCMAOptimizer  # noqa: E402
from pix2latent.utils import function_hooks  # noqa: E402
from pix2latent.utils.misc import HiddenPrints, remove_spectral_norm, replace_to_inplace_relu, set_seed  # noqa: E402


def safe_normalize(features, eps=1e-10):
    square = torch.sum(features**2, dim=1, keepdim=True)
    return features / (square.clamp_min(1e-30).sqrt() + eps)


lpips.normalize_tensor = safe_normalize
folder = Path(args.model)
manifest = json.loads((folder / "model.json").read_text())


class Generator(torch.nn.Module):
    """Their `model/biggan.py` around the model folder."""

    def __init__(self):
        super().__init__()
        config = json.loads((folder / manifest["generator"]["config"]).read_text())
        config["layers"] = [tuple(layer) for layer in config["layers"]]
        with HiddenPrints():
            biggan = ppb.BigGAN(BigGANConfig.from_dict(config))
            state = safetensors.torch.load_file(folder / manifest["generator"]["weights"])
            biggan.load_state_dict(state, strict=True)
            self.embeddings, self.generator = biggan.embeddings.eval(), biggan.generator.eval()
            replace_to_inplace_relu(self.generator)
            remove_spectral_norm(self.generator)
        self.z, self.c, self.resolution = config["z_dim"], config["class_embed_dim"], config["output_dim"]

    def class_embedding(self, index):
        with torch.no_grad():
            return self.embeddings.weight[:, index].clone()

    def forward(self, z=None, c=None, truncation=1.0):
        return self.generator(torch.cat((z, c), dim=1), truncation)


class Features(torch.nn.Module):
    """The stack of the model folder's perceptual network: its taps, as lpips' networks return them."""

    def __init__(self, config, state):
        super().__init__()
        self.layers, channels, self.taps = torch.nn.ModuleList(), 3, []
        for layer in config["layers"]:
            if layer["kind"] == "max_pool":
                self.layers.append(torch.nn.MaxPool2d(layer["kernel"], layer["stride"], ceil_mode=layer.get("ceil", False)))
                self.taps.append(False)
                continue
            conv = torch.nn.Conv2d(channels, layer["channels"], layer["kernel"], layer["stride"], layer["padding"])
            conv.weight.data, conv.bias.data = (state[f"features.{layer['index']}.{part}"] for part in ("weight", "bias"))
            self.layers.append(torch.nn.Sequential(conv, torch.nn.ReLU(inplace=False)))
            self.taps.append(layer["tap"])
            channels = layer["channels"]
        # As lpips does with its networks.
        for parameter in self.parameters():
            parameter.requires_grad = False

    def forward(self, x):
        taps = []
        for layer, tap in zip(self.layers, self.taps):
            x = layer(x)
            if tap:
                taps.append(x)
        return collections.namedtuple("Taps", [f"relu{i}" for i in range(len(taps))])(*taps)


def perceptual():
    config = json.loads((folder / manifest["perceptual"]["config"]).read_text())
    state = safetensors.torch.load_file(folder / manifest["perceptual"]["weights"])
    loss = loss_functions.PerceptualLoss.__new__(loss_functions.PerceptualLoss)
    torch.nn.Module.__init__(loss)
    with HiddenPrints():
        net = lpips.LPIPS(pretrained=False, pnet_rand=True, net="alex", spatial=True, verbose=False)
    net.net = Features(config, state)
    heads = sorted(int(k[3:].split(".")[0]) for k in state if k.startswith("lin"))
    net.L = len(heads)
    net.chns = [state[f"lin{k}.model.1.weight"].shape[1] for k in heads]
    net.lins = torch.nn.ModuleList()
    for k in heads:
        head = lpips.NetLinLayer(net.chns[k], use_dropout=True)
        head.model[-1].weight.data = state[f"lin{k}.model.1.weight"]
        net.lins.append(head)
    shift, scale = ([[[v]] for v in config[name]] for name in ("shift", "scale"))
    net.scaling_layer.shift, net.scaling_layer.scale = torch.tensor([shift]), torch.tensor([scale])
    loss.loss_fn = net.eval()
    return loss


model = Generator().to(device).eval()
loss_fn = loss_functions.ProjectionLoss.__new__(loss_functions.ProjectionLoss)
torch.nn.Module.__init__(loss_fn)
loss_fn.beta, loss_fn.rloss_fn, loss_fn.ploss_fn = 10, loss_functions.ReconstructionLoss(), perceptual().to(device)
targets = safetensors.torch.load_file(args.targets)


def project(image, weight, index, meta, steps, final):
    manager = VariableManager()
    # Their loss needs a weight for each channel.
    weight, shape = weight.repeat(3, 1, 1), (3, model.resolution, model.resolution)
    manager.register("z", (model.z,), "input", grad_free=True, distribution=dist.TruncatedNormalModulo(), learning_rate=0.05,
                     hook_fn=function_hooks.Clamp(2.0))
    manager.register("c", (model.c,), "input", default=model.class_embedding(index), learning_rate=0.01)
    manager.register("target", shape, "output", requires_grad=False, default=image)
    manager.register("weight", shape, "output", requires_grad=False, default=weight)
    with HiddenPrints():
        optimizer = BasinCMAOptimizer(model, manager, loss_fn, max_batch_size=args.batch)
        optimizer.show_iter = 10**9
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        variables, _, _ = optimizer.optimize(meta_steps=meta, grad_steps=steps, last_grad_steps=final)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        # Their losses are from before the last step; these are from after it.
        with torch.no_grad():
            _, losses, _ = optimizer.step(variables, optimize=False)
    return seconds, [float(loss) for loss in losses]


# Warm-up: threads, oneDNN's kernels.
project(targets["image.0"], targets["weight.0"], int(targets["class.0"]), 1, 2, 2)
for line in sys.stdin:
    i = int(line)
    set_seed(i)
    seconds, losses = project(targets[f"image.{i}"], targets[f"weight.{i}"], int(targets[f"class.{i}"]), args.generations,
                              args.steps, args.final_steps)
    lane_steps = len(losses) * (args.generations * args.steps + args.final_steps)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "lane_steps": lane_steps, "losses": losses, "peak": peak, "torch": torch.__version__}),
          flush=True)
