#!/usr/bin/env bash
# The installer and the unit under a systemd that lives, in a Debian booted by systemd-nspawn: make test-systemd.
#
#   sudo tests/systemd/live.sh [FOLDER]  # what is fetched and unpacked stays in FOLDER for the next time
#   SUITE=trixie sudo -E tests/systemd/live.sh
#
# It needs root, debootstrap and systemd-container, a Debian mirror (MIRROR=URL for another one) and a package index.
# The machine itself need not run systemd. What is checked is in walk.sh; it ends with a list. Some ten minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-/var/tmp/edgetwin-systemd}
python=${PYTHON:-.venv/bin/python}
case $(uname -m) in
  x86_64) arch=amd64 ;;
  aarch64) arch=arm64 ;;
  *) echo "live.sh: Edgetwin runs on x86_64 and aarch64" >&2; exit 2 ;;
esac
suite=${SUITE:-bookworm}
case $suite in
  bookworm) version=3.11 ;;
  trixie) version=3.13 ;;
  *) echo "live.sh: SUITE is bookworm or trixie" >&2; exit 2 ;;
esac
for tool in debootstrap systemd-nspawn nsenter; do
  command -v "$tool" > /dev/null \
    || { echo "live.sh: $tool is missing: apt-get install debootstrap systemd-container" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "live.sh: debootstrap needs root" >&2; exit 2; }
mkdir -p "$folder"
folder=$(cd "$folder" && pwd)

# -- a tree, and three versions: this one, one above it, and one that does not start ------------------------------

base=$folder/$suite
if [ ! -e "$base.complete" ]; then
  rm -rf "$base"
  debootstrap --arch=$arch --variant=minbase \
    --include=systemd,systemd-sysv,dbus,udev,python3,python3-venv,ca-certificates,mosquitto,procps,libfaketime \
    "$suite" "$base" ${MIRROR:+"$MIRROR"} > "$folder/debootstrap.log" || { tail -5 "$folder/debootstrap.log" >&2; exit 1; }
  touch "$base.complete"
fi
root=$folder/run
rm -rf "$root"
cp -a "$base" "$root"

"$python" systemd/wheelhouse.py "$root/root/wheels" --python "$version"
another() { # another VERSION: the folder wheels-VERSION, from a copy of the sources
  local work=$folder/source
  rm -rf "$work"
  mkdir "$work"
  cp -a pyproject.toml README.md LICENSE agent "$work/"
  sed -i "s/^version = .*/version = \"$1\"/" "$work/pyproject.toml"
  sed -i "s/^__version__ = .*/__version__ = \"$1\"/" "$work/agent/__init__.py"
  [ "$1" != 99.2 ] || sed -i 's/^def main(.*) -> int:$/&\n    raise SystemExit(3)/' "$work/agent/cli/run.py"
  cp -a "$root/root/wheels" "$root/root/wheels-$1"
  rm "$root/root/wheels-$1"/edgetwin-*.whl
  echo "# of $1" >> "$root/root/wheels-$1/edgetwin.service"
  "$python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w "$root/root/wheels-$1" "$work"
}
another 99.1
another 99.2
cp tests/systemd/walk.sh "$root/root/walk.sh"

# -- boot, walk, boot again, walk on --------------------------------------------------------------------------------

inside() { # inside COMMAND...: as root in the machine
  local leader
  leader=$(pgrep -P "$nspawn") || return 1
  nsenter -t "$leader" -m -u -i -n -p -C env -i HOME=/root LANG=C.UTF-8 SHELL=/bin/bash \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"
}
up() {
  local seconds
  for seconds in $(seq 60); do
    sleep 1
    case $(inside systemctl is-system-running 2> /dev/null) in running | degraded) return 0 ;; esac
  done
  echo "live.sh: the machine is not up after $seconds s: $folder/boot.log" >&2
  return 1
}
boot() {
  # Mounts and /run of its own: cgroup v2 alone is what the machine sees, whatever the one around it has. Only lo.
  unshare --mount --propagation private bash -c '
    mount -t tmpfs tmpfs /run && umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
    exec systemd-nspawn --quiet --directory="$0" --machine=edgetwin-live --register=no --keep-unit --private-network \
      --link-journal=no --console=pipe --boot' "$root" > "$folder/boot.log" 2>&1 < /dev/null &
  nspawn=$!
  up
}
down() {
  local waited
  kill -0 "$nspawn" 2> /dev/null || return 0
  inside systemctl poweroff 2> /dev/null || true
  for waited in $(seq 30); do
    kill -0 "$nspawn" 2> /dev/null || return 0
    sleep 1
  done
  echo "live.sh: the machine is not down after $waited s" >&2
  kill -KILL "$nspawn"
}
end() {
  down
  local group # what the machine leaves of its control groups
  group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/self/cgroup)
  unshare --mount --propagation private bash -c '
    umount -R /sys/fs/cgroup && mount -t cgroup2 cgroup2 /sys/fs/cgroup
    find "$0/payload" "$0/supervisor" -depth -type d -exec rmdir {} +' "$group" 2> /dev/null || true
}

trap end EXIT
boot
inside bash /root/walk.sh first
down
boot
inside bash /root/walk.sh second
