#!/usr/bin/env bash
# An MLflow server as a plain process:  infra/local/mlflow.sh start|stop|status [port]
# Database, artifacts, log and pid: $MECA_SERVICES (.meca/services). It listens on this machine only and has no password.
set -euo pipefail
set -m # each background process leads a group of its own, so that `stop` ends all of it
name=mlflow
port=${2:-5000}
folder=${MECA_SERVICES:-.meca/services}
url=http://127.0.0.1:$port
url_for_clients=$url
health=$url/health
variable=MLFLOW_TRACKING_URI

launch() {
  here=$(cd "$folder" && pwd)
  export DO_NOT_TRACK=true MLFLOW_DISABLE_TELEMETRY=true
  export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false # 2 processes and 0.5 GB instead of 10 and 1.9 GB
  unset MLFLOW_TRACKING_URI
  # The tables first and alone: several workers that make them at once crash.
  python -m mlflow db upgrade "sqlite:///$here/mlflow.db"
  exec python -m mlflow server --host 127.0.0.1 --port "$port" --workers 1 \
    --backend-store-uri "sqlite:///$here/mlflow.db" --artifacts-destination "$here/mlartifacts" --serve-artifacts
}

. "$(dirname "$0")/service.sh"
