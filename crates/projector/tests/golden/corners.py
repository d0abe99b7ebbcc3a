"""How near the values of a network come to its corners: where a ReLU opens, where |x| turns, where the two largest values of a
pooling window are equal. The gradient jumps there, and the kernels of two CPUs, which round differently, may be on different
sides. The scripts beside this file take inputs that keep away from corners, and assert it.

Their goldens are computed in float64. `check` asserts that float32 stays well within the tolerance of the test."""

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

# So far inputs keep away: float32 rounds a value by some 1e-6 of the deviation of those around it.
AWAY = 2e-5
# So near to each other float64 computes one value in two orders.
EQUAL = 1e-12


class Corners(TorchDispatchMode):
    """While it is entered, `found` gets the distances from the corner for each such operation, in order: `[n, ...]`, with a sign,
    over the deviation of the operation's values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.overloadpacket.__name__
        if name in ("relu", "relu_", "abs"):
            x = args[0].detach().double()
            self.found.append(x / x.std())
        elif name == "max_pool2d_with_indices":
            self.found.append(gaps(args[0].detach().double(), *args[1:3]))
        return operation(*args, **(kwargs or {}))

    def nearest(self):
        """The least distance of each sample, `[n]`."""
        return torch.stack([near(distance) for distance in self.found]).amin(0)

    def margin(self, other):
        """How many times further a value is from its corner than any value of its operation from that of `other`, the same passes in
        float32; the least of all operations, `[n]`."""
        assert len(self.found) == len(other.found)
        ratios = [near(ours) / far(ours - theirs) for ours, theirs in zip(self.found, other.found)]
        return torch.stack(ratios).amin(0)


def near(distance):
    return distance.abs().flatten(1).amin(1)


def far(difference):
    return torch.where(difference.isfinite(), difference.abs(), 0).flatten(1).amax(1)


def gaps(x, kernel, stride=None):
    """The largest value of each window less the one after it. Infinite where both are equal up to float64's rounding: zeros behind a
    ReLU, copies of one up-sampled value, or blurred values at a mirrored border, whose gradient goes to the same place. A last window
    that the kernel does not fill is left out."""
    windows = F.unfold(x.flatten(0, 1).unsqueeze(1), kernel, stride=stride or kernel)
    first, second = windows.topk(2, dim=1).values.unbind(1)
    gap = (first - second) / x.std()
    return torch.where(gap < EQUAL, torch.inf, gap).unflatten(0, x.shape[:2])


def away(forward, samples):
    """The first of the samples `[n, ...]` that keeps away from all corners, `[1, ...]`."""
    for part in samples.split(50):
        with Corners() as corners, torch.no_grad():
            forward(part)
        found = (corners.nearest() > AWAY).nonzero()
        if len(found):
            return part[found[0]]
    raise AssertionError(f"all of {len(samples)} samples come near a corner")


def check(double, single, tolerance, corners=None):
    """Asserts that float32 differs from float64 by less than a tenth of the test's tolerance (largest difference over largest value),
    and that no corner is nearer than three times the most that float32 rounds."""
    for name in double:
        error = ((single[name] - double[name]).abs().max() / double[name].abs().max()).item()
        print(f"    {name}: float32 differs by {error:.1e}")
        assert error < tolerance / 10, name
    if corners:
        print("    corners at", corners[0].nearest().tolist(), "margin", corners[0].margin(corners[1]).tolist())
        assert (corners[0].margin(corners[1]) > 3).all()
