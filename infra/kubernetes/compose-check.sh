#!/usr/bin/env bash
# Checks infra/compose.yaml with Compose's own loader (without a container engine), and its rules.
set -euo pipefail
cd "$(dirname "$0")/../.."
infra/kubernetes/setup.sh
compose=target/kubernetes/bin/compose

if told=$("$compose" infra/compose.yaml 2>&1); then
    echo "compose.yaml loads without secrets" >&2
    exit 1
fi
grep -q 'BASIN_TOKEN' <<< "$told" || { echo "compose.yaml is refused for another reason than its secrets: $told" >&2; exit 1; }
S3_SECRET=a RABBITMQ_PASSWORD=b BASIN_TOKEN=c GRAFANA_PASSWORD=d "$compose" infra/compose.yaml > target/kubernetes/compose.json
python3 - target/kubernetes/compose.json <<'PY'
import json
import sys
from pathlib import Path

services = json.load(open(sys.argv[1]))["services"]
problems = []
wanted = {"rabbitmq", "s3", "coordinator", "worker", "collector", "prometheus", "grafana"}
problems += [f"there is no {name}" for name in wanted - services.keys()]
stages = {line.split(" AS ")[1] for line in Path("infra/images/Containerfile").read_text().splitlines() if line.startswith("FROM ")}
for name, service in services.items():
    for port in service.get("ports", []):
        if port.get("host_ip") != "127.0.0.1":
            problems.append(f"{name}: port {port['target']} can be reached from other machines")
    for volume in service.get("volumes", []):
        if volume["type"] == "bind" and not Path(volume["source"]).exists():
            problems.append(f"{name}: there is no {volume['source']}")
    if "build" in service:
        context = Path(service["build"]["context"])
        if not (context / service["build"]["dockerfile"]).is_file() or service["build"]["target"] not in stages:
            problems.append(f"{name}: cannot be built of {service['build']}")
        if not service.get("read_only") or service.get("cap_drop") != ["ALL"]:
            problems.append(f"{name}: may do more than it needs")
    elif ":" not in service["image"] or service["image"].endswith(":latest"):
        problems.append(f"{name}: {service['image']} is not pinned")
if services["worker"]["deploy"]["replicas"] != 2:
    problems.append("there are not two workers")
if problems:
    sys.exit("\n".join(f"compose.yaml: {problem}" for problem in problems))
print(f"compose.yaml: {len(services)} services")
PY
