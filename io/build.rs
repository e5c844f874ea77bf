//! Compiles the pinhole and writes its Rust skeleton.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;

use libbpf_cargo::SkeletonBuilder;

const SOURCE: &str = "bpf/pinhole.bpf.c";

fn main() {
    println!("cargo:rerun-if-changed={SOURCE}");
    println!("cargo:rerun-if-env-changed=CLANG");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("pinhole.skel.rs");
    let arch = env::var("CARGO_CFG_TARGET_ARCH").expect("cargo sets the target");
    // Debian keeps <asm/types.h> under the multiarch folder, which clang does not search for a BPF target.
    let multiarch = match arch.as_str() {
        "riscv64" => "riscv64-linux-gnu".to_owned(),
        "powerpc64" => "powerpc64le-linux-gnu".to_owned(),
        other => format!("{other}-linux-gnu"),
    };
    let mut builder = SkeletonBuilder::new();
    builder
        .source(SOURCE)
        .clang_args([OsString::from(format!("-I/usr/include/{multiarch}")), OsString::from("-Werror")]);
    if let Some(clang) = env::var_os("CLANG") {
        builder.clang(clang);
    }
    if let Err(error) = builder.build_and_generate(&out) {
        panic!("{SOURCE} does not compile (needs clang, libelf and the kernel's user headers): {error:#}");
    }
}
