"""How near the values of a network come to its corners: where a ReLU opens, where |x| turns, where the two largest values of a
pooling window are equal. The gradient jumps there, and the kernels of two CPUs, which round differently, may be on different
sides. The scripts beside this file take inputs that keep away from them, and assert it."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode


class Corners(TorchDispatchMode):
    """Within it, `found` gets the distances from its corner for each such operation, in order: `[n, ...]`, with a sign, over the
    deviation of the operation's values. Pass it every sample with the same operations."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in ("relu", "relu_", "abs", "hardtanh", "hardtanh_"):
            x = args[0].detach().double()
            distance = x if len(args) < 3 else torch.stack((x - args[1], x - args[2]), 1)
            self.found.append(distance / x.std())
        elif name == "max_pool2d_with_indices":
            self.found.append(gaps(args[0].detach().double(), *args[1:3]))
        return operation(*args, **(kwargs or {}))

    def nearest(self):
        """The least distance of each sample, `[n]`."""
        return torch.stack([distance.abs().flatten(1).amin(1) for distance in self.found]).amin(0)

    def apart(self, other):
        """The largest difference of a value from that of another pass over the same samples, such as one in float32; `[n]`."""
        assert len(self.found) == len(other.found)
        apart = [(ours - theirs).abs() for ours, theirs in zip(self.found, other.found)]
        return torch.stack([torch.where(a.isfinite(), a, 0).flatten(1).amax(1) for a in apart]).amax(0)


def gaps(x, kernel, stride):
    """The largest value of each window less the one after it. Infinite where both are equal in float64: zeros behind a ReLU, or copies
    of one up-sampled value, whose gradient goes to the same place."""
    windows = F.unfold(x.flatten(0, 1).unsqueeze(1), kernel, stride=stride or kernel)
    first, second = windows.topk(2, dim=1).values.unbind(1)
    gap = torch.where(first == second, torch.inf, first - second)
    return gap.unflatten(0, x.shape[:2]) / x.std()
