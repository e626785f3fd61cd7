#!/usr/bin/env bash
# What live.sh walks through inside the machine it booted, by the words of docs/getting-started.md.
#
#   walk.sh first     # from nothing to an uninstalled and newly installed version
#   walk.sh second    # after the machine was started anew
set -u
cd /root
LIST=/root/checked FAILED=/root/failed
CONFIG=/etc/edgetwin/config.yaml
DROP=/etc/systemd/system/edgetwin.service.d
FAKETIME=$(echo /usr/lib/*/faketime/libfaketime.so.1)

# -- small things ---------------------------------------------------------------------------------------------------

# check WORDS COMMAND...: notes whether it came true; what it printed is shown where it did not.
check() {
  local words=$1 said
  shift
  if said=$("$@" 2>&1); then
    echo "  ok      $words" | tee -a $LIST
  else
    echo "  FAILED  $words" | tee -a $LIST $FAILED
    echo "$said" | tail -n 15 | sed 's/^/          | /'
  fi
}
figure() { echo "  figure  $1" | tee -a $LIST; }
not() { ! "$@"; }
says() { local wanted=$1; shift; "$@" 2>&1 | grep -q -- "$wanted"; } # says TEXT COMMAND...: it prints TEXT
fails() { local wanted=$1 said; shift; said=$("$@" 2>&1) && return 1; grep -q -- "$wanted" <<< "$said"; }
shown() { systemctl show edgetwin --property "$1" --value; }
is() { [ "$(shown "$1")" = "$2" ] || { systemctl status edgetwin --no-pager --lines 15; return 1; }; }
version_is() { says "edgetwin $1 " edgetwin status && says "$2" tail -n 1 /usr/lib/systemd/system/edgetwin.service; } # VERSION LINE
log() { journalctl -u edgetwin --no-pager "$@"; }
as() { local user=$1; shift; runuser -u "$user" -- "$@"; }
until_() { # until_ SECONDS COMMAND...
  local seconds=$1 begun=$SECONDS
  shift
  until "$@"; do [ $((SECONDS - begun)) -lt "$seconds" ] || return 1; sleep 0.5; done
}
restarted() { [ "$(shown NRestarts)" = "$1" ] && [ "$(shown SubState)" = running ]; }
signal() { local pid; pid=$(shown MainPID); [ "$pid" -gt 1 ] && kill "-$1" "$pid"; }
mend() { printf '%s\n' "$good" > $CONFIG; }
spoil() { sed -i 's/holding: 100/holdin: 100/' $CONFIG; }
# A slow machine is no fault of the unit: only what is asked for in words has a bound here.
took() { awk -v a="$1" -v b="$2" 'BEGIN { printf "%.1f s", (b - a) / 1e6 }'; }

# -- the parts ------------------------------------------------------------------------------------------------------

prepare() {
  useradd -m member
  useradd -m stranger
  printf 'listener 1883 127.0.0.1\nallow_anonymous false\npassword_file /etc/mosquitto/passwd\n' > /etc/mosquitto/conf.d/edgetwin.conf
  mosquitto_passwd -b -c /etc/mosquitto/passwd hall3-line4 'hush 1'
  chown mosquitto /etc/mosquitto/passwd
  systemctl restart mosquitto
}

plc() { systemd-run --unit=plc --quiet /usr/local/bin/edgetwin simulate $CONFIG --port 5020; }

installed() {
  check "install.sh installs from a carried folder, without a network" wheels/install.sh
  check "the user edgetwin is in the group dialout" says dialout id edgetwin
  check "the service waits for a configuration" is ActiveState inactive
  check "a second run changes nothing" says "is here already" wheels/install.sh
  usermod -aG edgetwin member
}

configured() {
  good='gateway: hall3-line4
mqtt: {url: "mqtt://127.0.0.1", username: hall3-line4, password: {credential: mqtt}}
devices:
  press1:
    url: tcp://127.0.0.1:5020
    unit: 1
    every: 1s
    tags:
      temperature: {holding: 100, type: float32, unit: °C, range: [-40, 400]}
      running: {coil: 3}'
  mend
  (umask 077; echo 'hush 1' > /etc/edgetwin/mqtt-password)
  mkdir -p $DROP
  printf '[Service]\nLoadCredential=mqtt:/etc/edgetwin/mqtt-password\n' > $DROP/override.conf
  systemctl daemon-reload
  plc
  chmod 600 $CONFIG
  check "a configuration that the service may not read: exit 78, and how it may" \
    fails 'chown root:edgetwin' eval 'systemctl start edgetwin || { log -n 8; false; }'
  chown root:edgetwin $CONFIG
  chmod 640 $CONFIG
  check "edgetwin check takes the configuration" edgetwin check $CONFIG
  check "systemctl enable --now" systemctl enable --quiet --now edgetwin
  check "it is active" systemctl is-active edgetwin
  figure "start to READY: $(took "$(shown ExecMainStartTimestampMonotonic)" "$(shown ActiveEnterTimestampMonotonic)")"
  check "systemctl status says how much it polls" is StatusText "2 tags on 1 lines"
  check "values arrive at the broker, with the password from the credential" until_ 20 \
    says '"temperature"' timeout 4 edgetwin watch 'mqtt://hall3-line4:hush%201@127.0.0.1' --gateway hall3-line4 --json
}

hardened() {
  local pid=$(shown MainPID) security
  check "it runs as the user edgetwin" says "^$(id -u edgetwin)$" stat -c %u "/proc/$pid"
  check "without a capability, with a filter of system calls" \
    eval "grep -q 'CapBnd:.0*\$' /proc/$pid/status && grep -q 'Seccomp:.2' /proc/$pid/status"
  check "the kernels are kept in the cache folder" says nbc find /var/cache/edgetwin -name '*.nbc'
  check "the kernels are compiled ones" says "kernels numba" edgetwin status
  check "the state folder is written" test -s /var/lib/edgetwin/outbox.db
  check "the socket is the group's" says "660 edgetwin edgetwin" stat -c '%a %U %G' /run/edgetwin/edgetwin.sock
  check "root may ask it" edgetwin status
  check "a member of the group may ask it" as member edgetwin status
  check "another user may not, and is told so" fails "group edgetwin" as stranger edgetwin status
  check "nobody else reads the password" not as member cat /etc/edgetwin/mqtt-password
  check "lines in the journal have no time of their own" not eval "log -o cat | grep -E '^[0-9]{2}:[0-9]{2}:[0-9]{2}'"
  check "a warning has its priority" says 'gone for a test' eval \
    'systemctl stop plc; until_ 30 says press1 log -p 4..4 -n 3 && echo gone for a test; plc'
  check "systemd has nothing to warn of the unit" not says . journalctl -q -p 4 "INVOCATION_ID=$(shown InvocationID)"
  security=$(systemd-analyze security edgetwin --no-pager | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
  check "its exposure is 2.0 at most (systemd-analyze security: $security)" awk "BEGIN { exit !($security <= 2.0) }"
  figure "resident after some seconds: $(awk '/VmRSS|RssAnon/ { printf "%s %.0f MB ", $1, $2 / 1024 }' "/proc/$pid/status")"
  if grep -qs memory /sys/fs/cgroup/cgroup.controllers; then
    check "its memory is bounded" test "$(cat /sys/fs/cgroup/system.slice/edgetwin.service/memory.max)" != max
    figure "its memory, with files: $(($(shown MemoryCurrent) / 1048576)) MB"
  else
    figure "MemoryMax=$(shown MemoryMax), with no effect here: this kernel's memory controller is not in cgroup v2"
  fi
}

serial() { # major 4, minor 67: a port that is named and mostly has no hardware
  rm -f /dev/ttyS3
  mknod /dev/ttyS3 c 4 67 && chown root:dialout /dev/ttyS3 && chmod 660 /dev/ttyS3
  printf '%s\n' "$good" '  meter: {url: rtu:///dev/ttyS3, tags: {power: {holding: 1}}}' > $CONFIG
  systemctl reload edgetwin
  until_ 10 says 'ttyS3' edgetwin status
  check "a serial port is tried" says '/dev/ttyS3.*no connection' edgetwin status
  check "and may be opened (DeviceAllow, dialout)" not says '/dev/ttyS3.*\(ermitted\|denied\)' log -n 20
  mend
  systemctl reload edgetwin
}

reloaded() {
  sed -i 's/every: 1s/every: 2s/' $CONFIG
  check "systemctl reload" systemctl reload edgetwin
  check "and its status says what was touched" is StatusText "reloaded: device press1"
  spoil
  check "a wrong configuration fails the reload" fails failed systemctl reload edgetwin
  check "and the agent runs on" is ActiveState active
  check "systemctl status says so" is StatusText "reload refused, running on with the old configuration"
  check "edgetwin status has the place" says ':9:21: .*did you mean holding' edgetwin status
  check "a start with it fails" fails failed systemctl restart edgetwin
  sleep 7
  check "with 78, and is not tried again" eval "is ExecMainStatus 78 && is NRestarts 0 && is ActiveState failed"
  mend
  check "mended, it starts" systemctl start edgetwin
}

ended() {
  local n
  n=$(shown NRestarts)
  signal KILL
  check "killed, it is started again" until_ 60 restarted $((n + 1))
  for n in 2 3 4 5 6 7; do signal KILL; until_ 60 restarted $n; done
  check "killed six times more, too" restarted 7
  printf '[Service]\nWatchdogSec=9\nTimeoutAbortSec=9\n' > $DROP/quick.conf
  echo 'import signal; signal.signal(signal.SIGUSR2, lambda *_: __import__("time").sleep(1000))' \
    > "$(echo /opt/edgetwin/current/lib/python3*/site-packages)/hang.pth"
  systemctl daemon-reload
  systemctl restart edgetwin
  signal STOP
  check "stopped, the watchdog ends it, and it is started again" until_ 60 restarted 1
  signal USR2
  check "with a main loop that hangs, too" until_ 60 restarted 2
  check "the journal has where it hung" says 'hang.pth\|File "<string>", line 1 in <lambda>' log -n 400
  rm -f $DROP/quick.conf /opt/edgetwin/current/lib/python3*/site-packages/hang.pth
  systemctl daemon-reload
  systemctl restart edgetwin
}

upgraded() {
  local first begun
  first=$(basename "$(readlink /opt/edgetwin/current)")
  spoil
  check "a new version that does not take the configuration is refused" fails "$first stays current" wheels-99.1/install.sh
  check "and the old one runs on, with its unit" version_is "$first" WantedBy
  mend
  check "an upgrade" says "99.1 is current (before: $first)" wheels-99.1/install.sh
  check "runs" version_is 99.1 "of 99.1"
  check "a second run changes nothing" says "99.1 runs" wheels-99.1/install.sh
  begun=$(date +%s%6N)
  check "a rollback by one command" says "$first is current" wheels-99.1/install.sh --rollback
  figure "rollback: $(took "$begun" "$(date +%s%6N)")"
  check "runs, with its own unit" version_is "$first" WantedBy
  check "a rollback of the rollback" says "99.1 is current" wheels-99.1/install.sh --rollback
  check "a version that does not start is taken back" fails "99.1 is current again" wheels-99.2/install.sh
  check "and the one before runs, with its unit" until_ 20 version_is 99.1 "of 99.1"
}

removed() {
  check "uninstall" says "stay (--uninstall" wheels/install.sh --uninstall
  check "leaves no service" fails "could not be found" systemctl status edgetwin
  check "leaves configuration and state" test -e $CONFIG -a -e /var/lib/edgetwin/outbox.db
  check "a second run is none the worse" wheels/install.sh --uninstall
  check "installed again, it runs with the old configuration" eval "wheels/install.sh && systemctl is-active edgetwin"
}

# A clock that stands years back at the start, as on a board without a battery, and is set later.
unsynced() {
  echo -4000d > /run/faketime
  printf '[Service]\nEnvironment=LD_PRELOAD=%s FAKETIME_TIMESTAMP_FILE=/run/faketime FAKETIME_NO_CACHE=1 %s\n' \
    "$FAKETIME" FAKETIME_DONT_FAKE_MONOTONIC=1 > $DROP/clock.conf
  systemctl daemon-reload
  check "with a clock that is years back, it starts" systemctl restart edgetwin
  check "and says that the clock is not set" until_ 10 says "clock unsynced" edgetwin status
  echo +0d > /run/faketime
  check "the clock set, it says so" until_ 20 says "clock ok" edgetwin status
  check "and so does the journal" until_ 10 says "the clock was set" log -n 20
  rm $DROP/clock.conf
  systemctl daemon-reload
  systemctl restart edgetwin
}

purged() {
  check "uninstall with --purge" says "everything is gone" wheels/install.sh --uninstall --purge
  check "leaves no file, no user" not eval \
    "ls -d /etc/edgetwin /var/lib/edgetwin /var/cache/edgetwin /opt/edgetwin $DROP || getent passwd edgetwin"
  check "leaves systemd content" says '^0 loaded' systemctl --failed
}

case $1 in
  first)
    rm -f $LIST $FAILED
    for part in prepare installed configured hardened serial reloaded ended upgraded removed; do $part; done
    ;;
  second)
    check "started anew, the machine runs it by itself" until_ 60 systemctl is-active --quiet edgetwin
    check "healthy" until_ 10 edgetwin status
    for part in unsynced purged; do $part; done
    echo
    echo "checked:"
    cat $LIST
    [ ! -e $FAILED ] || { echo "$(wc -l < $FAILED) failed"; exit 1; }
    ;;
esac
