//! Copies of a data folder, spoilt at random: cut short, overwritten, or zeroed from some byte on.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use rand::{Rng as _, RngExt as _, rngs::SmallRng};

/// What was done to one file.
pub struct Damage {
    file: PathBuf,
    at: usize,
    kind: &'static str,
    bytes: usize,
    of: usize,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, at, kind, bytes, of } = self;
        write!(f, "{}: {kind} {bytes} bytes at {at} of {of}", file.display())
    }
}

impl Damage {
    /// Spoils one random file that is not empty.
    pub fn inflict(folder: &Path, random: &mut SmallRng) -> Self {
        let files = files(folder);
        let file = files[random.random_range(0..files.len())].clone();
        let mut content = fs::read(&file).unwrap();
        let of = content.len();
        // Files are allocated ahead: beyond the last byte that says something there is nothing to damage.
        let used = content.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        // The end is where a crash leaves its marks, so half of the damage goes there.
        let from = if random.random_bool(0.5) { used.saturating_sub(2_000) } else { 0 };
        let at = random.random_range(from..used);
        let (kind, bytes) = match random.random_range(0..3) {
            0 => {
                content.truncate(at);
                ("cut off", of - at)
            }
            1 => {
                let bytes = random.random_range(1..=64).min(used - at);
                random.fill_bytes(&mut content[at..at + bytes]);
                ("overwritten", bytes)
            }
            _ => {
                content[at..].fill(0);
                ("zeroed", of - at)
            }
        };
        fs::write(&file, content).unwrap();
        Self { file: file.strip_prefix(folder).unwrap().to_owned(), at, kind, bytes, of }
    }
}

/// Everything the broker must read back; the address is written anew, and the secret is not its own to judge.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let name = entry.file_name();
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            } else if name != "address" && name != "shared_secret" && entry.metadata().unwrap().len() > 0 {
                found.push(entry.path());
            }
        }
    }
    // The order of a folder's entries is the file system's: the seed alone must decide.
    found.sort();
    found
}

/// Copies a folder with all files that are in it. The sockets of a killed broker are left behind: what they belonged to
/// is gone, and they cannot be copied.
pub fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy_folder(&entry.path(), &target);
        } else if kind.is_file() {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}
