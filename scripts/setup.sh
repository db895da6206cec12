#!/usr/bin/env bash
# Install what Utopia needs and this machine lacks: system packages (as root) and a virtual environment.
#
# Usage: scripts/setup.sh [--for-tests]
# Safe to repeat: what is there is left alone, and a second run ends at once.
# UTOPIA_PIP_ARGS is passed to every pip call, for instance to choose where torch comes from.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly VENV=.venv LOG=.cache/setup.log
readonly RYU=ryu==4.34 TORCH=torch==2.13.0
# Ryu's build hook calls a function that setuptools 68 removed.
readonly BUILD_TOOLS="setuptools==67.6.1 wheel==0.45.1 pbr==7.1.3"
# command that shows it is there : Debian package
readonly SYSTEM="mnexec:mininet ovs-vsctl:openvswitch-switch ovs-vswitchd:openvswitch-switch ip:iproute2 tc:iproute2
  ethtool:ethtool iptables-legacy:iptables ping:iputils-ping ifconfig:net-tools iperf3:iperf3"

want_tests=no
[ "${1:-}" = --for-tests ] && want_tests=yes

say() { printf '%s\n' "$*" >&2; }
stop() {
  say ""
  say "setup: $1"
  [ -s "$LOG" ] && [ "${2:-}" = log ] && { say "The last lines of $LOG:"; tail -n 12 "$LOG" | sed 's/^/  | /' >&2; }
  exit 1
}

# Run a step with its output in the log; print what it is and how long it took.
step() {
  local what=$1 way_out=$2 began=$SECONDS pid
  shift 2
  printf '  %-58s' "$what" >&2
  printf '\n== %s: %s\n' "$what" "$*" >>"$LOG"
  "$@" >>"$LOG" 2>&1 </dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    if [ -t 2 ]; then printf '\r  %-58s%4d s' "$what" $((SECONDS - began)) >&2; fi
    sleep 0.2
  done
  if wait "$pid"; then
    if [ -t 2 ]; then printf '\r  %-58s' "$what" >&2; fi
    say "$(printf '%4d s' $((SECONDS - began)))"
  else
    say " failed"
    stop "$what failed. $way_out" log
  fi
}

find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null 2>&1 &&
      "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
  stop "no supported Python: python3 is $(python3 --version 2>&1 || true); Utopia needs 3.11, 3.12 or 3.13.
Install one (Debian: apt-get install python3 python3-venv) or name it: make setup PYTHON=/path/to/python3.11"
}

missing_packages() {
  local entry
  for entry in $SYSTEM; do
    PATH="$PATH:/usr/sbin:/sbin" command -v "${entry%%:*}" >/dev/null 2>&1 || echo "${entry##*:}"
  done | sort -u
}

install_system_packages() {
  local packages
  packages=$(missing_packages | tr '\n' ' ')
  packages=${packages% }
  [ -n "$packages" ] || return 0
  say "System packages missing: $packages"
  [ "$(id -u)" = 0 ] || stop "installing them needs root: run 'sudo make setup' (or: apt-get install $packages)"
  command -v apt-get >/dev/null 2>&1 ||
    stop "there is no apt-get on this machine; install what provides these Debian packages: $packages"
  step "apt-get update" "Is the network there? Are the package sources right?" apt-get update -q
  # shellcheck disable=SC2086
  step "apt-get install" "See $LOG; try: apt-get install $packages" \
    env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $packages
}

fingerprint() { cat requirements.txt setup.cfg pyproject.toml scripts/setup.sh "$@" | sha256sum | cut -c1-16; }

make_venv() {
  local python
  python=$(find_python)
  # A half-made environment is made anew: it has no stamp.
  if [ -d "$VENV" ] && ! "$VENV/bin/python" -c '' 2>/dev/null; then rm -rf "$VENV"; fi
  if [ ! -d "$VENV" ]; then
    step "virtual environment ($("$python" --version))" \
      "On Debian the module is in a package of its own: apt-get install python3-venv" "$python" -m venv "$VENV"
  fi
}

pip_install() {
  local what=$1
  shift
  # shellcheck disable=SC2086
  step "$what" "Is the package index reachable? Is the disk full? See $LOG" \
    "$VENV/bin/pip" install --disable-pip-version-check ${UTOPIA_PIP_ARGS:-} "$@"
}

has() { "$VENV/bin/python" -c "import importlib.metadata as m, sys; sys.exit(m.version('${1%%==*}').split('+')[0] != '${1##*==}')" 2>/dev/null; }

install_python_packages() {
  local stamp=$VENV/.installed dev_stamp=$VENV/.installed-for-tests
  if [ "$(cat "$stamp" 2>/dev/null)" != "$(fingerprint)" ]; then
    rm -f "$stamp" "$dev_stamp"
    # shellcheck disable=SC2086
    pip_install "build tools for Ryu" $BUILD_TOOLS
    has "$RYU" || pip_install "Ryu 4.34 (built without isolation)" --no-build-isolation "$RYU"
    has "$TORCH" || pip_install "torch 2.13.0 (the largest: about 200 MB)" "$TORCH"
    pip_install "libraries of requirements.txt" -r requirements.txt
    pip_install "Utopia itself" --no-build-isolation --no-deps -e .
    "$VENV/bin/python" -c 'import torch, mininet, ryu' >>"$LOG" 2>&1 || stop "the installed packages do not import." log
    fingerprint >"$stamp"
  fi
  if [ $want_tests = yes ] && [ "$(cat "$dev_stamp" 2>/dev/null)" != "$(fingerprint requirements-dev.txt)" ]; then
    pip_install "test tools of requirements-dev.txt" -r requirements-dev.txt
    fingerprint requirements-dev.txt >"$dev_stamp"
  fi
}

mkdir -p .cache
# Two set-ups at once would break each other: the second waits.
exec 9>.cache/setup.lock
flock 9
: >"$LOG"
install_system_packages
make_venv
install_python_packages
