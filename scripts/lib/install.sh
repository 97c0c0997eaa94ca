# How scripts install things; read by them, not run. Expects $tools, where everything lands but Debian's packages.

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() { say "$*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# apt ARG...: apt-get as root, or what to do by hand.
apt() {
    local as_root=()
    have apt-get || die "no apt-get here; do by hand what this does on Debian: apt-get $*"
    if [ "$(id -u)" != 0 ]; then
        have sudo || die "neither root nor sudo; ask an administrator to run: apt-get $*"
        as_root=(sudo)
    fi
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q "$@" >&2
}

# packages NAME...: installs Debian packages; refreshes the package lists only when that fails.
packages() {
    say "installing the Debian packages: $*"
    local package
    for package in "$@"; do
        apt install -y --no-install-recommends "$package" \
            || { apt update && apt install -y --no-install-recommends "$package"; } \
            || die "could not install $package"
    done
}

# download PACKAGE...: Debian packages into this folder; refreshes the package lists only when that fails. Root would hand
# the download to the user _apt, who may not enter the folder.
download() {
    local get=(apt-get -q -o APT::Sandbox::User=root download)
    "${get[@]}" "$@" >&2 || { apt update && "${get[@]}" "$@" >&2; }
}

# program PACKAGE NAME: takes usr/bin/NAME out of a Debian package without installing it, so that no service starts.
program() {
    local package=$1 name=$2 work
    ! have "$name" || return 0
    have apt-get || die "no $name here; install it by hand (Debian has it in the package $package)"
    say "fetching $name out of the Debian package $package"
    mkdir -p "$tools/bin"
    work=$(mktemp -d "$tools/package.XXXXXX")
    (
        cd "$work"
        download "$package" || die "could not download the Debian package $package"
        dpkg-deb -x ./*.deb . && mv "usr/bin/$name" "$tools/bin/$name"
    )
    rm -rf -- "$work"
}

# cargo_tool NAME VERSION OPTION...: builds a cargo command into target/tools. A debug build: it is quick, and fast enough.
cargo_tool() {
    local name=$1 version=$2
    shift 2
    ! have "$name" || return 0
    say "building $name $version into target/tools (once, one to three minutes)"
    CARGO_TARGET_DIR="$tools/build" CARGO_PROFILE_DEV_DEBUG=0 \
        cargo install --quiet --locked --debug --root "$tools" "$name@$version" "$@" >&2
    rm -rf -- "$tools/build"
}

# component NAME COMMAND: a part of the Rust toolchain.
component() {
    ! cargo "$2" --version >/dev/null 2>&1 || return 0
    have rustup || die "cargo $2 is missing and there is no rustup to add it; install your toolchain's $1"
    say "adding the Rust component $1"
    rustup component add "$1" >&2
}

# unpack_debian FOLDER PACKAGE...: unpacks Debian packages into a folder without installing them; false when it cannot.
unpack_debian() {
    local folder=$1 work status=0
    shift
    have apt-get || return 1
    mkdir -p "$folder"
    work=$(mktemp -d "$tools/package.XXXXXX")
    (
        cd "$work"
        download "$@" || exit 1
        for package in ./*.deb; do dpkg-deb -x "$package" "$folder" || exit 1; done
    ) || status=1
    rm -rf -- "$work"
    return "$status"
}
