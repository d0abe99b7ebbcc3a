#!/usr/bin/env bash
# Measures; started by bench.sh, or in the folder that `bench.sh --pack` made. Pages and records go to $OUT, by default this folder.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
program=${BASIN_BENCH:-$here/basin-bench}
python=${PYTHON:-python3}
export LD_LIBRARY_PATH=${LIBTORCH_LIB:-$("$python" -c 'import os, torch; print(os.path.join(os.path.dirname(torch.__file__), "lib"))')}
out=${OUT:-$here}

"$program" gpu --out "$out" "$@"

if [ -n "${PIX2LATENT:-}" ]; then
    [ -d bench/authors ] || cd "$here"
    model=$(mktemp -d)
    trap 'rm -rf "$model"' EXIT
    "$program" gpu --folder "$model"
    "$program" --model "$model" authors --checkout "$PIX2LATENT" --python "$python" --images 1 --generations 1 --steps 5 --final-steps 10 \
        --out "$out/gpu"
fi
