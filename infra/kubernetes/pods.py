"""The pods of the chart as processes: commands, environment, secrets and volumes as rendered, in the root file systems of the images
(infra/images/rootfs.sh), with a real RabbitMQ. What the kubelet and KEDA do is done here in a few lines: no cluster, no container engine.

pods.py MANIFESTS IMAGES STATE, as root in a network namespace of its own (pods.sh).

A run is submitted by its Job. Workers are started by the number that the trigger names. One is told to leave in the middle, as by a scale-in, one is killed, as
with its node. At the end every image has its result, and all workers have left by themselves.
"""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import yaml

NAMESPACE = "basin"
USER = "65532"
PASSWORD = "not-a-secret-of-anybody"
SECRETS = {
    "basin-token": {"token": "a-token-of-this-test"},
    "basin-rabbitmq-default-user": {"username": "basin", "password": PASSWORD},
}


def wait_for(what: str, check, seconds: float):
    """Waits until `check` returns a value that is true; that value."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := check():
            return found
        time.sleep(0.2)
    sys.exit(f"{Path(sys.argv[0]).stem}: {what}: not within {seconds} s")


class Pod:
    """A pod on this machine. Its containers see and may do the same as under a kubelet."""

    def __init__(self, name: str, spec: dict, images: Path, state: Path, address: str = "127.0.0.1"):
        self.name, self.spec, self.images, self.state, self.address = name, spec, images, state, address
        self.folder = state / "pods" / name
        self.volumes = {volume["name"]: self.volume(volume) for volume in spec["volumes"]}

    def volume(self, volume: dict) -> Path:
        if claim := volume.get("persistentVolumeClaim"):
            folder = self.state / "claims" / claim["claimName"]
        else:
            folder = self.folder / "volumes" / volume["name"]
        folder.mkdir(parents=True, exist_ok=True)
        if secret := volume.get("secret"):
            for item in secret["items"]:
                (folder / item["path"]).write_text(SECRETS[secret["secretName"]][item["key"]])
        else:
            folder.chmod(0o777)
        return folder

    def environment(self, container: dict) -> dict[str, str]:
        fields = {"metadata.name": self.name, "metadata.namespace": NAMESPACE, "spec.nodeName": "node"}
        known = {"PATH": "/usr/local/bin", "HOME": "/tmp", "OMP_NUM_THREADS": "1"}
        for variable in container.get("env", []):
            source = variable.get("valueFrom", {})
            if secret := source.get("secretKeyRef"):
                known[variable["name"]] = SECRETS[secret["name"]][secret["key"]]
            elif field := source.get("fieldRef"):
                known[variable["name"]] = fields[field["fieldPath"]]
            else:
                # A pod has an address of its own.
                value = variable["value"].replace("0.0.0.0", self.address)
                known[variable["name"]] = re.sub(r"\$\((\w+)\)", lambda found: known.get(found[1], found[0]), value)
        return known

    def start(self, container: dict) -> subprocess.Popen:
        root = self.images / container["image"].rsplit("/", 1)[1].split(":")[0]
        mounts = [(self.volumes[mount["name"]], mount["mountPath"], mount.get("readOnly", False)) for mount in container["volumeMounts"]]
        script = [f"mount --bind {root} {root}"]
        for source, path, _ in mounts:
            (root / path.lstrip("/")).mkdir(parents=True, exist_ok=True)
            script.append(f"mount --bind {source} {root}{path}")
        # The root last: the mounts in it stay as they are.
        script += [f"mount -o remount,bind,ro {root}{path}" for _, path, read_only in mounts if read_only]
        script += [f"mount -o remount,bind,ro {root}", f"mount -t proc proc {root}/proc", f"mount --bind /dev {root}/dev"]
        script.append(f'exec chroot --userspec={USER}:{USER} {root} "$@"')
        self.folder.mkdir(parents=True, exist_ok=True)
        log = open(self.folder / f"{container['name']}.log", "a")
        command = [*container["command"], *container.get("args", [])]
        program = root / "usr/local/bin" / command[0]
        if not program.exists():
            sys.exit(f"pods: {container['image']} has no {command[0]}")
        inside = ["bash", "-ec", "\n".join(script), "pod", "/usr/local/bin/" + command[0], *command[1:]]
        environment = self.environment(container) | {"PATH": "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
        return subprocess.Popen(["unshare", "--mount", "--", *inside], stdout=log, stderr=log, env=environment)

    def run(self, seconds: float) -> None:
        """All of its containers to their end, as of a Job."""
        for container in self.spec.get("initContainers", []) + self.spec["containers"]:
            code = self.start(container).wait(seconds)
            if code != 0:
                sys.exit(f"pods: {self.name}/{container['name']} ended with {code}: {self.log(container['name'])}")

    def log(self, container: str) -> str:
        return (self.folder / f"{container}.log").read_text()[-2000:]


def get(url: str, token: str | None = None) -> str | None:
    """Of our own name for this machine; None if it does not answer or refuses."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, OSError):
        return None


def rabbitmq(state: Path, plugins: str = "") -> subprocess.Popen:
    """Debian's, with the user that the operator would make."""
    home = state / "rabbitmq"
    home.mkdir(parents=True)
    (home / "enabled_plugins").write_text(f"[{plugins}].")
    (home / "rabbitmq.conf").write_text(f"default_user = basin\ndefault_pass = {PASSWORD}\nloopback_users = none\ndisk_free_limit.absolute = 50MB\n")
    settings = {
        "HOME": home, "NODENAME": "basin-pods@localhost", "MNESIA_BASE": home / "mnesia", "LOG_BASE": home / "log", "PID_FILE": home / "pid",
        "ENABLED_PLUGINS_FILE": home / "enabled_plugins", "CONFIG_FILE": home / "rabbitmq", "CONF_ENV_FILE": home / "none",
        "SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none",
    }  # fmt: skip
    environment = {("" if name == "HOME" else "RABBITMQ_") + name: str(value) for name, value in settings.items()}
    log = open(home / "out", "w")
    return subprocess.Popen(["/usr/lib/rabbitmq/bin/rabbitmq-server"], env=os.environ | environment, stdout=log, stderr=log)


def main() -> None:
    manifests, images, state = (Path(argument).resolve() for argument in sys.argv[1:4])
    things = {(thing["kind"], thing["metadata"]["name"]): thing for thing in yaml.safe_load_all(manifests.read_text()) if thing}
    of_kind = lambda kind: next(thing for (k, _), thing in things.items() if k == kind)
    names = {thing["metadata"]["name"] for thing in things.values() if thing["kind"] in ("Service", "RabbitmqCluster")}
    hosts = "127.0.0.1 localhost " + " ".join(f"{name}.{NAMESPACE}.svc" for name in sorted(names)) + "\n"
    for image in images.iterdir():
        (image / "etc/hosts").write_text(hosts)
    (state / "hosts").write_text(hosts)
    subprocess.check_call(["mount", "--bind", state / "hosts", "/etc/hosts"])

    broker = rabbitmq(state)
    running = [broker]
    try:
        deployment, scaled = of_kind("Deployment"), of_kind("ScaledJob")
        container = deployment["spec"]["template"]["spec"]["containers"][0]
        coordinator = Pod("coordinator", deployment["spec"]["template"]["spec"], images, state)
        running.append(coordinator.start(container))
        service = f"http://basin-coordinator.{NAMESPACE}.svc:{container['ports'][0]['containerPort']}"
        wait_for("the coordinator is ready", lambda: get(service + container["readinessProbe"]["httpGet"]["path"]) == "acting\n", 120)
        job = next(thing for (kind, name), thing in things.items() if kind == "Job" and "-submit-" in name)
        Pod("submit", job["spec"]["template"]["spec"], images, state).run(120)
        for (kind, name), thing in things.items():
            if kind == "Pod" and thing["metadata"].get("annotations", {}).get("helm.sh/hook") == "test":
                Pod(name, thing["spec"], images, state).run(60)

        trigger, reference = scaled["spec"]["triggers"][0], of_kind("TriggerAuthentication")["spec"]["secretTargetRef"][0]
        token = SECRETS[reference["name"]][reference["key"]]
        if get(trigger["metadata"]["url"]) is not None:
            sys.exit("pods: the backlog is readable without a token")

        def backlog() -> int:
            answer = wait_for("the trigger answers", lambda: get(trigger["metadata"]["url"], token), 60)
            return json.loads(answer)[trigger["metadata"]["valueLocation"]]

        spec = scaled["spec"]["jobTargetRef"]["template"]["spec"]
        workers: dict[str, subprocess.Popen] = {}
        ends: dict[str, int] = {}

        def scale() -> int:
            """Starts workers as KEDA does for a ScaledJob of the strategy `default`; the number of images left."""
            for name in [name for name, process in workers.items() if process.poll() is not None]:
                ends[name] = workers.pop(name).returncode
            if len(ends) > 10:
                sys.exit(f"pods: workers end again and again: {ends}")
            left = backlog()
            wanted = min(math.ceil(left / float(trigger["metadata"]["targetValue"])), scaled["spec"]["maxReplicaCount"])
            for _ in range(wanted - len(workers)):
                number = len(workers) + len(ends)
                name = f"worker-{number}"
                workers[name] = Pod(name, spec, images, state, f"127.0.1.{number}").start(spec["containers"][0])
                running.append(workers[name])
                print(f"pods: {left} images left: {name} starts", flush=True)
            return left

        total = scale()
        if len(workers) != 2:
            sys.exit(f"pods: {len(workers)} workers for {total} images")
        checkpoints = state / "claims/basin-home/home/runs/first/checkpoints"
        saved = lambda: scale() is not None and len(list(checkpoints.glob("**/*.checkpoint"))) >= 2
        wait_for("both workers are in the middle of an image", saved, 600)
        leaving, killed = sorted(workers)[:2]
        told = time.monotonic()
        workers[leaving].send_signal(signal.SIGTERM)
        workers[killed].send_signal(signal.SIGKILL)
        wait_for("the worker leaves", lambda: workers[leaving].poll() is not None, spec["terminationGracePeriodSeconds"])
        print(f"pods: {leaving} got SIGTERM and ended after {time.monotonic() - told:.1f} s; {killed} was killed", flush=True)
        wait_for("all images are done", lambda: scale() == 0, 1500)
        wait_for("all workers leave by themselves", lambda: scale() == 0 and not workers, 300)
        if {name: code for name, code in ends.items() if code != 0} != {killed: -signal.SIGKILL}:
            sys.exit(f"pods: workers ended with {ends}")
        verify = json.loads(json.dumps(job["spec"]["template"]["spec"]))
        verify["initContainers"] = []
        verify["containers"][0] |= {"name": "verify", "args": ["verify", "--deep", "/var/lib/basin/home/runs/first"]}
        pod = Pod("verify", verify, images, state)
        pod.run(120)
        print(pod.log("verify").strip())
        print(f"pods: {total} images, {len(ends)} workers, one stopped and one killed: every image has its result")
    finally:
        for process in reversed(running):
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(30)
                except subprocess.TimeoutExpired:
                    process.kill()


if __name__ == "__main__":
    main()
