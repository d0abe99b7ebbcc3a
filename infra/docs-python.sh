#!/usr/bin/env bash
# The Python that a reader of docs/src/how-to/results.md and docs/src/reference/weight-deltas.md has, for the test that runs its examples. A second run does nothing.
set -euo pipefail
cd "$(dirname "$0")/.."
into="${CARGO_TARGET_DIR:-target}/docs-python"
python=${PYTHON:-python3}
packages=(numpy==2.3.5 pandas==2.3.3 pyarrow==22.0.0 safetensors==0.7.0 zstandard==0.25.0)
if [ "$(cat "$into/.installed" 2>/dev/null)" != "${packages[*]}" ]; then
    rm -rf "$into"
    "$python" -m venv "$into"
    "$into/bin/python" -m pip install --quiet --disable-pip-version-check "${packages[@]}"
    echo "${packages[*]}" > "$into/.installed"
fi
