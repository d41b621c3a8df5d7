#!/bin/sh
# Installs, upgrades or removes cinder-docker-driver. POSIX sh; see usage() below.
set -eu

RELEASE_URL=${CINDER_DRIVER_RELEASE_URL:-}
DEFAULT_RELEASE_URL=https://github.com/j-griffith/cinder-docker-driver/releases/latest/download
DESTDIR=${DESTDIR:-}

BINARY=/usr/bin/cinder-docker-driver
STATE=/var/lib/cinder/dockerdriver
CONFIG=$STATE/config.json
# Not /usr/lib/systemd/system: that belongs to the distribution's packages, and the unit that the
# Go driver's installer left in /etc would hide ours there.
UNIT_DIR=/etc/systemd/system
UNITS="cinder-docker-driver.service cinder-docker-driver.socket
cinder-docker-driver-swarm.service cinder-docker-driver-sandbox.service"
UNIT_MARK='# Unit of cinder-docker-driver.'
# Completions and manual pages. Not /usr/share, which belongs to the distribution's packages; shells
# and man look into both.
SHARE=/usr/local/share
COMPLETIONS="bash:bash-completion/completions/cinder-docker-driver
zsh:zsh/site-functions/_cinder-docker-driver
fish:fish/vendor_completions.d/cinder-docker-driver.fish"

SANDBOX=/var/lib/cinder/sandbox
SANDBOX_PID=/run/cinder-docker-driver-sandbox.pid
SANDBOX_LOG=/var/log/cinder-docker-driver-sandbox.log
DOCKERD_PID=/run/cinder-docker-driver-dockerd.pid
DOCKERD_LOG=/var/log/dockerd.log
SOCKET=/run/docker/plugins/cinder.sock

usage() {
    cat <<USAGE
Installs cinder-docker-driver, the Docker volume plugin for OpenStack Cinder. Run it as root.

    ./install.sh              in a clone: build it (cargo) and install it;
                              in an unpacked release: install that
    curl -fsSL …/install.sh | sudo sh
                              download the release for this machine, check it, install it
Running it again upgrades: only the plugin restarts, volumes stay mounted.

Options:
    --binary PATH   install this binary; the units come from beside install.sh
    --url URL       download from URL/cinder-docker-driver-ARCH-linux.tar.gz, checked against
                    URL/SHA256SUMS; https://, http:// or file://
                    (also as environment variable CINDER_DRIVER_RELEASE_URL)
    --sandbox       for trying it out: also set up Docker if there is none, start the plugin with
                    an embedded OpenStack, and prove that a container reads what another one wrote
    --uninstall     remove program and units, unless volumes are mounted; config and state stay
    -h, --help      this

Environment:
    DESTDIR         install below this directory, without packages and services (for packagers)

Installed: $BINARY, units in $UNIT_DIR,
$CONFIG (never overwritten), completions and manual pages
in $SHARE, and, where missing, the distribution's packages of open-iscsi,
e2fsprogs and mount.
USAGE
}

say() { printf '%s\n' "$*"; }
warn() { printf 'install.sh: warning: %s\n' "$*" >&2; }
die() {
    printf 'install.sh: %s\n' "$*" >&2
    exit 1
}

WORK=
STAGED=
PROOF_VOLUME=
cleanup() {
    status=$?
    trap - EXIT
    [ -z "$PROOF_VOLUME" ] || docker volume rm -f "$PROOF_VOLUME" >/dev/null 2>&1 || :
    [ -z "$STAGED" ] || rm -f "$STAGED"
    [ -z "$WORK" ] || rm -rf "$WORK"
    exit "$status"
}

have() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { [ -z "$DESTDIR" ] && [ -d /run/systemd/system ]; }

# The program is a package's: upgrading and removing it is the package manager's.
is_packaged() {
    { have dpkg-query && dpkg-query --search "$BINARY"; } >/dev/null 2>&1 ||
        { have rpm && rpm --query --file "$BINARY"; } >/dev/null 2>&1
}

# --- where the files come from: sets SOURCE (a directory with the units) and NEW_BINARY ---

# The directory of this script, or nothing when the shell reads it from a pipe.
script_directory() {
    if [ "$(basename "$0")" = install.sh ] && [ -f "$0" ]; then
        (cd "$(dirname "$0")" && pwd -P)
    fi
}

find_source() {
    SOURCE=$(script_directory)
    if [ -n "$GIVEN_BINARY" ]; then
        [ -f "$GIVEN_BINARY" ] || die "--binary $GIVEN_BINARY: there is no such file."
        [ -n "$SOURCE" ] || die "--binary needs the units that lie beside install.sh: run it as a file, from a clone or an unpacked release."
        NEW_BINARY=$GIVEN_BINARY
    elif [ -n "$RELEASE_URL" ] || [ -z "$SOURCE" ]; then
        download "${RELEASE_URL:-$DEFAULT_RELEASE_URL}"
    elif [ -x "$SOURCE/cinder-docker-driver" ] && [ ! -d "$SOURCE/cinder-docker-driver" ]; then
        NEW_BINARY=$SOURCE/cinder-docker-driver
    elif [ -f "$SOURCE/Cargo.toml" ]; then
        build
    else
        die "$SOURCE is neither a clone nor an unpacked release. Give --binary PATH or --url URL."
    fi
    for file in $UNITS; do
        [ -f "$SOURCE/systemd/$file" ] || die "$SOURCE/systemd/$file is missing: take a whole clone or release."
    done
    [ -f "$SOURCE/config.example.json" ] || die "$SOURCE/config.example.json is missing: take a whole clone or release."
}

# As the person behind sudo, who has the toolchain and owns the clone.
build() {
    set -- cargo
    if [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ] && have sudo; then
        home=$(getent passwd "$SUDO_USER" | cut -d: -f6)
        set -- sudo -u "$SUDO_USER" -H env "PATH=$home/.cargo/bin:$PATH" cargo
    elif ! have cargo && [ -x "${HOME:-/root}/.cargo/bin/cargo" ]; then
        set -- env "PATH=${HOME:-/root}/.cargo/bin:$PATH" cargo
    fi
    "$@" --version >/dev/null 2>&1 || die "building needs Rust's cargo, which is not in the PATH. Install it (https://rustup.rs), or build elsewhere and give --binary PATH."
    say "Building (cargo build --release --locked) …"
    (cd "$SOURCE" && "$@" build --release --locked --target-dir "$SOURCE/target") ||
        die "the build failed: see above. Nothing was installed."
    NEW_BINARY=$SOURCE/target/release/cinder-docker-driver
}

fetch() { # fetch URL FILE
    case $1 in
    file://*) cp "${1#file://}" "$2" ;;
    *)
        if have curl; then
            curl -fsSL --retry 3 --connect-timeout 20 -o "$2" "$1"
        elif have wget; then
            wget -q -T 20 -O "$2" "$1"
        else
            die "downloading needs curl or wget: install one of them."
        fi
        ;;
    esac || die "cannot download $1. Check the address (--url) and the network; nothing was changed."
}

download() { # download BASE_URL
    case $(uname -m) in
    x86_64 | amd64) arch=x86_64 ;;
    aarch64 | arm64) arch=aarch64 ;;
    *) die "there is no release for $(uname -m). Build it: clone the repository and run ./install.sh there." ;;
    esac
    have sha256sum || die "checking the download needs sha256sum (coreutils): install it."
    name=cinder-docker-driver-$arch-linux
    url=${1%/}
    say "Downloading $url/$name.tar.gz …"
    fetch "$url/SHA256SUMS" "$WORK/SHA256SUMS"
    fetch "$url/$name.tar.gz" "$WORK/$name.tar.gz"
    expected=$(awk -v file="$name.tar.gz" '$2 == file || $2 == "*" file { print $1; exit }' "$WORK/SHA256SUMS")
    [ -n "$expected" ] || die "$url/SHA256SUMS has no line for $name.tar.gz. Nothing was changed."
    actual=$(sha256sum "$WORK/$name.tar.gz" | cut -d' ' -f1)
    [ "$actual" = "$expected" ] || die "the checksum of $name.tar.gz is wrong: SHA-256 is $actual, SHA256SUMS says $expected. The download is damaged or not what was released: do not use it. Nothing was changed."
    tar -xzof "$WORK/$name.tar.gz" -C "$WORK" || die "cannot unpack $name.tar.gz (is there room in ${TMPDIR:-/tmp}?). Nothing was changed."
    SOURCE=$WORK/$name
    NEW_BINARY=$SOURCE/cinder-docker-driver
    [ -f "$NEW_BINARY" ] || die "$name.tar.gz holds no $name/cinder-docker-driver. Nothing was changed."
}

# --- packages ---

# By the distribution's own package manager. What it prints goes to a log: what counts is whether
# the command is there afterwards.
install_packages() {
    say "Installing $* …"
    log=$WORK/packages.log
    case $(package_manager) in
    apt-get)
        # A broken third-party source fails the update; the distribution's own may still do.
        apt-get update -q >>"$log" 2>&1 </dev/null || :
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "$@" >>"$log" 2>&1 </dev/null
        ;;
    dnf) dnf install -q -y "$@" >>"$log" 2>&1 </dev/null ;;
    yum) yum install -q -y "$@" >>"$log" 2>&1 </dev/null ;;
    *)
        echo "there is no apt-get, dnf or yum here" >>"$log"
        return 1
        ;;
    esac
}

package_manager() {
    for manager in apt-get dnf yum; do
        if have "$manager"; then
            echo "$manager"
            return
        fi
    done
}

packages_failed() { # packages_failed WHAT ADVICE
    [ ! -f "$WORK/packages.log" ] || tail -n 15 "$WORK/packages.log" >&2
    die "$1 could not be installed (see above). $2"
}

# require COMMAND PACKAGE: installs the package if the command is missing.
require() {
    have "$1" || install_packages "$2" || :
    have "$1" || packages_failed "$2" "Install $1 by hand, then run install.sh again."
}

install_tools() {
    if [ "$(package_manager)" = apt-get ]; then
        require iscsiadm open-iscsi
        require mount mount
    else
        require iscsiadm iscsi-initiator-utils
        require mount util-linux
    fi
    require mkfs.ext4 e2fsprogs
}

# --- files ---

# put MODE SOURCE DESTINATION: replaces the file whole or not at all; tells whether it changed.
put() {
    if cmp -s "$2" "$3"; then
        chmod "$1" "$3"
        return 1
    fi
    STAGED=$(mktemp "$(dirname "$3")/.cinder-docker-driver.XXXXXX") || die "cannot write to $(dirname "$3")."
    cat "$2" >"$STAGED" || die "cannot write $3: is the disk full?"
    chmod "$1" "$STAGED"
    mv -f "$STAGED" "$3" || die "cannot replace $3."
    STAGED=
}

# A wrong architecture, a C library that is too old, or no program at all: seen before anything
# changes. It is tried where it will live, because /tmp may be mounted noexec.
stage_binary() {
    mkdir -p "$DESTDIR$(dirname "$BINARY")"
    STAGED=$(mktemp "$DESTDIR$BINARY.XXXXXX") || die "cannot write to $DESTDIR$(dirname "$BINARY")."
    cat "$NEW_BINARY" >"$STAGED" || die "cannot write $DESTDIR$BINARY: is the disk full?"
    chmod 0755 "$STAGED"
    VERSION=$("$STAGED" --version 2>&1 </dev/null) ||
        die "$NEW_BINARY does not run on this machine ($VERSION). Build it here: clone the repository and run ./install.sh there. Nothing was changed."
    case $VERSION in
    cinder-docker-driver\ *) ;;
    *) die "$NEW_BINARY is not cinder-docker-driver: --version says '$VERSION'. Nothing was changed." ;;
    esac
    STAGED_BINARY=$STAGED
}

install_files() {
    CHANGED=
    if cmp -s "$STAGED_BINARY" "$DESTDIR$BINARY"; then
        rm -f "$STAGED_BINARY"
    else
        mv -f "$STAGED_BINARY" "$DESTDIR$BINARY" || die "cannot replace $DESTDIR$BINARY."
        CHANGED=yes
    fi
    STAGED=

    [ -d "$DESTDIR/var/lib/cinder" ] || mkdir -p "$DESTDIR/var/lib/cinder"
    mkdir -p "$DESTDIR$STATE"
    chmod 0700 "$DESTDIR$STATE"
    install_config

    mkdir -p "$DESTDIR$UNIT_DIR"
    for unit in $UNITS; do
        install_unit "$unit"
    done
    install_share
}

# What the binary itself writes. Nobody needs it to run, so what cannot be made is left out.
install_share() {
    for line in $COMPLETIONS; do
        shell=${line%%:*}
        "$DESTDIR$BINARY" completions "$shell" >"$WORK/completions" 2>/dev/null </dev/null || continue
        put_share "$WORK/completions" "${line#*:}"
    done
    "$DESTDIR$BINARY" man "$WORK/man" >/dev/null 2>&1 </dev/null || return 0
    for page in "$WORK"/man/*.8; do
        [ ! -f "$page" ] || put_share "$page" "man/man8/$(basename "$page")"
    done
}

put_share() { # put_share FILE PLACE
    mkdir -p "$(dirname "$DESTDIR$SHARE/$2")"
    put 0644 "$1" "$DESTDIR$SHARE/$2" || :
}

install_config() {
    config=$DESTDIR$CONFIG
    if [ ! -e "$config" ] && [ ! -L "$config" ]; then
        put 0600 "$SOURCE/config.example.json" "$config"
    elif [ -n "$(find -L "$config" -prune -perm -004 2>/dev/null)" ]; then
        warn "$config can be read by every user of this host and may hold a password. Fix it: chmod 600 $config"
    fi
}

# The units that the Go driver's installers wrote, and no others: their program is cdd, before
# v0.13 cinder-docker-driver, with a lone & that systemd hands to it as an argument.
is_go_unit() {
    grep -Eq '^[[:space:]]*ExecStart=/usr/bin/(cdd|cinder-docker-driver) &[[:space:]]*$' "$1"
}

install_unit() { # install_unit NAME
    unit=$DESTDIR$UNIT_DIR/$1
    if [ -e "$unit" ] && is_go_unit "$unit"; then
        cp -p "$unit" "$unit.old" || die "cannot copy $unit to $unit.old."
        say "Replaced the Go driver's unit; it is kept as $unit.old."
    elif [ -e "$unit" ] && ! grep -qF "$UNIT_MARK" "$unit"; then
        put 0644 "$SOURCE/systemd/$1" "$unit.new" || :
        warn "$unit was not installed by this script and stays as it is; ours is beside it, $1.new. Compare them."
        return
    fi
    if put 0644 "$SOURCE/systemd/$1" "$unit"; then
        CHANGED=yes
    fi
}

# --- services ---

is_active() { systemctl is-active --quiet "$1"; }

# Nobody has put a cloud into it yet: the example's address is still there.
config_is_example() { grep -q '//keystone\.example[:/]' "$CONFIG"; }

start_plugin() {
    if ! has_systemd; then
        say "This host has no systemd. Start the plugin before dockerd, as root:"
        say "    $BINARY >>/var/log/cinder-docker-driver.log 2>&1 &"
        say "(or start it again if it is running: volumes stay mounted)."
        return
    fi
    if is_active cinder-docker-driver-sandbox.service; then
        systemctl daemon-reload
        say "The sandbox is running and has the plugin's socket. To change over to your cloud:"
        say "    systemctl disable --now cinder-docker-driver-sandbox"
        say "    systemctl enable --now cinder-docker-driver"
        return
    fi
    if config_is_example; then
        systemctl daemon-reload
        say "Next: put your cloud into $CONFIG, then"
        say "    cinder-docker-driver check"
        say "    systemctl enable --now cinder-docker-driver"
        return
    fi
    # The Go driver's unit was wanted by docker.service; reenable leaves only what the unit says. It
    # ends in a daemon-reload.
    systemctl reenable --quiet cinder-docker-driver.service
    if is_active cinder-docker-driver.service; then
        if [ -n "$CHANGED" ]; then
            systemctl restart cinder-docker-driver.service || service_failed cinder-docker-driver
            say "Restarted the plugin; volumes stayed mounted."
        fi
    else
        # What is left of earlier failures would keep it from starting.
        systemctl reset-failed cinder-docker-driver.service cinder-docker-driver.socket 2>/dev/null || :
        systemctl start cinder-docker-driver.service || service_failed cinder-docker-driver
        say "Started the plugin."
    fi
}

service_failed() { # service_failed UNIT
    journalctl -u "$1" -n 15 --no-pager -o cat >&2 2>/dev/null || :
    die "$1 is installed but does not start (its log is above). See 'cinder-docker-driver check', then 'systemctl restart $1'."
}

# --- uninstall ---

# Paths of mounts below a directory, one a line.
mounts_below() {
    root=$(cd "$1" 2>/dev/null && pwd -P) || return 0
    awk -v root="$root/" '{ gsub(/\\040/, " ", $5); if (index($5, root) == 1) print $5 }' /proc/self/mountinfo
}

mount_point() {
    found=
    if [ -r "$DESTDIR$CONFIG" ]; then
        found=$(sed -n 's/.*"[Mm]ount[Pp]oint"[[:space:]]*:[[:space:]]*"\([^"]*\)".*/\1/p' "$DESTDIR$CONFIG" | head -n 1)
    fi
    echo "${found:-/var/lib/cinder/mount}"
}

uninstall() {
    mounts=$(mounts_below "$DESTDIR$(mount_point)"; mounts_below "$DESTDIR$SANDBOX")
    if [ -n "$mounts" ]; then
        printf '%s\n' "$mounts" >&2
        die "these volumes are still mounted (above), and without the plugin nobody could release them. Stop the containers that use them ('docker ps --filter volume=NAME'), then run --uninstall again. Nothing was changed."
    fi
    if has_systemd; then
        set --
        for unit in $UNITS; do
            [ ! -e "$UNIT_DIR/$unit" ] || set -- "$@" "$unit"
        done
        # All in one go: the socket alone would start the service again.
        [ $# -eq 0 ] || systemctl disable --now --quiet "$@" || die "systemctl disable --now $* failed. Nothing was removed."
    elif [ -z "$DESTDIR" ]; then
        stop_background "$SANDBOX_PID" "$BINARY"
    fi
    for unit in $UNITS; do
        unit=$DESTDIR$UNIT_DIR/$unit
        if [ -e "$unit" ] && ! grep -qF "$UNIT_MARK" "$unit"; then
            warn "$unit was not installed by this script and stays."
        else
            rm -f "$unit" "$unit.new"
        fi
    done
    for line in $COMPLETIONS; do
        rm -f "$DESTDIR$SHARE/${line#*:}"
    done
    rm -f "$DESTDIR$SHARE"/man/man8/cinder-docker-driver.8 "$DESTDIR$SHARE"/man/man8/cinder-docker-driver-*.8
    rm -f "$DESTDIR$BINARY"
    ! has_systemd || systemctl daemon-reload
    say "Removed $DESTDIR$BINARY, its units, completions and manual pages."
    say "Kept: $DESTDIR$STATE (config and state), packages, and the volumes in the cloud."
}

# --- sandbox ---

# Waits up to SECONDS for a command to succeed: wait_for SECONDS COMMAND...
wait_for() {
    end=$(($(date +%s) + $1))
    shift
    until "$@"; do
        [ "$(date +%s)" -lt "$end" ] || return 1
        sleep 0.2 2>/dev/null || sleep 1
    done
}

# alive PIDFILE: the process has not ended (one that nobody has waited for yet has).
alive() {
    case $(sed 's/.*) //' "/proc/$(cat "$1" 2>/dev/null)/stat" 2>/dev/null) in
    '' | Z*) return 1 ;;
    esac
}

ended() { ! alive "$1"; }

stop_background() { # stop_background PIDFILE PROGRAM
    pid=$(cat "$1" 2>/dev/null || :)
    # Since a reboot the pid may be another program's.
    case " $(tr '\0' ' ' 2>/dev/null <"/proc/$pid/cmdline" || :)" in
    *" $2 "*)
        kill "$pid" 2>/dev/null || :
        wait_for 120 ended "$1" || die "$2 (process $pid) does not stop. Look at its log, end it by hand, then run install.sh again."
        ;;
    esac
    rm -f "$1"
}

# Outlives this script and its terminal: start_background PIDFILE LOG COMMAND...
start_background() {
    pidfile=$1 log=$2
    shift 2
    setsid "$@" >>"$log" 2>&1 </dev/null &
    echo $! >"$pidfile"
}

start_sandbox() {
    if has_systemd; then
        systemctl daemon-reload
        # At the next boot only one of the two may be started.
        systemctl disable --quiet cinder-docker-driver.service
        systemctl enable --quiet cinder-docker-driver-sandbox.service
        systemctl stop cinder-docker-driver-sandbox.service
        SOCKET_BEFORE=$(socket_inode)
        systemctl start cinder-docker-driver-sandbox.service || service_failed cinder-docker-driver-sandbox
    else
        stop_background "$SANDBOX_PID" "$BINARY"
        SOCKET_BEFORE=$(socket_inode)
        start_background "$SANDBOX_PID" "$SANDBOX_LOG" "$BINARY" sandbox --dir "$SANDBOX"
    fi
    say "Waiting for the sandbox …"
    wait_for 60 sandbox_settled || :
    if sandbox_serves && sandbox_runs; then
        return
    fi
    if has_systemd; then
        service_failed cinder-docker-driver-sandbox
    fi
    tail -n 15 "$SANDBOX_LOG" >&2
    die "the sandbox does not serve $SOCKET (the end of $SANDBOX_LOG is above)."
}

socket_inode() { stat -c %i "$SOCKET" 2>/dev/null || :; }

# A socket that was there before is another plugin's, or nobody's.
sandbox_serves() { [ -S "$SOCKET" ] && [ "$(socket_inode)" != "$SOCKET_BEFORE" ]; }

sandbox_runs() {
    if has_systemd; then
        is_active cinder-docker-driver-sandbox.service
    else
        alive "$SANDBOX_PID"
    fi
}

sandbox_settled() { sandbox_serves || ! sandbox_runs; }

install_docker() {
    if [ "$(package_manager)" = apt-get ]; then
        have dockerd || install_packages docker.io ca-certificates || :
        # Since Debian 13 the command is a package of its own.
        have docker || install_packages docker-cli || :
    else
        # Fedora says moby-engine, Amazon Linux docker. On RHEL 'docker' is Podman's imitation.
        have dockerd || install_packages moby-engine || install_packages docker || :
    fi
    if ! have dockerd || ! have docker; then
        packages_failed Docker "This distribution may not have it: see https://docs.docker.com/engine/install/, then run install.sh --sandbox again."
    fi
}

docker_answers() { docker version >/dev/null 2>&1; }
dockerd_settled() { docker_answers || ended "$DOCKERD_PID"; }

start_docker() {
    # The engine of this host, whatever the caller's environment or docker context points at.
    DOCKER_HOST=unix:///var/run/docker.sock
    export DOCKER_HOST
    unset DOCKER_CONTEXT
    if have docker && docker_answers; then
        return
    fi
    install_docker
    if has_systemd; then
        systemctl enable --now --quiet docker.service || service_failed docker
        wait_for 60 docker_answers || service_failed docker
        return
    fi
    DOCKERD=$(readlink -f "$(command -v dockerd)")
    say "Starting dockerd (log: $DOCKERD_LOG) …"
    start_background "$DOCKERD_PID" "$DOCKERD_LOG" "$DOCKERD"
    wait_for 60 dockerd_settled || :
    if docker_answers; then
        return
    fi
    stop_background "$DOCKERD_PID" "$DOCKERD"
    say "dockerd cannot run as it is here:"
    tail -n 1 "$DOCKERD_LOG"
    say "Starting it without networks for containers (--iptables=false --bridge=none) …"
    set -- --iptables=false --bridge=none
    if "$DOCKERD" --help 2>&1 | grep -q -- --ip6tables; then
        set -- "$@" --ip6tables=false
    fi
    start_background "$DOCKERD_PID" "$DOCKERD_LOG" "$DOCKERD" "$@"
    wait_for 60 dockerd_settled || :
    if ! docker_answers; then
        tail -n 15 "$DOCKERD_LOG" >&2
        die "dockerd does not run here (the end of $DOCKERD_LOG is above). Start it by hand, then run install.sh --sandbox again."
    fi
}

# Sets IMAGE to an image with a shell: this host's static busybox, else one from a registry.
find_image() {
    for IMAGE in busybox cinder-sandbox/busybox; do
        if docker image inspect "$IMAGE" >/dev/null 2>&1; then
            return
        fi
    done
    if ! static_busybox; then
        if docker pull -q busybox >/dev/null 2>&1; then
            IMAGE=busybox
            return
        fi
        if [ "$(package_manager)" = apt-get ]; then
            install_packages busybox-static || :
        else
            install_packages busybox || :
        fi
        static_busybox || packages_failed busybox "No image for the proof: no registry answers and the distribution has no static busybox. Load an image named busybox (docker load), then run install.sh --sandbox again."
    fi
    mkdir -p "$WORK/image/bin" "$WORK/image/tmp"
    cp "$(command -v busybox)" "$WORK/image/bin/busybox"
    for applet in $(busybox --list); do
        [ "$applet" = busybox ] || ln -s busybox "$WORK/image/bin/$applet"
    done
    tar -C "$WORK/image" -c . | docker import --change 'CMD ["/bin/sh"]' - "$IMAGE" >/dev/null ||
        die "docker could not import an image made of busybox (its message is above). Load an image named busybox (docker load), then run install.sh --sandbox again."
}

# A dynamic busybox does not start in an empty image.
static_busybox() { have busybox && ! ldd "$(command -v busybox)" 2>/dev/null | grep -q '=>'; }

prove() {
    say "Proving it: one container writes to a new volume, a second one reads …"
    PROOF_VOLUME=install-proof-$$
    token=$(date +%s)-$$
    docker volume create --driver cinder --opt size=1 "$PROOF_VOLUME" >/dev/null ||
        die "docker could not create a volume with the plugin (its message is above)."
    docker run --rm --network none --volume "$PROOF_VOLUME:/data" "$IMAGE" sh -c "echo $token >/data/proof" ||
        die "the first container could not write to the volume (Docker's message is above)."
    answer=$(docker run --rm --network none --volume "$PROOF_VOLUME:/data" "$IMAGE" cat /data/proof) ||
        die "the second container could not read the volume (Docker's message is above)."
    [ "$answer" = "$token" ] || die "the second container read '$answer', not '$token' that the first one wrote."
    docker volume rm "$PROOF_VOLUME" >/dev/null || die "docker could not remove the volume $PROOF_VOLUME again (its message is above)."
    PROOF_VOLUME=
}

sandbox() {
    start_sandbox
    start_docker
    find_image
    prove
    if has_systemd; then
        stop="systemctl disable --now cinder-docker-driver-sandbox"
    else
        stop="kill \$(cat $SANDBOX_PID)      (its log: $SANDBOX_LOG)"
    fi
    # What a dockerd without bridge cannot do by default.
    network=
    docker network inspect bridge >/dev/null 2>&1 || network="--network none "
    cat <<NEXT
It works: the second container read what the first one wrote.

Now type:
    docker volume create -d cinder -o size=2 web
    docker run --rm ${network}-v web:/data $IMAGE sh -c 'date >>/data/log; cat /data/log'
    docker volume inspect web
    cinder-docker-driver --config $SANDBOX/config.json status
The sandbox keeps its volumes in $SANDBOX. It stops with:
    $stop
NEXT
}

# --- main ---

main() {
    GIVEN_BINARY=
    task=install
    while [ $# -gt 0 ]; do
        case $1 in
        --binary | --url)
            [ $# -ge 2 ] || die "$1 needs a value. See --help."
            case $1 in
            --binary) GIVEN_BINARY=$2 ;;
            --url) RELEASE_URL=$2 ;;
            esac
            shift
            ;;
        --sandbox) task=sandbox ;;
        --uninstall) task=uninstall ;;
        -h | --help)
            usage
            exit 0
            ;;
        *) die "unknown argument: $1. See --help." ;;
        esac
        shift
    done

    LC_ALL=C
    PATH=$PATH:/usr/sbin:/sbin
    export LC_ALL PATH
    umask 022
    if [ -z "$DESTDIR" ] && [ "$(id -u)" -ne 0 ]; then
        die "this needs root: it installs $BINARY and a service. Run it with sudo (… | sudo sh, or sudo ./install.sh)."
    fi
    if [ -n "$DESTDIR" ] && [ $task = sandbox ]; then
        die "--sandbox starts services, DESTDIR is for staging files: use one of them."
    fi
    if [ -z "$DESTDIR" ] && is_packaged; then
        die "$BINARY belongs to a package: upgrade or remove that (apt, dnf). Nothing was changed."
    fi
    if [ $task = uninstall ]; then
        uninstall
        exit 0
    fi
    if [ $task = sandbox ] && has_systemd && is_active cinder-docker-driver.service; then
        die "cinder-docker-driver.service is running with your cloud, and --sandbox would take its socket. Stop it first: systemctl disable --now cinder-docker-driver.service cinder-docker-driver.socket"
    fi

    trap cleanup EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    WORK=$(mktemp -d) || die "cannot make a temporary directory."
    find_source
    stage_binary
    [ -n "$DESTDIR" ] || install_tools
    install_files
    say "Installed $VERSION as $DESTDIR$BINARY."
    if [ $task = sandbox ]; then
        sandbox
    elif [ -z "$DESTDIR" ]; then
        start_plugin
    fi
}

# Last, so that a download that was cut off runs nothing.
main "$@"
