//! Tells the linker in which order the library's code is to be, and why: see `login.ld`.

fn main() {
    println!("cargo::rerun-if-changed=login.ld");
    if std::env::var("CARGO_CFG_TARGET_OS").as_deref() == Ok("linux") {
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
        println!("cargo::rustc-cdylib-link-arg=-T{root}/login.ld");
    }
}
