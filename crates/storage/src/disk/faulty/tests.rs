use super::*;
use proptest::prelude::*;

fn disk_with(path: &str, bytes: &[u8]) -> (FaultyDisk, Box<dyn DiskFile>) {
    let disk = FaultyDisk::new(1);
    disk.create_dir(parent(path)).unwrap();
    let mut file = disk.create(path).unwrap();
    file.append(bytes).unwrap();
    (disk, file)
}

#[test]
fn keeps_the_contract_of_a_disk() {
    crate::disk::tests::conformance(&FaultyDisk::new(1));
}

#[test]
fn what_was_synced_survives_everything() {
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed);
        disk.create_dir("d").unwrap();
        let mut file = disk.create("d/a.tmp").unwrap();
        file.append(b"synced").unwrap();
        file.sync().unwrap();
        disk.rename("d/a.tmp", "d/a").unwrap();
        disk.sync_dir("d").unwrap();
        disk.sync_dir("").unwrap();
        file.append(b"+unsynced").unwrap();
        disk.crash();
        let found = disk.read("d/a").unwrap();
        assert!(found.starts_with(b"synced"));
        assert!(b"synced+unsynced".starts_with(&found[..]));
        assert_eq!(disk.files().len(), 1);
    }
}

#[test]
fn a_process_crash_loses_nothing_but_makes_nothing_durable() {
    let mut losses = 0;
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed);
        disk.create("a").unwrap().append(b"bytes").unwrap();
        disk.process_crash();
        assert_eq!(disk.read("a").unwrap(), b"bytes");
        disk.crash();
        losses += u32::from(disk.read("a").is_err());
    }
    assert!((10..40).contains(&losses), "{losses} of 50 names lost");
}

/// Each fate of an unsynced append, creation, rename and removal occurs, and no other.
#[test]
fn unsynced_changes_survive_or_not() {
    let mut contents = std::collections::BTreeSet::new();
    let mut names = std::collections::BTreeSet::new();
    for seed in 0..400 {
        let disk = FaultyDisk::new(seed);
        for path in ["keep", "gone", "old"] {
            disk.create(path).unwrap();
        }
        let mut file = disk.open("keep").unwrap();
        disk.sync_dir("").unwrap();
        file.append(b"ab").unwrap();
        file.append(b"cd").unwrap();
        disk.remove("gone").unwrap();
        disk.rename("old", "new").unwrap();
        disk.crash();
        contents.insert(disk.read("keep").unwrap());
        names.insert(disk.list("").unwrap().join(" "));
    }
    let expected: Vec<&[u8]> = vec![b"", b"a", b"ab", b"abc", b"abcd"];
    assert_eq!(contents.into_iter().collect::<Vec<_>>(), expected);
    assert_eq!(
        names.into_iter().collect::<Vec<_>>(),
        ["gone keep new", "gone keep old", "keep new", "keep old"]
    );
}

#[test]
fn a_renamed_file_never_vanishes() {
    for seed in 0..200 {
        let disk = FaultyDisk::new(seed);
        disk.create("a").unwrap();
        disk.sync_dir("").unwrap();
        disk.rename("a", "b").unwrap();
        disk.create("a").unwrap();
        disk.remove("a").unwrap();
        disk.rename("b", "c").unwrap();
        disk.crash();
        assert!(!disk.list("").unwrap().is_empty());
    }
}

#[test]
fn handles_from_before_a_crash_fail() {
    let (disk, mut file) = disk_with("d/a", b"x");
    disk.process_crash();
    assert!(file.append(b"y").is_err());
    assert!(file.sync().is_err());
    assert!(file.len().is_err());
    assert!(disk.open("d/a").unwrap().append(b"y").is_ok());
}

#[test]
fn the_crash_point_stops_everything() {
    let (disk, mut file) = disk_with("d/a", b"");
    disk.fail_after_ops(1);
    file.append(b"one").unwrap();
    assert!(!disk.is_stopped());
    assert!(file.append(b"two").is_err());
    assert!(disk.is_stopped());
    assert!(file.sync().is_err());
    assert!(disk.read("d/a").is_err());
    assert!(disk.list("d").is_err());
    disk.process_crash();
    assert!(b"onetwo".starts_with(&disk.read("d/a").unwrap()[..]));
    assert!(disk.read("d/a").unwrap().starts_with(b"one"));
}

#[test]
fn a_failed_sync_may_drop_what_can_still_be_read() {
    let mut dropped = 0;
    for seed in 0..50 {
        let disk = FaultyDisk::new(seed);
        let mut file = disk.create("a").unwrap();
        disk.sync_dir("").unwrap();
        file.append(b"bytes").unwrap();
        disk.fail_sync_in(0);
        assert!(file.sync().is_err());
        assert_eq!(disk.read("a").unwrap(), b"bytes");
        file.sync().unwrap();
        disk.crash();
        dropped += u32::from(disk.read("a").unwrap() == [0; 5]);
    }
    assert!((10..40).contains(&dropped), "{dropped} of 50 dropped");
}

#[test]
fn a_full_disk_takes_what_fits() {
    let (disk, mut file) = disk_with("d/a", b"12345");
    disk.set_capacity(Some(8));
    let error = file.append(b"6789").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.read("d/a").unwrap(), b"12345678");
    file.truncate(5).unwrap();
    file.append(b"678").unwrap();
    disk.set_capacity(None);
    file.append(b"9").unwrap();
    assert_eq!(disk.used_bytes(), 9);
}

#[test]
fn rot_hits_bytes_whether_synced_or_not() {
    let (disk, mut file) = disk_with("a", b"abc");
    disk.sync_dir("").unwrap();
    file.sync().unwrap();
    file.append(b"def").unwrap();
    assert!(disk.rot("a", 1, 1));
    assert!(disk.rot("a", 4, 1));
    assert!(!disk.rot("a", 6, 1));
    assert!(!disk.rot("b", 0, 1));
    assert_eq!(disk.read("a").unwrap(), b"accddf");
    file.sync().unwrap();
    disk.crash();
    assert_eq!(disk.read("a").unwrap(), b"accddf");
}

proptest! {
    /// The same seed and the same calls give the same disk.
    #[test]
    fn runs_repeat_exactly(seed: u64, steps in prop::collection::vec((0u8..8, 0u8..4), 1..60)) {
        prop_assert_eq!(play(seed, &steps), play(seed, &steps));
    }
}

/// Plays a script and tells everything that can be seen of the disk.
fn play(seed: u64, steps: &[(u8, u8)]) -> String {
    let disk = FaultyDisk::new(seed);
    let mut seen = String::new();
    for (what, name) in steps {
        let path = format!("f{name}");
        let outcome = match what {
            0 | 1 => disk.create(&path).and_then(|mut file| file.append(b"new")),
            2 => disk.open(&path).and_then(|mut file| file.append(b"more")),
            3 => disk.open(&path).and_then(|mut file| file.sync()),
            4 => disk.rename(&path, "f0"),
            5 => disk.remove(&path),
            6 => disk.sync_dir(""),
            _ => {
                disk.crash();
                Ok(())
            }
        };
        seen += &format!("{outcome:?} {:?} {:?}\n", disk.files(), disk.counts());
    }
    seen
}
