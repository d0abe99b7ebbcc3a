#!/usr/bin/env bash
# RabbitMQ's server for the tests and the local fleet, from Debian's package. A second run does nothing.
set -euo pipefail

if [[ -x /usr/lib/rabbitmq/bin/rabbitmq-server ]] && command -v openssl >/dev/null; then
    exit 0
fi
if [[ $(id -u) != 0 ]]; then
    echo "RabbitMQ and openssl are needed: sudo apt-get install --no-install-recommends rabbitmq-server openssl" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "RabbitMQ and openssl are needed, and this is not Debian: install /usr/lib/rabbitmq/bin/rabbitmq-server yourself" >&2
    exit 1
fi
echo "installing rabbitmq-server and openssl"
# With an init system the package starts a broker of its own; ours are private ones.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d.basin && chmod +x /usr/sbin/policy-rc.d.basin
[[ -e /usr/sbin/policy-rc.d ]] || ln -s policy-rc.d.basin /usr/sbin/policy-rc.d
trap 'if [[ $(readlink /usr/sbin/policy-rc.d) == policy-rc.d.basin ]]; then rm -f /usr/sbin/policy-rc.d; fi; rm -f /usr/sbin/policy-rc.d.basin' EXIT
export DEBIAN_FRONTEND=noninteractive
if ! apt-get install -y -q --no-install-recommends rabbitmq-server openssl >/tmp/basin-apt.log 2>&1; then
    apt-get update -q >>/tmp/basin-apt.log 2>&1
    apt-get install -y -q --no-install-recommends rabbitmq-server openssl >>/tmp/basin-apt.log 2>&1 || {
        tail -20 /tmp/basin-apt.log >&2
        exit 1
    }
fi
