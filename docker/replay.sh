#!/usr/bin/env bash
# Replays the Dockerfile's steps in a clean Debian root, for machines without a Docker engine.
#   sudo docker/replay.sh ROOT [COMMAND...]      # ROOT: a new folder; COMMAND: arguments for the entry point
# Needs root and debootstrap. What differs from a build: the base is Debian bookworm instead of the Dockerfile's
# FROM image (so no NVIDIA driver hooks), the host's network, name resolution and certificates are used, and a step's
# user gets a chroot, not a container.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=${1:?usage: replay.sh ROOT [COMMAND...]}
shift
user=root directory=/ entry=""
certificates=/etc/ssl/certs/ca-certificates.crt
environment=(LANG=C.UTF-8 PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin "PIP_CERT=$certificates")

inside() { # inside USER COMMAND...: run it in the root as the image would
  local as=$1 home
  shift
  home=$(chroot "$root" getent passwd "$as" | cut -d: -f6)
  # shellcheck disable=SC2016 # the inner shell expands them
  chroot --userspec="$as" "$root" env -i "${environment[@]}" HOME="$home" \
    sh -c 'cd "$0" && exec "$@"' "$directory" "$@"
}

expand() { # expand TEXT: its ${NAME} and $NAME from the image's environment
  env -i "${environment[@]}" sh -c "printf %s \"$1\""
}

unmount() {
  local place
  for place in dev proc; do mountpoint -q "$root/$place" && umount "$root/$place"; done
  return 0
}

start() { # what FROM stands for
  local file
  mkdir -p "$root"
  [ -x "$root/bin/sh" ] || debootstrap --variant=minbase --include=ca-certificates bookworm "$root"
  trap unmount EXIT
  mount -t proc proc "$root/proc"
  mount --bind /dev "$root/dev"
  for file in /etc/resolv.conf /etc/hosts $certificates; do cp -L "$file" "$root$file"; done
}

copy() { # COPY --chown=USER SOURCE TARGET: what git tracks; SOURCE is a file or the whole repository
  local owner=${1#--chown=} source=$2 target=$3
  mkdir -p "$root$target"
  if [ "$source" = . ]; then
    git -C "$here/.." archive HEAD | tar -x -C "$root$target"
  else
    git -C "$here/.." show "HEAD:$source" >"$root$target/${source##*/}"
  fi
  chroot "$root" chown -R "$owner" "$target"
}

while IFS= read -r line; do
  keyword=${line%% *} rest=${line#* }
  case $keyword in
    FROM) echo "+ FROM $rest: Debian bookworm here" && start ;;
    RUN) echo "+ $line" && inside "$user" sh -c "$rest" </dev/null ;;
    ARG) [[ $rest != *=* ]] || environment+=("$rest") ;; # without a value: one from before FROM
    ENV) for pair in $rest; do environment+=("$(expand "$pair")"); done ;;
    USER) user=$rest ;;
    WORKDIR) directory=$rest ;;
    COPY) echo "+ $line" && read -ra words <<<"$rest" && copy "${words[@]}" ;;
    ENTRYPOINT) entry=$(tr -d '[]"' <<<"$rest") ;;
    CMD) ;;
    *) echo "replay.sh: cannot replay $keyword" >&2 && exit 1 ;;
  esac
done < <(sed -e '/^[[:space:]]*#/d' -e '/^[[:space:]]*$/d' -e :a -e '/\\$/{N;s/\\\n[[:space:]]*//;ba' -e '}' "$here/Dockerfile")

[ $# -eq 0 ] || inside "$user" "$entry" "$@"
