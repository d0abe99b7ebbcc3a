#!/usr/bin/env bash
# Prometheus, promtool and an OpenTelemetry Collector under target/observe, built by Go from pinned modules (once: 6 minutes, and
# 5 GB that are deleted again). A second run does nothing.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
into=$here/../../target/observe
prometheus=v0.316.0 # its module's name for 3.16.0
collector=v0.165.0

stamp=$(cat "$here/collector.yaml" "$here/setup.sh" | sha256sum | cut -d' ' -f1)
[[ $(cat "$into/.installed" 2>/dev/null) == "$stamp" ]] && exit 0
command -v go >/dev/null || { echo "observe: Go is needed to build Prometheus and the collector: install Go 1.26 or later" >&2; exit 1; }

echo "observe: building Prometheus and the collector into target/observe (once)" >&2
mkdir -p "$into/bin"
into=$(cd "$into" && pwd)
rm -rf "$into/build"
mkdir "$into/build"
trap 'rm -rf "$into/build"' EXIT
cd "$into/build"
export GOPATH=$PWD/go GOCACHE=$PWD/cache GOBIN=$into/bin GOFLAGS="-modcacherw -buildvcs=false -p=2" CGO_ENABLED=0
for command in prometheus promtool; do
    go install -tags remove_all_sd "github.com/prometheus/prometheus/cmd/$command@$prometheus"
done
go install "go.opentelemetry.io/collector/cmd/builder@$collector"
"$into/bin/builder" --config "$here/collector.yaml"
mv collector/otelcol "$into/bin/"
rm "$into/bin/builder"
echo "$stamp" > "$into/.installed"
