#!/usr/bin/env bash
# The chart on a real control plane, in a network namespace of its own: etcd, kube-apiserver and kube-controller-manager, without nodes. Every rendering is
# taken by the server, pods pass the standard `restricted`, and install, upgrade, rollback and uninstall do what they say. Needs root.
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} != inside ]]; then
    [[ $(id -u) == 0 ]] || { echo "api: needs root" >&2; exit 1; }
    infra/kubernetes/check.sh
    infra/kubernetes/control-plane.sh
    exec unshare --net --mount --pid --fork --kill-child --mount-proc -- bash infra/kubernetes/api.sh inside
fi

state=$PWD/target/kubernetes
run=$state/control-plane
chart=$PWD/helm/basin
export PATH=$state/bin:$PATH KUBECONFIG=$run/kubeconfig
rm -rf "$run"
mkdir -p "$run"
cd "$run"
fail() { echo "api: $*" >&2; exit 1; }

# The API server wants an address that is not the loopback's.
ip link set lo up
ip address add 10.99.0.1/32 dev lo
openssl genrsa -out key 2048 2>/dev/null
openssl rsa -in key -pubout -out key.pub 2>/dev/null
echo 'admin,admin,1,system:masters' > tokens
cat > kubeconfig <<'YAML'
apiVersion: v1
kind: Config
clusters: [{name: here, cluster: {server: "https://127.0.0.1:6443", insecure-skip-tls-verify: true}}]
users: [{name: admin, user: {token: admin}}]
contexts: [{name: here, context: {cluster: here, user: admin, namespace: basin}}]
current-context: here
YAML
etcd --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --log-level error > etcd.log 2>&1 &
kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir certificates --secure-port 6443 --bind-address 0.0.0.0 --advertise-address 10.99.0.1 \
    --service-cluster-ip-range 10.0.0.0/24 --service-account-key-file key.pub --service-account-signing-key-file key \
    --service-account-issuer https://kubernetes --token-auth-file tokens --authorization-mode RBAC > kube-apiserver.log 2>&1 &
server=$!

# until_true SECONDS WHAT COMMAND...
until_true() {
    local end=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        kill -0 $server 2>/dev/null || fail "the API server has ended: $(tail -2 kube-apiserver.log)"
        ((SECONDS < end)) || fail "$what: not in time"
        sleep 0.2
    done
}
until_true 120 "the API server is ready" kubectl get --raw /readyz
kube-controller-manager --kubeconfig kubeconfig --service-account-private-key-file key --leader-elect=false > kube-controller-manager.log 2>&1 &

# KEDA's and the Prometheus Operator's own resources; of RabbitMQ's, whose module is not on the proxy, a stand-in that takes any field: the
# schema that check.sh holds it against is the operator's.
kubectl apply --server-side -f "$state/crds" >/dev/null
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rabbitmqclusters.rabbitmq.com}
spec:
  group: rabbitmq.com
  scope: Namespaced
  names: {kind: RabbitmqCluster, plural: rabbitmqclusters}
  versions:
    - {name: v1beta1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
YAML
kubectl wait --for=condition=Established --timeout=30s crd --all >/dev/null
kubectl create namespace basin >/dev/null
kubectl label namespace basin pod-security.kubernetes.io/enforce=restricted >/dev/null
kubectl create secret generic basin-token --from-literal=token=a-token-of-this-test >/dev/null

renderings=("$state"/rendered/*.yaml)
for rendering in "${renderings[@]}"; do
    # A dry run makes no service account, and the server asks for a pod's.
    kubectl apply --server-side -f <(sed -n '/^kind: ServiceAccount$/,/^---$/{/^---$/!p}' "$rendering" | sed '1i apiVersion: v1') >/dev/null
    kubectl apply --server-side --force-conflicts --dry-run=server --validate=strict -f "$rendering" >/dev/null || fail "the server refuses $rendering"
    kubectl delete serviceaccount -l app.kubernetes.io/part-of=basin >/dev/null
done
echo "api: ${#renderings[@]} renderings are taken by $(kubectl version -o json | python3 -c 'import json, sys; print(json.load(sys.stdin)["serverVersion"]["gitVersion"])')"

pods() { kubectl get pods -l "app.kubernetes.io/component=$1" -o name; }
of() { kubectl get "$1" -o jsonpath="$2"; }
there() { [[ $(kubectl get "$1" --ignore-not-found -o name) != "" ]]; }
helm install basin "$chart" -f "$chart/values-laptop.yaml" > install.txt
until_true 30 "a coordinator's and a submitting pod are admitted" bash -c '[[ $(kubectl get pods -o name | wc -l) == 2 ]]'
coordinator=$(pods coordinator)
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 2 ]] || fail "the scaled job is not what the values say"

helm upgrade basin "$chart" --reset-then-reuse-values --set workers.maxReplicas=5 > upgrade.txt
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 5 ]] || fail "an upgrade does not reach the scaled job"
[[ $(pods coordinator) == "$coordinator" ]] || fail "an upgrade of workers restarts the coordinator"
# A worker's pod itself, which KEDA would make.
helm upgrade basin "$chart" --reset-then-reuse-values --set workers.mode=fixed > upgrade-fixed.txt
until_true 30 "a worker's pod is admitted" bash -c '[[ $(kubectl get pods -l app.kubernetes.io/component=worker -o name) != "" ]]'
there scaledjob/basin-worker && fail "the scaled job is left over"
helm rollback basin 1 > rollback.txt
[[ $(of scaledjob/basin-worker '{.spec.maxReplicaCount}') == 2 ]] || fail "a rollback does not bring back what was"
there deployment/basin-worker && fail "the deployment is left over"
# The namespace does not take any pod.
told=$(kubectl run careless --image=x --dry-run=server 2>&1) && fail "the namespace takes any pod"
[[ $told == *'violates PodSecurity "restricted'* ]] || fail "a pod is refused for another reason: $told"

helm uninstall basin > uninstall.txt
until_true 60 "everything goes" bash -c '[[ -z $(kubectl get pods,deployments,jobs,services,scaledjobs,networkpolicies,poddisruptionbudgets,rabbitmqclusters -o name) ]]'
there pvc/basin-home || fail "the home went with the chart"
echo "api: install, upgrade, rollback and uninstall do what they say"
