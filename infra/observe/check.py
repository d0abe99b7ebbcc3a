#!/usr/bin/env python3
"""Checks that the services measure what dashboards and alerts show. Only the standard library.

check.py names               every metric and label in them exists (metrics.txt; a test compares that with the Rust constants)
check.py series URL RUN      every query of them has an answer in a Prometheus, since the start of the run
check.py receive PORT FILE   receives traces (OTLP, JSON) and appends them to a file
check.py traces FILE JOBS    that file has JOBS whole traces, with the attributes that the dashboard of a job reads
"""
import collections, http.server, json, math, pathlib, re, sys, time, urllib.parse, urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
DASHBOARDS = sorted((ROOT / "helm/basin/files/dashboards").glob("*.json"))
ALERTS = ROOT / "helm/basin/files/alerts.yaml"
SELECTOR = re.compile(r"\b((?:basin|hw_gpu|messaging)_[a-z0-9_]+|ALERTS)\b(\{[^}]*\})?")
GROUP = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
# Needs a GPU, or failures that a short run on a healthy machine does not have.
MAY_BE_EMPTY = re.compile(r'hw_gpu|basin_retries|basin_jobs_republished|basin_checkpoints_total\{basin_outcome="failed"|ALERTS')
UNITS = {"s": "seconds", "By": "bytes"}


def prometheus(name, kind, unit):
    """Its name in Prometheus."""
    words = name.split(".")
    if unit in UNITS:
        words.append(UNITS[unit])
    if kind == "counter" or (kind == "gauge" and unit == "1"):
        words.append("total" if kind == "counter" else "ratio")
    return "_".join(words)


def selectors(expr):
    """(name, matchers) of each series in a query; the labels in its groups have names like ours, too."""
    return SELECTOR.findall(GROUP.sub(" ", expr))


def measured():
    """Name in Prometheus -> its labels."""
    known = {"ALERTS": {"alertname", "alertstate", "severity"}}
    for name, kind, unit, *attributes in listed():
        labels = {a.replace(".", "_") for a in attributes} | {"job", "instance"}
        base = prometheus(name, kind, unit)
        for end in ("_bucket", "_sum", "_count") if kind == "histogram" else ("",):
            known[base + end] = labels | ({"le"} if end == "_bucket" else set())
    return known


def listed():
    lines = (ROOT / "infra/observe/metrics.txt").read_text().splitlines()
    return [line.split() for line in lines if line and not line.startswith("#")]


def panels(board):
    for panel in board["panels"]:
        yield panel
        yield from panel.get("panels", [])


def questions():
    """(where, PromQL) of every panel, variable and alert."""
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                yield f"{path.stem}: ${variable['name']}", re.fullmatch(r"label_values\((.+), \w+\)", variable["definition"])[1]
        for panel in panels(board):
            for target in panel.get("targets", []):
                if "expr" in target:
                    yield f"{path.stem}: {panel['title']} {target['refId']}", target["expr"]
    for name, block, line in re.findall(r"- alert: (\w+)\n(?:\s+#.*\n)*\s+expr: (?:\|\n((?: {12}.*\n)+)|(.*)\n)", ALERTS.read_text()):
        yield f"alert {name}", block or line


def names():
    problems, known = [], measured()
    ids = collections.Counter()
    for path in DASHBOARDS:
        board = json.loads(path.read_text())
        ids[board["uid"]] += 1
        numbers = [panel["id"] for panel in panels(board)]
        variables = {variable["name"] for variable in board["templating"]["list"]}
        problems += [f"{path.name}: two panels have one id"] * (len(numbers) != len(set(numbers)))
        used = set(re.findall(r"\$\{?([a-z]\w*)", re.sub(r"__\w+", "", json.dumps(board))))
        problems += [f"{path.name}: no variable ${name}" for name in sorted(used - variables)]
    problems += [f"{uid} is the uid of {count} dashboards" for uid, count in ids.items() if count > 1]
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    asked = list(questions())
    problems += [f"{alert}: cannot read its expression" for alert in alerts if not any(where == f"alert {alert}" for where, _ in asked)]
    for where, expr in asked:
        labels = {"alertname", "alertstate"}
        for name, matchers in selectors(expr):
            if name not in known:
                problems.append(f"{where}: no service measures {name}")
                continue
            labels |= known[name]
            problems += [f"{where}: {name} has no label {label}" for label in re.findall(r"(\w+)\s*(?:=|!)", matchers) if label not in known[name]]
        for group in GROUP.findall(expr):
            problems += [f"{where}: no series in it has the label {label}" for label in re.findall(r"\w+", group) if label not in labels]
    named = ("coordinator/src/metrics.rs", "worker/src/metrics.rs", "crates/telemetry/src/messaging.rs")
    sources = [path for name in named if (path := ROOT / name).exists()]
    if len(sources) == len(named):
        ours = {(name, kind, unit) for name, kind, unit, *_ in listed()}
        constants = r'\b(counter|gauge|histogram)\(\s*"((?:basin|hw|messaging)\.[^"]+)",\s*"([^"]+)"'
        theirs = {(name, kind, unit) for path in sources for kind, name, unit in re.findall(constants, path.read_text())}
        problems += [f"only metrics.txt has {' '.join(m)}" for m in sorted(ours - theirs)]
        problems += [f"only the code has {' '.join(m)}" for m in sorted(theirs - ours)]
    else:
        print("check: there is no code; only metrics.txt is compared")
    print(f"check: {len(asked)} expressions, {len(known)} series")
    return problems


def ask(url, path, **parameters):
    with urllib.request.urlopen(f"{url}/api/v1/{path}", urllib.parse.urlencode(parameters).encode(), timeout=30) as answer:
        return json.load(answer)["data"]


def series(url, run, patience=40):
    """Each query must have an answer, and each series in it; an alert's query has none without trouble."""
    begun, todo = time.time() - 3600, []
    for where, expr in questions():
        for name, value in (("__rate_interval", "30s"), ("__range", "10m"), ("run", run), ("class", ".*"), ("top", "20")):
            expr = expr.replace(f"${name}", value)
        looked_at = {"".join(found) for found in selectors(expr)}
        todo.append((where, expr, looked_at if where.startswith("alert") else {expr} | looked_at))
    parts = sorted({part for _, _, parts in todo for part in parts})
    end, counts = time.time() + patience, {}
    while True:
        for part in parts:
            if not counts.get(part):
                answer = ask(url, "query_range", query=part, start=begun, end=time.time(), step=1)["result"]
                counts[part] = sum(any(math.isfinite(float(value)) for _, value in found["values"]) for found in answer)
        missing = [part for part in parts if not counts[part] and not MAY_BE_EMPTY.search(part)]
        if not missing or time.time() > end:
            break
        time.sleep(2)
    for where, expr, parts in todo:
        empty = [part for part in sorted(parts, key=len) if not counts[part]]
        state = "ok" if not empty else "EMPTY" if set(empty) & set(missing) else "may be"
        print(f"{state:6} {counts.get(expr, ''):>4} {where}" + "".join(f"  (nothing: {' '.join(part.split())})" for part in empty[:1]))
    return [f"no series: {' '.join(part.split())}" for part in missing if SELECTOR.fullmatch(part) or not any("".join(found) in missing for found in selectors(part))]


class Receiver(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        with open(sys.argv[3], "ab") as file:
            file.write(body + b"\n")
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


def spans(file):
    found = collections.defaultdict(list)
    for line in pathlib.Path(file).read_text().splitlines():
        for resource in json.loads(line)["resourceSpans"]:
            service = {a["key"]: a["value"].get("stringValue") for a in resource["resource"]["attributes"]}["service.name"]
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    found[span["traceId"]].append((service, span))
    return found


def traces(file, jobs, patience=30):
    job = next(path for path in DASHBOARDS if path.stem == "job").read_text()
    wanted = set(re.findall(r"span\.(basin\.\w+)", job)) | set(re.findall(r"\b(basin\.\w+)=\$", job))
    chain = [("basin-coordinator", "publish basin.jobs"), ("basin-worker", "process basin.jobs"), ("basin-worker", "fetch"), ("basin-worker", "project"),
             ("basin-worker", "publish"), ("basin-worker", "publish basin.events"), ("basin-coordinator", "process basin.events")]
    end = time.time() + patience
    while True:
        found, whole, problems = spans(file) if pathlib.Path(file).exists() else {}, 0, []
        for trace, parts in found.items():
            there = {(service, span["name"]) for service, span in parts}
            if chain[0] not in there:
                continue
            ids = {span["spanId"] for _, span in parts}
            roots = [span for _, span in parts if not span.get("parentSpanId")]
            lost = [span["name"] for _, span in parts if span.get("parentSpanId", "") not in ids | {""}]
            has = {a["key"] for span in roots for a in span.get("attributes", [])}
            if len(roots) != 1 or lost or wanted - has:
                problems.append(f"trace {trace}: {len(roots)} roots, without their parent: {lost}, missing attributes: {sorted(wanted - has)}")
            whole += there >= set(chain)
        if whole >= int(jobs) and not problems or time.time() > end:
            break
        time.sleep(1)
    print(f"check: {len(found)} traces, {whole} from dispatch to event over two processes")
    if whole < int(jobs):
        names = sorted({f"{service}: {span['name']}" for parts in found.values() for service, span in parts})
        problems.append(f"{jobs} whole traces were expected; spans seen: {names}")
    return problems


def main(command, *rest):
    if command == "receive":
        http.server.ThreadingHTTPServer(("127.0.0.1", int(rest[0])), Receiver).serve_forever()
    problems = {"names": names, "series": series, "traces": traces}[command](*rest)
    for problem in problems:
        print(f"check: {problem}", file=sys.stderr)
    sys.exit(bool(problems))


if __name__ == "__main__":
    main(*sys.argv[1:])
