# Shared by `image` and `node`: where things are, how a guest is started, and how one talks to it.
# shellcheck shell=bash disable=SC2034 # some of it is for the one or the other

export PATH=$PATH:/usr/sbin:/sbin
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The cache: images that are costly to make, and the disks of nodes. `image purge` empties it.
DIR=${CINDER_RIG_DIR:-/var/cache/cinder-rig}/vm
IMAGES=$DIR/images
NODES=$DIR/nodes
# Debian 13's qemu emulates a fifth faster than Debian 12's; it is unpacked here, not installed.
QEMU=$DIR/qemu
# "rep movsb" (erms) is slow under emulation, and so is smap.
CPU_MODEL=max,-erms,-fsrm,-smap,-smep,-svm
# MiB, and virtual processors: a snapshot of memory fits only the machine that it was made of. With a
# second processor everything costs a fifth more of the real ones.
MEMORY=1024
CPUS=1

die() {
    echo "${0##*/}: $*" >&2
    exit 125
}
say() { echo "${0##*/}: $*" >&2; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f", to - from }'; }

is_name() { case $1 in '' | *[!a-z0-9_-]* | -*) return 1 ;; esac }
pid_of() { cat "$NODES/$1/pid" 2>/dev/null || true; }
alive() {
    local pid
    pid=$(pid_of "$1")
    [ -n "$pid" ] && tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "unix:$NODES/$1/qmp.sock"
}

digest() { printf %s "$1" | md5sum | cut -c1-"$2"; }
initiator_of() { echo "iqn.1993-08.org.debian:01:$(digest "$1" 12)"; }
machine_id_of() { digest "machine $1" 32; }
mac_of() { echo "52:54:00:$(digest "$1" 4 | sed 's/../&:/g')$2"; }

free_port() {
    local port
    for port in $(shuf -i 20000-28000 -n 50); do
        (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || {
            echo "$port"
            return
        }
    done
    die "no free port"
}

# start NODE IMAGE DISK FORMAT cold|warm
#
# Three networks: mgmt for ssh alone, san-a and san-b for storage. On each of the latter the
# machine's loopback is there as 10.0.2.2 and 10.0.4.2: two portals of every target. qemu keeps the
# nodes apart, so all have the same addresses.
start() {
    local name=$1 image=$IMAGES/$2 disk=$3 format=$4 mac=$1 dir=$NODES/$1 port incoming=()
    mkdir -p "$dir"
    rm -f "$dir"/{qmp,console}.sock "$dir/ctl" "$dir/pid"
    port=$(free_port)
    echo "$port" >"$dir/port"
    if [ "$5" = warm ]; then
        incoming=(-incoming "exec:cat '$image/warm.state'")
        mac=_snapshot
    fi
    local kernel=(console=ttyS0 quiet loglevel=4 net.ifnames=0 audit=0 apparmor=0 mitigations=off
        tsc=reliable no_timer_check nowatchdog random.trust_cpu=on cryptomgr.notests 8250.nr_uarts=1
        systemd.show_status=0
        "node.name=$name" "node.machine=$(machine_id_of "$name")" "node.initiator=$(initiator_of "$name")")
    "$QEMU/usr/lib64/ld-linux-x86-64.so.2" --library-path "$QEMU/usr/lib/x86_64-linux-gnu" \
        "$QEMU/usr/bin/qemu-system-x86_64" -L "$QEMU/usr/share/qemu" -L "$QEMU/usr/share/seabios" \
        -name "$name" -nodefaults -no-user-config -display none \
        -machine q35,smm=off,vmport=off,hpet=off,dump-guest-core=off \
        -accel tcg,thread=multi,tb-size=768 -cpu "$CPU_MODEL" -smp "$CPUS" -m "$MEMORY" \
        -kernel "$image/vmlinux" -initrd "$image/initrd" -append "${kernel[*]}" \
        -drive "if=none,id=d0,file=$disk,format=$format,cache=writeback,discard=unmap" \
        -device virtio-blk-pci,drive=d0,serial=root \
        -netdev "user,id=mgmt,net=10.0.3.0/24,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:$port-10.0.3.15:22" \
        -device "virtio-net-pci,id=nic0,netdev=mgmt,romfile=,mac=$(mac_of "$mac" 01)" \
        -netdev user,id=san-a,net=10.0.2.0/24,ipv6=off \
        -device "virtio-net-pci,id=nic1,netdev=san-a,romfile=,mac=$(mac_of "$mac" 02)" \
        -netdev user,id=san-b,net=10.0.4.0/24,ipv6=off \
        -device "virtio-net-pci,id=nic2,netdev=san-b,romfile=,mac=$(mac_of "$mac" 03)" \
        -device virtio-rng-pci \
        -chardev "socket,id=con,path=$dir/console.sock,server=on,wait=off,logfile=$dir/console.log,logappend=off" \
        -serial chardev:con -qmp "unix:$dir/qmp.sock,server=on,wait=off" \
        "${incoming[@]}" -daemonize -pidfile "$dir/pid" 9>&- || die "qemu did not start"
}

# qmp NODE COMMAND...: asks qemu itself, in its JSON.
qmp() {
    local name=$1
    shift
    { echo '{"execute":"qmp_capabilities"}' && printf '%s\n' "$@"; } |
        socat -t 2 - "UNIX-CONNECT:$NODES/$name/qmp.sock" 2>/dev/null
}
qmp_until() { # qmp_until NODE QUERY STATUS SECONDS
    local end=$((SECONDS + $4))
    until qmp "$1" "{\"execute\":\"$2\"}" | grep -q "\"status\": \"$3\""; do
        alive "$1" || die "node $1 stopped: see $NODES/$1/console.log"
        [ $SECONDS -lt $end ] || die "node $1: $2 is not '$3' after $4 s"
        sleep 0.1
    done
}

ssh_options() { # ssh_options NODE
    printf '%s\n' -F /dev/null -i "$DIR/key" -p "$(cat "$NODES/$1/port")" \
        -o BatchMode=yes -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null \
        -o LogLevel=ERROR -o IdentitiesOnly=yes -o KexAlgorithms=curve25519-sha256 -o IPQoS=none \
        -o ControlMaster=auto -o ControlPersist=yes -o "ControlPath=$NODES/$1/ctl" \
        -o ServerAliveInterval=0 -o ConnectTimeout=60
}
on() { # on NODE COMMAND...
    local name=$1 options
    shift
    mapfile -t options < <(ssh_options "$name")
    # shellcheck disable=SC2029 # the caller has quoted it for the guest
    ssh "${options[@]}" root@127.0.0.1 "$@" 9>&-
}
hang_up() { ssh -F /dev/null -o "ControlPath=$NODES/$1/ctl" -O exit x >/dev/null 2>&1 || true; }

# await NODE WORD SECONDS: the guest says the word on its console.
await() {
    local end=$((SECONDS + $3))
    until grep -qa "$2" "$NODES/$1/console.log" 2>/dev/null; do
        alive "$1" || die "node $1 stopped: see $NODES/$1/console.log"
        [ $SECONDS -lt $end ] || die "node $1 does not say $2 in $3 s: see $NODES/$1/console.log"
        sleep 0.1
    done
}
await_ssh() { # await_ssh NODE SECONDS
    local end=$((SECONDS + $2))
    until timeout 60 bash -c "$(declare -f ssh_options on); DIR='$DIR' NODES='$NODES' on '$1' true" \
        </dev/null >/dev/null 2>&1; do
        alive "$1" || die "node $1 stopped: see $NODES/$1/console.log"
        [ $SECONDS -lt $end ] || not_answering "$1"
        sleep 0.2
    done
}
# What a node that should answer and does not has to say: it is thrown away soon. Root is logged in
# on its console.
not_answering() { # not_answering NODE
    {
        echo "--- the console of $1 ---"
        tail -c 3000 "$NODES/$1/console.log"
        echo "--- what it says of itself ---"
        # It hangs up when it is asked no more.
        { printf '\n%s\n' 'ip -br addr; systemctl --no-pager --failed; systemctl --no-pager list-jobs' &&
            sleep 20; } | socat - "UNIX-CONNECT:$NODES/$1/console.sock"
        echo "---"
    } >&2 || true
    die "node $1 does not answer"
}
DOCKER_ANSWERS='curl -sf --unix-socket /run/docker.sock http://d/_ping >/dev/null'
await_boot() { # await_boot NODE SECONDS
    await "$1" NODE-SSH "$2"
    await_ssh "$1" "$2"
    await "$1" NODE-READY "$2"
    on "$1" "for i in \$(seq 50); do $DOCKER_ANSWERS && exit 0; sleep 0.2; done; exit 1" </dev/null ||
        die "docker does not answer in node $1"
}

power_off() { # power_off NODE: pulls the plug
    if alive "$1"; then
        kill -9 "$(pid_of "$1")"
        for _ in {1..200}; do
            alive "$1" || break
            sleep 0.05
        done
    fi
    hang_up "$1"
    rm -f "$NODES/$1"/{pid,port,ctl,qmp.sock,console.sock}
}
