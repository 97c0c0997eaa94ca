# The Rust compiler of Debian for WebAssembly; read by scripts/build-plugins, not run. Expects $tools, $offline, say and have.

# What rust_of_debian unpacks: a compiler with the source of its standard library, and what both need.
DEBIAN_RUST=(rustc-web libstd-rust-web-dev libstd-rust-web-1.96 libllvm22 rust-web-src)

# A compiler from Debian, unpacked and not installed, that comes with the source of its standard library; the linker is
# that of the toolchain. Used where rustup cannot fetch what is compiled already.
rust_of_debian() {
    local folder="$tools/rust-web" bin work
    bin="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin"
    [ -x "$bin/wasm-component-ld" ] && [ -x "$bin/gcc-ld/wasm-ld" ] || return 1
    if [ ! -x "$folder/rustc" ]; then
        [ -z "$offline" ] && have apt-get || return 1
        say "unpacking Debian's Rust into target/tools (136 MB to fetch, 480 MB of disk, once)"
        rm -rf -- "$folder"; mkdir -p "$folder"
        work=$(mktemp -d "$tools/package.XXXXXX")
        (
            cd "$work"
            apt-get -q -o APT::Sandbox::User=root download "${DEBIAN_RUST[@]}" >&2
            for package in ./*.deb; do
                dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --no-wildcards-match-slash \
                    --exclude='./usr/src/*/src' --exclude='./usr/src/*/compiler' --exclude='./usr/src/*/tests'
            done
            mkdir -p "$folder/usr/lib/rustlib/src"
            ln -s "$folder"/usr/src/rustc-* "$folder/usr/lib/rustlib/src/rust"
        ) || { rm -rf -- "$work"; return 1; }
        rm -rf -- "$work"
        printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' "$(echo "$folder"/usr/lib/*-linux-gnu)" "$folder/usr/bin/rustc" \
            >"$folder/rustc"
        chmod +x "$folder/rustc"
    fi
    from_debian=("RUSTC=$folder/rustc" RUSTC_BOOTSTRAP=1 "PATH=$bin/gcc-ld:$PATH"
        "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$bin/wasm-component-ld"
        "CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=-Clink-arg=--wasi-adapter=none")
}
