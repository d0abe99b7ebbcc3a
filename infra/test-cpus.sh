#!/usr/bin/env bash
# Runs the tests of all crates that link libtorch as if on other processors: libtorch, oneDNN, MKL and the C library are told which
# kernels to take. A result may not depend on them but by rounding. What this processor cannot run is skipped, with a line.
#
# With `short`, only the tests against numbers of a reference, under three of them: what CI has the time for.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo=${CARGO:-cargo}
logs=${CARGO_TARGET_DIR:-target}/test-cpus

# Name | what the processor must have (flags of /proc/cpuinfo) | variables.
combinations=(
    "its own kernels||"
    "SSE4.1||ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX2,-FMA"
    "AVX|avx|ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX MKL_ENABLE_INSTRUCTIONS=AVX"
    "AVX2|avx2 fma|ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2"
    "MKL's common path||MKL_CBWR=COMPATIBLE OMP_NUM_THREADS=1"
    "AVX2 in libtorch alone, three threads|avx2 fma|ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=AVX OMP_NUM_THREADS=3"
    "AVX-512|avx512f avx512bw avx512dq avx512vl|ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE MKL_ENABLE_INSTRUCTIONS=AVX512"
    "AMX|avx512f avx512bw avx512dq avx512vl amx_tile amx_bf16|ATEN_CPU_CAPABILITY=avx512 ONEDNN_MAX_CPU_ISA=AVX512_CORE_AMX"
)

# The numbers are those of libtorch, so its users are tested; what only moves bytes is not.
packages=()
while read -r package; do
    packages+=(-p "$package")
done < <("$cargo" tree --locked --workspace --invert tch --edges normal --prefix none --format '{p}' | awk '/\(\// { print $1 }' | sort -u)
tests=()
case ${1:-} in
    "") ;;
    short)
        packages=(-p kernels -p projector)
        tests=(--lib --test operations --test parity --test published --test transform_parity --test fine_tune)
        combinations=("${combinations[1]}" "${combinations[4]}" "${combinations[6]}")
        ;;
    *) echo "test-cpus: unknown argument $1: give none or short" >&2; exit 2 ;;
esac

"$cargo" test --quiet --locked "${packages[@]}" "${tests[@]}" --no-run
mkdir -p "$logs"
flags=" $(grep -m1 '^flags' /proc/cpuinfo | cut -d: -f2) "
failed=0
for combination in "${combinations[@]}"; do
    IFS='|' read -r name needs variables <<< "$combination"
    lacks=()
    for flag in $needs; do [[ $flags == *" $flag "* ]] || lacks+=("$flag"); done
    if ((${#lacks[@]})); then
        echo "$name: skipped, this processor lacks ${lacks[*]}"
        continue
    fi
    log=$logs/${name//[^A-Za-z0-9.]/-}.log
    start=$SECONDS
    # shellcheck disable=SC2086 # several variables
    env $variables "$cargo" test --locked "${packages[@]}" "${tests[@]}" --no-fail-fast > "$log" 2>&1 || failed=1
    awk -v name="$name" -v seconds=$((SECONDS - start)) '/^test result:/ { passed += $4; failed += $6 }
        END { printf "%s: %d passed, %d failed (%d s)\n", name, passed, failed, seconds }' "$log"
    grep -hE '^test .* FAILED$|^error' "$log" | sort -u || true
done
((failed == 0)) || echo "test-cpus: the output is in $logs" >&2
exit $failed
