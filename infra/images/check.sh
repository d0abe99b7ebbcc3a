#!/usr/bin/env bash
# The contents of the images, without a container engine: assembled from built programs by rootfs.sh, entered by chroot as user 65532 with a root
# file system that can't be written. Needs root. BASIN_TARGET: where programs and libtorch are (target).
set -euo pipefail
cd "$(dirname "$0")/../.."
export BASIN_TARGET=${BASIN_TARGET:-$PWD/target}
state=$PWD/target/images
fail() { echo "images: $*" >&2; exit 1; }
[[ $(id -u) == 0 ]] || fail "chroot needs root"

# inside ROOT COMMAND...: as the pod's container is: not root, nothing to write to but /tmp, no network.
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
    # Everything that a program or library needs is inside; CUDA's driver comes from the node.
    while read -r file; do
        needs=$(inside "$root" /lib64/ld-linux-x86-64.so.2 --list "${file#"$root"}" 2>&1) || true
        [[ $needs == *libc.so.6* ]] || fail "$image: cannot tell what ${file#"$root"} needs: $needs"
        missing=$(grep -E 'not found|cannot open' <<< "$needs" | grep -v libcuda.so.1 || true)
        [[ -z $missing ]] || fail "$image: ${file#"$root"} lacks $missing"
    done < <(find "$root/usr/local/bin" "$root/usr/local/libtorch/torch" -type f 2>/dev/null)
    [[ -z $(find "$root" -perm /6000) ]] || fail "$image: has programs that change the user"
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
(($(du -sm "$coordinator" | cut -f1) < 100)) || fail "the coordinator is no small image any more"
[[ $(inside "$coordinator" basin-coordinator --version) == basin-coordinator* ]] || fail "the coordinator does not start"
[[ $(inside "$worker" basin-worker --version) == basin-worker* ]] || fail "the worker does not start"
if inside "$worker" basin copy /usr/local/share/basin/samples /usr/local/share/elsewhere >/dev/null 2>&1; then fail "the root file system can be written"; fi
# It computes: an image, from what is in the image.
told=$(inside "$worker" basin project /usr/local/share/basin/samples --model /usr/local/share/basin/models/fashion32 --profile fast --limit 1 \
    --out /tmp/out 2>&1) || fail "the worker's image can't project: $told"
echo "images: contents are right"
