//! Nothing a client sends, and no number of clients, does harm.

use super::*;

#[test]
fn too_large_is_413_at_once() {
    let served = Served::with(|config| config.value_bytes_max = 1_000);
    assert_eq!(served.put("/v1/kv/a", &[7; 1_000]).status, 200);
    let answer = served.put("/v1/kv/a", &[7; 1_001]);
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error"],
        "value is 1001 bytes, more than the limit of 1000"
    );
    // Announced and never sent: refused before it is.
    let head = "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n";
    assert!(served.raw(head.as_bytes()).starts_with("HTTP/1.1 413"));
    // Not announced: refused once it is too large.
    let mut chunked =
        "PUT /v1/kv/a HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".to_owned();
    for _ in 0..3 {
        chunked.push_str(&format!("190\r\n{}\r\n", "x".repeat(0x190)));
    }
    assert!(served.raw(chunked.as_bytes()).starts_with("HTTP/1.1 413"));
    let long_key = format!("/v1/kv/{}", "k".repeat(33 * 1024));
    let answer = served.put(&long_key, b"v");
    assert_eq!(answer.status, 413);
    assert_eq!(
        answer.json()["error"],
        "key is 33792 bytes, more than the limit of 32768"
    );
    assert_eq!(
        served
            .put(&format!("/v1/kv/{}", "k".repeat(32 * 1024)), b"v")
            .status,
        200
    );
    assert_eq!(served.database.asked(), 2);
}

#[test]
fn garbage_is_refused_and_harms_nobody() {
    let served = Served::new();
    for garbage in [
        &b"\x00\x01\x02\r\n\r\n"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"*1\r\n$4\r\nPING\r\n",
        b"GET /v1/kv/a HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ] {
        let answer = served.raw(garbage);
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 400"),
            "{answer}"
        );
    }
    let huge_head = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "h".repeat(200_000));
    let answer = served.raw(huge_head.as_bytes());
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
        "{answer}"
    );
    assert_eq!(served.get("/health").status, 200);
}

#[test]
fn overload_is_shed_at_once_and_health_does_not_care() {
    let served = Served::with(|config| {
        config.http_requests_max = 1;
        config.request_timeout_ms = 100;
    });
    served.database.hang();
    std::thread::scope(|scope| {
        let hanging = scope.spawn(|| served.get("/v1/kv/a"));
        while served.database.asked() == 0 {
            std::thread::yield_now();
        }
        let start = Instant::now();
        let shed = served.get("/v1/kv/a");
        assert_eq!(shed.status, 503);
        assert_eq!(shed.header("retry-after"), "1");
        assert_eq!(served.get("/health").status, 200);
        assert_eq!(served.get("/ready").status, 200);
        assert!(start.elapsed() < Duration::from_secs(4));
        // And what the database never answers is given up in the end.
        assert_eq!(hanging.join().unwrap().status, 504);
    });
    let metrics = String::from_utf8(served.get("/metrics").body).unwrap();
    assert!(
        metrics.contains("mydatastore_http_requests_shed_total 1"),
        "{metrics}"
    );
}

#[test]
fn shutdown_waits_for_the_request_in_progress_only() {
    let mut served = Served::with(|config| config.request_timeout_ms = 600_000);
    let mut idle = TcpStream::connect(served.addr).unwrap();
    idle.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        .unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    let start = Instant::now();
    drop(served.stop.take());
    served.thread.take().unwrap().join().unwrap();
    assert!(
        start.elapsed() < crate::http::limits::DRAIN_TIMEOUT,
        "an idle client held it up"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// No path, query or header brings the server down, and nothing is answered 500.
    #[test]
    fn no_request_line_is_an_internal_error(
        paths in prop::collection::vec("(/v1/(kv|list|scan|init|x)?/?|/set|/get|/)[!-~]{0,30}", 1..12),
    ) {
        let served = Served::new();
        for path in paths {
            let answer = served.raw(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes());
            prop_assert!(!answer.starts_with("HTTP/1.1 500"), "{}: {}", path, answer);
        }
        prop_assert_eq!(served.get("/health").status, 200);
    }
}
