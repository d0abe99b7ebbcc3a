#!/usr/bin/env bash
# Chromium of Debian, and what drives it, in the versions of package-lock.json.
set -euo pipefail
cd "$(dirname "$0")"
if ! command -v "${CHROMIUM:-chromium}" > /dev/null; then
  echo "installing chromium"
  apt-get install --yes --no-install-recommends chromium > /dev/null
fi
[ -d node_modules/playwright-core ] || npm ci --silent --no-fund --no-audit
