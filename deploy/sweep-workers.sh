#!/bin/sh
# End what a stopped agentpool-master left behind. Runs as ExecStopPost= of agentpool-master.service, or by hand.
#
# The unit has KillMode=process: workers outlive a crash of the master, and the next master adopts them. The price is
# that systemd never ends them. So this script runs after each end of the master and looks at $SERVICE_RESULT:
#
#   success   stopped on purpose and drained; as a rule nothing is left
#   timeout   stopped on purpose, but not within TimeoutStopSec=; what is left is ended
#   others    (exit-code, signal, core-dump, watchdog, oom-kill ...) the master failed: nothing is touched
#
# In the unit's control group first workers and zygotes end, then what agents started, and the embedded Redis last,
# because workers write to it until they end. A Redis that does not end is never killed: the next master adopts it.

set -u
LC_ALL=C
export LC_ALL

usage() {
    cat <<'TEXT'
usage: sweep-workers.sh [--cgroup DIR | --install ID] [--force] [--grace SECONDS]

  --cgroup DIR     folder with the cgroup.procs to sweep; default under systemd: the unit's own
  --install ID     sweep workers and zygotes by the mark "@ID" in their title (see ps), wherever they are
  --force          whatever $SERVICE_RESULT says
  --grace SECONDS  from SIGTERM to SIGKILL of a worker, in whole seconds; default 10
TEXT
}

fail() {
    echo "sweep-workers: $1" >&2
    exit 2
}

cgroup='' install='' force=no grace=10
while [ $# -gt 0 ]; do
    case $1 in
        --cgroup) cgroup=${2:?--cgroup needs a folder}; shift 2 ;;
        --install) install=${2:?--install needs an id}; shift 2 ;;
        --grace) grace=${2:?--grace needs a number}; shift 2 ;;
        --force) force=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; fail "unknown argument: $1" ;;
    esac
done
case $grace in '' | *[!0-9]*) fail "--grace takes whole seconds, not $grace" ;; esac
[ -z "$cgroup" ] || [ -z "$install" ] || fail "give --cgroup or --install, not both"

case ${SERVICE_RESULT:-} in
    success | timeout) ;;
    *)
        if [ "$force" = no ]; then
            echo "sweep-workers: result is '${SERVICE_RESULT:-unknown}', no stop on purpose: workers live on"
            exit 0
        fi
        ;;
esac

# The control group of this script: under systemd that of the unit. Elsewhere it would be the caller's own session.
own_cgroup() {
    path=$(sed -n 's/^0:://p' /proc/self/cgroup)
    case $path in
        *.service) ;;
        *) path=$(sed -n 's/^[0-9]*:name=systemd://p' /proc/self/cgroup) ;;
    esac
    case $path in
        *.service) ;;
        *) fail "not run by systemd: say what to sweep, with --cgroup or --install" ;;
    esac
    for root in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/systemd; do
        if [ -r "$root$path/cgroup.procs" ]; then
            echo "$root$path"
            return
        fi
    done
    fail "cannot read the control group $path"
}

if [ -z "$cgroup" ] && [ -z "$install" ]; then
    cgroup=$(own_cgroup) || exit 2
fi

candidates() {
    if [ -n "$cgroup" ]; then
        cat "$cgroup/cgroup.procs"
    else
        for folder in /proc/[0-9]*; do echo "${folder#/proc/}"; done
    fi
}

# Print the kind of a process: worker, server or other; nothing for one that has ended and for this script.
kind_of() {
    [ "$1" != $$ ] && [ "$1" != "$PPID" ] || return 0
    case $(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) in '' | Z | X) return 0 ;; esac
    title=$(tr '\0' ' ' <"/proc/$1/cmdline" 2>/dev/null) || return 0
    case $title in
        '') return 0 ;;
        "agentpool-worker "*"@$install"* | "agentpool-zygote "*"@$install"*) echo worker ;;
        *agentpool_worker.zygote* | *agentpool_worker.exec_worker*) [ -n "$install" ] || echo worker ;;
        *redis-server* | *valkey-server*) [ -n "$install" ] || echo server ;;
        *) [ -n "$install" ] || echo other ;;
    esac
}

living() {
    for pid in $(candidates); do
        [ "$(kind_of "$pid")" != "$1" ] || echo "$pid"
    done
}

# send KIND SIGNAL; returns 1 when there was nobody.
send() {
    pids=$(living "$1")
    [ -n "$pids" ] || return 1
    echo "sweep-workers: SIG$2 to $1 processes:" $pids
    # One at a time: kill stops at none, and one that has ended meanwhile is no fault.
    for pid in $pids; do kill -s "$2" "$pid" 2>/dev/null; done
    return 0
}

# Wait until no process of the kind is left; returns 1 after that many seconds.
gone_within() {
    turns=$(($2 * 5))
    while [ -n "$(living "$1")" ]; do
        [ "$turns" -gt 0 ] || return 1
        turns=$((turns - 1))
        sleep 0.2
    done
}

# A worker drains at the first SIGTERM and stops its running tasks at the second.
if send worker TERM && ! gone_within worker $((grace / 2)); then
    send worker TERM
    if ! gone_within worker $((grace - grace / 2)); then
        send worker KILL
        gone_within worker 5
    fi
fi
if send other TERM && ! gone_within other 2; then
    send other KILL
    gone_within other 5
fi
if send server TERM && ! gone_within server 15; then
    echo "sweep-workers: the embedded Redis is still writing its data and is left running; the next master adopts it"
fi
exit 0
