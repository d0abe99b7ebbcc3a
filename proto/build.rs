//! Compiles the messages with a Rust compiler for protobuf: no `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=basin");
    let files = protox::compile(["basin/v1/job.proto", "basin/v1/event.proto", "basin/v1/snapshot.proto"], ["."])?;
    let mut config = prost_build::Config::new();
    config.btree_map(["."]);
    for message in [".basin.v1.Alive", ".basin.v1.Box"] {
        config.message_attribute(message, "#[derive(serde::Serialize, serde::Deserialize)]");
    }
    // For the coordinator alone: JSON readers have no whole numbers of this size.
    for field in ["jobs", "lists_jobs"] {
        config.field_attribute(format!(".basin.v1.Alive.{field}"), "#[serde(skip)]");
    }
    config.message_attribute(".basin.v1.Alive", "#[serde(default)]").compile_fds(files)?;
    Ok(())
}
