//! Compiles the .proto files without protoc, and keeps their descriptors for reflection and for decoding records.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

/// What clients see, and reflection tells them.
const SERVICES: &[&str] = &["databroker/databroker.proto", "registry/registry.proto"];

const INTERNAL: &[&str] = &[
    "databroker/internal/v1/command.proto",
    "databroker/internal/v1/store.proto",
    "databroker/internal/v1/raft.proto",
    "databroker/internal/v1/admin.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    fs::write(out.join("services.bin"), protox::compile(SERVICES, ["proto"])?.encode_to_vec())?;
    let all = protox::compile([SERVICES, INTERNAL].concat(), ["proto"])?;
    // A record is carried as the bytes it has on the wire: encoded once, never re-encoded (see `EncodedRecord`).
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".databroker.Record", "crate::EncodedRecord")
        .compile_fds(all)?;

    let records: Vec<PathBuf> = fs::read_dir("proto/records")?
        .map(|entry| Ok(PathBuf::from("records").join(entry?.file_name())))
        .collect::<Result<_, std::io::Error>>()?;
    let records =
        protox::Compiler::new(["proto"])?.include_imports(true).open_files(records)?.encode_file_descriptor_set();
    fs::write(out.join("records.bin"), records)?;
    Ok(())
}
