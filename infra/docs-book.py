#!/usr/bin/env python3
"""mdBook's preprocessor for this book. Pages link to files of the repository by relative paths, which a reader of the repository can
follow. Here a link to a file that has a page in the book becomes a link to that page, and a link to any other file outside of the
book becomes the file's path."""

import json
import os
import re
import sys
from pathlib import Path

LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")


def chapters(items):
    for item in items:
        if "Chapter" in item and item["Chapter"]["path"]:
            yield item["Chapter"]
            yield from chapters(item["Chapter"]["sub_items"])


def main():
    if sys.argv[1:2] == ["supports"]:
        return
    context, book = json.load(sys.stdin)
    root = Path(context["root"]).resolve()
    source, repository = root / "src", root.parent
    pages = list(chapters(book.get("items") or book["sections"]))
    homes = {(source / page["path"]).resolve(): page["path"] for page in pages}
    # Folders that src shows by a symbolic link: mdBook copies what lies in them.
    shown = {link.resolve(): link.name for link in source.iterdir() if link.is_symlink()}

    for page in pages:
        here = (source / page["path"]).resolve().parent

        def rewrite(match):
            bang, text, target = match.groups()
            path, _, anchor = target.partition("#")
            if not path or ":" in path:
                return match[0]
            file = (here / path).resolve()
            home = homes.get(file) or next((f"{name}/{file.relative_to(at)}" for at, name in shown.items() if at in file.parents), None)
            if home is None and source in file.parents:
                home = file.relative_to(source)
            if home is None or (file.suffix == ".md" and file not in homes):
                path = f"`{file.relative_to(repository)}`"
                return path if text.strip("`") in path else f"{text} ({path})"
            # mdBook makes an index of every README.
            to = re.sub(r"README\.md$", "index.md", os.path.relpath(home, Path(page["path"]).parent))
            return f"{bang}[{text}]({to}{'#' + anchor if anchor else ''})"

        # Code is left as it is.
        parts = re.split(r"(^```.*?^```\s*$)", page["content"], flags=re.M | re.S)
        page["content"] = "".join(part if part.startswith("```") else LINK.sub(rewrite, part) for part in parts)
    json.dump(book, sys.stdout)


main()
