#!/usr/bin/env bash
# Build the image and run it: help, the quickstart and two ranks, as a user who is only a number, on a root that is
# read-only, with 64 MB of /dev/shm; then once more without a mount.
#
#   scripts/image_check.sh                     # docker, or buildah where there is no daemon
#   scripts/image_check.sh debian:trixie-slim  # from another base
#   scripts/image_check.sh ROOT                # from a folder, as `debootstrap --variant=minbase bookworm ROOT` makes it
#
# BUILD_OPTIONS are passed to the build, such as "--volume /etc/ssl/certs:/etc/ssl/certs:ro". Without a daemon it needs root.
set -euo pipefail
cd "$(dirname "$0")/.."
base=${1:-}
image=localhost/resnet-train:check
user=12345
stop() { echo "image_check: $1" >&2 && exit 2; }

if docker info >/dev/null 2>&1; then
    tool=docker
elif command -v buildah >/dev/null && [ "$(id -u)" = 0 ]; then
    tool=buildah
else
    stop "it needs a docker daemon, or buildah as root"
fi

work=$(mktemp -d)
chmod 755 "$work"
container=
finish() {
    [ -z "$container" ] || buildah rm "$container" >/dev/null
    rm -rf "$work"
}
trap finish EXIT
mkdir --mode=1777 "$work/runs"

# build OPTION…: the image; from a folder, by way of an image of it.
build() {
    if [ "$tool" = docker ]; then docker build "$@"; else buildah build --isolation chroot --layers "$@"; fi
}
if [ -d "$base" ]; then
    printf 'FROM scratch\nCOPY . /\n' >"$work/Dockerfile"
    build --tag localhost/base:check --file "$work/Dockerfile" "$base"
    base=localhost/base:check
fi
begin=$SECONDS
# shellcheck disable=SC2086 # several words
build ${BUILD_OPTIONS:-} ${base:+--build-arg "BASE=$base"} --tag "$image" \
    --build-arg "REVISION=$(git rev-parse HEAD 2>/dev/null || echo unknown)" .
echo "image_check: built in $((SECONDS - begin)) s"

# in_image COMMAND…: run it as a number, with the mounted runs and a root that is read-only.
# loose COMMAND…: the same without the mount, on a root that can be written.
if [ "$tool" = docker ]; then
    docker image inspect --format 'image_check: {{.Size}} bytes, labels {{json .Config.Labels}}' "$image"
    in_image() {
        docker run --rm --read-only --tmpfs /tmp --shm-size 64m --user $user -v "$work/runs:/experiments/runs" "$image" "$@"
    }
    loose() { docker run --rm --user $user "$image" "$@"; }
else
    container=$(buildah from "$image")
    root=$(buildah mount "$container")
    echo "image_check: $(du --summarize --bytes "$root" | cut -f 1) bytes," \
        "labels $(buildah inspect --format '{{.OCIv1.Config.Labels}}' "$container")"
    mapfile -t environment < <(buildah inspect --format '{{range .OCIv1.Config.Env}}{{println .}}{{end}}' "$container")
    # Without a daemon: the file systems of a container, in a mount namespace that ends with the command.
    enter() {
        # shellcheck disable=SC2016 # expanded within
        unshare --mount --pid --fork --ipc bash -euc '
            root=$1 runs=$2 user=$3; shift 3
            mount --bind "$root" "$root"
            [ -z "$runs" ] || mount --bind "$runs" "$root/experiments/runs"
            touch "$root/etc/hosts" && mount --bind /etc/hosts "$root/etc/hosts"
            mount -t proc proc "$root/proc"
            mount --rbind /dev "$root/dev" && mount --make-rslave "$root/dev"
            mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/dev/shm"
            if [ -n "$runs" ]; then
                mount -t tmpfs tmpfs "$root/tmp"
                mount -o remount,bind,ro "$root"
            fi
            exec chroot --userspec "$user:0" --groups "" "$root" /usr/bin/env -i -C /experiments "$@"' \
            _ "$root" "$1" $user "${environment[@]}" "${@:2}"
    }
    in_image() { enter "$work/runs" "$@"; }
    loose() { enter "" "$@"; }
fi

in_image resnet-train --help >/dev/null
! in_image touch /experiments/x 2>/dev/null || stop "the root can be written"
begin=$SECONDS
in_image env OMP_NUM_THREADS=1 resnet-train run quickstart
in_image resnet-train compare runs/quickstart
[ -s "$work/runs/quickstart/compare.png" ] || stop "there is no runs/quickstart/compare.png in the mounted folder"
[ "$(stat --format %u "$work/runs/quickstart")" = $user ] || stop "runs/quickstart belongs to another user"
echo "image_check: the quickstart took $((SECONDS - begin)) s"
brief=(run quickstart train.epochs=1 --only cifar-resnet-20)
in_image env OMP_NUM_THREADS=1 torchrun --standalone --nproc-per-node 2 -m resnet_train "${brief[@]}" output=runs/ranks
loose env OMP_NUM_THREADS=1 resnet-train "${brief[@]}"
echo "image_check: passed with $tool"
