#!/usr/bin/env bash
# The chart on a real control plane, in a network namespace of its own: etcd, kube-apiserver and kube-controller-manager, without nodes. The server
# accepts every rendering, pods pass the standard `restricted`, and install, upgrade, rollback and uninstall work. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} != inside ]]; then
    [[ $(id -u) == 0 ]] || { echo "api: run this as root" >&2; exit 1; }
    infra/kubernetes/check.sh
    infra/kubernetes/control-plane.sh
    exec unshare --net --mount --pid --fork --kill-child --mount-proc -- bash infra/kubernetes/api.sh inside
fi

# shellcheck disable=SC1091
source infra/kubernetes/cluster.sh

renderings=("$state"/rendered/*.yaml)
for rendering in "${renderings[@]}"; do
    # A dry run makes no service account, and the server requires the one of a pod.
    kubectl apply --server-side -f <(sed -n '/^kind: ServiceAccount$/,/^---$/{/^---$/!p}' "$rendering" | sed '1i apiVersion: v1') >/dev/null
    kubectl apply --server-side --force-conflicts --dry-run=server --validate=strict -f "$rendering" >/dev/null || fail "the server refuses $rendering"
    kubectl delete serviceaccount -l app.kubernetes.io/part-of=basin >/dev/null
done
echo "api: ${#renderings[@]} renderings are accepted by $(kubectl version -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["serverVersion"]["gitVersion"])')"

pods() { kubectl get pods -l "app.kubernetes.io/component=$1" -o name; }
of() { kubectl get "$1" -o jsonpath="$2"; }
there() { [[ $(kubectl get "$1" --ignore-not-found -o name) != "" ]]; }
helm install basin "$chart" -f "$chart/values-laptop.yaml" > install.txt
until_true 30 "a coordinator's and a submitting pod are admitted" bash -c '[[ $(kubectl get pods -o name | wc -l) == 2 ]]'
coordinator=$(pods coordinator)
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 2 ]] || fail "the scaled job does not follow the values"

helm upgrade basin "$chart" --reset-then-reuse-values --set workers.maxReplicas=5 > upgrade.txt
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 5 ]] || fail "an upgrade does not reach the scaled job"
[[ $(pods coordinator) == "$coordinator" ]] || fail "an upgrade of workers restarts the coordinator"
# A pod of a worker, as KEDA makes it.
helm upgrade basin "$chart" --reset-then-reuse-values --set workers.mode=fixed > upgrade-fixed.txt
until_true 30 "a worker's pod is admitted" bash -c '[[ $(kubectl get pods -l app.kubernetes.io/component=worker -o name) != "" ]]'
there scaledjob/basin-worker && fail "the scaled job is left over"
helm rollback basin 1 > rollback.txt
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 2 ]] || fail "a rollback does not restore the scaled job"
there deployment/basin-worker && fail "the deployment is left over"
# The namespace refuses a pod without restrictions.
told=$(kubectl run careless --image=x --dry-run=server 2>&1) && fail "the namespace accepts a pod without restrictions"
[[ $told == *'violates PodSecurity "restricted'* ]] || fail "a pod is refused for another reason: $told"

helm uninstall basin > uninstall.txt
until_true 60 "everything goes" bash -c '[[ -z $(kubectl get pods,deployments,jobs,services,scaledjobs,networkpolicies,poddisruptionbudgets,rabbitmqclusters -o name) ]]'
there pvc/basin-home || fail "uninstall deleted the home"
echo "api: install, upgrade, rollback and uninstall work"
