"""Checks of the workspace that the compiler does not make: the graph of our crates, the length of functions and files, circles between
modules, that container builds get every crate, and that CI uses actions by commit. Started by architecture.sh with the output of `cargo metadata --no-deps`; deny.toml has
the rules about libraries."""

import json
import os
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FUNCTION_LINES, FILE_LINES = 80, 600
# A file over the limit says why in its first lines, with these words.
EXCUSE, EXCUSE_LINES = "long file:", 10

# Crate: our crates that it may use. The same graph is in docs/src/explanation/architecture.md.
GRAPH = {
    "pod": [],
    "proto": [],
    "store": [],
    "telemetry": ["trust"],
    "trust": [],
    "state-dict": [],
    "kernels": [],
    "client": ["proto", "trust"],
    "dataset": ["proto", "store"],
    "queue": ["proto", "telemetry"],
    "projector": ["kernels", "proto"],
    "seeded": ["projector"],
    "zoo": ["projector", "proto", "state-dict", "trust"],
    "results": ["dataset", "proto", "store"],
    "engine": ["projector", "proto", "store"],
    "coordinator": ["client", "dataset", "pod", "proto", "queue", "results", "store", "telemetry", "trust"],
    "worker": ["engine", "pod", "projector", "proto", "queue", "store", "telemetry"],
    "cli": [
        "client", "coordinator", "dataset", "engine", "projector", "proto", "queue", "results", "store", "telemetry", "worker", "zoo",
    ],
    "trainer": ["engine", "projector", "proto"],
    "tests": ["proto", "store", "telemetry"],
    "bench": [
        "client", "coordinator", "dataset", "engine", "kernels", "projector", "proto", "queue", "results", "seeded", "store", "tests",
        "worker",
    ],
}
# A coordinator runs where no libtorch is.
# What a container build needs beside the crates: Cargo's own files, and what infra/images/Containerfile starts and copies.
BUILD = [
    ".cargo", "Cargo.lock", "Cargo.toml", "LICENSE-APACHE", "LICENSE-MIT", "infra/images", "infra/libtorch", "models/fashion32",
    "rust-toolchain.toml", "samples",
]
IGNORE = "infra/images/Containerfile.dockerignore"
WITHOUT_TORCH = ["coordinator", "client", "dataset", "pod", "queue", "results", "store", "telemetry", "trust", "proto"]
TORCH = "tch"


def graph_problems(uses):
    """`uses`: for each crate, the names of its dependencies."""
    for crate, needed in sorted(uses.items()):
        if crate not in GRAPH:
            yield f"{crate} is not in the graph: add it to infra/architecture.py and docs/src/explanation/architecture.md"
            continue
        for other in sorted((needed & set(uses)) - set(GRAPH[crate])):
            yield f"{crate} must not use {other}"
    for crate in WITHOUT_TORCH:
        reached, left = set(), [crate]
        while left:
            one = left.pop()
            if one not in reached:
                reached.add(one)
                left += uses.get(one, [])
        if TORCH in reached:
            yield f"{crate} must not need {TORCH}, not even through another crate"


def blanked(text):
    """The text with comments, strings and characters as spaces, so that brackets and words are code. Lines stay."""
    token = re.compile(r'//[^\n]*|/\*.*?\*/|b?r(#*)".*?"\1|b?"(?:\\.|[^"\\])*"|b?\'(?:\\[^\n]+?|[^\'\\\n])\'', re.S)
    return token.sub(lambda found: re.sub(r"[^\n]", " ", found[0]), text)


def block_end(code, start):
    """Where the block ends whose first bracket comes after `start`; None for an item without one."""
    depth = 0
    for found in re.compile(r"[{};]").finditer(code, start):
        if found[0] == ";" and depth == 0:
            return None
        depth += {"{": 1, "}": -1, ";": 0}[found[0]]
        if found[0] == "}" and depth == 0:
            return found.end()
    return None


def without_tests(code):
    """Blanked code without its test modules."""
    for found in re.finditer(r"#\[cfg\(test\)\]\s*(?:pub )?mod \w+ \{", code):
        end = block_end(code, found.start()) or len(code)
        code = code[: found.start()] + re.sub(r"[^\n]", " ", code[found.start() : end]) + code[end:]
    return code


def length_problems(name, text):
    code = without_tests(blanked(text))
    for found in re.finditer(r"\bfn (\w+)", code):
        # An array's type, as in [u8; 4], has a semicolon before the body.
        signature = re.sub(r"\[[^\[\]{}]*\]", lambda array: " " * len(array[0]), code[found.end() :])
        end = block_end(signature, 0)
        lines = code.count("\n", found.start(), found.end() + end) + 1 if end else 0
        if lines > FUNCTION_LINES:
            yield f"{name}: fn {found[1]} has {lines} lines, and {FUNCTION_LINES} are allowed"
    lines = len(code.rstrip().splitlines())
    if lines > FILE_LINES and EXCUSE not in "\n".join(text.splitlines()[:EXCUSE_LINES]):
        yield f"{name} has {lines} lines without tests, and {FILE_LINES} are allowed (or its first lines say `{EXCUSE}` and why)"
    if re.search(r'#\[path = "\.\./', text):
        yield f"{name} includes a file of another folder by #[path]"


def expanded(tree, prefix=()):
    """The paths of a use tree: a::{b, c::d} is a::b and a::c::d."""
    head, brace, rest = tree.partition("{")
    path = prefix + tuple(part for part in re.split(r"::|\s+as\s+\w+|\s+", head) if part)
    if not brace:
        yield path
        return
    inner, depth, start = rest[: rest.rindex("}")], 0, 0
    for i, letter in enumerate(inner + ","):
        depth += {"{": 1, "}": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            if inner[start:i].strip():
                yield from expanded(inner[start:i].strip(), path)
            start = i + 1


def circles(files):
    """`files`: for each module of a crate, as a tuple of names, its text; () is the root. Circles between modules side by side: modules
    under one parent that use each other, by `crate::` or `super::`, in turn. A module and what lies in it may use each other."""
    code = {module: without_tests(blanked(text)) for module, text in files.items()}
    trees = {module: re.findall(r"\buse\s+([^;]+);", text) for module, text in code.items()}
    # What a module passes on from another: `pub use other::Name`.
    passed = {}
    for module, text in code.items():
        for tree in re.findall(r"\bpub(?:\([^)]*\))? use\s+([^;]+);", text):
            for path in expanded(tree):
                absolute = resolved(module, path) or module + path
                passed[module + path[-1:]] = absolute
    edges = {}
    for module, text in code.items():
        paths = [path for tree in trees[module] for path in expanded(tree)]
        paths += [tuple(found.split("::")) for found in re.findall(r"\b(?:crate|super)(?:::\w+)+", text)]
        for path in paths:
            target = resolved(module, path)
            if target is None:
                continue
            target = passed.get(target, target)
            while target and target not in files:
                target = target[:-1]
            same = next((i for i, (a, b) in enumerate(zip(module, target)) if a != b), None)
            if same is not None:
                edges.setdefault(module[:same], set()).add((module[same], target[same]))
    for parent, pairs in sorted(edges.items()):
        yield from (["::".join(("crate", *parent, one)) for one in circle] for circle in circle_of(pairs))


def context_problems(ignore, needed, exists):
    """`ignore`: the text of a dockerignore that lets in a list; `needed`: paths of the repository; `exists`: whether there is such a path."""
    lines = [line.strip() for line in ignore.splitlines() if line.strip() and not line.startswith("#")]
    if lines[:1] != ["*"] or not all(line.startswith("!") for line in lines[1:]):
        yield f"{IGNORE} must ignore everything (*) and let in a list (!path)"
        return
    let_in = [line[1:].strip("/") for line in lines[1:]]
    for path in sorted(set(needed)):
        parts = path.split("/")
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if not any(fnmatch(one, pattern) for one in above for pattern in let_in):
            yield f"{IGNORE} ignores {path}, which a container build needs: add !{parts[0]}"
    for pattern in let_in:
        if not exists(pattern):
            yield f"{IGNORE} lets in {pattern}, which is not there: remove the line"


def action_problems(name, text):
    """Actions of a workflow that are named by a tag: whoever owns the action can move it."""
    for action in re.findall(r"\buses:\s*[\"']?([^\s\"'}]+)", text):
        if not action.startswith("./") and not re.search(r"@[0-9a-f]{40}$", action):
            yield f"{name} uses {action}: name the commit by its 40 digits, and the version in a comment"


def included(text):
    """Files that the code, without its tests, includes: relative to its own folder."""
    code = without_tests(blanked(text))
    for found in re.finditer(r'include_(?:str|bytes)!\(\s*"([^"]+)"', text):
        if code.startswith("include_", found.start()):
            yield found[1]


def resolved(module, path):
    """The path from the root, of one that begins with crate, super or self; else None."""
    if path[0] not in ("crate", "super", "self"):
        return None
    base, rest = (() if path[0] == "crate" else module), list(path)
    while rest and rest[0] in ("crate", "super", "self"):
        base = base[:-1] if rest.pop(0) == "super" else base
    return base + tuple(rest)


def circle_of(pairs):
    """Groups of names that reach each other."""
    after = {}
    for a, b in pairs:
        after.setdefault(a, set()).add(b)

    def reach(start):
        reached, left = set(), [start]
        while left:
            new = after.get(left.pop(), set()) - reached
            reached |= new
            left += new
        return reached

    reached = {name: reach(name) for name in after}
    groups = {tuple(sorted(b for b in reached[a] if a in reached.get(b, ()))) for a in reached if a in reached[a]}
    return sorted(groups)


def modules(root):
    """The modules of the crate whose library, or else program, is the file `root`, with their files."""
    found = {(): root}
    for file in sorted(root.parent.rglob("*.rs")):
        path = file.relative_to(root.parent).with_suffix("").parts
        if file != root:
            found[path[:-1] if path[-1] == "mod" else path] = file
    return found


def main():
    packages = json.load(sys.stdin)["packages"]
    problems = list(graph_problems({p["name"]: {d["name"] for d in p["dependencies"] if d["kind"] is None} for p in packages}))
    roots = {}
    for package in packages:
        for target in package["targets"]:
            source = Path(target["src_path"])
            if "lib" in target["kind"] or ("bin" in target["kind"] and source.parent not in roots):
                roots[source.parent] = source
    needed = BUILD + [str(Path(package["manifest_path"]).parent.relative_to(ROOT)) for package in packages]
    count = 0
    for root in sorted(roots.values()):
        files = modules(root)
        texts = {module: file.read_text() for module, file in files.items()}
        for module, text in texts.items():
            if ROOT / "tests" not in root.parents and files[module].name != "tests.rs":
                problems += length_problems(str(files[module].relative_to(ROOT)), text)
        for module, text in texts.items():
            needed += [os.path.relpath(files[module].parent / path, ROOT) for path in included(text)]
        name = root.parent.relative_to(ROOT)
        problems += [f"{name}: {' <-> '.join(circle)}: these modules use each other" for circle in circles(texts)]
        count += len(files)
    for workflow in sorted((ROOT / ".github/workflows").glob("*.y*ml")):
        problems += action_problems(str(workflow.relative_to(ROOT)), workflow.read_text())
    problems += context_problems((ROOT / IGNORE).read_text(), needed, lambda pattern: any(ROOT.glob(pattern)))
    if problems:
        sys.exit("architecture: " + "\narchitecture: ".join(problems))
    print(f"architecture: {len(packages)} crates keep to the graph; {count} files have no circles and no long functions; container builds get all")


if __name__ == "__main__":
    main()
