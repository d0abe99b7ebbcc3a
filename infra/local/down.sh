#!/usr/bin/env bash
# Stops the processes that up.sh started, and no others: first the workers, which save checkpoints and release their jobs.
set -euo pipefail
cd "$(dirname "$0")/../.."

state=$PWD/target/local
[[ -e $state/pids ]] || exit 0

# ours PID: whether the process group is still the one that was started.
ours() { [[ $(ps -o pgid= -p "$1" 2>/dev/null | tr -d ' ') == "$1" ]]; }

stop() {
    local signal=$1 pattern=$2 pid name
    while read -r pid name; do
        if [[ $name == $pattern ]] && ours "$pid"; then
            kill -s "$signal" -- "-$pid" 2>/dev/null || true
        fi
    done < "$state/pids"
    local end=$((SECONDS + 20))
    while read -r pid name; do
        while [[ $name == $pattern ]] && ours "$pid" && ((SECONDS < end)); do sleep 0.1; done
    done < "$state/pids"
}

stop TERM 'worker-*'
stop TERM coordinator
stop KILL '*'
rm -rf "$state/pids" "$state/rabbitmq" "$state/token" "$state/env"
