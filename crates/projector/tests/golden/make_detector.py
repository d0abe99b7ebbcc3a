"""Writes the goldens of the detector and the classifier, from torchvision, with seeded random weights.

    pip install torch==2.11.0 torchvision==0.26.0 scikit-image safetensors
    python make_detector.py      # writes detector*.safetensors next to this file; minutes, and 4 GB of memory

All float32 on the CPU, one thread. No weight is stored: `value` below makes them, and so does the crate `seeded` (`detector.rs`). The
photographs are those that come with scikit-image.

detector            what `maskrcnn_resnet50_fpn` finds on eight photographs
detector_ops        small cases of torchvision.ops, of the box coder and of the pasting of masks
detector_classifier scores of `resnext101_32x8d` on two images
"""

import pathlib
import sys

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).parent


def save(name, tensors):
    tensors = {f"test.{key}": value.detach().clone().contiguous() for key, value in tensors.items()}
    for key, value in tensors.items():
        assert torch.isfinite(value.float()).all(), key
    path = HERE / f"{name}.safetensors"
    save_file(tensors, path)
    path.chmod(0o644)
    print(name, path.stat().st_size, "bytes")


# --- Weights ---------------------------------------------------------------------------------------------------------


def unit(name, index):
    """Element `index` (flat, uint32) of the tensor `name` in [-1, 1), a multiple of 2^-23: a hash of the name (FNV-1a),
    xor the index times an odd number, through the mix that `alexnet` in make_nn.py uses."""
    seed = np.uint32(2166136261)
    with np.errstate(over="ignore"):
        for byte in name.encode():
            seed = (seed ^ np.uint32(byte)) * np.uint32(16777619)
        x = index * np.uint32(0x9E3779B9) ^ seed
        x ^= x >> np.uint32(16)
        x *= np.uint32(0x7FEB352D)
        x ^= x >> np.uint32(15)
        x *= np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
    return ((x >> np.uint32(8)).astype(np.int32) - 2**23).astype(np.float32) / np.float32(2**23)


# Of the bounds of weights, by the start of the name: so that a random network finds a hundred things, each with a score of
# its own.
GAINS = {
    "backbone.fpn": 0.42,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 3.75,
    "roi_heads.box_predictor.bbox_pred": 2.0,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}


def value(name, shape):
    """The tensor `name`: a mean plus a bound times `unit`, in float32.

    Weights: every odd input is the one before it with the other sign, so that what all inputs have in common, which is
    most of what passes a random network, cancels; only half of it in the body, which would else blow up rounding as well.
    Normalisation: scales around 1 (around 0.25 at the end of a block, so that a sum of 33 blocks keeps its size), statistics
    at random."""
    index = np.arange(np.prod(shape), dtype=np.uint32)
    module, part = name.rsplit(".", 1)
    if len(shape) > 1:
        gain = next((gain for start, gain in GAINS.items() if name.startswith(start)), 1.0)
        cancelled = 1.0 if name.startswith(("backbone.fpn", "rpn", "roi_heads")) else 0.5
        inner = np.uint32(np.prod(shape[2:]))
        odd = index // inner % np.uint32(shape[1]) % np.uint32(2)
        bound = np.float32(gain * np.sqrt(np.float64(9) / np.prod(shape[1:])))
        values = unit(name, index - odd * inner) * bound
        values = np.where(odd == 1, values * np.float32(-cancelled), values)
    elif part == "running_var":
        values = unit(name, index) * np.float32(0.5) + np.float32(1)
    elif part == "weight":
        values = unit(name, index) * np.float32(0.5) + np.float32(1)
        if module.endswith("bn3"):
            values = values * np.float32(0.25)
    else:
        values = unit(name, index) * np.float32(0.1)
    assert values.dtype == np.float32
    return torch.from_numpy(values.reshape(shape))


def fill(model):
    state = model.state_dict()
    for name, tensor in state.items():
        if not name.endswith("num_batches_tracked"):
            state[name] = value(name, tuple(tensor.shape))
    model.load_state_dict(state)
    return model.eval()


# --- Detector --------------------------------------------------------------------------------------------------------

# Only those that come as PNG: decoders of JPEG differ by a value here and there, and a random network sees that.
PHOTOGRAPHS = [
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
]


def photograph(name):
    """[3, h, w], bytes"""
    import skimage
    from PIL import Image

    path = pathlib.Path(skimage.__file__).parent / "data" / name
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def mask_rcnn(**kwargs):
    """What `maskrcnn_resnet50_fpn(weights=COCO_V1)` builds, without the download."""
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection._utils import overwrite_eps
    from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

    model = MaskRCNN(resnet_fpn_backbone(backbone_name="resnet50", weights=None), num_classes=91, **kwargs)
    overwrite_eps(model, 0.0)
    return fill(model)


def detector():
    tensors = {}
    # All but one at a smaller size, to be quick. That one takes more for background, and so finds less than the most it may.
    small, full = mask_rcnn(min_size=320, max_size=533), mask_rcnn()
    with torch.no_grad():
        full.roi_heads.box_predictor.cls_score.bias[0] = 14
    for name in PHOTOGRAPHS:
        image = photograph(name)
        with torch.no_grad():
            found = (full if name == "coffee.png" else small)([image / 255])[0]
        scores = found["scores"]
        print(name, tuple(image.shape), len(scores), "scores", scores[0].item(), "to", scores[-1].item())
        assert len(scores) == (58 if name == "coffee.png" else 100)
        tensors |= {f"{name}.boxes": found["boxes"], f"{name}.labels": found["labels"], f"{name}.scores": scores}
        if name in ("chelsea.png", "coffee.png"):
            # Every fourth pixel of three masks, and the mean of all pixels.
            masks = found["masks"][[0, 7, 50], 0]
            tensors |= {f"{name}.masks": masks[:, ::4, ::4], f"{name}.mask_means": masks.mean((1, 2))}
    save("detector", tensors)


# --- Operations ------------------------------------------------------------------------------------------------------


def operations():
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    torch.manual_seed(5)
    tensors = {}

    # An image of 96 x 160 at strides 4 to 32. Boxes: usual, tiny, without width, without height, the whole image, over each
    # border, beside the image, at and just under the sizes where the level changes.
    maps = [torch.randn(1, 3, 96 // stride, 160 // stride) for stride in (4, 8, 16, 32)]
    low = torch.rand(40, 2) * torch.tensor([120.0, 70.0])
    boxes = torch.cat((low, low + torch.rand(40, 2) * torch.tensor([40.0, 26.0])), 1)
    edges = [
        [10, 10, 10.5, 10.25],
        [20, 20, 20, 40],
        [20, 20, 40, 20],
        [0, 0, 160, 96],
        [-30, 20, 30, 60],
        [100, -25, 140, 30],
        [120, 40, 200, 90],
        [40, 60, 90, 140],
        [-90, -60, 250, 190],
        [170, 10, 190, 40],
        [-60, 10, -30, 40],
        [159, 95, 160, 96],
        [0, 0, 112, 112],
        [0, 0, 111.99, 112],
        [-100, -100, 124, 124],
        [-100, -100, 348, 348],
        [-100, -100, 347.9, 348],
        [-300, -300, 700, 700],
    ]
    boxes = torch.cat((boxes, torch.tensor(edges, dtype=torch.float32)))
    pool = torchvision.ops.MultiScaleRoIAlign(["0", "1", "2", "3"], output_size=7, sampling_ratio=2)
    tensors |= {f"align.map{i}": m for i, m in enumerate(maps)}
    tensors["align.boxes"] = boxes
    tensors["align.levels"] = pool({str(i): m for i, m in enumerate(maps)}, [boxes], [(96, 160)])
    rois = torch.cat((torch.zeros(len(boxes), 1), boxes), 1)
    tensors["align.one"] = torchvision.ops.roi_align(maps[0], rois, (14, 14), 0.25, 2, aligned=False)

    # Many overlaps; equal boxes, equal scores, boxes without area.
    low = torch.rand(300, 2) * 60
    boxes = torch.cat((low, low + 5 + torch.rand(300, 2) * 50), 1)
    scores = torch.rand(300)
    boxes[200:220] = boxes[:20]
    scores[100:160] = scores[40:100]
    boxes[250:255, 2] = boxes[250:255, 0]
    boxes[255:260] = boxes[250:255]
    groups = torch.randint(0, 4, (300,)) * 7
    tensors |= {"nms.boxes": boxes, "nms.scores": scores, "nms.groups": groups}
    for threshold in (0.3, 0.5, 0.7):
        tensors[f"nms.kept_{threshold}"] = torchvision.ops.nms(boxes, scores, threshold)
    # torchvision's other way for few boxes moves the groups apart, which costs digits; and it sorts without keeping ties.
    kept = [torch.where(groups == g)[0] for g in groups.unique()]
    kept = torch.cat([members[torchvision.ops.nms(boxes[members], scores[members], 0.5)] for members in kept]).sort()[0]
    tensors["nms.kept_by_group"] = kept[scores[kept].sort(descending=True, stable=True)[1]]
    assert set(kept.tolist()) == set(torchvision.ops.batched_nms(boxes, scores, groups, 0.5).tolist())

    changes = torch.randn(58, 12)
    changes[:6, 2] = torch.tensor([4.0, 4.2, 50.0, -50.0, 20.7, 41.4])
    tensors["coder.changes"] = changes
    anchors = tensors["align.boxes"]
    tensors["coder.proposals"] = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode(changes, [anchors])
    tensors["coder.objects"] = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode(changes, [anchors])
    tensors["coder.clipped"] = torchvision.ops.clip_boxes_to_image(tensors["coder.objects"], (96, 160))
    tensors["coder.large"] = torchvision.ops.remove_small_boxes(tensors["coder.clipped"][:, 0], 6.0)

    generator = AnchorGenerator(((32,), (64,)), ((0.5, 1.0, 2.0),) * 2)
    images = ImageList(torch.zeros(1, 3, 96, 160), [(96, 160)])
    tensors["anchors"] = generator(images, [torch.zeros(1, 1, 24, 40), torch.zeros(1, 1, 12, 20)])[0]

    masks = torch.rand(8, 1, 28, 28)
    boxes = torch.tensor(
        [
            [5.3, 4.1, 40.7, 30.2],
            [0, 0, 60, 40],
            [-10.5, -3.2, 20.1, 15.9],
            [30.9, 20.2, 75.5, 60.6],
            [10.2, 10.7, 10.4, 10.8],
            [59.5, 39.5, 60, 40],
            [-30, -20, 95, 70],
            [12, 3, 12, 33],
        ]
    )
    tensors |= {"paste.masks": masks, "paste.boxes": boxes}
    tensors["paste.pictures"] = paste_masks_in_image(masks, boxes, (40, 60))[:, 0]
    save("detector_ops", tensors)


# --- Classifier ------------------------------------------------------------------------------------------------------


def classifier():
    model = fill(torchvision.models.resnext101_32x8d(weights=None))
    mean, deviation = (torch.tensor(v).view(1, 3, 1, 1) for v in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    tensors = {}
    for name, shape in (("square", (2, 3, 64, 64)), ("oblong", (1, 3, 97, 130))):
        # In [-1, 1]; its name has no dot.
        index = np.arange(np.prod(shape), dtype=np.uint32)
        image = torch.from_numpy(unit(name, index).reshape(shape))
        with torch.no_grad():
            tensors[name] = model(((image + 1) / 2 - mean) / deviation)
        print(name, "deviation", tensors[name].std().item(), "best", tensors[name].argmax(1).tolist())
    save("detector_classifier", tensors)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    for part in (operations, classifier, detector):
        if not sys.argv[1:] or part.__name__ in sys.argv[1:]:
            part()
