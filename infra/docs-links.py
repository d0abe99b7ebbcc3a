#!/usr/bin/env python3
"""Checks that relative links lead somewhere, to the heading as well.

    infra/docs-links.py             links of every Markdown file in the repository, and files of the repository that a text names
    infra/docs-links.py target/book links of every page of the built book
"""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

LINK = re.compile(r"\]\(\s*<?([^()\s<>]+)>?(?:\s+\"[^\"]*\")?\s*\)")
NAMED = re.compile(r"`([a-z-]+/[\w./-]+\.(?:rs|sh|py|proto|csv|yaml|md))`")


class Page(HTMLParser):
    """Ids and links of an HTML page."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.named = set(), [], []
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.ids.add(value)
            elif name in ("href", "src") and value and tag in ("a", "img"):
                self.links.append(value)


class Markdown:
    """Ids of the headings and links of a Markdown file; code has neither."""

    def __init__(self, path):
        text = re.sub(r"^(```|~~~).*?^\1", "", path.read_text(), flags=re.M | re.S)
        self.ids, self.links, self.named = set(), LINK.findall(re.sub(r"`[^`\n]*`", "", text)), NAMED.findall(text)
        for heading in re.findall(r"^#+ (.*)$", text, flags=re.M):
            words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
            slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
            self.ids.add(slug if slug not in self.ids else f"{slug}-1")


def main():
    if len(sys.argv) > 1:
        files = [path for path in Path(sys.argv[1]).rglob("*.html") if path.name not in ("404.html", "toc.html")]
    else:
        names = subprocess.check_output(["git", "ls-files", "*.md"], text=True).split("\n")
        files = [path for path in map(Path, names) if path.is_file() and not path.is_symlink()]
    pages, problems, count = {}, [], 0

    def page(path):
        if path not in pages:
            pages[path] = Page(path) if path.suffix == ".html" else Markdown(path)
        return pages[path]

    for file in files:
        for name in page(file).named:
            if Path(name.split("/")[0]).is_dir() and not Path(name).exists():
                problems.append(f"{file}: there is no {name}")
        for link in page(file).links:
            path, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:|//", link):
                continue
            count += 1
            target = (file.parent / path).resolve() if path else file
            if not target.exists():
                problems.append(f"{file}: {link} does not exist")
            elif anchor and target.suffix in (".md", ".html") and anchor not in page(target).ids:
                problems.append(f"{file}: {link} has no such heading")
    if problems:
        sys.exit("docs-links: " + "\ndocs-links: ".join(problems))
    print(f"docs-links: {count} links of {len(files)} files lead somewhere")


main()
