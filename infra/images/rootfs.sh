#!/usr/bin/env bash
# rootfs.sh IMAGE FOLDER [--with-base]: assembles the contents of an image beyond its base from built programs, without a container engine.
#
# IMAGE is basin-coordinator, basin-worker-cpu or basin-worker-cuda. With --with-base this machine's glibc, libstdc++ and CA certificates replace
# the base image, so that chroot can enter the folder. BASIN_TARGET: folder of the built programs (target). BASIN_PROFILE=debug takes the
# programs of the tests instead of those to ship.
set -euo pipefail
image=$1 into=$2 with_base=${3:-}
root=$(cd "$(dirname "$0")/../.." && pwd)
target=${BASIN_TARGET:-$root/target}
profile=${BASIN_PROFILE:-release}
torch=$target/libtorch

case $image in
    basin-coordinator) programs=(basin-coordinator) crates=(coordinator) ;;
    basin-worker-cpu | basin-worker-cuda) programs=(basin-worker basin) crates=(worker cli) ;;
    *) echo "unknown image $image: use basin-coordinator, basin-worker-cpu or basin-worker-cuda" >&2; exit 1 ;;
esac
if [[ -e $into ]]; then
    echo "$into exists already; remove it" >&2
    exit 1
fi
mkdir -p "$into/usr/local/bin" "$into/usr/share/doc/basin"
for program in "${programs[@]}"; do
    strip -o "$into/usr/local/bin/$program" "$target/$profile/$program"
    # A variable of the tests, which ends a process at a chosen point (proto/src/crash.rs).
    if [[ $profile == release ]] && grep -q BASIN_CRASH_AT "$into/usr/local/bin/$program"; then
        echo "$program has crash points: it is not built with the release profile" >&2
        exit 1
    fi
done
cp "$root"/LICENSE-* "$into/usr/share/doc/basin/"

lists=()
if [[ $image != basin-coordinator ]]; then
    lists=("$root/infra/libtorch/cpu.txt")
    mkdir -p "$into/usr/local/share/basin/models" "$into/usr/local/libtorch/torch/lib"
    cp -r "$root/models/fashion32" "$into/usr/local/share/basin/models/"
    cp -r "$root/samples" "$into/usr/local/share/basin/"
    # Programs look for ../libtorch/torch/lib, and the libraries for each other from there.
    cp "$torch"/torch/lib/{libtorch_cpu.so,libc10.so,libgomp.so.1} "$into/usr/local/libtorch/torch/lib/"
    if [[ $image == basin-worker-cuda ]]; then
        lists+=("$root/infra/libtorch/cuda.txt")
        [[ -e $torch/nvidia/cudnn ]] || { echo "$torch has no CUDA libraries; run make setup CUDA=1" >&2; exit 1; }
        cp "$torch"/torch/lib/{libtorch_cuda.so,libtorch_cuda_linalg.so,libtorch_nvshmem.so,libc10_cuda.so,libcaffe2_nvrtc.so} \
            "$into/usr/local/libtorch/torch/lib/"
        (cd "$torch" && find nvidia -path '*/lib/*' -name '*.so*' -not -name '*.a' -exec cp --parents -P {} "$into/usr/local/libtorch/" \;)
    else
        (cd "$torch" && cp --parents -P nvidia/cu13/lib/{libcupti,libcudart}.so.13 "$into/usr/local/libtorch/")
    fi
fi
"$root/infra/images/sbom.py" "$image" "$(IFS=,; echo "${crates[*]}")" "${lists[@]}" > "$into/usr/share/doc/basin/sbom.cdx.json"

if [[ $with_base == --with-base ]]; then
    mkdir -p "$into"/{etc/ssl/certs,lib64,lib/x86_64-linux-gnu,tmp,proc,dev}
    cp /etc/ssl/certs/ca-certificates.crt "$into/etc/ssl/certs/"
    echo 'nonroot:x:65532:65532:nonroot:/home/nonroot:/sbin/nologin' > "$into/etc/passwd"
    echo 'hosts: files dns' > "$into/etc/nsswitch.conf"
    cp -L /lib64/ld-linux-x86-64.so.2 "$into/lib64/"
    # The libraries of cc-debian12.
    for library in libc.so.6 libm.so.6 libdl.so.2 librt.so.1 libpthread.so.0 libutil.so.1 libresolv.so.2 libnss_dns.so.2 libnss_files.so.2 \
        libgcc_s.so.1 libstdc++.so.6; do
        cp -L "/lib/x86_64-linux-gnu/$library" "$into/lib/x86_64-linux-gnu/"
    done
fi
