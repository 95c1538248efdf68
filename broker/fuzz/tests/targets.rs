//! That every file with a fuzz target is a target: `e2e/test fuzz` goes by the files. Not here: what they find.
#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, fs, path::Path};

#[test]
fn every_file_is_a_target_and_every_target_has_its_file() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest = fs::read_to_string(folder.join("Cargo.toml")).unwrap();
    let declared =
        manifest.lines().filter_map(|line| line.strip_prefix("path = \"fuzz_targets/")?.strip_suffix(".rs\""));
    let files = fs::read_dir(folder.join("fuzz_targets")).unwrap();
    let files = files.filter_map(|file| Some(file.unwrap().path().file_stem()?.to_str()?.to_owned()));
    let declared: BTreeSet<_> = declared.map(str::to_owned).collect();
    assert_eq!(files.collect::<BTreeSet<_>>(), declared);
}
