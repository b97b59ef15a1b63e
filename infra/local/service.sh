# Sourced by prefect.sh and mlflow.sh: a server as a plain process, one folder per service for pid, log and data.
# Needs $name, $port, $folder and a function `launch` that replaces the shell by the server.

pid_file="$folder/$name.pid"
log_file="$folder/$name.log"

alive() { # the pid in the file is ours: alive, and still the same program
  [ -f "$pid_file" ] && kill -0 "$(cat "$pid_file")" 2>/dev/null && tr '\0' ' ' <"/proc/$(cat "$pid_file")/cmdline" 2>/dev/null | grep -q "$name"
}

start() {
  if alive; then
    echo "$name runs already: process $(cat "$pid_file"), $url"
    return
  fi
  mkdir -p "$folder"
  (launch) >>"$log_file" 2>&1 </dev/null &
  echo $! >"$pid_file"
  for _ in $(seq 1 120); do
    if ! alive; then
      echo "$name did not start; the last lines of $log_file:" >&2
      tail -n 20 "$log_file" >&2
      rm -f "$pid_file"
      exit 2
    fi
    if python -c 'import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=2)' "$health" 2>/dev/null; then
      echo "$name runs: process $(cat "$pid_file"), $url, log $log_file"
      echo "export $variable=$url_for_clients"
      return
    fi
    sleep 1
  done
  echo "$name did not answer at $health within two minutes; see $log_file" >&2
  stop
  exit 2
}

stop() {
  if ! alive; then
    rm -f "$pid_file"
    echo "$name does not run"
    return
  fi
  pid=$(cat "$pid_file")
  kill -TERM -- "-$pid" 2>/dev/null || kill -TERM "$pid"
  for _ in $(seq 1 20); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.5
  done
  kill -KILL -- "-$pid" 2>/dev/null || true
  rm -f "$pid_file"
  echo "$name stopped"
}

case "${1:-}" in
  start) start ;;
  stop) stop ;;
  status) if alive; then echo "$name runs: process $(cat "$pid_file"), $url"; else echo "$name does not run"; exit 1; fi ;;
  *) echo "usage: $0 start|stop|status [port]" >&2; exit 4 ;;
esac
