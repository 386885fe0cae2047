//! Compiles `power.cc` against the headers of the RocksDB that is linked, with the defines that its classes depend on.

use std::env;
use std::path::PathBuf;

fn main() {
    println!("cargo::rerun-if-changed=src/power.cc");
    // Said by the build script of librocksdb-sys, whose sources are headers and library in one.
    let manifest = env::var_os("DEP_ROCKSDB_CARGO_MANIFEST_DIR").expect("librocksdb-sys says where its sources are");
    let sources = PathBuf::from(manifest).join("rocksdb");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        .file("src/power.cc")
        .include(sources.join("include"))
        .include(&sources)
        .define("NDEBUG", "1")
        .define("OS_LINUX", None)
        .define("ROCKSDB_PLATFORM_POSIX", None)
        .define("ROCKSDB_LIB_IO_POSIX", None)
        .define("ROCKSDB_SCHED_GETCPU_PRESENT", None)
        .define("ROCKSDB_FALLOCATE_PRESENT", None)
        .define("ROCKSDB_RANGESYNC_PRESENT", None)
        .flag("-include")
        .flag("cstdint")
        .warnings(false)
        .compile("longboat_power");
}
