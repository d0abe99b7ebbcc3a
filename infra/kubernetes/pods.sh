#!/usr/bin/env bash
# Runs the pods of values-laptop.yaml as processes on this machine (pods.py), in namespaces of their own: nothing is visible outside. Needs root, built
# programs and RabbitMQ. BASIN_TARGET: where programs and libtorch are (target).
set -euo pipefail
cd "$(dirname "$0")/../.."
[[ $(id -u) == 0 ]] || { echo "pods: run this as root" >&2; exit 1; }
infra/rabbitmq/setup.sh
infra/kubernetes/setup.sh
state=$PWD/target/kubernetes
rm -rf "$state"/{pods,pod-images}
mkdir -p "$state"/{pods,pod-images}
for image in basin-coordinator basin-worker-cpu; do BASIN_PROFILE=debug infra/images/rootfs.sh "$image" "$state/pod-images/$image" --with-base; done
# Fewer images and more workers than usual, to be quick.
"$state/bin/helm" template basin helm/basin --namespace basin -f helm/basin/values-laptop.yaml \
    --set submit.limit="${LIMIT:-4}",workers.batchImages=1,workers.trigger.imagesPerWorker=2,workers.checkpointEvery=2,workers.scaledJob.drainAfter=5 > "$state/pods/manifests.yaml"
exec unshare --net --mount --pid --fork --kill-child --mount-proc -- bash -ec '
    ip link set lo up
    exec "$0" infra/kubernetes/pods.py "$1/pods/manifests.yaml" "$1/pod-images" "$1/pods"' "$state/venv/bin/python" "$state"
