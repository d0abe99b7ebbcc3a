#!/usr/bin/env bash
# Measures a search step of BigGAN-deep-256 on this machine's GPU, with random weights.
#
#   bench.sh          sets libtorch up for CUDA, builds, measures, writes benchmarks/gpu.md and benchmarks/gpu.json
#   bench.sh --pack   makes target/bench-gpu, a folder for a machine that has a GPU and Python with torch 2.11 but no compiler: run.sh in it
#
# With PIX2LATENT (a checkout of minyoungg/pix2latent) the authors' code is measured, too (bench/authors/requirements.txt).
set -euo pipefail
cd "$(dirname "$0")/../.."
program=target/debug/basin-bench

if [ "${1:-}" = --pack ]; then
    infra/libtorch/setup.sh
    ${CARGO:-cargo} build --locked --workspace --bin basin-bench
    pack=target/bench-gpu
    rm -rf "$pack"
    mkdir -p "$pack/bench"
    strip -o "$pack/basin-bench" "$program"
    cp -r bench/authors "$pack/bench/authors"
    cp -r samples "$pack/samples"
    cp infra/gpu/run.sh "$pack/run.sh"
    echo "$pack: $(du -sh "$pack" | cut -f1); copy it and start run.sh there"
    exit 0
fi

command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null || {
    echo "bench-gpu: this machine has no GPU that nvidia-smi sees. \`infra/gpu/bench.sh --pack\` makes a folder for one that has" >&2
    exit 1
}
CUDA=1 infra/libtorch/setup.sh
${CARGO:-cargo} build --locked --workspace --bin basin-bench
BASIN_BENCH=$PWD/$program LIBTORCH_LIB=$PWD/target/libtorch/torch/lib OUT=${OUT:-benchmarks} infra/gpu/run.sh "$@"
