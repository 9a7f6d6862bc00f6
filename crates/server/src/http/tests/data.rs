//! Keys and values, and what is said when they are not as they should be.

use super::*;

#[test]
fn a_key_is_written_read_and_deleted() {
    let served = Served::new();
    let absent = served.get("/v1/kv/a");
    assert_eq!(absent.status, 404);
    assert_eq!(absent.json(), json!({"error": "no such key"}));

    let written = served.put("/v1/kv/a", b"\x00\xffvalue");
    assert_eq!(written.status, 200);
    let version = written.header("x-mds-version").to_owned();
    assert_eq!(written.json(), json!({"version": version, "acked": 2}));
    assert_eq!(written.header("etag"), format!("\"{version}\""));

    let read = served.get("/v1/kv/a");
    assert_eq!(
        (read.status, read.body.as_slice()),
        (200, &b"\x00\xffvalue"[..])
    );
    assert_eq!(read.header("content-type"), "application/octet-stream");
    assert_eq!(read.header("x-mds-version"), version);

    let head = served.call("HEAD", "/v1/kv/a", &[], &[]);
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), "7");
    assert_eq!(head.header("x-mds-version"), version);

    assert_eq!(served.call("DELETE", "/v1/kv/a", &[], &[]).status, 200);
    let gone = served.get("/v1/kv/a");
    assert_eq!(gone.status, 404);
    assert!(gone.header("x-mds-version") > version.as_str());
    assert_eq!(served.put("/v1/kv/empty", b"").status, 200);
    let empty = served.get("/v1/kv/empty");
    assert_eq!((empty.status, empty.body.len()), (200, 0));
}

#[test]
fn options_reach_the_database() {
    let served = Served::new();
    served.call(
        "PUT",
        "/v1/kv/a?w=3&timeout_ms=77&expires_at_ms=4102444800000",
        &[("Idempotency-Key", RETRY_TOKEN), ("X-MDS-Seen", TOKEN)],
        b"v",
    );
    let asked = served.database.last_asked();
    assert_eq!(asked.options.write_quorum, Some(3));
    assert_eq!(asked.options.timeout_ms, Some(77));
    assert_eq!(asked.options.stamp, Some(stamp()));
    assert_eq!(asked.options.seen, Some(token()));
    assert_eq!(asked.options.request_id, None);
    assert!(matches!(
        asked.op,
        Op::Put {
            expires_at_ms: Some(4_102_444_800_000),
            ..
        }
    ));

    served.call(
        "DELETE",
        "/v1/kv/a",
        &[("Idempotency-Key", "order-42")],
        b"",
    );
    let one = served.database.last_asked().options;
    assert_eq!(one.stamp, None);
    served.call(
        "DELETE",
        "/v1/kv/a",
        &[("Idempotency-Key", "order-43")],
        b"",
    );
    assert!(one.request_id.is_some());
    assert_ne!(
        one.request_id,
        served.database.last_asked().options.request_id
    );

    served.get("/v1/kv/a?r=1");
    assert_eq!(served.database.last_asked().options.read_quorum, Some(1));
    let before_ms = 1_000 * std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let answer = served.put("/v1/kv/a?ttl_ms=60000", b"v");
    let expires_at_ms: u64 = answer.header("x-mds-expires-at-ms").parse().unwrap();
    assert!((before_ms + 60_000..before_ms + 90_000).contains(&expires_at_ms));
    assert_eq!(
        served.get("/v1/kv/a").header("x-mds-expires-at-ms"),
        expires_at_ms.to_string()
    );
}

#[test]
fn mistakes_are_400_and_never_reach_the_database() {
    let served = Served::new();
    for (method, path, headers, words) in [
        ("GET", "/v1/kv/", &[][..], "the key is empty"),
        ("GET", "/v1/kv/%zz", &[], "percent-encoding"),
        ("GET", "/v1/kv/a?ttl=5", &[], "unknown parameter `ttl`"),
        (
            "GET",
            "/v1/kv/a?r=0",
            &[],
            "r is `0`: it has to be a number from 1 to 9",
        ),
        ("GET", "/v1/kv/a?timeout_ms=-1", &[], "timeout_ms"),
        ("PUT", "/v1/kv/a?ttl_ms=0", &[], "ttl_ms"),
        (
            "PUT",
            "/v1/kv/a?ttl_ms=18446744073709551615",
            &[],
            "too far",
        ),
        ("PUT", "/v1/kv/a?ttl_ms=1&expires_at_ms=1", &[], "not both"),
        (
            "PUT",
            "/v1/kv/a?ttl_ms=1",
            &[("Idempotency-Key", RETRY_TOKEN)],
            "expires_at_ms",
        ),
        (
            "PUT",
            "/v1/kv/a",
            &[("X-MDS-Seen", "yesterday")],
            "not a version",
        ),
        (
            "DELETE",
            "/v1/kv/a",
            &[("Idempotency-Key", "")],
            "Idempotency-Key is empty",
        ),
        ("GET", "/v1/scan", &[], "partition is missing"),
        ("GET", "/v1/scan?partition=16", &[], "from 0 to 15"),
        ("GET", "/v1/list?cursor=x", &[], "cursor"),
        ("GET", "/v1/list?limit=1001", &[], "limit"),
        ("POST", "/v1/init", &[], "nothing"),
    ] {
        let body: &[u8] = if method == "POST" {
            b"{\"nothing\":1}"
        } else {
            b""
        };
        let answer = served.call(method, path, headers, body);
        assert_eq!(answer.status, 400, "{method} {path}");
        let error = answer.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains(words), "{method} {path}: {error}");
    }
    let conditional = served.call("PUT", "/v1/kv/a", &[("If-Match", "\"x\"")], b"v");
    assert_eq!(conditional.status, 501);
    assert_eq!(served.get("/v2").status, 404);
    assert_eq!(served.call("POST", "/v1/kv/a", &[], b"v").status, 405);
    assert_eq!(served.database.asked(), 0);
}

#[test]
fn failures_say_what_a_client_may_do() {
    let served = Served::new();
    let unknown = RequestError::Unknown {
        needed: 2,
        got: 1,
        of: 3,
        stamp: stamp(),
    };
    let (needed, got, of) = (2, 1, 3);
    for (error, status, body) in [
        (
            RequestError::Unavailable { needed, got, of },
            503,
            json!({"error": "needed 2, got 1 of 3", "needed": 2, "got": 1, "of": 3}),
        ),
        (
            RequestError::TimedOut { needed, got, of },
            504,
            json!({"error": "timed out: needed 2, got 1 of 3", "needed": 2, "got": 1, "of": 3}),
        ),
        (
            unknown,
            504,
            json!({"error": "outcome unknown: needed 2, got 1 of 3", "needed": 2, "got": 1,
                   "of": 3, "retry_token": RETRY_TOKEN}),
        ),
        (
            RequestError::NotReady("joining".to_owned()),
            503,
            json!({"error": "not ready: joining"}),
        ),
        (
            RequestError::BadRequest("no".to_owned()),
            400,
            json!({"error": "no"}),
        ),
        (
            RequestError::Overloaded("queue full"),
            503,
            json!({"error": "overloaded: queue full"}),
        ),
    ] {
        served.database.fail_next(error);
        let answer = served.put("/v1/kv/a", b"v");
        assert_eq!((answer.status, answer.json()), (status, body));
    }
}

#[test]
fn the_originals_own_interface() {
    let served = Served::new();
    let mut view = three_members();
    view.peers.get_mut(&NodeId(3)).unwrap().alive = false;
    served.database.set_view(view);
    let sorted = |answer: &Answer| {
        let mut body = answer.json();
        let members = body["Members"].as_array_mut().unwrap();
        members.sort_by_key(|name| name.as_str().unwrap().to_owned());
        body
    };
    let members = json!(["node-1", "node-2", "node-3"]);
    let answer = served.get("/set?key=a%20b&value=hello+world");
    assert_eq!(answer.status, 200);
    let expected = json!({"Value": "hello world", "Error": "", "Members": members,
                          "Failed_members": ["node-3"]});
    assert_eq!(sorted(&answer), expected);
    let answer = served.get("/get?key=a+b");
    assert_eq!((answer.status, sorted(&answer)), (200, expected));
    let answer = served.get("/get?key=absent");
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["Error"], "key not found");
    served.database.fail_next(RequestError::Unavailable {
        needed: 2,
        got: 1,
        of: 3,
    });
    let answer = served.get("/get?key=a+b");
    assert_eq!(
        (answer.status, &answer.json()["Error"]),
        (503, &json!("needed 2, got 1 of 3"))
    );
    assert_eq!(served.get("/get").status, 400);
    assert_eq!(served.get("/set?key=a").status, 400);
}

#[test]
fn listing_goes_through_all_pages() {
    let served = Served::new();
    for number in 0..50 {
        served.put(
            &format!("/v1/kv/user/{number}"),
            number.to_string().as_bytes(),
        );
    }
    served.put("/v1/kv/user", b"not below it");
    served.put("/v1/kv/z%00%FF", b"\xfe");
    let list = |prefix: &str, limit: u32| {
        let mut keys = Vec::new();
        let mut cursor = None;
        loop {
            let from =
                cursor.map(|text: String| format!("&cursor={}", percent_encode(text.as_bytes())));
            let path = format!(
                "/v1/list?prefix={prefix}&limit={limit}{}",
                from.unwrap_or_default()
            );
            let page: PageBody = serde_json::from_slice(&served.get(&path).body).unwrap();
            assert!(page.records.len() <= limit as usize);
            keys.extend(page.records.into_iter().map(|record| record.key));
            match page.next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        keys.sort();
        keys
    };
    for limit in [1, 7, 1_000] {
        assert_eq!(list("user/", limit).len(), 50, "limit {limit}");
        assert_eq!(list("user", limit).len(), 51);
        assert_eq!(list("", limit).len(), 52);
        assert_eq!(list("z%00", limit), ["z%00%FF"]);
        assert_eq!(list("nothing", limit).len(), 0);
    }
    let values = served.get("/v1/list?prefix=z&values=true").json();
    assert_eq!(values["records"][0]["value"], "%FE");
    assert_eq!(values["records"][0]["value_bytes"], 1);
    let found: usize = (0..16)
        .map(|partition| {
            let page = served
                .get(&format!("/v1/scan?partition={partition}&limit=1000"))
                .json();
            page["records"].as_array().unwrap().len()
        })
        .sum();
    assert_eq!(found, 52);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..ProptestConfig::default() })]

    /// Any bytes can be a key: what is written under one is read under it, and only under it.
    #[test]
    fn any_bytes_can_be_a_key(
        keys in prop::collection::btree_set(prop::collection::vec(any::<u8>(), 1..60), 1..12),
    ) {
        let served = Served::new();
        for key in &keys {
            let answer = served.put(&format!("/v1/kv/{}", percent_encode(key)), key);
            prop_assert_eq!(answer.status, 200);
        }
        for key in &keys {
            let answer = served.get(&format!("/v1/kv/{}", percent_encode(key)));
            prop_assert_eq!((answer.status, &answer.body), (200, key));
        }
    }
}
