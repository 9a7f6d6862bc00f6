use super::*;
use crate::disk::{FaultyDisk, RealDisk};
use proptest::prelude::*;

const ME: IncarnationId = IncarnationId(0x1111_2222_3333_4444_5555_6666_7777_8888);
const OTHER: IncarnationId = IncarnationId(42);

fn open(disk: &FaultyDisk, engine: &str, fresh: IncarnationId) -> Result<DataDir, DataDirError> {
    DataDir::open_or_create(Arc::new(disk.clone()), engine, fresh)
}

fn error_of(result: Result<DataDir, DataDirError>) -> String {
    match result {
        Ok(_) => panic!("opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn a_directory_keeps_its_identity() {
    let disk = FaultyDisk::new(1);
    let created = open(&disk, "fjall", ME).unwrap();
    assert_eq!(created.identity().node_id(), ME.node_id());
    assert!(created.identity().cluster.is_none());
    disk.crash();
    let opened = open(&disk, "fjall", OTHER).unwrap();
    assert_eq!(opened.identity(), created.identity());
    assert_eq!(
        disk.list("").unwrap(),
        [IDENTITY, ENGINE_DIR, HINTS_DIR, LOG_DIR, RAFT_DIR, RUNS_DIR]
    );
}

#[test]
fn another_engine_is_refused_and_both_are_named() {
    let disk = FaultyDisk::new(1);
    open(&disk, "fjall", ME).unwrap();
    let error = error_of(open(&disk, "leveldb", ME));
    assert!(
        error.contains("fjall") && error.contains("leveldb"),
        "{error}"
    );
}

#[test]
fn another_format_is_refused_and_both_are_named() {
    let disk = FaultyDisk::new(1);
    let mut identity = open(&disk, "fjall", ME).unwrap().identity().clone();
    identity.format = 7;
    DurableCell::new(IDENTITY)
        .write(&disk, &identity.encode())
        .unwrap();
    let error = error_of(open(&disk, "fjall", ME));
    assert!(
        error.contains("format 7") && error.contains("format 1"),
        "{error}"
    );
}

#[test]
fn data_without_an_identity_is_damage() {
    let disk = FaultyDisk::new(1);
    open(&disk, "fjall", ME).unwrap();
    disk.remove(IDENTITY).unwrap();
    let error = error_of(open(&disk, "fjall", OTHER));
    assert!(
        error.contains("IDENTITY") && error.contains("log"),
        "{error}"
    );
}

#[test]
fn a_lock_and_a_mount_point_are_a_fresh_directory() {
    let disk = FaultyDisk::new(1);
    disk.create(LOCK).unwrap();
    disk.create_dir("lost+found").unwrap();
    open(&disk, "fjall", ME).unwrap();
}

#[test]
fn nobody_and_nameless_engines_are_refused_without_a_trace() {
    let disk = FaultyDisk::new(1);
    error_of(open(&disk, "fjall", IncarnationId(1 << 64)));
    error_of(open(&disk, "", ME));
    error_of(open(&disk, "two words", ME));
    assert!(disk.files().is_empty());
}

#[test]
fn a_cluster_is_adopted_once() {
    let disk = FaultyDisk::new(1);
    let mut dir = open(&disk, "fjall", ME).unwrap();
    assert!(dir.adopt_cluster(ClusterId::NONE).is_err());
    dir.adopt_cluster(ClusterId(7)).unwrap();
    dir.adopt_cluster(ClusterId(7)).unwrap();
    disk.crash();
    let mut dir = open(&disk, "fjall", ME).unwrap();
    assert_eq!(dir.identity().cluster, ClusterId(7));
    let error = dir.adopt_cluster(ClusterId(8)).unwrap_err();
    assert!(
        matches!(error, DataDirError::OtherCluster { .. }),
        "{error}"
    );
    assert_eq!(dir.identity().cluster, ClusterId(7));
}

#[test]
fn damaged_numbers_are_errors() {
    let disk = FaultyDisk::new(1);
    let dir = open(&disk, "fjall", ME).unwrap();
    DurableCell::new(BOOT).write(&disk, b"seven").unwrap();
    assert!(dir.next_boot().is_err());
    DurableCell::new(BOOT)
        .write(&disk, &u64::MAX.to_le_bytes())
        .unwrap();
    assert!(dir.next_boot().is_err());
    assert_eq!(read_hlc_mark(&disk).unwrap(), None);
    write_hlc_mark(&disk, Hlc(99)).unwrap();
    disk.crash();
    assert_eq!(read_hlc_mark(&disk).unwrap(), Some(Hlc(99)));
    assert!(disk.rot(HLC, 20, 1));
    let error = read_hlc_mark(&disk).unwrap_err().to_string();
    assert!(error.contains(HLC), "{error}");
}

proptest! {
    /// A crash at any operation of a node's first steps: it comes back as itself, or as nobody yet.
    #[test]
    fn a_crash_while_creating_is_no_damage(seed: u64, ops in 0u64..40, kill: bool) {
        let disk = FaultyDisk::new(seed);
        disk.fail_after_ops(ops);
        let first = open(&disk, "fjall", ME).and_then(|mut dir| {
            let boot = dir.next_boot()?;
            dir.adopt_cluster(ClusterId(7))?;
            Ok(boot)
        });
        let was_stopped = disk.is_stopped();
        if kill { disk.process_crash() } else { disk.crash() }
        let mut dir = open(&disk, "fjall", OTHER).unwrap();
        let incarnation = dir.identity().incarnation;
        prop_assert!(incarnation == ME || (was_stopped && incarnation == OTHER));
        if let Ok(boot) = first {
            prop_assert_eq!(dir.identity().cluster, ClusterId(7));
            prop_assert!(dir.next_boot().unwrap() > boot);
        }
        dir.adopt_cluster(ClusterId(7)).unwrap();
        // Whoever it was when it answered, it is that for ever.
        disk.crash();
        let dir = open(&disk, "fjall", IncarnationId(3)).unwrap();
        prop_assert_eq!(dir.identity().incarnation, incarnation);
        prop_assert_eq!(dir.identity().cluster, ClusterId(7));
    }

    #[test]
    fn boot_numbers_never_repeat(seed: u64, crashes in prop::collection::vec(0u64..12, 0..10)) {
        let disk = FaultyDisk::new(seed);
        let mut last = open(&disk, "fjall", ME).unwrap().next_boot().unwrap();
        for ops in crashes {
            let dir = open(&disk, "fjall", ME).unwrap();
            disk.fail_after_ops(ops);
            let boot = dir.next_boot();
            disk.crash();
            if let Ok(boot) = boot {
                prop_assert!(boot > last);
                last = boot;
            }
        }
    }

    #[test]
    fn identities_round_trip_and_garbage_is_refused(
        incarnation: u128, cluster: u128, garbage in prop::collection::vec(any::<u8>(), 0..60),
    ) {
        let identity = Identity {
            format: DATA_FORMAT,
            engine: "fjall".to_owned(),
            incarnation: IncarnationId(incarnation | 1),
            cluster: ClusterId(cluster),
        };
        let decoded = Identity::decode(Bytes::from(identity.encode())).unwrap();
        prop_assert_eq!(decoded, identity);
        let mut bytes = DATA_FORMAT.to_le_bytes().to_vec();
        bytes.extend(garbage);
        if let Ok(identity) = Identity::decode(Bytes::from(bytes.clone())) {
            prop_assert_eq!(identity.encode(), bytes);
        }
    }
}

#[test]
fn one_process_at_a_time() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("new").join("data");
    let lock = DirLock::acquire(&path).unwrap();
    let error = DirLock::acquire(&path).unwrap_err();
    assert!(
        error.to_string().contains("another process is using"),
        "{error}"
    );
    drop(lock);
    let _lock = DirLock::acquire(&path).unwrap();
    DataDir::open_or_create(Arc::new(RealDisk::new(path)), "fjall", ME).unwrap();
}

#[test]
fn a_path_that_is_no_directory_is_named() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("file");
    fs::write(&path, b"").unwrap();
    let error = DirLock::acquire(&path).unwrap_err();
    assert!(matches!(error, DataDirError::NotWritable { .. }));
    assert!(error.to_string().contains("file"), "{error}");
}
