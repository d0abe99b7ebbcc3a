#!/usr/bin/env bash
# etcd, kube-apiserver, kube-controller-manager, kube-scheduler, kubectl, KEDA and KWOK under target/kubernetes/bin, built by Go from their
# modules (once: some 25 minutes on 2 cores, and GBs that are deleted again). A second run does nothing. BASIN_GO_CACHE keeps what Go makes.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=$here/../../target/kubernetes
python=${PYTHON:-python3}
# shellcheck disable=SC1091
source "$here/versions.sh"

stamp=$(cat "$here"/{versions,control-plane}.sh | sha256sum | cut -d' ' -f1)
[[ $(cat "$into/.control-plane" 2>/dev/null) == "$stamp" ]] && exit 0
command -v go >/dev/null || { echo "kubernetes: Go is needed to build a control plane: install Go 1.26 or later" >&2; exit 1; }

echo "kubernetes: building a control plane, KEDA and KWOK into target/kubernetes (once)" >&2
mkdir -p "$into/bin"
into=$(cd "$into" && pwd)
build=${BASIN_GO_CACHE:-$into/build-control-plane}
mkdir -p "$build"
[[ -n ${BASIN_GO_CACHE:-} ]] || trap 'rm -rf "$build"' EXIT
export GOPATH=$build/go GOCACHE=$build/cache GOFLAGS="-modcacherw -buildvcs=false -p=1 -mod=mod" CGO_ENABLED=0
module_folder() { (cd "$build" && go mod download -json "$1") | "$python" -c 'import json, sys; print(json.load(sys.stdin)["Dir"])'; }
rm -rf "$build"/{etcd,kubernetes}
mkdir -p "$build"/{etcd,kubernetes}

# Neither can be had by `go install`: their go.mod replace modules.
cd "$build/etcd"
cat > main.go <<'GO'
package main

import (
	"os"

	"go.etcd.io/etcd/server/v3/etcdmain"
)

func main() { etcdmain.Main(os.Args) }
GO
go mod init basin/etcd
go get "go.etcd.io/etcd/server/v3@$etcd"
go build -ldflags "-s -w" -o "$into/bin/etcd" .

# Kubernetes' own modules have their places in its tree, and versions of their own on the proxy.
cd "$build/kubernetes"
source=$(module_folder "k8s.io/kubernetes@$kubernetes_release")
"$python" - "$source/go.mod" "$kubernetes_release" > go.mod <<'PY'
import re
import sys

text, release = open(sys.argv[1]).read(), sys.argv[2]
staged = re.findall(r"(k8s\.io/[a-z-]+) => ./staging", text)
version = "v0." + release.split(".", 1)[1]
requires = "\n".join(re.findall(r"require \(.*?\)", text, re.S))
requires = re.sub(rf"({'|'.join(map(re.escape, staged))}) v0\.0\.0", rf"\1 {version}", requires)
replaces = "\n".join(f"\t{module} => {module} {version}" for module in staged)
print(f"module basin/kubernetes\n\ngo 1.26.0\n\nrequire k8s.io/kubernetes {release}\n\n{requires}\n\nreplace (\n{replaces}\n)")
PY
cp "$source/go.sum" .
flags="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=$kubernetes_release -X $package.gitMajor=1 -X $package.gitMinor=${kubernetes#1.}"
done
for command in kube-apiserver kube-controller-manager kube-scheduler kubectl; do
    mkdir "$command"
    cp "$source/cmd/$command"/*.go "$command/"
    rm -f "$command"/*_test.go
    go build -ldflags "$flags" -o "$into/bin/$command" "./$command"
done

# Their go.mod are complete, and the folders of modules not ours to write to.
export GOFLAGS="-modcacherw -buildvcs=false -p=1"
rm -rf "$into"/{keda-crds,kwok}
mkdir "$into"/{keda-crds,kwok}
source=$(module_folder "sigs.k8s.io/kwok@$kwok")
cp "$source"/kustomize/stage/{node/fast/node-initialize,pod/fast/pod-{ready,complete,delete}}.yaml "$into/kwok/"
(cd "$source" && go build -ldflags "-s -w" -o "$into/bin/kwok" ./cmd/kwok)
source=$(module_folder "github.com/kedacore/keda/v2@$keda")
cp "$source"/config/crd/bases/*.yaml "$into/keda-crds/"
for command in operator adapter; do (cd "$source" && go build -ldflags "-s -w" -o "$into/bin/keda-$command" "./cmd/$command"); done
echo "$stamp" > "$into/.control-plane"
