#!/usr/bin/env bash
# Checks dashboards and alerts from end to end: a local fleet sends to a collector, the collector to Prometheus and to a receiver of traces;
# after a short run with one broken image, every query of dashboards and alerts must have an answer. Then everything is stopped.
set -euo pipefail
cd "$(dirname "$0")/../.."

infra/observe/setup.sh
state=$PWD/target/observe
bin=$state/bin
check=infra/observe/check.py
prometheus=127.0.0.1:9097 collector=127.0.0.1:4327 collector_http=127.0.0.1:4328 traces_port=4329

mkdir -p "$state/prometheus"
cp infra/prometheus/prometheus.yaml helm/basin/files/alerts.yaml "$state/prometheus/"
"$bin/promtool" check config "$state/prometheus/prometheus.yaml"
"$bin/promtool" test rules infra/prometheus/alerts.test.yaml
python3 "$check" names

if [[ -e target/local/pids ]]; then
    echo "observe: a local fleet is running; stop it with make down-local" >&2
    exit 1
fi
rm -rf "$state"/{data,log,images,traces.json}
mkdir -p "$state/log"
pids=()
stop() {
    infra/local/down.sh
    ((${#pids[@]} == 0)) || kill "${pids[@]}" 2>/dev/null || true
    wait
}
trap stop EXIT
start() {
    local name=$1
    shift
    "$@" </dev/null >"$state/log/$name" 2>&1 &
    pids+=($!)
}
start prometheus "$bin/prometheus" --config.file="$state/prometheus/prometheus.yaml" --storage.tsdb.path="$state/data" \
    --web.listen-address="$prometheus" --web.enable-otlp-receiver
start traces python3 "$check" receive "$traces_port" "$state/traces.json"
start collector env BASIN_OTLP_GRPC_LISTEN="$collector" BASIN_OTLP_HTTP_LISTEN="$collector_http" \
    BASIN_METRICS_BACKEND="http://$prometheus/api/v1/otlp" BASIN_TRACES_BACKEND="http://127.0.0.1:$traces_port" \
    "$bin/otelcol" --config infra/otel-collector/config.yaml \
    --set exporters.otlp_http/traces.encoding=json --set exporters.otlp_http/traces.compression=none
curl -fs --retry 60 --retry-delay 1 --retry-connrefused "http://$prometheus/-/ready" >/dev/null

export OTEL_EXPORTER_OTLP_ENDPOINT="http://$collector" OTEL_EXPORTER_OTLP_PROTOCOL=grpc
export OTEL_METRIC_EXPORT_INTERVAL=1000 OTEL_BSP_SCHEDULE_DELAY=500 OTEL_TRACES_SAMPLER=parentbased_always_on OTEL_LOGS_EXPORTER=none
infra/local/up.sh
# shellcheck disable=SC1091
source target/local/env
for class in Bag Coat Sneaker; do
    mkdir -p "$state/images/$class"
    cp samples/images/"${class,,}"_0[01]_*.png "$state/images/$class/"
done
echo "no image" > "$state/images/Bag/broken.png"
target/debug/basin push models/fashion32
target/debug/basin submit "$state/images" --annotations none --name observed --model fashion32 --profile fast --wait || echo "observe: ended with $?"
python3 "$check" series "http://$prometheus" observed
python3 "$check" traces "$state/traces.json" 6
