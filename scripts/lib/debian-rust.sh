# A Rust compiler that builds components where the toolchain has no wasm32-wasip2 and rustup cannot fetch it; read by
# scripts/build-plugins, not run. Expects $tools and what install.sh defines.

# A compiler with the source of its standard library, and what both need.
DEBIAN_RUST=(rustc-web libstd-rust-web-dev libstd-rust-web-1.96 libllvm22 rust-web-src)

# unpack_rust FOLDER: Debian's compiler, unpacked and not installed, without what is never needed of its source.
unpack_rust() {
    local folder=$1 work status=0
    have apt-get || return 1
    say "unpacking Debian's Rust into target/tools (136 MB to fetch, 480 MB of disk, once)"
    rm -rf -- "$folder"; mkdir -p "$folder"
    work=$(mktemp -d "$tools/package.XXXXXX")
    (
        cd "$work" || exit 1
        download "${DEBIAN_RUST[@]}" || exit 1
        for package in ./*.deb; do
            dpkg-deb --fsys-tarfile "$package" | tar -x -C "$folder" --no-wildcards-match-slash \
                --exclude='./usr/src/*/src' --exclude='./usr/src/*/compiler' --exclude='./usr/src/*/tests' || exit 1
        done
        mkdir -p "$folder/usr/lib/rustlib/src"
        ln -s "$folder"/usr/src/rustc-* "$folder/usr/lib/rustlib/src/rust"
    ) || status=1
    rm -rf -- "$work"
    return $status
}

# rust_of_debian TARGET: puts a `cargo` and a `rustc` into PATH that build components for TARGET as the usual ones would.
# The standard library is compiled along; the linker is the toolchain's own.
rust_of_debian() {
    local target=$1 folder="$tools/rust-web" cargo rustc bin libraries
    cargo=$(command -v cargo) rustc=$(command -v rustc)
    bin="$(rustc --print sysroot)/lib/rustlib/$(rustc -vV | sed -n 's/^host: //p')/bin"
    [ -x "$bin/wasm-component-ld" ] && [ -x "$bin/gcc-ld/wasm-ld" ] || return 1
    if [ ! -d "$folder/usr/lib/rustlib/src" ]; then
        [ -z "$offline" ] && unpack_rust "$folder" || { rm -rf -- "$folder"; return 1; }
    fi
    libraries=$(echo "$folder"/usr/lib/*-linux-gnu)
    mkdir -p "$folder/bin"
    cat >"$folder/compiler" <<TEXT
#!/bin/sh
LD_LIBRARY_PATH=$libraries exec $folder/usr/bin/rustc "\$@"
TEXT
    cat >"$folder/bin/rustc" <<TEXT
#!/bin/sh
case "\$*" in
    *target-libdir*$target*) echo "$folder/usr/lib/rustlib" ;;
    *) exec $rustc "\$@" ;;
esac
TEXT
    cat >"$folder/bin/cargo" <<TEXT
#!/bin/sh
case " \$* " in *" $target "*) ;; *) exec $cargo "\$@" ;; esac
for word; do
    shift
    [ "\$word" != $target ] || word=wasm32-unknown-unknown
    set -- "\$@" "\$word"
done
export RUSTC=$folder/compiler RUSTC_BOOTSTRAP=1 PATH="$bin/gcc-ld:\$PATH"
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER=$bin/wasm-component-ld
export CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_RUSTFLAGS=-Clink-arg=--wasi-adapter=none
exec $cargo -Zbuild-std=std,panic_abort "\$@"
TEXT
    chmod +x "$folder/compiler" "$folder/bin/rustc" "$folder/bin/cargo"
    export PATH="$folder/bin:$PATH"
}
