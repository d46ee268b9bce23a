#!/bin/sh
# Boots the kernel in QEMU; `cargo run` calls it with the kernel's path first.
#
#   cargo run --release -- [--cpus N] [--memory SIZE] [--nodes N] [--append TEXT] [--disk IMAGE] [QEMU OPTION...]
#
# or by environment: CPUS (2), MEMORY (256M), NODES (1), APPEND (), DISK, TIMEOUT in seconds (60).
# The disk is made anew, with the programs that were built with the kernel, unless an image is named that exists: that one is used, and
# what the kernel writes stays there. `--disk none` is no disk.
# The exit status is 0 if the kernel and all programs ended well, else that of QEMU (35: the kernel panicked, 37: a program did not end well) or of
# timeout (124).
set -eu

kernel=$1
shift
cpus=${CPUS:-2} memory=${MEMORY:-256M} nodes=${NODES:-1} append=${APPEND:-} disk=${DISK:-} timeout=${TIMEOUT:-60}
while [ $# -gt 0 ]; do
    case $1 in
        --cpus) cpus=$2; shift 2 ;;
        --memory) memory=$2; shift 2 ;;
        --nodes) nodes=$2; shift 2 ;;
        --append) append=$2; shift 2 ;;
        --disk) disk=$2; shift 2 ;;
        *) break ;;
    esac
done

if ! command -v qemu-system-x86_64 >/dev/null; then
    echo "built, not booted: qemu-system-x86_64 is missing; on Debian: apt-get install --no-install-recommends qemu-system-x86" >&2
    exit 0
fi

# The image is made by a program for the host, which is compiled when it is older than its source.
here=$(cd "$(dirname "$0")" && pwd)
folder=$(cd "$(dirname "$kernel")" && pwd)
if [ -z "$disk" ]; then
    temporary=$(mktemp -d)
    trap 'rm -rf "$temporary"' EXIT
    disk=$temporary/disk
fi
if [ "$disk" != none ] && [ ! -f "$disk" ]; then
    if [ ! -x "$folder/mkfs" ] || [ -n "$(find "$here/mkfs.rs" "$here/src/layout.rs" -newer "$folder/mkfs")" ]; then
        # In a folder of its own: another run may be building it too, and rustc's intermediate files have the same names.
        build=$(mktemp -d "$folder/mkfs-XXXXXX")
        rustc --edition 2024 -O -o "$build/mkfs" "$here/mkfs.rs"
        mv "$build/mkfs" "$folder/mkfs"
        rmdir "$build"
    fi
    # `cargo run` builds the kernel alone. TARGET/release or TARGET/debug, in a folder named after the target.
    if [ -z "${PROGRAMS_ARE_BUILT:-}" ]; then
        profile=$(basename "$folder")
        [ "$profile" != debug ] || profile=dev
        (cd "$here" && "${CARGO:-cargo}" build -q --locked --bin programs --profile "$profile" --target-dir "$folder/../..")
    fi
    strip -o "$disk.programs" "$folder/programs"
    mkdir "$disk.files"
    mv "$disk.programs" "$disk.files/programs"
    "$folder/mkfs" "$disk" 16 "$disk.files/programs"
    rm -r "$disk.files"
fi
[ "$disk" = none ] || set -- "$@" -drive "file=$disk,format=raw,if=ide,index=0"

# QEMU takes M or G; the nodes share the memory in equal parts.
case $memory in
    *G) megabytes=$((${memory%G} * 1024)) ;;
    *M) megabytes=${memory%M} ;;
    *) echo "memory is a number with M or G: $memory" >&2; exit 2 ;;
esac
if [ "$nodes" -gt 1 ]; then
    node=0
    while [ "$node" -lt "$nodes" ]; do
        set -- "$@" -object "memory-backend-ram,id=m$node,size=$((megabytes / nodes))M"
        numa="node,nodeid=$node,memdev=m$node"
        cpu=$node
        while [ "$cpu" -lt "$cpus" ]; do
            numa="$numa,cpus=$cpu"
            cpu=$((cpu + nodes))
        done
        set -- "$@" -numa "$numa"
        node=$((node + 1))
    done
    # Distances last: QEMU wants to know all nodes first. 21 is what two-socket machines say.
    from=0
    while [ "$from" -lt "$nodes" ]; do
        to=$((from + 1))
        while [ "$to" -lt "$nodes" ]; do
            set -- "$@" -numa "dist,src=$from,dst=$to,val=21"
            to=$((to + 1))
        done
        from=$((from + 1))
    done
    megabytes=$((megabytes / nodes * nodes))
fi

# TCG: no KVM is needed, and the runs are alike everywhere.
status=0
timeout "$timeout" qemu-system-x86_64 -M pc --accel tcg -m "${megabytes}M" -smp "$cpus" \
    -nodefaults -no-reboot -display none -serial stdio -device isa-debug-exit,iobase=0xf4,iosize=4 \
    -kernel "$kernel" -append "$append" "$@" </dev/null || status=$?

# The kernel ends well with 0x10, of which the device makes 33.
[ "$status" -ne 33 ] || status=0
exit "$status"
