#!/usr/bin/env bash
# Dashboards and alerts for the chart: helm/basin/files is a copy of what infra/ has, since a chart can only read its own folder.
# files.sh copies; files.sh --check fails if the copy differs.
set -euo pipefail
cd "$(dirname "$0")/../.."
files=helm/basin/files

if [[ ${1:-} == --check ]]; then
    diff -r infra/grafana/dashboards "$files/dashboards" && diff infra/prometheus/alerts.yaml "$files/alerts.yaml" || {
        echo "the chart's dashboards or alerts are not those of infra/: infra/kubernetes/files.sh copies them" >&2
        exit 1
    }
    exit 0
fi
rm -rf "$files"
mkdir -p "$files/dashboards"
cp infra/grafana/dashboards/*.json "$files/dashboards/"
cp infra/prometheus/alerts.yaml "$files/"
