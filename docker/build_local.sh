#!/usr/bin/env bash
# Builds the image where no Docker engine runs and no registry answers, on a base that is made here.
#   sudo docker/build_local.sh [NAME]            # of the image: localhost/latentdd
# Needs root, Debian's packages buildah and debootstrap, a mirror of Debian, PyPI, and 20 GB of disk (8 GB stay).
# What differs from `docker build`: the base is Debian's SUITE instead of the Dockerfile's CUDA image, which brings the
# hooks for NVIDIA's driver, and steps run in a chroot that has the host's network and trusts what the host trusts.
set -euo pipefail

name=${1:-localhost/latentdd} suite=${SUITE:-trixie} mirror=${MIRROR:-http://deb.debian.org/debian}
base=localhost/debian:$suite
certificates=/etc/ssl/certs/ca-certificates.crt
repository=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [ -z "$(buildah images --quiet --filter reference="$base")" ]; then
  echo "+ $base by debootstrap"
  debootstrap --variant=minbase --include=ca-certificates "$suite" "$work/root" "$mirror" >"$work/log" ||
    { cat "$work/log" >&2 && exit 1; }
  container=$(buildah from scratch)
  buildah add --quiet "$container" "$work/root" / >/dev/null
  buildah commit --quiet --rm "$container" "$base" >/dev/null
  rm -rf "$work/root"
fi
digest=$(buildah images --format '{{.Digest}}' "$base")

# What git has, as a fresh clone would.
mkdir "$work/context"
git -C "$repository" archive HEAD | tar -x -C "$work/context"

start=$SECONDS
buildah build --isolation chroot --layers --force-rm --file "$work/context/docker/Dockerfile" --ignorefile "$work/context/.dockerignore" \
  --volume "$certificates:$certificates:ro" --build-arg "BASE=${base%:*}@$digest" --tag "$name" "$work/context"
echo "built in $((SECONDS - start)) s"
buildah images "$name"
