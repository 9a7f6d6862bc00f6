//! `SCAN` over whole key spaces: no key that stays is missed, whatever is forgotten or deleted.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::Client;

/// Calls `SCAN` until the cursor is zero; `between` is called after each step.
fn scan_all(
    client: &mut Client,
    options: &str,
    mut between: impl FnMut(&mut Client),
) -> Vec<String> {
    let mut found = Vec::new();
    let mut cursor = "0".to_owned();
    loop {
        let reply = client.text(&format!("scan {cursor} {options}"));
        let mut lines = reply.split("\r\n");
        assert_eq!(lines.next(), Some("*2"));
        lines.next();
        cursor = lines.next().unwrap().to_owned();
        lines.next();
        let keys: Vec<&str> = lines.collect();
        found.extend(
            keys.chunks(2)
                .filter_map(|pair| Some((*pair.get(1)?).to_owned())),
        );
        if cursor == "0" {
            return found;
        }
        between(client);
    }
}

fn filled(count: usize) -> Client {
    let mut client = Client::new();
    for index in 0..count {
        client.text(&format!("set key{index} v"));
    }
    client
}

#[test]
fn an_undisturbed_scan_returns_each_key_once() {
    let mut client = filled(300);
    let found = scan_all(&mut client, "count 7", |_| {});
    assert_eq!(found.len(), 300);
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), 300);
}

#[test]
fn match_and_type_filter() {
    let mut client = filled(30);
    assert_eq!(scan_all(&mut client, "match key1*", |_| {}).len(), 11);
    assert_eq!(scan_all(&mut client, "type STRING", |_| {}).len(), 30);
    assert_eq!(scan_all(&mut client, "type list", |_| {}).len(), 0);
}

#[test]
fn a_node_that_never_saw_the_cursor_goes_on_in_the_same_place() {
    let mut client = filled(300);
    let found = scan_all(&mut client, "count 7", |client| {
        client.front.forget_cursors()
    });
    assert_eq!(found.len(), 300);
}

#[test]
fn keys_and_dbsize_and_random_key_agree() {
    let mut client = filled(300);
    assert_eq!(client.text("dbsize"), ":300\r\n");
    assert!(client.text("keys *").starts_with("*300\r\n"));
    assert!(client.text("randomkey").contains("key"));
    assert_eq!(client.text("flushall"), "+OK\r\n");
    assert_eq!(client.text("dbsize"), ":0\r\n");
    assert_eq!(client.text("randomkey"), "$-1\r\n");
    assert_eq!(scan_all(&mut client, "", |_| {}).len(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn keys_that_stay_are_found_however_others_come_and_go(
        deleted in prop::collection::btree_set(0usize..120, 0..100),
        count in 1usize..20,
        forget: bool,
    ) {
        let mut client = filled(120);
        let mut doomed = deleted.iter();
        let found: BTreeSet<String> = scan_all(&mut client, &format!("count {count}"), |client| {
            for index in doomed.by_ref().take(3) {
                client.text(&format!("del key{index}"));
            }
            if forget {
                client.front.forget_cursors();
            }
        })
        .into_iter()
        .collect();
        for index in (0..120).filter(|index| !deleted.contains(index)) {
            prop_assert!(found.contains(&format!("key{index}")), "key{} is missing", index);
        }
    }
}
