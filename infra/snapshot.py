#!/usr/bin/env python3
"""Writes down what the programs of a checkout do, so that two checkouts can be compared: a run of the samples, an edit, a report, a
fleet's run, and the answers of the API. What differs from run to run (times, names of attempts, traces) is replaced.

    infra/snapshot.py CHECKOUT OUT [--limit 12]     # needs `make setup services` and built programs in CHECKOUT
    diff -r OUT-before OUT-after
"""
import argparse, csv, hashlib, json, os, pathlib, re, shutil, subprocess, sys, urllib.request

VOLATILE = {"seconds", "attempt", "trace", "version", "basin", "began", "silent_seconds", "lane_steps_per_second", "per_hour",
            "eta_seconds", "stage_seconds", "worker", "dataset", "image_id", "identity", "job", "lane_steps"}
# `lane_steps` of a worker is a counter; of a result it is compared in the table.


def clean(value, drop):
    if isinstance(value, dict):
        return {k: clean(v, drop) for k, v in sorted(value.items()) if k not in drop}
    if isinstance(value, list):
        return [clean(v, drop) for v in value]
    return value


def write(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(value, str):
        value = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(value + "\n")


def run_of(folder, out):
    """Every record, the digest of every object, and the tables of a run."""
    # Identities and jobs depend on times of files and on where the data set lies.
    drop = VOLATILE - {"lane_steps"}
    digests = {}
    for path in sorted(folder.rglob("*")):
        key = re.sub(r"attempt-[0-9a-f]+", "attempt", str(path.relative_to(folder)))
        if path.is_dir() or key.endswith(("result.json", "failure.json")) or path.parent == folder:
            continue
        bytes_ = path.read_bytes()
        if key.endswith("projection.safetensors"):
            # Tensors alone: the header names the job.
            bytes_ = bytes_[8 + int.from_bytes(bytes_[:8], "little"):]
        digests[key] = hashlib.sha256(bytes_).hexdigest()
    write(out / "objects.json", digests)
    for path in sorted(folder.rglob("result.json")) + sorted(folder.rglob("failure.json")):
        record = clean(json.loads(path.read_text()), drop)
        for item in record.get("objects", []):
            if item["file"] == "projection.safetensors":
                del item["sha256"], item["size"]
        write(out / "records" / path.relative_to(folder), record)
    write(out / "summary.json", clean(json.loads((folder / "summary.json").read_text()), drop))
    write(out / "run.json", clean(json.loads((folder / "run.json").read_text()), drop))
    manifest = clean(json.loads((folder / "manifest.json").read_text()), drop)
    manifest["objects"] = sorted(o["key"] for o in manifest["objects"])
    write(out / "manifest.json", manifest)
    rows = list(csv.DictReader((folder / "results.csv").open()))
    write(out / "results.json", [{k: v for k, v in row.items() if k not in drop} for row in rows])
    write(out / "files.json", sorted(p.name for p in folder.iterdir() if p.is_file()))


def text_of(html):
    """The words of a page, one line each; numbers of seconds, dates and addresses replaced."""
    html = re.sub(r"(?s)<(script|style)\b.*?</\1>", "", html)
    html = re.sub(r"data:image/[^\"')]*", "picture", html)
    text = re.sub(r"<[^>]+>", "\n", html)
    text = re.sub(r"\d+(\.\d+)?\s*(s|min|h|ms|d)\b", "TIME", text)
    return "\n".join(line.strip() for line in text.splitlines() if line.strip())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("checkout", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--limit", default="12")
    parser.add_argument("--run", type=pathlib.Path, help="a run of the samples with profile fast that is there already")
    args = parser.parse_args()
    root, out = args.checkout.resolve(), args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    work = root / "target" / "snapshot"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    basin = str(root / "target/debug/basin")

    def call(*arguments, env=None):
        done = subprocess.run([basin, *map(str, arguments)], cwd=root, env=env, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"basin {' '.join(map(str, arguments))}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    model = ["--model", "models/fashion32"]
    if args.run:
        shutil.copytree(args.run, work / "run")
    else:
        call("project", "samples", *model, "--profile", "fast", "--limit", args.limit, "--out", work / "run")
    run_of(work / "run", out / "run")
    call("report", work / "run")
    write(out / "report.txt", text_of((work / "run/report.html").read_text()))
    image = json.loads((out / "run/results.json").read_text())[0]["image"]
    call("edit", work / "run", image, *model, "--class", "Dress", "--class", "Bag", "--sweep", "3", "--out", work / "edit.png")
    write(out / "edit.json", hashlib.sha256((work / "edit.png").read_bytes()).hexdigest())
    write(out / "params.json", {p: json.loads(call("params", p)) for p in ["paper", "fast", "pix2latent"]})

    env = dict(os.environ, BASIN_LOCAL_WORKERS="1")
    subprocess.run([root / "infra/local/up.sh"], check=True, cwd=root, env=env, stdout=subprocess.DEVNULL)
    try:
        state = root / "target/local"
        text = subprocess.run(["bash", "-c", f"source {state}/env && env"], capture_output=True, text=True, check=True).stdout
        env = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
        call("push", "models/fashion32", env=env)
        call("submit", "samples", "--name", "r", "--model", "fashion32", "--profile", "fast", "--limit", "4", "--wait", env=env)
        store = env["BASIN_HOME_URL"].replace("/home", "/home/runs/r")
        call("copy", store, work / "fleet", env=env)
        run_of(work / "fleet", out / "fleet")

        def ask(path, accept="application/json"):
            headers = {"Authorization": "Bearer " + (state / "token").read_text().strip(), "Accept": accept}
            with urllib.request.urlopen(urllib.request.Request(env["BASIN_COORDINATOR_URL"] + path, headers=headers)) as answer:
                return answer.read().decode()

        for name, path in [("runs", "/v1/runs"), ("run", "/v1/runs/r"), ("images", "/v1/runs/r/images?sort=loss"),
                           ("failures", "/v1/runs/r/failures"), ("workers", "/v1/workers"), ("backlog", "/v1/backlog")]:
            write(out / "api" / f"{name}.json", clean(json.loads(ask(path)), VOLATILE))
        write(out / "api/paths.json", sorted(json.loads(ask("/openapi.json"))["paths"]))
        for name, path in [("home", "/"), ("run", "/runs/r"), ("fleet", "/fleet")]:
            write(out / "pages" / f"{name}.txt", text_of(ask(path, "text/html")))
    finally:
        subprocess.run([root / "infra/local/down.sh"], cwd=root)
    print(f"wrote {out}")


main()
