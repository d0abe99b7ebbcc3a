#!/usr/bin/env bash
# The crate graph of docs/architecture.md, checked: which crate may use which heavy library, and which of our own.
set -euo pipefail
cd "$(dirname "$0")/.."

python3 - <<'PY'
import json, subprocess, sys

metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--locked", "--format-version", "1", "--no-deps"]))
uses = {
    p["name"]: {d["name"] for d in p["dependencies"] if d["kind"] is None}
    for p in metadata["packages"]
}
ours = set(uses)
# Library: crates that may name it. The benchmark compares our wrappers with the library alone.
wrappers = {
    "tch": {"kernels", "projector", "worker", "trainer", "bench", "zoo"},
    "aws-sdk-s3": {"store", "bench"},
    "aws-config": {"store", "bench"},
    "lapin": {"queue", "bench"},
    "tracing-subscriber": {"telemetry"},
    "opentelemetry": {"telemetry"},
    "opentelemetry-http": {"telemetry"},
    "opentelemetry-otlp": {"telemetry"},
    "opentelemetry_sdk": {"telemetry"},
    "tracing-opentelemetry": {"telemetry"},
    "nvml-wrapper": {"worker"},
    "parquet": {"coordinator"},
    "image": {"worker", "coordinator", "trainer"},
    "openh264": {"worker"},
    "rustfft": {"projector"},
    "zip": {"state-dict", "zoo"},
    "zstd": {"projector"},
}
# Crate: our crates that it may use.
graph = {
    "proto": set(),
    "state-dict": set(),
    "store": set(),
    "telemetry": set(),
    "kernels": set(),
    "projector": {"kernels", "proto"},
    "queue": {"proto"},
    "coordinator": {"proto", "queue", "store", "telemetry"},
    "worker": {"proto", "queue", "store", "telemetry", "projector", "zoo"},
    "cli": {"proto", "queue", "store", "telemetry", "coordinator", "worker", "zoo"},
    "zoo": {"proto", "projector", "state-dict"},
    "trainer": {"proto", "projector"},
    "bench": {"coordinator", "kernels", "proto", "projector", "worker", "queue", "store"},
}
problems = []
for crate, needed in sorted(uses.items()):
    for library, allowed in wrappers.items():
        if library in needed and crate not in allowed:
            problems.append(f"{crate} uses {library}; only {', '.join(sorted(allowed))} may")
    if crate not in graph:
        problems.append(f"{crate} has no place in the graph: add it to infra/architecture.sh and docs/architecture.md")
        continue
    for other in sorted((needed & ours) - graph[crate]):
        problems.append(f"{crate} must not use {other}")
if problems:
    sys.exit("architecture: " + "\narchitecture: ".join(problems))
print(f"architecture: {len(uses)} crates keep to the graph")
PY
