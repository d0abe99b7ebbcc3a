#!/usr/bin/env bash
# The demo through a whole fleet: starts one, projects the samples, copies the results here, stops it.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${DEMO:-out/demo-fleet}
if [[ -e $out ]]; then
    echo "$out exists already; move it, or set DEMO to another folder" >&2
    exit 1
fi
infra/local/up.sh
trap infra/local/down.sh EXIT
# shellcheck disable=SC1091
source target/local/env
target/debug/basin push models/fashion32
target/debug/basin submit samples --name demo --model fashion32 --profile fast --limit "${LIMIT:-12}" --wait
run=${BASIN_HOME_URL/\/home/\/home\/runs\/demo}
target/debug/basin verify --deep "$run"
target/debug/basin copy "$run" "$out"
echo "report: $out/report.html"
