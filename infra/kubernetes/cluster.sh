# Sourced: a control plane in the namespaces that the script is in: etcd, kube-apiserver and kube-controller-manager, without nodes, under
# target/kubernetes/control-plane. Gives $state, $run, $chart, fail, until_true and a kubectl that is admin.
# shellcheck shell=bash
state=$PWD/target/kubernetes
run=$state/control-plane
chart=$PWD/helm/basin
export PATH=$state/bin:$PATH KUBECONFIG=$run/kubeconfig
rm -rf "$run"
mkdir -p "$run"
cd "$run"
fail() { echo "$(basename "$0" .sh): $*" >&2; exit 1; }

# The API server needs an address that is not the loopback's.
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
# KEDA's metrics server answers through the API server, which shows it this certificate.
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=front-proxy -keyout proxy.key -out proxy.crt 2>/dev/null
etcd --data-dir etcd --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --log-level error > etcd.log 2>&1 &
kube-apiserver --etcd-servers http://127.0.0.1:2379 --cert-dir certificates --secure-port 6443 --bind-address 0.0.0.0 --advertise-address 10.99.0.1 \
    --service-cluster-ip-range 10.0.0.0/24 --service-account-key-file key.pub --service-account-signing-key-file key \
    --service-account-issuer https://kubernetes --token-auth-file tokens --authorization-mode RBAC \
    --proxy-client-cert-file proxy.crt --proxy-client-key-file proxy.key --requestheader-client-ca-file proxy.crt \
    --requestheader-username-headers X-Remote-User --requestheader-group-headers X-Remote-Group --enable-aggregator-routing > kube-apiserver.log 2>&1 &
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
kube-controller-manager --kubeconfig kubeconfig --service-account-private-key-file key --leader-elect=false \
    --horizontal-pod-autoscaler-sync-period 2s > kube-controller-manager.log 2>&1 &

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
