#!/usr/bin/env bash
# A Prefect server as a plain process:  infra/local/prefect.sh start|stop|status [port]
# Data, log and pid: $MECA_SERVICES (.meca/services). It listens on this machine only, and asks for no password unless
# PREFECT_SERVER_API_AUTH_STRING is set.
set -euo pipefail
set -m # each background process leads a group of its own, so that `stop` ends all of it
name=prefect
port=${2:-4200}
folder=${MECA_SERVICES:-.meca/services}
url=http://127.0.0.1:$port
url_for_clients=$url/api
health=$url/api/health
variable=PREFECT_API_URL

launch() {
  export DO_NOT_TRACK=true PREFECT_SERVER_ANALYTICS_ENABLED=false
  unset PREFECT_API_URL
  PREFECT_HOME=$(cd "$folder" && pwd)/prefect
  export PREFECT_HOME
  # With leases in memory, a server that crashes leaks the slots of its limits for good.
  export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
  exec python -m prefect server start --host 127.0.0.1 --port "$port"
}

. "$(dirname "$0")/service.sh"
