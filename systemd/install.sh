#!/usr/bin/env bash
# Installs Edgetwin as a service of this machine, or a newer version beside the one that runs.
set -euo pipefail
umask 022

usage() {
  cat << 'END'
usage: sudo ./install.sh [--wheels DIR]     install, or upgrade; from DIR where given (make wheelhouse), else online
       sudo ./install.sh --rollback         back to the version before; once more, and it is undone
       sudo ./install.sh --uninstall        takes it away; configuration and state stay unless --purge is given too
       --root DIR                           everything below DIR, without touching services and users (for tests)

Each version has its own folder in /opt/edgetwin; /opt/edgetwin/current is the one that runs. A new version first
compiles its kernels and checks the configuration that is there; only then is it made current and the service
restarted. When it does not come up, the old one is put back.
END
}

die() { echo "install: $*" >&2; exit 1; }
say() { echo "install: $*"; }

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
PYTHON=${PYTHON:-python3}
ROOT=${DESTDIR:-} WHEELS='' DO=install PURGE=no
while [ $# -gt 0 ]; do
  case $1 in
    --wheels) [ $# -gt 1 ] || die "--wheels needs a folder"; WHEELS=$2; shift ;;
    --root) [ $# -gt 1 ] || die "--root needs a folder"; ROOT=$2; shift ;;
    --rollback | --uninstall) DO=${1#--} ;;
    --purge) PURGE=yes ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
[ "$PURGE" = no ] || [ "$DO" = uninstall ] || die "--purge goes with --uninstall"
[ -z "$ROOT" ] || { mkdir -p "$ROOT"; ROOT=$(cd "$ROOT" && pwd); }

OPT=$ROOT/opt/edgetwin
ETC=$ROOT/etc/edgetwin
CONFIG=$ETC/config.yaml
STATE=$ROOT/var/lib/edgetwin
CACHE=$ROOT/var/cache/edgetwin
UNIT=$ROOT/usr/lib/systemd/system/edgetwin.service
SYSUSERS=$ROOT/usr/lib/sysusers.d/edgetwin.conf
RULES=$ROOT/usr/lib/udev/rules.d/70-edgetwin.rules
COMMAND=$ROOT/usr/local/bin/edgetwin

# -- what this machine must be ----------------------------------------------------------------------------------

check_machine() {
  local bits machine
  machine=$(uname -m)
  bits=$(getconf LONG_BIT)
  [ "$bits" = 64 ] || die "this system is 32-bit ($machine): it has no wheels of numba. Install a 64-bit system" \
    "(on a Raspberry Pi 3 or newer: Raspberry Pi OS 64-bit)"
  case $machine in
    x86_64 | aarch64) ;;
    *) die "this machine is $machine; Edgetwin runs on x86_64 and aarch64" ;;
  esac
  getconf GNU_LIBC_VERSION > /dev/null 2>&1 || die "this system's C library is not glibc, and numba has wheels for no other"
  command -v "$PYTHON" > /dev/null || die "$PYTHON is missing: apt-get install python3 python3-venv"
  "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$PYTHON" --version) is too old: Edgetwin needs Python 3.11 or newer (Debian 12, Ubuntu 24.04)"
  "$PYTHON" -c 'import struct, sys; sys.exit(struct.calcsize("P") != 8)' ||
    die "$PYTHON is a 32-bit program on a 64-bit kernel: install a 64-bit system"
  "$PYTHON" -c 'import ensurepip, venv' 2> /dev/null || die "python3-venv is missing: apt-get install python3-venv"
}

# -- small things -----------------------------------------------------------------------------------------------

real() { [ -z "$ROOT" ]; }
service() { ! real || systemctl "$@"; }
running() { real && systemctl is-active --quiet edgetwin; }
version_of() { if [ -L "$OPT/$1" ]; then basename "$(readlink "$OPT/$1")"; fi; }

# As the service's user, with the service's folders.
as_service() {
  local run=(env "CACHE_DIRECTORY=$CACHE" "STATE_DIRECTORY=$STATE" "HOME=$STATE" "$@")
  if real; then runuser -u edgetwin -- "${run[@]}"; else "${run[@]}"; fi
}

# point NAME VERSION: the link OPT/NAME goes to VERSION, at once.
point() {
  ln -sfn "$2" "$OPT/.$1.new"
  mv -T "$OPT/.$1.new" "$OPT/$1"
}

check_config() {
  [ -e "$CONFIG" ] || return 0
  as_service "$OPT/$1/bin/edgetwin" check "$CONFIG"
}

# place_unit VERSION: each version brings its own unit, and a rollback brings the old one back.
place_unit() {
  install -D -m 0644 "$OPT/$1/edgetwin.service" "$UNIT"
  service daemon-reload
}

# Makes a version current and starts it; when it does not start, the one before is put back.
flip() {
  local old
  old=$(version_of current)
  point current "$1"
  place_unit "$1"
  if ! start "$old"; then
    [ -n "$old" ] && [ "$old" != "$1" ] || die "the service does not start: journalctl -u edgetwin"
    point current "$old"
    place_unit "$old"
    start "$old" || true
    die "version $1 does not start (journalctl -u edgetwin); $old is current again"
  fi
  [ -z "$old" ] || [ "$old" = "$1" ] || point previous "$old"
}

# start OLD: the first version is enabled; later ones start only where somebody wants the service.
start() {
  real && [ -e "$CONFIG" ] || return 0
  if [ -n "$1" ] && ! running && ! systemctl is-enabled --quiet edgetwin; then
    say "the service is not enabled and stays as it is: systemctl enable --now edgetwin"
    return 0
  fi
  systemctl enable --quiet edgetwin
  systemctl restart edgetwin
}

# -- install ----------------------------------------------------------------------------------------------------

# build VERSION: a venv of its own, from the wheels alone.
build() {
  local folder=$OPT/$1 free
  free=$(df -Pm "$OPT" | awk 'NR == 2 { print $4 }')
  [ "$free" -gt 600 ] || die "$OPT has $free MB free; a version needs about 400"
  rm -rf "$folder"
  "$PYTHON" -m venv "$folder"
  local pip=("$folder/bin/python" -m pip --quiet --disable-pip-version-check --no-cache-dir install --no-index)
  "${pip[@]}" --find-links "$WHEELS" --only-binary=:all: --no-deps --require-hashes -r "$WHEELS/requirements.txt" ||
    { rm -rf "$folder"; die "the wheels in $WHEELS do not fit this machine's Python, or were changed"; }
  "${pip[@]}" --no-deps "$WHEEL" || { rm -rf "$folder"; die "$WHEEL cannot be installed"; }
  sync -f "$folder" # a power cut after the flip must not find empty files
  echo "$CONTENT" > "$folder/.complete"
}

# place_files VERSION: what stands beside the version's venv, and what the machine needs before it can be tried.
place_files() {
  install -m 0644 "$WHEELS/README.md" "$WHEELS/config.example.yaml" "$WHEELS/edgetwin.service" "$OPT/$1/"
  install -D -m 0644 "$WHEELS/edgetwin.sysusers.conf" "$SYSUSERS"
  install -D -m 0644 "$WHEELS/70-edgetwin.rules" "$RULES"
  mkdir -p "$ETC" "$STATE" "$CACHE"
  install -m 0644 "$WHEELS/config.example.yaml" "$ETC/config.example.yaml"
  chmod 0750 "$ETC" "$STATE" "$CACHE"
  if real; then
    systemd-sysusers "$SYSUSERS"
    chown root:edgetwin "$ETC"
    chown edgetwin:edgetwin "$STATE" "$CACHE"
    if udevadm control --reload 2> /dev/null; then udevadm trigger --subsystem-match=tty || true; fi
  fi
}

do_install() {
  check_machine
  if [ -z "$WHEELS" ] && [ ! -e "$HERE/wheelhouse.py" ]; then WHEELS=$HERE; fi # carried here by make wheelhouse
  if [ -z "$WHEELS" ]; then
    WORK=$(mktemp -d)
    trap 'rm -rf "$WORK"' EXIT
    say "getting the packages that requirements.lock names"
    "$PYTHON" -m venv "$WORK/venv"
    "$WORK/venv/bin/python" "$HERE/wheelhouse.py" "$WORK/wheels" || die "the packages cannot be had; without a network use --wheels"
    WHEELS=$WORK/wheels
  fi
  WHEELS=$(cd "$WHEELS" 2> /dev/null && pwd) || die "there is no folder $WHEELS"
  local wheels=("$WHEELS"/edgetwin-*.whl)
  WHEEL=${wheels[0]}
  [ -e "$WHEEL" ] && [ -e "$WHEELS/requirements.txt" ] || die "$WHEELS holds no wheel of edgetwin: make wheelhouse fills such a folder"

  # the same version with other contents, as while developing, gets a folder of its own
  CONTENT=$("$PYTHON" -c 'import hashlib, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    record = next(name for name in wheel.namelist() if name.endswith(".dist-info/RECORD"))
    print(hashlib.sha256(wheel.read(record)).hexdigest())' "$WHEEL")
  local version old
  version=$(basename "$WHEEL" | cut -d- -f2)
  mkdir -p "$OPT"
  old=$(version_of current)
  if [ -e "$OPT/$version/.complete" ] && [ "$(cat "$OPT/$version/.complete")" != "$CONTENT" ]; then
    version=$version-${CONTENT:0:8}
  fi
  if [ -e "$OPT/$version/.complete" ] && [ "$(cat "$OPT/$version/.complete")" = "$CONTENT" ]; then
    say "$version is here already"
  else
    say "installing $version"
    build "$version"
  fi
  place_files "$version"
  say "compiling the kernels"
  as_service "$OPT/$version/bin/edgetwin" warm > /dev/null || say "the kernels could not be kept; the first start takes longer"
  check_config "$version" || die "version $version does not take $CONFIG as it is (above); ${old:-nothing} stays current"
  if [ "$old" = "$version" ] && running; then
    place_unit "$version"
    systemctl try-reload-or-restart edgetwin
    say "$version runs"
    return
  fi
  mkdir -p "$(dirname "$COMMAND")"
  ln -sfn /opt/edgetwin/current/bin/edgetwin "$COMMAND"
  flip "$version"
  prune
  say "$version is current${old:+ (before: $old)}"
  [ -e "$CONFIG" ] || say "next: write $CONFIG (config.example.yaml beside it shows every key), then systemctl enable --now edgetwin"
}

# Only the current version and the one before stay.
prune() {
  local folder name
  for folder in "$OPT"/*/; do
    name=$(basename "$folder")
    case $name in
      current | previous | "$(version_of current)" | "$(version_of previous)") ;;
      *) rm -rf "$OPT/${name:?}" ;;
    esac
  done
}

# -- rollback, uninstall ----------------------------------------------------------------------------------------

do_rollback() {
  local now before
  now=$(version_of current)
  before=$(version_of previous)
  [ -n "$before" ] && [ -x "$OPT/$before/bin/edgetwin" ] || die "there is no version to go back to"
  check_config "$before" || die "version $before does not take $CONFIG as it is (above); $now stays current"
  flip "$before"
  say "$before is current (before: $now)"
}

do_uninstall() {
  if real && [ -e "$UNIT" ]; then systemctl disable --quiet --now edgetwin || true; fi
  rm -rf "$OPT" "$CACHE"
  rm -f "$UNIT" "$SYSUSERS" "$RULES" "$COMMAND" "$ETC/config.example.yaml"
  service daemon-reload
  if [ "$PURGE" = yes ]; then
    rm -rf "$ETC" "$STATE" "$ROOT/etc/systemd/system/edgetwin.service.d"
    if real && getent passwd edgetwin > /dev/null; then userdel edgetwin; fi
    say "everything is gone"
  else
    say "gone; $ETC, $STATE and the user edgetwin stay (--uninstall --purge takes them too)"
  fi
}

if real && [ "$(id -u)" != 0 ]; then die "this needs root: sudo $0"; fi
"do_$DO"
