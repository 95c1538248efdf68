//! What the disk engine keeps when its process is killed, and what comes of damaged files.
//!
//! Guaranteed and tested here:
//! - Killed at any moment: every batch whose commit had returned is there, and what is there is a prefix of the
//!   batches. (What a power loss leaves no kill can show: that rests on the sync.)
//! - Files cut or garbled anywhere: an open that is refused, a read that fails, or a prefix. Never a mixture.
//!
//! Not guaranteed, for this is what fjall really does: the prefix may be *shorter*, without an error. A newest journal
//! that is cut, or has zeros in its middle, silently ends there, and unless a table has a later batch nothing tells.
//! So whoever needs every synced batch (the Raft log) notes outside of the database how far it got, and whoever can do
//! with a prefix (the store) must be able to get the rest again.
//!
//! Also seen, about once in a thousand damaged files: a garbled length makes fjall ask for more memory than there is, and
//! the process aborts at open instead of returning an error.
//!
//! `DATABROKER_CRASH_SEED` repeats a run, `DATABROKER_CRASH_ROUNDS` makes it longer.

use std::{
    collections::BTreeMap,
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io::{BufRead, BufReader, Write},
    os::unix::{fs::FileExt, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use super::{
    fjall::{Fjall, FjallOptions},
    *,
};

const DATA: Space = Space(0);
const NUMBER: Space = Space(1);
const ALL: KeyBounds = (Bound::Unbounded, Bound::Unbounded);

/// Tells the child process its folder.
const FOLDER: &str = "DATABROKER_CRASH_FOLDER";

/// Batches whose data is live: each batch removes the data of the one so many before it.
const LIVE: u64 = 64;

/// The values of batches come in blocks of small and large ones: small ones so that kills meet many batches, large ones
/// so that they meet full journals.
const BLOCK: u64 = 450;
const LARGE_BYTES: usize = 160 << 10;

fn open(folder: &Path, memtable_bytes: u64) -> Result<Fjall, Error> {
    let options = FjallOptions { cache_bytes: 1 << 20, memtable_bytes, journals_bytes_max: 0, worker_threads: 1 };
    Fjall::open(folder, &["data", "number"], options)
}

/// All of batch `n` follows from `n`.
fn value(n: u64) -> Bytes {
    let large = n / BLOCK % 2 == 1;
    let length = if large { LARGE_BYTES } else { (n * 7919 % 2000) as usize };
    [&n.to_be_bytes()[..], &vec![n as u8; length]].concat().into()
}

fn batch(n: u64) -> Batch {
    let change = |space, key: &[u8], value| Change { space, key: Bytes::copy_from_slice(key), value };
    let number = change(NUMBER, b"number", Some(n.to_be_bytes().to_vec().into()));
    let data = change(DATA, &n.to_be_bytes(), Some(value(n)));
    let old = n.checked_sub(LIVE).map(|old| change(DATA, &old.to_be_bytes(), None));
    [number, data].into_iter().chain(old).collect()
}

/// What a store holds.
#[derive(Debug, PartialEq, Eq)]
enum Contents {
    /// The batches up to this one, whole; 0 for none.
    Prefix(u64),
    /// Batches in part, or with others missing before them.
    Mixture { number: u64, data: Vec<u64> },
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().unwrap())
}

fn read(engine: &Fjall) -> Result<Contents, Error> {
    let view = engine.view()?;
    let number = view.get(NUMBER, b"number")?.map_or(0, |bytes| number(&bytes));
    let data = view.range(DATA, ALL).collect::<Result<BTreeMap<_, _>, _>>()?;
    let live = (number.saturating_sub(LIVE - 1).max(1)..=number).map(|n| (n.to_be_bytes().to_vec().into(), value(n)));
    let prefix = data == live.collect();
    let data = || data.keys().map(|key| self::number(key)).collect();
    Ok(if prefix { Contents::Prefix(number) } else { Contents::Mixture { number, data: data() } })
}

/// Random numbers that are the same for the same seed.
struct Dice(u64);

impl Dice {
    fn seeded() -> Self {
        let given = std::env::var("DATABROKER_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| RandomState::new().build_hasher().finish());
        println!("DATABROKER_CRASH_SEED={seed}");
        Self(seed)
    }

    /// splitmix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
}

fn rounds(default: u64) -> u64 {
    std::env::var("DATABROKER_CRASH_ROUNDS").map_or(default, |rounds| rounds.parse().unwrap())
}

/// The process that is killed: commits on from where the folder stands and reports each batch.
#[test]
#[ignore = "started by tests below"]
fn committer() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let engine = open(Path::new(&folder), 1 << 20).unwrap();
    let Contents::Prefix(start) = read(&engine).unwrap() else { panic!("not a prefix") };
    // The harness leaves the cursor within a line.
    println!();
    for n in start + 1.. {
        engine.commit(batch(n), if n % 3 == 0 { Durability::Written } else { Durability::Synced }).unwrap();
        writeln!(std::io::stdout(), "committed {n}").unwrap();
    }
}

/// Runs one of the ignored tests in a process of its own.
fn child(test: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([&format!("store::engine::crash::{test}"), "--exact", "--ignored", "--nocapture"]);
    command.env(FOLDER, folder).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Lets a child report so many batches, kills it a random moment later, and returns the last batch it reported.
fn commit_until_killed(folder: &Path, reports_min: u64, dice: &mut Dice) -> Option<u64> {
    let mut child = child("committer", folder).stderr(Stdio::null()).spawn().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut reports = lines.filter_map(|line| line.unwrap().strip_prefix("committed ")?.parse::<u64>().ok());
    let last = reports.by_ref().take(reports_min as usize).last();
    std::thread::sleep(Duration::from_micros(dice.below(if reports_min == 0 { 40_000 } else { 3_000 })));
    child.kill().unwrap();
    assert_eq!(child.wait().unwrap().signal(), Some(9), "the child ended by itself");
    reports.last().or(last)
}

/// Opens what a killed child left and returns how far it had come, having checked that against its reports.
fn found_after(reported: u64, folder: &Path) -> u64 {
    let Contents::Prefix(found) = read(&open(folder, 1 << 20).unwrap()).unwrap() else { panic!("not a prefix") };
    // The batch under way may have come through, too.
    assert!(found == reported || found == reported + 1, "{reported} reported, {found} found");
    found
}

#[test]
fn a_killed_process_leaves_a_prefix_with_every_batch_it_reported() {
    let mut dice = Dice::seeded();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("store");
    let mut found = 0;
    for _ in 0..rounds(15) {
        // Every fourth one dies while it opens.
        let reports_min = dice.below(120) * dice.below(4).min(1);
        let reported = commit_until_killed(&path, reports_min, &mut dice).unwrap_or(found);
        found = found_after(reported, &path);
    }
    assert!(found > 0, "no child came to commit");
}

#[test]
fn a_process_killed_at_its_first_start_leaves_a_folder_that_opens() {
    let mut dice = Dice::seeded();
    let folder = tempfile::tempdir().unwrap();
    for round in 0..rounds(15) {
        let path = folder.path().join(format!("store {round}"));
        let reported = commit_until_killed(&path, 0, &mut dice).unwrap_or(0);
        found_after(reported, &path);
    }
}

#[test]
fn a_first_start_broken_off_after_any_file_is_taken_up_again() {
    for (version, journal) in [(None, true), (Some(&b""[..]), true), (Some(b"FJL"), true), (None, false)] {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("keyspaces")).unwrap();
        fs::write(folder.path().join("lock"), "").unwrap();
        if journal {
            fs::write(folder.path().join("0.jnl"), [0; 1000]).unwrap();
        }
        if let Some(version) = version {
            fs::write(folder.path().join("version"), version).unwrap();
        }
        assert_eq!(reopened(folder.path()).unwrap(), 0, "{version:?} {journal}");
    }
}

#[test]
fn a_journal_with_batches_is_never_taken_for_a_first_start() {
    let folder = tempfile::tempdir().unwrap();
    store_with(1..=3, 1 << 20, folder.path());
    let journal = fs::read(folder.path().join("0.jnl")).unwrap();
    fs::remove_file(folder.path().join("version")).unwrap();
    fs::remove_dir_all(folder.path().join("keyspaces")).unwrap();
    assert!(matches!(open(folder.path(), 1 << 20), Err(Error::Open { .. })));
    assert!(fs::read(folder.path().join("0.jnl")).unwrap() == journal);
}

/// A store with these batches, part of them in tables, the rest in the journal.
fn store_with(batches: std::ops::RangeInclusive<u64>, memtable_bytes: u64, folder: &Path) {
    let engine = open(folder, memtable_bytes).unwrap();
    batches.for_each(|n| engine.commit(batch(n), Durability::Written).unwrap());
}

fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files =
        entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect::<Vec<_>>();
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in files_in(from) {
        let to = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
}

fn journals_in(folder: &Path) -> Vec<PathBuf> {
    files_in(folder).into_iter().filter(|file| file.extension().is_some_and(|extension| extension == "jnl")).collect()
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Cut,
    FlippedBit,
    Zeros,
    Noise,
}

/// Damages a file at a random place and says where.
fn damage(file: &Path, kind: Damage, dice: &mut Dice) -> u64 {
    let length = file.metadata().unwrap().len();
    let at = dice.below(length);
    let opened = fs::File::options().read(true).write(true).open(file).unwrap();
    let mut bytes = vec![0; (length - at).min(512) as usize];
    opened.read_exact_at(&mut bytes, at).unwrap();
    match kind {
        Damage::Cut => return opened.set_len(at).map(|()| at).unwrap(),
        Damage::FlippedBit => bytes.iter_mut().take(1).for_each(|byte| *byte ^= 1 << dice.below(8)),
        Damage::Zeros => bytes.fill(0),
        Damage::Noise => bytes.iter_mut().take(64).for_each(|byte| *byte = dice.next() as u8),
    }
    opened.write_all_at(&bytes, at).unwrap();
    at
}

/// What a folder holds once opened, or why it cannot be told.
fn reopened(folder: &Path) -> Result<u64, Error> {
    match read(&open(folder, 64 << 10)?)? {
        Contents::Prefix(found) => Ok(found),
        mixture => panic!("{mixture:?}"),
    }
}

#[test]
fn a_newest_journal_cut_after_what_is_in_tables_silently_leaves_a_shorter_prefix() {
    const BATCHES: u64 = 400;
    let mut dice = Dice::seeded();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    store_with(1..=BATCHES, 64 << 10, &whole);
    // A copy: an engine that opens it may write all of the journal into tables.
    let opened = folder.path().join("opened");
    copy(&whole, &opened);
    assert_eq!(reopened(&opened).unwrap(), BATCHES);
    let (mut shorter, mut round) = (0, 0);
    // As often as it takes until a cut falls between what is in tables and the end.
    while round < rounds(20) || (shorter == 0 && round < 1_000) {
        round += 1;
        let cut = folder.path().join(format!("cut {round}"));
        copy(&whole, &cut);
        damage(&journals_in(&cut)[0], Damage::Cut, &mut dice);
        match reopened(&cut) {
            Ok(found) => shorter += u64::from(found < BATCHES),
            // It was cut before what is in tables.
            Err(error) => assert!(error.to_string().contains("the tables have batch"), "{error}"),
        }
        fs::remove_dir_all(&cut).unwrap();
    }
    assert!(shorter > 0, "fjall keeps what was cut off, or says so?");
}

#[test]
fn damage_anywhere_leaves_a_prefix_or_an_error() {
    const BATCHES: u64 = 400;
    let mut dice = Dice::seeded();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    store_with(1..=BATCHES, 64 << 10, &whole);
    assert_eq!(reopened(&whole).unwrap(), BATCHES);
    for round in 0..rounds(60) {
        let damaged = folder.path().join("damaged");
        copy(&whole, &damaged);
        // The journal as often as all else together.
        let files = if round % 2 == 0 { journals_in(&damaged) } else { files_in(&damaged) };
        let file = &files[dice.below(files.len() as u64) as usize];
        let kind = [Damage::Cut, Damage::FlippedBit, Damage::Zeros, Damage::Noise][dice.below(4) as usize];
        let at = damage(file, kind, &mut dice);
        let name = file.strip_prefix(&damaged).unwrap().display();
        println!("{kind:?} at byte {at} of {name}: {}", judged(&damaged));
        fs::remove_dir_all(&damaged).unwrap();
    }
}

/// Says what a folder holds.
#[test]
#[ignore = "started by the test above"]
fn judge() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    println!("\njudged {:?}", reopened(Path::new(&folder)));
}

/// What another process finds in a folder. A process of its own, for in rare cases a garbled length makes fjall ask for
/// more memory than there is, and that is the end of the process.
fn judged(folder: &Path) -> String {
    let output = child("judge", folder).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let judged = stdout.lines().find_map(|line| line.strip_prefix("judged "));
    let out_of_memory = stderr.lines().find(|line| line.starts_with("memory allocation of"));
    judged.or(out_of_memory).unwrap_or_else(|| panic!("{}: {stdout}{stderr}", output.status)).to_owned()
}

#[test]
fn an_older_journal_that_was_cut_is_refused() {
    let mut dice = Dice::seeded();
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    // Nothing in tables, and two journals: the older one ends with batch 150.
    store_with(1..=150, 16 << 20, &whole);
    assert_eq!(reopened(&whole).unwrap(), 150);
    let (older, newer) = (whole.join("0.jnl"), whole.join("1.jnl"));
    let older_end = older.metadata().unwrap().len();
    store_with(151..=300, 16 << 20, &whole);
    assert_eq!(reopened(&whole).unwrap(), 300);
    let bytes = fs::read(&older).unwrap();
    fs::write(&newer, &bytes[older_end as usize..]).unwrap();
    fs::write(&older, &bytes[..older_end as usize]).unwrap();
    for _ in 0..rounds(10) {
        let damaged = folder.path().join("damaged");
        copy(&whole, &damaged);
        let at = damage(&damaged.join("0.jnl"), Damage::Cut, &mut dice);
        let refused = open(&damaged, 16 << 20).err().map(|error| error.to_string());
        assert!(refused.as_ref().is_some_and(|refused| refused.contains("is damaged")), "{at}: {refused:?}");
        fs::remove_dir_all(&damaged).unwrap();
    }
    assert_eq!(reopened(&whole).unwrap(), 300);
}
