#!/usr/bin/env bash
# Kernels, codec and a short replay on an emulated arm64, and their numbers beside this machine's: make test-arm64.
#
#   sudo tests/arm64/run.sh [FOLDER]     # what is fetched and unpacked stays in FOLDER for the next time
#
# It needs root, debootstrap and qemu-user-static, a Debian mirror (MIRROR=URL for another one) and a package index.
# Nothing is run inside the tree but its Python, by qemu: no binfmt, no second stage. Minutes; no timing is meant.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=${1:-/var/tmp/edgetwin-arm64}
python=${PYTHON:-.venv/bin/python}
version=$("$python" -c 'import sys; print("{}.{}".format(*sys.version_info))')
case $version in
  3.11) suite=bookworm ;;
  3.13) suite=trixie ;;
  *) echo "run.sh: no Debian release has Python $version; 3.11 and 3.13 can be compared" >&2; exit 2 ;;
esac
for tool in debootstrap qemu-aarch64-static dpkg-deb; do
  command -v "$tool" > /dev/null \
    || { echo "run.sh: $tool is missing: apt-get install debootstrap qemu-user-static" >&2; exit 2; }
done
[ "$(id -u)" = 0 ] || { echo "run.sh: debootstrap needs root" >&2; exit 2; }

root=$folder/$suite
if [ ! -e "$root/unpacked" ]; then
  rm -rf "$root"
  mkdir -p "$folder"
  debootstrap --arch=arm64 --foreign --variant=minbase --include=python3 "$suite" "$root" ${MIRROR:+"$MIRROR"} \
    > "$folder/debootstrap.log" || { tail -5 "$folder/debootstrap.log" >&2; exit 1; }
  for package in "$root"/var/cache/apt/archives/*.deb; do
    dpkg-deb -x "$package" "$root"
  done
  touch "$root/unpacked"
fi

"$python" systemd/wheelhouse.py "$folder/wheels" --machine aarch64 --python "$version"
rm -rf "$folder/site"
"$python" - "$folder" << 'EOF'
import sys, zipfile
from pathlib import Path
for wheel in (Path(sys.argv[1]) / "wheels").glob("*.whl"):
    zipfile.ZipFile(wheel).extractall(Path(sys.argv[1]) / "site")
EOF

mkdir -p "$folder/data"
"$python" tests/arm64/compare.py data "$folder/data"
PYTHONPATH=. "$python" tests/arm64/compare.py numbers "$folder/data" "$folder/here.json"
PYTHONPATH=$folder/site PYTHONDONTWRITEBYTECODE=1 CACHE_DIRECTORY=$folder/cache \
  qemu-aarch64-static -L "$root" -cpu cortex-a72 "$root/usr/bin/python$version" \
  tests/arm64/compare.py numbers "$folder/data" "$folder/arm64.json"
"$python" tests/arm64/compare.py compare "$folder/here.json" "$folder/arm64.json"
