//! The test's end of the faulty disk: see `shim.rs` for what it does and how.

// Each test that shares it uses a part.
#![allow(dead_code)]

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

// The places of the numbers in the file of orders; `shim.rs` has the same list.
const ROOM: u64 = 0;
const SYNC_DELAY_MS: u64 = 1;
const SYNCS_FAIL: u64 = 2;
const WRITES: u64 = 3;
const WRITES_REFUSED: u64 = 4;
const SYNCS: u64 = 5;
const SYNCS_DELAYED: u64 = 6;
const SYNCS_FAILED: u64 = 7;
const PLACES: u64 = 8;

/// The variables with which a process uses faulty disks below a directory, given absolutely. `None`, with
/// a line that says so, where there is no such thing.
pub(crate) fn environment(root: &Path) -> Option<[(&'static str, OsString); 2]> {
    if !cfg!(all(target_os = "linux", target_env = "gnu")) {
        println!("skipped: full, slow and broken disks are only made on Linux with glibc");
        return None;
    }
    let root = root.canonicalize().expect("the directory is there");
    Some([
        ("LD_PRELOAD", shim().as_os_str().to_owned()),
        ("FAULTY_DISK_ROOT", root.into_os_string()),
    ])
}

/// The compiled shim.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let source = Path::new(file!());
        let source = workspace().join(source.with_file_name("shim.rs"));
        let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        // Other tests may be loading it, or compiling it, at the same time.
        let (built, library) = (
            target.join(format!("libfaulty_disk-{}.so", std::process::id())),
            target.join("libfaulty_disk.so"),
        );
        let output = Command::new(rustc())
            .args([
                "--edition",
                "2024",
                "--crate-type",
                "cdylib",
                "--crate-name",
                "faulty_disk",
            ])
            .args(["-C", "opt-level=1", "-C", "panic=abort"])
            .arg("-o")
            .args([&built, &source])
            .output()
            .expect("rustc runs: it has just compiled this test");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "the faulty disk does not compile:\n{said}"
        );
        std::fs::rename(&built, &library).expect("a directory of our own");
        library
    })
}

/// `file!()` is relative to the workspace, two levels above any crate.
fn workspace() -> &'static Path {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .ancestors()
        .nth(2)
        .expect("crates are in `crates/`")
}

/// The compiler of the toolchain that runs the test.
fn rustc() -> PathBuf {
    let beside_cargo =
        std::env::var_os("CARGO").map(|cargo| Path::new(&cargo).with_file_name("rustc"));
    beside_cargo
        .filter(|rustc| rustc.exists())
        .unwrap_or_else(|| PathBuf::from("rustc"))
}

/// The orders for one process's disk, and what became of them. It concerns files below `HOME/data`.
pub(crate) struct FaultyDisk {
    numbers: File,
}

/// What the disk has done to its process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Counts {
    /// Writes that were let through, whole or cut short.
    pub(crate) writes: u64,
    /// Writes and creations that found no room.
    pub(crate) writes_refused: u64,
    /// Syncs, of which some were delayed and some failed.
    pub(crate) syncs: u64,
    pub(crate) syncs_delayed: u64,
    pub(crate) syncs_failed: u64,
}

impl FaultyDisk {
    /// A sound disk for the process whose files are below `home/data`. Before that process starts.
    pub(crate) fn new(home: &Path) -> FaultyDisk {
        std::fs::create_dir_all(home).expect("a directory of the test's");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let numbers = options
            .open(home.join("faults"))
            .expect("a file of the test's");
        numbers.set_len(PLACES * 8).expect("eight numbers");
        let disk = FaultyDisk { numbers };
        disk.set_room(None);
        disk
    }

    /// How many bytes may still be written; `None`: any number.
    pub(crate) fn set_room(&self, bytes: Option<u64>) {
        self.set(ROOM, bytes.unwrap_or(u64::MAX));
    }

    /// How many bytes may still be written, if there is an end.
    pub(crate) fn room(&self) -> Option<u64> {
        Some(self.get(ROOM)).filter(|&room| room != u64::MAX)
    }

    /// How long each sync takes, at least.
    pub(crate) fn set_sync_delay(&self, delay: Duration) {
        self.set(SYNC_DELAY_MS, delay.as_millis() as u64);
    }

    /// Whether each sync fails.
    pub(crate) fn set_syncs_fail(&self, fail: bool) {
        self.set(SYNCS_FAIL, fail.into());
    }

    /// What has happened.
    pub(crate) fn counts(&self) -> Counts {
        Counts {
            writes: self.get(WRITES),
            writes_refused: self.get(WRITES_REFUSED),
            syncs: self.get(SYNCS),
            syncs_delayed: self.get(SYNCS_DELAYED),
            syncs_failed: self.get(SYNCS_FAILED),
        }
    }

    /// The process has the file in its memory, where this appears at once.
    fn set(&self, place: u64, number: u64) {
        let bytes = number.to_ne_bytes();
        self.numbers
            .write_all_at(&bytes, place * 8)
            .expect("a mapped file");
    }

    fn get(&self, place: u64) -> u64 {
        let mut bytes = [0; 8];
        self.numbers
            .read_exact_at(&mut bytes, place * 8)
            .expect("a mapped file");
        u64::from_ne_bytes(bytes)
    }
}
