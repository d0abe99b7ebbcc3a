#!/usr/bin/env bash
# Installs the pinned libtorch under target/libtorch (about 1.2 GB; with CUDA=1 about 5 GB). A second run does nothing.
#
# libtorch comes inside the PyTorch wheel. Only its libraries and headers are used: no Python runs when basin runs.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
into="${CARGO_TARGET_DIR:-$root/target}/libtorch"
python=${PYTHON:-python3}

stamp_of() { cat "$@" | sha256sum | cut -d' ' -f1; }
lists=("$here/cpu.txt")
[ "${CUDA:-0}" = 1 ] && lists+=("$here/cuda.txt")
stamp=$(stamp_of "${lists[@]}")
installed=$(cat "$into/.installed" 2>/dev/null || true)
# An installation with CUDA also serves without.
if [ "$installed" = "$stamp" ] || [ "$installed" = "$(stamp_of "$here/cpu.txt" "$here/cuda.txt")" ]; then
    exit 0
fi

command -v "$python" >/dev/null || { echo "setup: $python not found: install Python 3.11 with pip (or set PYTHON)" >&2; exit 1; }
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[ "$version" = 3.11 ] || { echo "setup: the pinned wheel is for Python 3.11, and $python is $version: set PYTHON to a Python 3.11" >&2; exit 1; }
"$python" -m pip --version >/dev/null 2>&1 || { echo "setup: $python has no pip: install python3-pip" >&2; exit 1; }

echo "setup: installing libtorch into $into (once)" >&2
rm -rf "$into.part"
args=()
for list in "${lists[@]}"; do args+=(-r "$list"); done
"$python" -m pip install --quiet --no-deps --no-compile --no-warn-script-location --disable-pip-version-check \
    --root-user-action=ignore --require-hashes --target "$into.part" "${args[@]}"
# Remove the files that only Python uses.
find "$into.part" -name '*.py' -not -path '*/torch/version.py' -delete
rm -rf "$into.part"/torch/{test,bin,_inductor,testing} "$into.part"/{functorch,torchgen,bin}
echo "$stamp" > "$into.part/.installed"
rm -rf "$into"
mv "$into.part" "$into"
