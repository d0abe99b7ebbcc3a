"""The workers of the chart under KEDA's operator, with a real queue and a real coordinator (see keda.sh).

KWOK's pods do nothing, so their work is played here: jobs are taken off the queue by as many as run, and a worker's pod ends when nothing is left, as
that of a draining worker does.
"""

import base64
import json
import math
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from pods import NAMESPACE, SECRETS, get, rabbitmq, wait_for

IMAGES = 500
IMAGES_PER_WORKER = 60
TOKEN = SECRETS["basin-token"]["token"]
USER = SECRETS["basin-rabbitmq-default-user"]
MANAGEMENT = "http://127.0.0.1:15672/api/"
QUEUE = "queues/%2F/basin.jobs"
WORKERS = ("-l", "app.kubernetes.io/component=worker")
started = time.monotonic()


def say(what: str) -> None:
    print(f"keda: {time.monotonic() - started:6.1f} s: {what}", flush=True)


def run(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def listed(kind: str, *more: str) -> list[dict]:
    return json.loads(run("kubectl", "get", kind, *more, "-o", "json"))["items"]


def management(path: str, body: dict | None = None):
    """RabbitMQ's answer; None without one."""
    login = base64.b64encode(f"{USER['username']}:{USER['password']}".encode()).decode()
    headers = {"Authorization": f"Basic {login}", "Content-Type": "application/json"}
    try:
        with urllib.request.urlopen(urllib.request.Request(MANAGEMENT + path, body and json.dumps(body).encode(), headers), timeout=10) as answer:
            return json.load(answer)
    except OSError:
        return None


def queued() -> int:
    return (management(QUEUE) or {}).get("messages", 0)


def take(most: int) -> list:
    """Takes jobs off the queue, as a worker."""
    return management(f"{QUEUE}/get", {"count": most, "ackmode": "ack_requeue_false", "encoding": "auto"}) or []


def backlog() -> int:
    return json.loads(wait_for("the backlog is told", lambda: get("http://127.0.0.1:8470/v1/backlog", TOKEN), 30))["backlog"]


class Watch:
    """The running pods of workers, and the names of all Jobs of KEDA so far."""

    def __init__(self) -> None:
        self.jobs: set[str] = set()

    def running(self) -> list[str]:
        self.jobs |= {job["metadata"]["name"] for job in listed("jobs", *WORKERS)}
        pods = listed("pods", *WORKERS)
        return sorted(pod["metadata"]["name"] for pod in pods if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"])

    def active(self, trigger: str, kind: str = "scaledjobs") -> str | None:
        """KEDA's state of this trigger, "True" or "False", once it follows it."""
        status = (listed(kind) or [{}])[0].get("status", {})
        conditions = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}
        return conditions.get("Active") if conditions.get("Ready") == "True" and status.get("triggersTypes") == trigger else None

    def end(self) -> None:
        for name in self.running():
            run("kubectl", "annotate", "pod", name, "done=yes")


def fleet(action: str, trigger: str, most: int, mode: str = "scaledJob") -> None:
    """The chart, with this trigger."""
    values = {
        "workers.mode": mode, "workers.scaledObject.cooldownPeriod": 5, "workers.scaledObject.stabilizationWindow": 0,
        "submit.enabled": "false", "workers.maxReplicas": most, "workers.trigger.type": trigger,
        "workers.trigger.imagesPerWorker": IMAGES_PER_WORKER, "workers.trigger.pollingInterval": 2,
    }  # fmt: skip
    chart = str(Path(sys.argv[2]) / "helm/basin")
    settings = ",".join(f"{name}={value}" for name, value in values.items())
    run("helm", action, "basin", chart, "-f", f"{chart}/values-laptop.yaml", "--set", settings)


def main() -> None:
    programs, root, state = (Path(argument) for argument in sys.argv[1:4])
    hosts = state / "hosts"
    hosts.write_text(f"127.0.0.1 localhost basin-coordinator.{NAMESPACE}.svc basin-rabbitmq.{NAMESPACE}.svc\n")
    subprocess.check_call(["mount", "--bind", hosts, "/etc/hosts"])
    images = state / "images"
    images.mkdir()
    sample = next((root / "samples/images").glob("*.png"))
    for number in range(IMAGES):
        (images / f"{number:03}.png").write_bytes(sample.read_bytes())
    environment = os.environ | {
        "BASIN_HOME_URL": str(state / "home"), "BASIN_QUEUE_URL": "amqp://127.0.0.1:5672/", "BASIN_AMQP_USER": USER["username"],
        "BASIN_AMQP_PASSWORD": USER["password"], "BASIN_TOKEN": TOKEN,
    }  # fmt: skip
    basin = lambda *arguments: subprocess.run([programs / "basin", *arguments], check=True, stdout=subprocess.DEVNULL, env=environment)
    secret = [f"--from-literal={name}={value}" for name, value in USER.items()]
    run("kubectl", "create", "secret", "generic", "basin-rabbitmq-default-user", *secret)

    running = [rabbitmq(state, "rabbitmq_management")]
    try:
        wait_for("RabbitMQ is there", lambda: management("overview"), 120)
        (state / "home").mkdir()
        basin("push", str(root / "models/fashion32"))
        log = open(state / "coordinator.log", "w")
        running.append(subprocess.Popen([programs / "basin-coordinator"], env=environment, stdout=log, stderr=log))
        wait_for("the coordinator is ready", lambda: get("http://127.0.0.1:8470/readyz") == "acting\n", 60)
        how = ("--model", "fashion32", "--profile", "fast", "--class-from", "class:sneaker")
        submit = lambda name: basin("submit", str(images), "--name", name, *how)

        # By the queue: more workers may run than wanted.
        watch = Watch()
        fleet("install", "rabbitmq", 12)
        wait_for("KEDA has looked at the queue", lambda: watch.active("rabbitmq") == "False", 60)
        if queued() != 0 or watch.running() or watch.jobs:
            sys.exit(f"keda: {watch.jobs} with {queued()} jobs queued")
        say("rabbitmq: 0 jobs queued, 0 workers")
        submit("first")
        wait_for("all jobs are queued", lambda: queued() == IMAGES, 60)
        say(f"rabbitmq: {IMAGES} jobs queued")
        wanted = math.ceil(IMAGES / IMAGES_PER_WORKER)
        wait_for(f"{wanted} workers run", lambda: len(watch.running()) == wanted, 60)
        say(f"rabbitmq: {wanted} workers run")
        wait_for("the queue is empty", lambda: not any([take(10) for _ in watch.running()]) and queued() == 0, 120)
        say("rabbitmq: the queue is empty")
        wait_for("KEDA sees it", lambda: watch.active("rabbitmq") == "False", 60)
        watch.end()
        wait_for("no worker is left", lambda: not watch.running(), 60)
        if len(watch.jobs) != wanted or queued() != 0:
            sys.exit(f"keda: {len(watch.jobs)} Jobs were made, {queued()} jobs are queued")
        say(f"rabbitmq: 0 workers; {len(watch.jobs)} Jobs were made")
        basin("runs", "cancel", "first")

        # By the coordinator's backlog: fewer workers may run than wanted.
        wait_for("nothing is left", lambda: backlog() == 0, 30)
        watch = Watch()
        before = {job["metadata"]["name"] for job in listed("jobs", *WORKERS)}
        fleet("upgrade", "backlog", 5)
        wait_for("KEDA has looked at the backlog", lambda: watch.active("metrics-api") == "False", 60)
        submit("second")
        say(f"backlog: {backlog()} images left, {len(watch.running())} workers")
        wait_for("5 workers run", lambda: len(watch.running()) == 5, 60)
        say("backlog: 5 workers run")
        wait_for("all jobs are queued", lambda: queued() == IMAGES, 60)
        basin("runs", "pause", "second")
        wait_for("KEDA sees that nothing is to do", lambda: watch.active("metrics-api") == "False", 60)
        watch.end()
        wait_for("no worker is left", lambda: not watch.running(), 60)
        if len(watch.jobs - before) != 5 or queued() != IMAGES:
            sys.exit(f"keda: {len(watch.jobs - before)} Jobs were made, {queued()} jobs are queued")
        say(f"backlog: the run is paused, {queued()} jobs are queued all the same, 0 workers; 5 Jobs were made")

        basin("runs", "cancel", "second")

        # As a Deployment: KEDA's operator starts the first and stops the last; an autoscaler does the others, by KEDA's metrics server.
        fleet("upgrade", "backlog", 12, "scaledObject")
        wait_for("KEDA has looked at the backlog", lambda: watch.active("metrics-api", "scaledobjects") == "False", 60)
        wait_for("no worker is left", lambda: not watch.running(), 60)
        submit("third")
        say(f"scaledObject: {backlog()} images left, {len(watch.running())} workers")
        wait_for(f"{wanted} workers run", lambda: len(watch.running()) == wanted, 90)
        say(f"scaledObject: {wanted} workers run")
        basin("runs", "pause", "third")
        wait_for("no worker is left", lambda: not watch.running(), 90)
        say("scaledObject: the run is paused, 0 workers")

        run("helm", "uninstall", "basin")
        kinds = "pods,jobs,deployments,hpa,scaledjobs,scaledobjects,triggerauthentications"
        wait_for("everything goes", lambda: not run("kubectl", "get", kinds, "-o", "name"), 60)
        say("uninstalled: nothing is left")
    finally:
        for process in reversed(running):
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


main()
