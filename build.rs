//! Tells the linker in which order the library's code is to be, and why: see `login.ld`.

fn main() {
    println!("cargo::rerun-if-changed=login.ld");
    let target = |what: &str| std::env::var(format!("CARGO_CFG_TARGET_{what}")).unwrap_or_default();
    // On others the procedure linkage table is not what the script takes it for.
    if target("OS") == "linux" && ["x86_64", "aarch64"].contains(&target("ARCH").as_str()) {
        let root = std::env::var("CARGO_MANIFEST_DIR").expect("cargo says where the package is");
        println!("cargo::rustc-cdylib-link-arg=-T{root}/login.ld");
    }
}
