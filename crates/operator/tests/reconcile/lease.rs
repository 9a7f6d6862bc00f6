//! Who leads, by a clock that stands still unless everybody waits.

use std::time::Duration;

use mds_operator::lease::Lease;
use tokio::time::{Instant, timeout};

use crate::api_server::ApiServer;

const S: Duration = Duration::from_secs(1);

fn lease(server: &ApiServer, identity: &'static str) -> Lease {
    Lease::new(server.client_of(identity), "shops", identity)
}

fn holder(server: &ApiServer) -> String {
    let objects = server.objects();
    let lease = objects.get("leases", "mds-operator").unwrap();
    lease["spec"]["holderIdentity"].as_str().unwrap().to_owned()
}

#[tokio::test(start_paused = true)]
async fn one_leads_for_as_long_as_it_renews_and_the_next_when_it_gives_back() {
    let server = ApiServer::default();
    let (first, second) = (lease(&server, "first"), lease(&server, "second"));
    let until = first.acquire().await;
    assert_eq!(holder(&server), "first");
    tokio::select! {
        () = first.keep(until) => panic!("it lost the lease"),
        _ = second.acquire() => panic!("two lead"),
        () = tokio::time::sleep(100 * S) => {}
    }
    let began = Instant::now();
    first.release().await;
    assert_eq!(holder(&server), "");
    second.acquire().await;
    assert_eq!(holder(&server), "second");
    assert!(began.elapsed() < 3 * S, "{:?}", began.elapsed());
    // Whose lease it is not does not take it away.
    first.release().await;
    assert_eq!(holder(&server), "second");
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_calls_hang_has_stopped_before_another_begins() {
    let server = ApiServer::default();
    let (first, second) = (lease(&server, "first"), lease(&server, "second"));
    let until = first.acquire().await;
    let kept = async {
        first.keep(until).await;
        Instant::now()
    };
    let taken = async {
        // It has looked once before the first one falls silent.
        assert!(timeout(S, second.acquire()).await.is_err());
        server.hang("first");
        second.acquire().await;
        Instant::now()
    };
    let (stopped, began) = tokio::join!(kept, taken);
    assert!(stopped < began, "it led on for {:?}", stopped - began);
    assert!(began - stopped < 20 * S);
    assert_eq!(holder(&server), "second");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_hangs_is_not_the_last() {
    let server = ApiServer::default();
    let first = lease(&server, "first");
    let until = first.acquire().await;
    server.hang("first");
    let heals = async {
        tokio::time::sleep(4 * S).await;
        server.heal();
        tokio::time::sleep(60 * S).await;
    };
    tokio::select! {
        () = first.keep(until) => panic!("it gave up though the server came back in time"),
        () = heals => {}
    }
}

#[tokio::test(start_paused = true)]
async fn who_finds_another_name_in_the_lease_stops() {
    let server = ApiServer::default();
    let first = lease(&server, "first");
    let until = first.acquire().await;
    {
        let mut objects = server.objects();
        let mut lease = objects.get("leases", "mds-operator").unwrap().clone();
        lease["spec"]["holderIdentity"] = serde_json::json!("second");
        objects.put("leases", "mds-operator", lease);
    }
    timeout(5 * S, first.keep(until)).await.unwrap();
}
