//! Links the kernel and the programs with their own scripts and without anything of the host's.
//!
//! The target is the host's (no other needs to be installed), but the link fails as soon as anything pulls in `std` or
//! libc: it proves that the library is `no_std`.

use std::env;

fn main() {
    let here = env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
    for script in ["linker.ld", "user/linker.ld"] {
        println!("cargo::rerun-if-changed={script}");
    }
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie"] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    println!("cargo::rustc-link-arg-bin=kernel=-Wl,-T,{here}/linker.ld");
    println!("cargo::rustc-link-arg-bin=programs=-Wl,-T,{here}/user/linker.ld");
    for argument in ["--build-id=none", "-z,max-page-size=4096", "-z,noexecstack", "--gc-sections"] {
        println!("cargo::rustc-link-arg-bins=-Wl,{argument}");
    }
}
