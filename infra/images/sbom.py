#!/usr/bin/env python3
"""sbom.py IMAGE CRATE,CRATE [WHEELS.txt…]: the parts of an image as CycloneDX 1.6: crates from Cargo.lock, wheels with their hashes."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def crates(names: list[str]) -> list[dict]:
    """The crates that are linked into programs of these packages, without build and test tools."""
    packages = [argument for name in names for argument in ("--package", name)]
    told = subprocess.check_output(
        ["cargo", "tree", "--locked", *packages, "--edges", "normal", "--prefix", "none", "--no-dedupe", "--format", "{p}\t{l}"], cwd=ROOT, text=True
    )
    sums = {(p["name"], p["version"]): p.get("checksum") for p in tomllib.loads((ROOT / "Cargo.lock").read_text())["package"]}
    found = {}
    for line in told.splitlines():
        if not line.strip():
            continue
        package, licence = line.split("\t")
        name, version = package.split()[:2]
        version = version.removeprefix("v")
        part = {"type": "library", "name": name, "version": version, "purl": f"pkg:cargo/{name}@{version}", "bom-ref": f"pkg:cargo/{name}@{version}"}
        if licence:
            part["licenses"] = [{"expression": licence.replace("/", " OR ")}]
        if checksum := sums.get((name, version)):
            part["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        found[name, version] = part
    return [found[key] for key in sorted(found)]


def wheels(files: list[str]) -> list[dict]:
    parts = []
    for file in files:
        for name, version, digest in re.findall(r"^([a-z0-9_-]+)==(\S+) --hash=sha256:(\w+)", Path(file).read_text(), re.M):
            purl = f"pkg:pypi/{name}@{version}"
            hashes = [{"alg": "SHA-256", "content": digest}]
            parts.append({"type": "library", "name": name, "version": version, "purl": purl, "bom-ref": purl, "hashes": hashes})
    return parts


def main() -> None:
    image, names, *lists = sys.argv[1:]
    version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "container", "name": image, "version": version, "bom-ref": image}},
        "components": crates(names.split(",")) + wheels(lists),
    }
    json.dump(document, sys.stdout, indent=1)
    print()


main()
