//! Compiles the messages with a Rust compiler for protobuf: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=basin");
    let files = protox::compile(["basin/v1/job.proto", "basin/v1/event.proto", "basin/v1/snapshot.proto"], ["."])?;
    prost_build::Config::new().btree_map(["."]).compile_fds(files)?;
    Ok(())
}
