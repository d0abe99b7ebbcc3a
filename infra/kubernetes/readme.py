"""Writes helm/basin/README.md: every value with type, default and meaning, from the comments of values.yaml and values.schema.json.

readme.py          writes it
readme.py --check  fails if it is not up to date, or if comments, values and schema do not name the same things
"""

import json
import re
import sys
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[2] / "helm/basin"
HEAD = """# Helm chart

Which values does the chart take? It installs a coordinator, workers that KEDA starts and stops, and optionally RabbitMQ by its operator.
[Run on Kubernetes](../../docs/src/how-to/kubernetes.md) leads from nothing to a finished run.

```
helm install basin helm/basin --namespace basin --create-namespace -f helm/basin/values-laptop.yaml
```

| values | for |
|---|---|
{files}

Required are `home.url`, `coordinator.auth.existingSecret`, and `queue.url` or `queue.mode: operator`. The chart makes no secrets; you name existing ones. It refuses
unknown values.

This page is written by `infra/kubernetes/readme.py`.
"""


def comments(text: str) -> dict[str, str]:
    """Dotted path of each key of block style -> the comment above it."""
    said, stack, above = {}, [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            above.append(stripped[1:].strip())
            continue
        if key := re.match(r"( *)([A-Za-z0-9._/-]+):", line):
            indent = len(key[1])
            stack = [(i, k) for i, k in stack if i < indent] + [(indent, key[2])]
            if above:
                said[".".join(k for _, k in stack)] = " ".join(above)
        above = []
    return said


def leaves(schema: dict, values: object, path: str = ""):
    """(path, schema, default) of everything that a user may set; a free-form object is one leaf."""
    if "properties" not in schema or "$ref" in schema or values == {}:
        yield path, schema, values
        return
    for key in values.keys() - schema["properties"].keys():
        sys.exit(f"values.schema.json does not know {path}.{key}")
    for key, inner in schema["properties"].items():
        if key == "global":
            continue
        if key not in values:
            sys.exit(f"values.yaml has no {path}.{key}")
        yield from leaves(inner, values[key], f"{path}.{key}".lstrip("."))


def kind(schema: dict) -> str:
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return {"strings": "map", "tolerations": "list", "env": "list", "name": "string"}.get(name, name)
    return {"boolean": "bool", "array": "list", "object": "map", "integer": "int"}.get(schema["type"], schema["type"])


def open_objects(schema: object, path: str = "") -> list[str]:
    """Objects that take any key although they name some: none should be left open by mistake."""
    found = []
    if isinstance(schema, dict):
        if "properties" in schema and schema.get("type") == "object" and schema.get("additionalProperties") is not False:
            found.append(path)
        for key, inner in schema.items():
            found += open_objects(inner, f"{path}/{key}")
    return found


def page() -> str:
    text = (CHART / "values.yaml").read_text()
    schema = json.loads((CHART / "values.schema.json").read_text())
    if loose := open_objects(schema):
        sys.exit(f"values.schema.json lets any key pass at {', '.join(loose)}")
    said = comments(text)
    files = []
    for file in sorted(CHART.glob("values-*.yaml")):
        first = []
        for line in file.read_text().splitlines():
            if not line.startswith("#"):
                break
            first.append(line[1:].strip())
        files.append(f"| `{file.name}` | {' '.join(first)} |")
    lines, group = [HEAD.format(files="\n".join(files))], None
    for path, inner, default in leaves(schema, yaml.safe_load(text)):
        if path not in said:
            sys.exit(f"values.yaml says nothing about {path}")
        top = path.split(".")[0] if "." in path else "general"
        if top != group:
            group = top
            lines += [f"\n## {group}\n", "| value | type | default | |", "|---|---|---|---|"]
        shown = json.dumps(default, ensure_ascii=False).replace("|", "\\|")
        meaning = said[path].replace("|", "\\|")
        lines.append(f"| `{path}` | {kind(inner)} | `{shown}` | {meaning} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    readme = CHART / "README.md"
    wanted = page()
    if "--check" not in sys.argv:
        readme.write_text(wanted)
    elif not readme.exists() or readme.read_text() != wanted:
        sys.exit("helm/basin/README.md is not up to date: infra/kubernetes/readme.py writes it")


main()
