#!/usr/bin/env bash
# Checks the chart without a cluster: lint, unit tests, and the renderings of each values file and mode against the schemas of Kubernetes 1.37,
# KEDA and the operators and against the rules of manifests.py.
set -euo pipefail
cd "$(dirname "$0")/../.."
infra/kubernetes/setup.sh
state=target/kubernetes
bin=$state/bin
python=$state/venv/bin/python
chart=helm/basin
set_values=$chart/tests/set.yaml

"$python" infra/kubernetes/readme.py --check

# Name and values of every rendering.
renderings=(
    "laptop|-f $chart/values-laptop.yaml"
    "one-gpu|-f $chart/values-one-gpu.yaml"
    "overnight|-f $chart/values-overnight.yaml"
    "plain|-f $set_values"
    "scaled-object|-f $set_values --set workers.mode=scaledObject,telemetry.endpoint=http://collector:4318,workers.gpu.count=2,workers.trigger.type=rabbitmq,queue.mode=operator"
    "own-folders|-f $chart/values-laptop.yaml --set home.volume.existingClaim=home,extraVolumes[0].name=data,extraVolumes[0].persistentVolumeClaim.claimName=data,extraVolumeMounts[0].name=data,extraVolumeMounts[0].mountPath=/data"
    "open|-f $chart/values-overnight.yaml --set coordinator.ingress.enabled=true,coordinator.ingress.host=basin.example,coordinator.ingress.tlsSecret=tls,networkPolicy.enabled=false,queue.mode=external,queue.url=amqps://broker/v,queue.credentialsSecret=q,queue.caSecret=ca,telemetry.headersSecret=h"
    "pools|-f $chart/tests/pools.yaml"
    "scraped|-f $set_values --set monitoring.podMonitor=true,coordinator.replicas=2,queue.mode=operator,queue.operator.tlsSecret=rabbit-tls,queue.caSecret=rabbit-ca,workers.mode=scaledObject --set queue.operator.tolerations[0].operator=Exists"
    "openshift|-f $set_values --api-versions security.openshift.io/v1"
    "long-name|-f $chart/values-overnight.yaml --set fullnameOverride=a-name-that-is-much-longer-than-anybody-should-choose"
)
rm -rf "$state/rendered"
mkdir -p "$state/rendered"
for rendering in "${renderings[@]}"; do
    IFS='|' read -r name values <<< "$rendering"
    # shellcheck disable=SC2086
    "$bin/helm" lint --quiet --strict "$chart" ${values%--api-versions*}
    # shellcheck disable=SC2086
    "$bin/helm" template basin "$chart" --namespace basin $values > "$state/rendered/$name.yaml"
    "$bin/kubeconform" -strict -schema-location "$state/schemas/{{.ResourceKind}}{{.KindSuffix}}.json" "$state/rendered/$name.yaml"
    "$python" infra/kubernetes/manifests.py "$name" < "$state/rendered/$name.yaml"
done

# Every variable that the chart sets is one that the programs read.
while read -r variable; do
    grep -rqF "\"$variable\"" {coordinator,worker,cli,crates/*}/src || { echo "the chart sets $variable, which no program reads" >&2; exit 1; }
done < <(grep -ohE '\bBASIN_[A-Z_]+' "$state"/rendered/*.yaml | sort -u)

# refused MESSAGE SETTING...: the chart does not render with the setting, and its error has the message.
refused() {
    local says=$1 told
    shift
    if told=$("$bin/helm" template basin "$chart" -f "$set_values" "$@" 2>&1); then
        echo "the chart accepts $*" >&2
        exit 1
    fi
    grep -q -- "$says" <<< "$told" || { printf 'the chart refuses %s without saying %s:\n%s\n' "$*" "$says" "$told" >&2; exit 1; }
}
refused replcas --set workers.replcas=3
refused worker --set worker.replicas=3
refused tollerations --set 'coordinator.tollerations[0].key=a'
refused workers.mode --set workers.mode=scaledjob
refused '/workers/maxReplicas' --set workers.maxReplicas=many
refused '/queue/url' --set 'queue.url=amqp://user:password@broker/'
refused '/home/url' --set home.url=bucket/prefix
refused '/image/digests' --set image.digests.basin-coordinator=sha256:1
refused '/workerPools/0' --set 'workerPools[0].name=a,workerPools[0].mode=fixed'
refused 'two pools with the name a' --set 'workerPools[0].name=a,workerPools[1].name=a'
refused kubeVersion --kube-version 1.28

"$bin/helm-unittest" --file 'tests/*_test.yaml' "$chart"
"$bin/helm" package --destination "$state" "$chart" >/dev/null
echo "chart: ${#renderings[@]} renderings are valid"
