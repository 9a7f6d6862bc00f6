//! The lab with real processes: what scripts rely on, and what must never be lost.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod cluster;

use std::process::Command;
use std::time::Instant;

use cluster::lab::{Lab, PATIENCE};

const PROGRAM: &str = env!("CARGO_BIN_EXE_mydatastore");

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_a_node() {
    let lab = Lab::start("faults", 20_100);
    lab.put(&[1], "first", "1");
    assert_eq!(lab.get(&[3], "first"), "1");

    lab.act("kill-node", 2);
    lab.says("node 2 was killed, as asked");
    lab.put(&[1], "while 2 is dead", "2");
    assert_eq!(lab.get(&[3], "while 2 is dead"), "2");
    // A client that knows several nodes goes to one that lives.
    lab.put(&[2, 1], "by way of the next", "3");

    lab.act("kill-node", 3);
    let start = Instant::now();
    let failed = lab.client(&[1], &["get", "first"]);
    assert_eq!(failed.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("needed 2, got 1 of 3"));
    assert!(start.elapsed() < PATIENCE / 4);

    lab.act("start-node", 2);
    lab.says("node 2 was started");
    lab.eventually(&[1], &["get", "first"]);
    lab.act("start-node", 3);
    lab.act("pause-node", 3);
    lab.eventually(&[1], &["put", "while 3 is frozen", "4"]);
    lab.act("resume-node", 3);
    lab.eventually(&[1], &["digest"]);
    for (key, value) in [
        ("first", "1"),
        ("while 2 is dead", "2"),
        ("while 3 is frozen", "4"),
    ] {
        for node in 1..=3 {
            assert_eq!(lab.get(&[node], key), value);
        }
    }
    // A frozen node hears of the end as well.
    lab.act("pause-node", 1);
    let dir = lab.stop_and_keep();
    let lab = Lab::resume(dir, 20_100);
    assert_eq!(lab.get(&[2], "by way of the next"), "3");
    lab.stop();
}

#[test]
fn a_death_is_told_and_a_lost_supervisor_is_survived() {
    let lab = Lab::start("supervisor", 20_200);
    lab.put(&[1], "key", "value");
    // SAFETY: a signal to a process that the lab has just told us.
    assert_eq!(unsafe { libc::kill(lab.pid(2), libc::SIGKILL) }, 0);
    let told = lab.says("DIED unexpectedly");
    assert!(
        told.contains("node 2") && told.contains("signal 9"),
        "{told}"
    );

    let second = Command::new(PROGRAM)
        .args(["lab", "--dir"])
        .arg(lab.dir())
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&second.stderr).contains("already running"));

    let survivor = lab.pid(1);
    let dir = lab.kill_supervisor();
    let lab = Lab::resume(dir, 20_200);
    assert_eq!(
        lab.pid(1),
        survivor,
        "a running node is taken over, not started again"
    );
    assert_eq!(lab.get(&[2], "key"), "value");

    lab.act("wipe-node", 3);
    assert!(!lab.dir().join("node-3/data").exists());
    lab.act("start-node", 3);
    // It coordinates, but does not answer from its emptiness.
    lab.eventually(&[3], &["get", "key"]);
    assert_eq!(lab.get(&[3], "key"), "value");
    lab.stop();
}

#[test]
fn a_port_in_use_and_a_missing_lab_are_said_plainly() {
    let dir = tempfile::tempdir().unwrap();
    let _taken = std::net::TcpListener::bind("127.0.0.1:28402").unwrap();
    let output = Command::new(PROGRAM)
        .args(["lab", "--port-offset", "20300", "--dir"])
        .arg(dir.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("port 28402 on 127.0.0.1, which node 2 needs for HTTP"),
        "{said}"
    );

    let output = Command::new(PROGRAM)
        .args(["lab", "kill-node", "1", "--dir", "/no/such/lab"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("there is no lab in /no/such/lab"));
}
