//! Compiles the .proto files without protoc, and keeps their descriptors for reflection and for decoding records.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const SERVICES: &[&str] = &[
    "databroker/databroker.proto",
    "registry/registry.proto",
    "databroker/internal/v1/command.proto",
    "databroker/internal/v1/store.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(env::var("OUT_DIR")?);

    let services = protox::compile(SERVICES, ["proto"])?;
    fs::write(out.join("services.bin"), services.encode_to_vec())?;
    // A record is carried as the bytes it has on the wire: encoded once, never re-encoded (see `EncodedRecord`).
    tonic_prost_build::configure()
        .bytes(".")
        .extern_path(".databroker.Record", "crate::EncodedRecord")
        .compile_fds(services)?;

    let records: Vec<PathBuf> = fs::read_dir("proto/records")?
        .map(|entry| Ok(PathBuf::from("records").join(entry?.file_name())))
        .collect::<Result<_, std::io::Error>>()?;
    let records =
        protox::Compiler::new(["proto"])?.include_imports(true).open_files(records)?.encode_file_descriptor_set();
    fs::write(out.join("records.bin"), records)?;
    Ok(())
}
