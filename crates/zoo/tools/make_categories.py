#!/usr/bin/env python3
"""Makes crates/zoo/src/imagenet.csv: for each ImageNet class the COCO and the PASCAL VOC category that it belongs to.

    pip install torchvision timm; apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet
    python3 crates/zoo/tools/make_categories.py wordnet/usr/share/wordnet > crates/zoo/src/imagenet.csv

Sources: WordNet 3.0 (Debian's wordnet-base 3.0; an ImageNet wnid is a noun offset there), the order of the classes from timm's
imagenet_synsets.txt, their names from torchvision's list, which are the first lemma, made distinct ("crane" and "crane bird").

Rule: a class belongs to a category if its synset is one of the category's (below), or a hyponym of one over any path of hypernyms.
Among several categories the nearest counts (fewest steps up); of equally near ones it would stop.
"""

import csv
import sys
from importlib.resources import files
from pathlib import Path

# Category: its WordNet synsets, as "lemma.sense". Written by hand; what is not simply the lemma's first sense has its reason.
COCO = {
    "person": ["person.1"],
    "bicycle": ["bicycle.1"],
    "car": ["car.1"],
    "motorcycle": ["motorcycle.1", "motor_scooter.1"],  # both data sets count scooters; WordNet has them beside, not below
    "airplane": ["airplane.1", "warplane.1"],  # a warplane is an aircraft there, not an airplane
    "bus": ["bus.1"],
    "train": ["train.1", "locomotive.1", "car.2"],  # railcars and engines are labelled as train
    "truck": ["truck.1"],
    "boat": ["vessel.2"],  # ships too: "vessel, a craft designed for water transportation"
    "traffic light": ["traffic_light.1"],
    "fire hydrant": ["fireplug.1"],
    "stop sign": [],  # not in WordNet
    "parking meter": ["parking_meter.1"],
    "bench": ["bench.1"],
    "bird": ["bird.1"],
    "cat": ["cat.1"],  # "true cat"
    "dog": ["dog.1"],
    "horse": ["horse.1"],
    "sheep": ["sheep.1"],
    "cow": ["cattle.1"],  # cow.1 is the female only; the label is for any
    "elephant": ["elephant.1"],
    "bear": ["bear.1"],
    "zebra": ["zebra.1"],
    "giraffe": ["giraffe.1"],
    "backpack": ["backpack.1"],
    "umbrella": ["umbrella.1"],
    "handbag": ["bag.4"],  # "bag, handbag, pocketbook, purse"
    "tie": ["necktie.1"],
    "suitcase": ["bag.6"],  # "bag, traveling bag, grip, suitcase"
    "frisbee": ["frisbee.1"],
    "skis": ["ski.1"],
    "snowboard": ["snowboard.1"],
    "sports ball": ["ball.1"],  # "round object that is hit or thrown or kicked in games"
    "kite": ["kite.3"],  # the toy, not the bird
    "baseball bat": ["baseball_bat.1"],
    "baseball glove": ["baseball_glove.1"],
    "skateboard": ["skateboard.1"],
    "surfboard": ["surfboard.1"],
    "tennis racket": ["racket.4"],  # ImageNet has no narrower class
    "bottle": ["bottle.1"],
    "wine glass": ["wineglass.1"],
    "cup": ["cup.1", "mug.4"],  # the vessel, not the punch; mugs are labelled as cup
    "fork": ["fork.1"],
    "knife": ["knife.1"],
    "spoon": ["spoon.1"],
    "bowl": ["bowl.1", "bowl.3"],  # WordNet tells bowls for serving from other round vessels
    "banana": ["banana.2"],  # the fruit
    "apple": ["apple.1"],  # the fruit
    "sandwich": ["sandwich.1"],
    "orange": ["orange.1"],  # the fruit
    "broccoli": ["broccoli.2"],  # the food, not the plant
    "carrot": ["carrot.1"],
    "hot dog": ["hotdog.2"],  # the food
    "pizza": ["pizza.1"],
    "donut": ["doughnut.2"],  # the pastry
    "cake": ["cake.3"],  # the baked one
    "chair": ["chair.1"],
    "couch": ["sofa.1"],
    "potted plant": [],  # not in WordNet; ImageNet's "pot" is the vessel
    "bed": ["bed.1"],
    "dining table": ["dining_table.1"],
    "toilet": ["toilet.2"],  # the fixture, not the room
    "tv": ["television_receiver.1", "television.2", "monitor.5", "crt_screen.1"],  # ImageNet's set is television.2; screens too
    "laptop": ["laptop.1", "notebook.2"],
    "mouse": ["mouse.4"],  # the device, not the rodent
    "remote": ["remote_control.1"],
    "keyboard": ["computer_keyboard.1", "typewriter_keyboard.1"],  # not the piano's
    "cell phone": ["cellular_telephone.1"],
    "microwave": ["microwave.2"],  # the oven
    "oven": ["oven.1"],
    "toaster": ["toaster.2"],  # the appliance, not the person
    "sink": ["sink.1", "washbasin.2"],
    "refrigerator": ["refrigerator.1"],
    "book": ["book.2"],  # the object
    "clock": ["clock.1"],
    "vase": ["vase.1"],
    "scissors": ["scissors.1"],
    "teddy bear": ["teddy.1"],
    "hair drier": ["hand_blower.1"],
    "toothbrush": ["toothbrush.1"],
}
# PASCAL VOC's categories, by COCO's name for the same.
PASCAL = {
    "aeroplane": "airplane", "bicycle": "bicycle", "bird": "bird", "boat": "boat", "bottle": "bottle", "bus": "bus", "car": "car",
    "cat": "cat", "chair": "chair", "cow": "cow", "diningtable": "dining table", "dog": "dog", "horse": "horse",
    "motorbike": "motorcycle", "person": "person", "pottedplant": "potted plant", "sheep": "sheep", "sofa": "couch",
    "train": "train", "tvmonitor": "tv",
}  # fmt: skip


def wordnet(folder):
    """`{offset: (lemmas, hypernyms, gloss)}` and `{lemma: offsets by sense}` of the nouns."""
    synsets, senses = {}, {}
    for line in (folder / "data.noun").read_text("latin-1").splitlines():
        if not line.startswith("  "):
            fields, gloss = line.split("|", 1)
            fields = fields.split()
            lemmas = int(fields[3], 16)
            pointers = fields[5 + 2 * lemmas :]
            hypernyms = [pointers[4 * i + 1] for i in range(int(fields[4 + 2 * lemmas])) if pointers[4 * i] == "@"]
            synsets[fields[0]] = (fields[4 : 4 + 2 * lemmas : 2], hypernyms, gloss.strip())
    for line in (folder / "index.noun").read_text("latin-1").splitlines():
        if not line.startswith("  "):
            fields = line.split()
            senses[fields[0]] = fields[-int(fields[2]) :]
    return synsets, senses


def steps_up(offset, synsets):
    """`{synset: fewest steps}` for the synset and all of its hypernyms."""
    steps, edge = {offset: 0}, [offset]
    while edge:
        edge = [up for at in edge for up in synsets[at][1] if steps.setdefault(up, steps[at] + 1) == steps[at] + 1]
    return steps


def nearest(offset, categories, synsets):
    """The category that the synset is in, or ""."""
    steps = steps_up(offset, synsets)
    near = {name: min((steps[s] for s in of if s in steps), default=None) for name, of in categories.items()}
    found = sorted((up, name) for name, up in near.items() if up is not None)
    if len(found) > 1 and found[0][0] == found[1][0]:
        sys.exit(f"{synsets[offset][0]}: equally near to {found}")
    return found[0][1] if found else ""


def main():
    from torchvision.models._meta import _COCO_CATEGORIES, _IMAGENET_CATEGORIES

    synsets, senses = wordnet(Path(sys.argv[1]))
    if set(COCO) != set(_COCO_CATEGORIES) - {"N/A", "__background__"}:
        sys.exit("COCO differs from torchvision's categories")
    coco = {}
    for name, of in COCO.items():
        coco[name] = [senses[lemma][int(sense) - 1] for lemma, sense in (s.rsplit(".", 1) for s in of)]
        for key, offset in zip(of, coco[name]):
            print(f"{name}: {key}: {synsets[offset][2][:90]}", file=sys.stderr)
    pascal = {name: coco[same] for name, same in PASCAL.items()}
    wnids = (files("timm.data") / "_info" / "imagenet_synsets.txt").read_text().split()
    table = csv.writer(sys.stdout, lineterminator="\n")
    table.writerow(["index", "wnid", "name", "coco", "pascal"])
    for index, (wnid, name) in enumerate(zip(wnids, _IMAGENET_CATEGORIES, strict=True)):
        table.writerow([index, wnid, name, nearest(wnid[1:], coco, synsets), nearest(wnid[1:], pascal, synsets)])


main()
