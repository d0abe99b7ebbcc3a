#!/usr/bin/env bash
# Checks the graph of our crates, the length of functions and files, and circles between modules.
set -euo pipefail
cd "$(dirname "$0")/.."
export PYTHONDONTWRITEBYTECODE=1
tests=$(python3 infra/architecture_test.py 2>&1) || { echo "$tests" >&2; exit 1; }
${CARGO:-cargo} metadata --locked --format-version 1 --no-deps | python3 infra/architecture.py
