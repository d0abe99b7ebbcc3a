#!/usr/bin/env bash
# KEDA's own operator and metrics server on a real control plane with a scheduler, in namespaces of their own: the workers of the chart go from none to N
# and back with the queue of a real RabbitMQ and the backlog of a real coordinator (keda.py). KWOK simulates node and kubelet. Needs root, built programs and
# RabbitMQ. BASIN_TARGET: where programs are (target).
set -euo pipefail
cd "$(dirname "$0")/../.."
if [[ ${1:-} != inside ]]; then
    [[ $(id -u) == 0 ]] || { echo "keda: run this as root" >&2; exit 1; }
    infra/rabbitmq/setup.sh
    infra/kubernetes/setup.sh
    infra/kubernetes/control-plane.sh
    exec unshare --net --mount --pid --fork --kill-child --mount-proc -- bash infra/kubernetes/keda.sh inside
fi
here=$PWD/infra/kubernetes
programs=$(cd "${BASIN_TARGET:-target}/debug" && pwd)
# shellcheck disable=SC1091
source infra/kubernetes/cluster.sh

kubectl apply --server-side --force-conflicts -f "$state/keda-crds" >/dev/null
kubectl wait --for=condition=Established --timeout=30s crd --all >/dev/null
mkdir volume
kubectl apply -f - >/dev/null <<YAML
apiVersion: v1
kind: Node
metadata: {name: node, labels: {kubernetes.io/hostname: node}}
---
apiVersion: v1
kind: PersistentVolume
metadata: {name: home}
spec: {capacity: {storage: 5Gi}, accessModes: [ReadWriteOnce], hostPath: {path: "$run/volume"}}
YAML

# KWOK's own stages, except that pods of Jobs end on request and not at once.
{
    cat "$state/kwok/node-initialize.yaml"
    for stage in ready delete complete; do
        echo ---
        if [[ $stage == complete ]]; then
            sed 's/^\( *\)matchExpressions:$/&\n\1- {key: ".metadata.annotations.done", operator: Exists}/' "$state/kwok/pod-complete.yaml"
        else
            cat "$state/kwok/pod-$stage.yaml"
        fi
    done
} > kwok.yaml
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=keda-operator -addext subjectAltName=DNS:keda-operator -keyout tls.key -out tls.crt 2>/dev/null
cp tls.crt ca.crt
kube-scheduler --kubeconfig kubeconfig --leader-elect=false > kube-scheduler.log 2>&1 &
kwok --kubeconfig kubeconfig --config kwok.yaml --manage-all-nodes > kwok.log 2>&1 &
kubectl create namespace keda >/dev/null
export WATCH_NAMESPACE='' POD_NAMESPACE=keda KEDA_CLUSTER_OBJECT_NAMESPACE=keda
keda-operator --kubeconfig kubeconfig --cert-dir "$run" \
    --metrics-bind-address=:9080 --health-probe-bind-address=:9081 > keda-operator.log 2>&1 &
keda-adapter --lister-kubeconfig kubeconfig --authentication-kubeconfig kubeconfig --authorization-kubeconfig kubeconfig --secure-port 6444 --port 9082 \
    --tls-cert-file tls.crt --tls-private-key-file tls.key --cert-dir "$run" --client-ca-file ca.crt \
    --metrics-service-address 127.0.0.1:9666 --metrics-service-grpc-authority keda-operator > keda-adapter.log 2>&1 &
kubectl apply -f - >/dev/null <<'YAML'
apiVersion: v1
kind: Service
metadata: {name: keda-metrics-apiserver, namespace: keda}
spec: {ports: [{name: https, port: 443, targetPort: 6444}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: keda-metrics-apiserver, namespace: keda, labels: {kubernetes.io/service-name: keda-metrics-apiserver}}
addressType: IPv4
ports: [{name: https, port: 6444}]
endpoints: [{addresses: [10.99.0.1], conditions: {ready: true}}]
---
apiVersion: apiregistration.k8s.io/v1
kind: APIService
metadata: {name: v1beta1.external.metrics.k8s.io}
spec:
  service: {name: keda-metrics-apiserver, namespace: keda}
  group: external.metrics.k8s.io
  version: v1beta1
  insecureSkipTLSVerify: true
  groupPriorityMinimum: 100
  versionPriority: 100
YAML
until_true 60 "KEDA is ready" curl --fail --silent http://127.0.0.1:9081/readyz
until_true 60 "KEDA's metrics server is ready" kubectl wait --for=condition=Available --timeout=1s apiservice/v1beta1.external.metrics.k8s.io
until_true 60 "the node is ready" kubectl wait --for=condition=Ready --timeout=1s node/node
exec "$state/venv/bin/python" "$here/keda.py" "$programs" "$OLDPWD" "$run"
