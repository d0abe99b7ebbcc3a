"""schemas.py INTO KUBERNETES CRD.yaml…: the JSON schemas of Kubernetes (the folder of the package kubernetes-validate) and of custom resources,
as kubeconform looks for them. Fields that a schema does not name are refused.
"""

import json
import sys
from pathlib import Path

import yaml


def closed(node: object) -> object:
    """The schema with every object that names its fields closed to others, as the API server does by pruning them."""
    if isinstance(node, list):
        return [closed(inner) for inner in node]
    if not isinstance(node, dict):
        return node
    node = {key: closed(inner) for key, inner in node.items()}
    properties = node.get("properties")
    if isinstance(properties, dict) and node.get("type") == "object" and not node.get("x-kubernetes-preserve-unknown-fields"):
        node.setdefault("additionalProperties", False)
    if node.get("x-kubernetes-int-or-string"):
        node.pop("type", None)
        node["anyOf"] = [{"type": "integer"}, {"type": "string"}]
    return node


def main() -> None:
    into, kubernetes = Path(sys.argv[1]), Path(sys.argv[2])
    for file in kubernetes.glob("*.json"):
        schema = json.loads(file.read_text())
        # With its id a schema would look for the others at kubernetes.io.
        schema.pop("$id", None)
        (into / file.name).write_text(json.dumps(schema).replace("/api/_definitions.json", "_definitions.json"))
    for file in sys.argv[3:]:
        for crd in yaml.safe_load_all(Path(file).read_text()):
            spec = crd["spec"]
            for version in spec["versions"]:
                schema = closed(version["schema"]["openAPIV3Schema"])
                schema["properties"]["metadata"] = {"type": "object"}
                group = spec["group"].split(".")[0]
                name = f"{spec['names']['kind'].lower()}-{group}-{version['name']}.json"
                (into / name).write_text(json.dumps(schema))


main()
