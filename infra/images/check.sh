#!/usr/bin/env bash
# Checks the contents of the images without a container engine: rootfs.sh assembles them from built programs, and chroot enters them as user
# 65532 with a read-only root file system. Needs root. BASIN_TARGET: folder of programs and libtorch (target).
set -euo pipefail
cd "$(dirname "$0")/../.."
export BASIN_TARGET=${BASIN_TARGET:-$PWD/target} BASIN_PROFILE=release
state=$PWD/target/images
fail() { echo "images: $*" >&2; exit 1; }
[[ $(id -u) == 0 ]] || fail "run this as root: chroot needs it"

# inside ROOT COMMAND...: as in the pod's container: not root, only /tmp is writable, no network.
inside() {
    local root=$1
    shift
    # shellcheck disable=SC2016
    unshare --mount --net --pid --fork -- bash -c '
        set -e
        mount --bind "$0" "$0" && mount -o remount,bind,ro "$0"
        mount -t tmpfs -o mode=1777 tmp "$0/tmp" && mount -t proc proc "$0/proc" && mount --rbind /dev "$0/dev"
        exec env -i PATH=/usr/local/bin HOME=/tmp ${OMP_NUM_THREADS:+OMP_NUM_THREADS=$OMP_NUM_THREADS} "$(command -v chroot)" --userspec=65532:65532 "$0" "$@"' "$root" "$@"
}

images=(basin-coordinator basin-worker-cpu)
if [[ -e $BASIN_TARGET/libtorch/nvidia/cudnn ]]; then images+=(basin-worker-cuda); else echo "images: basin-worker-cuda is left out: no CUDA libraries (make setup CUDA=1)"; fi
rm -rf "$state"
mkdir -p "$state"
for image in "${images[@]}"; do
    root=$state/$image
    infra/images/rootfs.sh "$image" "$root" --with-base
    # Every library that is needed is inside; CUDA's driver comes from the node.
    while read -r file; do
        needs=$(inside "$root" /lib64/ld-linux-x86-64.so.2 --list "${file#"$root"}" 2>&1) || true
        [[ $needs == *libc.so.6* ]] || fail "$image: cannot read the libraries of ${file#"$root"}: $needs"
        missing=$(grep -E 'not found|cannot open' <<< "$needs" | grep -v libcuda.so.1 || true)
        [[ -z $missing ]] || fail "$image: ${file#"$root"} lacks $missing"
    done < <(find "$root/usr/local/bin" "$root/usr/local/libtorch/torch" -type f 2>/dev/null)
    [[ -z $(find "$root" -perm /6000) ]] || fail "$image: has programs that change the user"
    for program in "$root"/usr/local/bin/*; do
        if grep -q BASIN_CRASH_AT "$program"; then fail "$image: $program has the crash points of the tests"; fi
    done
    [[ ! -e $root/bin/sh && ! -e $root/usr/bin/sh ]] || fail "$image: has a shell"
    python3 - "$root/usr/share/doc/basin/sbom.cdx.json" "$image" <<'PY'
import json, sys
parts = {part["name"] for part in json.load(open(sys.argv[1]))["components"]}
wanted = {"tokio", "lapin", "aws-sdk-s3"} | ({"torch", "tch"} if "worker" in sys.argv[2] else set())
assert wanted <= parts, wanted - parts
assert "worker" in sys.argv[2] or not parts & {"torch", "tch"}, "the coordinator's list names torch"
PY
    echo "images: $image: $(du -sm "$root" | cut -f1) MB with a stand-in for the base, $(du -sm "$root/usr/local/bin" | cut -f1) MB of them programs"
done

coordinator=$state/basin-coordinator worker=$state/basin-worker-cpu
[[ -z $(find "$coordinator" -name '*torch*') ]] || fail "the coordinator has libtorch"
(($(du -sm "$coordinator" | cut -f1) < 100)) || fail "the image of the coordinator has 100 MB or more"
[[ $(inside "$coordinator" basin-coordinator --version) == basin-coordinator* ]] || fail "the coordinator does not start"
[[ $(inside "$worker" basin-worker --version) == basin-worker* ]] || fail "the worker does not start"
if inside "$worker" basin copy /usr/local/share/basin/samples /usr/local/share/elsewhere >/dev/null 2>&1; then fail "the root file system is writable"; fi
# It projects an image with the files of the image alone.
told=$(inside "$worker" basin project /usr/local/share/basin/samples --model /usr/local/share/basin/models/fashion32 --profile fast --limit 1 \
    --out /tmp/out 2>&1) || fail "the worker's image can't project: $told"
echo "images: contents are right"
