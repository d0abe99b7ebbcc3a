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
    "tch": {"kernels", "projector", "engine", "worker", "trainer", "bench", "zoo", "seeded"},
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
    "parquet": {"results"},
    "image": {"engine", "results", "trainer"},
    "openh264": {"engine"},
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
    "dataset": {"proto", "store"},
    "client": {"proto"},
    "projector": {"kernels", "proto"},
    "queue": {"proto"},
    "seeded": {"projector"},
    "zoo": {"proto", "projector", "state-dict"},
    "results": {"dataset", "proto", "store"},
    "engine": {"projector", "proto", "store"},
    "coordinator": {"client", "dataset", "proto", "queue", "results", "store", "telemetry"},
    "worker": {"engine", "projector", "proto", "queue", "store", "telemetry"},
    "cli": {"client", "coordinator", "dataset", "engine", "proto", "queue", "results", "store", "telemetry", "worker", "zoo"},
    "trainer": {"proto", "projector"},
    "tests": {"proto", "store", "telemetry"},
    "bench": {"client", "coordinator", "engine", "kernels", "projector", "proto", "queue", "results", "seeded", "store", "tests", "worker"},
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
