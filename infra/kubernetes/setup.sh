#!/usr/bin/env bash
# Helm, helm-unittest, kubeconform and a reader of Compose files under target/kubernetes/bin, built by Go from pinned modules (once: about 8 minutes on 2 cores), and the
# schemas of Kubernetes, KEDA, the Prometheus Operator and RabbitMQ's operator under target/kubernetes/schemas. A second run does nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=$here/../../target/kubernetes
python=${PYTHON:-python3}
# shellcheck disable=SC1091
source "$here/versions.sh"

stamp=$(cat "$here"/{versions,setup}.sh "$here/schemas.py" "$here"/schemas/* "$here"/compose/* | sha256sum | cut -d' ' -f1)
[[ $(cat "$into/.installed" 2>/dev/null) == "$stamp" ]] && exit 0
command -v go >/dev/null || { echo "kubernetes: Go is needed to build Helm: install Go 1.26 or later" >&2; exit 1; }

echo "kubernetes: building Helm, helm-unittest and kubeconform into target/kubernetes (once)" >&2
mkdir -p "$into/bin"
into=$(cd "$into" && pwd)
# Without these Helm takes every cluster for Kubernetes 1.20. BASIN_GO_CACHE keeps what Go makes, for who changes versions often.
module=helm.sh/helm/v3
flags="-s -w -X $module/internal/version.version=$helm"
for package in pkg/chartutil pkg/lint/rules; do
    flags+=" -X $module/$package.k8sVersionMajor=1 -X $module/$package.k8sVersionMinor=${kubernetes#1.}"
done
build=${BASIN_GO_CACHE:-$into/build}
mkdir -p "$build"
[[ -n ${BASIN_GO_CACHE:-} ]] || trap 'chmod -R u+w "$build" && rm -rf "$build"' EXIT
export GOPATH=$build/go GOCACHE=$build/cache GOBIN=$into/bin GOFLAGS="-modcacherw -buildvcs=false -p=1" CGO_ENABLED=0
cd "$build" # where no go.mod is
module_folder() { go mod download -json "$1" | "$python" -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'; }

go install "github.com/yannh/kubeconform/cmd/kubeconform@$kubeconform"
go install -ldflags "$flags" "helm.sh/helm/v3/cmd/helm@$helm"
# `go install` refuses it: its go.mod replaces a module.
(cd "$(module_folder "github.com/helm-unittest/helm-unittest@$helm_unittest")" && go build -ldflags "$flags" -o "$into/bin/" ./cmd/helm-unittest)

(cd "$here/compose" && go build -o "$into/bin/compose" .)

[[ -x $into/venv/bin/python ]] || "$python" -m venv "$into/venv"
"$into/venv/bin/pip" install --quiet --disable-pip-version-check "kubernetes-validate==$kubernetes_validate"
rm -rf "$into/schemas"
mkdir "$into/schemas"
cp "$here"/schemas/*.json "$into/schemas/"
rm -rf "$into/crds"
mkdir "$into/crds"
cp "$(module_folder "github.com/kedacore/keda/v2@$keda")"/config/crd/bases/keda.sh_{scaledjobs,scaledobjects,triggerauthentications}.yaml \
    "$(module_folder "github.com/prometheus-operator/prometheus-operator@$prometheus_operator")"/example/prometheus-operator-crd/monitoring.coreos.com_{podmonitors,prometheusrules}.yaml \
    "$into/crds/"
"$into/venv/bin/python" "$here/schemas.py" "$into/schemas" \
    "$into"/venv/lib/python*/site-packages/kubernetes_validate/kubernetes-json-schema/"v$kubernetes.0-local-strict" "$into/crds"/*.yaml
echo "$stamp" > "$into/.installed"
