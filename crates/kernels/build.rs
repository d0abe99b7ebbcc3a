//! Compiles `cpp/` against the headers of libtorch. Which library the linker takes is up to torch-sys.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    println!("cargo:rerun-if-changed=cpp");
    let torch = std::env::var_os("LIBTORCH").map(PathBuf::from).filter(|torch| torch.join("include").is_dir());
    let include = torch.expect("LIBTORCH names no libtorch with headers: `make setup` installs it").join("include");
    cc::Build::new()
        .cpp(true)
        .std("c++20")
        // Without optimisation, whatever the profile, the loops are no gain.
        .opt_level(3)
        .flag("-fopenmp-simd")
        // Products may be fused into sums; nothing is re-ordered but the sums that say so.
        .flag("-ffp-contract=fast")
        .flag("-fno-math-errno")
        // The headers are not ours.
        .flag("-isystem")
        .flag(include.to_str().expect("a path in UTF-8"))
        .flag("-isystem")
        .flag(include.join("torch/csrc/api/include").to_str().expect("a path in UTF-8"))
        .files(["cpp/affine_relu.cpp", "cpp/unit_distance.cpp", "cpp/context.cpp"])
        .compile("basin_kernels");
}
