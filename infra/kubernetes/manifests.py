"""manifests.py NAME < manifests: rules for every rendering of the chart, whatever its values."""

import re
import sys

import yaml

SECRET = re.compile(r"PASSWORD|SECRET|TOKEN|ACCESS_KEY|HEADERS")

# Most characters of a name to which a suffix is added: labels have at most 63.
ROOM = {"ScaledJob": 63 - 6, "RabbitmqCluster": 63 - 11, "Deployment": 63 - 11, "ConfigMap": 253, "Pod": 253}


def pods(thing: dict):
    """The pod template of a manifest, as (labels, spec)."""
    spec = thing.get("spec", {})
    if thing["kind"] == "Pod":
        yield thing["metadata"]["labels"], spec
    elif thing["kind"] == "ScaledJob":
        yield spec["jobTargetRef"]["template"]["metadata"]["labels"], spec["jobTargetRef"]["template"]["spec"]
    elif thing["kind"] in ("Deployment", "Job"):
        yield spec["template"]["metadata"]["labels"], spec["template"]["spec"]


def restricted(spec: dict):
    """The pod security standard `restricted`, and a read-only root file system."""
    of = spec.get("securityContext", {})
    if of.get("runAsNonRoot") is not True or of.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        yield "runs as root, or without seccomp"
    for container in spec["containers"]:
        names = [e["name"] for e in container.get("env", [])]
        if len(names) != len(set(names)):
            yield "sets a variable twice"
    # Only a worker that tells Kubernetes whether it is busy, and a coordinator that tells whether it acts, send requests to the API server.
    tells = any(e["name"] in ("BASIN_DELETION_COST_POD", "BASIN_LEADER_LABEL_POD") for c in spec["containers"] for e in c.get("env", []))
    if spec.get("automountServiceAccountToken") is not tells:
        yield "gets the service account's token, or lacks it"
    for volume in spec.get("volumes", []):
        if "hostPath" in volume:
            yield "mounts the node's folder"
    if any(spec.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield "shares the node's namespaces"
    for container in spec.get("initContainers", []) + spec["containers"]:
        of = container.get("securityContext", {})
        if (of.get("allowPrivilegeEscalation"), of.get("readOnlyRootFilesystem"), of.get("capabilities")) != (False, True, {"drop": ["ALL"]}):
            yield f"{container['name']} may do more than restricted pods may"
        if "memory" not in container.get("resources", {}).get("limits", {}):
            yield f"{container['name']} has no limit of memory"
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        if unknown := mounted - {volume["name"] for volume in spec.get("volumes", [])}:
            yield f"{container['name']} mounts {unknown}, which the pod does not have"
        for variable in container.get("env", []):
            plain = variable.get("value", "")
            if SECRET.search(variable["name"]) and plain and not plain.startswith("/"):
                yield f"{variable['name']} is a secret in the open"
            if re.search(r"//[^/@]*:[^/@]*@", plain):
                yield f"{variable['name']} has a password in its URL"
        names = [variable["name"] for variable in container.get("env", [])]
        if twice := {name for name in names if names.count(name) > 1}:
            yield f"{container['name']} has {twice} twice"


def worker(spec: dict):
    container = next((c for c in spec["containers"] if c["name"] == "worker"), None)
    if container is None:
        return
    env = {variable["name"]: variable.get("value") for variable in container["env"]}
    if spec["terminationGracePeriodSeconds"] <= int(env["BASIN_CHECKPOINT_EVERY"]):
        yield "is killed before it can save"
    asked = "nvidia.com/gpu" in container["resources"].get("limits", {}) or "claims" in container["resources"]
    if [c["name"] for c in container["resources"].get("claims", [])] != [c["name"] for c in spec.get("resourceClaims", [])]:
        yield "does not use its claims of devices"
    if not asked == (env["BASIN_DEVICES"] == "auto") == ("cuda" in container["image"]):
        yield "has a GPU and does not use it, or the other way round"


def problems(things: list[dict]):
    templates = [(labels, f"{thing['kind']} {thing['metadata']['name']}") for thing in things for labels, _ in pods(thing)]
    # The operator labels its pods so.
    templates += [({"app.kubernetes.io/name": t["metadata"]["name"]}, t["metadata"]["name"]) for t in things if t["kind"] == "RabbitmqCluster"]
    selected = lambda selector: [name for labels, name in templates if selector.items() <= labels.items()]
    policies = [t["spec"]["podSelector"]["matchLabels"] for t in things if t["kind"] == "NetworkPolicy"]
    for thing in things:
        name, spec = f"{thing['kind']} {thing['metadata']['name']}", thing.get("spec", {})
        if thing["kind"] == "Secret":
            yield f"{name}: the chart makes no secrets"
        if len(thing["metadata"]["name"]) > ROOM.get(thing["kind"], 63):
            yield f"{name}: its name is too long"
        for label in ("app.kubernetes.io/name", "app.kubernetes.io/instance", "helm.sh/chart"):
            if label not in thing["metadata"].get("labels", {}):
                yield f"{name}: has no label {label}"
        if thing["kind"] == "Service":
            # The program writes this label, in place of the template's "false".
            of = {key: value for key, value in spec["selector"].items() if key != "basin-leads"}
            if len(selected(of)) != 1:
                yield f"{name}: selects {selected(of)}"
            several = any(t["kind"] == "Deployment" and t["metadata"]["name"] == thing["metadata"]["name"] and t["spec"]["replicas"] > 1 for t in things)
            if several != ("basin-leads" in spec["selector"]):
                yield f"{name}: a standby gets requests, or nobody does"
        if thing["kind"] in ("PodDisruptionBudget", "Deployment") and len(selected(spec["selector"]["matchLabels"])) != 1:
            yield f"{name}: selects {selected(spec['selector']['matchLabels'])}"
        for labels, pod in pods(thing):
            for problem in [*restricted(pod), *worker(pod)]:
                yield f"{name}: {problem}"
            if policies and not any(policy.items() <= labels.items() for policy in policies):
                yield f"{name}: no network policy selects it"


found = list(problems([thing for thing in yaml.safe_load_all(sys.stdin) if thing]))
if found:
    sys.exit("\n".join(f"{sys.argv[1]}: {problem}" for problem in found))
