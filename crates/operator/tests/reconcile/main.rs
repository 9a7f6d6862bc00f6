//! Rounds of the operator against an API server and a world in memory. Each scenario is run once as it is, and then again and again with one
//! call failing, another one each time: refused, in conflict, or done and never answered, which is what an operator leaves that is
//! killed there. It has to come to the same end every time, and the world looks that nothing unsafe happens on the way.

// A test's helpers may fail like the test itself.
#![allow(clippy::unwrap_used)]

mod api_server;
mod lease;
mod rounds;
mod world;

use api_server::Fault;
use mds_operator::reconcile::Context;
use serde_json::{Value, json};
use world::World;

/// Rounds that one part of a scenario may take.
const ROUNDS_MAX: usize = 150;

/// A part of a scenario: what a person or fate does, and whether that is all that should come of it.
type Part = (&'static str, fn(&World));

fn spec() -> Value {
    json!({"size": 3, "image": "mds:1", "storage": {"size": "1Gi"}})
}

async fn settle(world: &World, part: &str) {
    let context = Context {
        client: world.server.client(),
        database: world.clone(),
    };
    let mut said = String::new();
    for _ in 0..ROUNDS_MAX {
        world.step();
        let Some(store) = world.store() else {
            world.step();
            return;
        };
        let round = context.round(&store).await;
        said = format!("{round:?}");
        if round.is_ok_and(|round| round.reason == "Done") {
            return;
        }
    }
    panic!("{part} does not end: {said}; {}", world.outcome());
}

/// Runs it; what came of it, and how many calls that took.
fn run(parts: &[Part], fault: Option<(usize, Fault)>) -> (String, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(spec());
        world.server.objects().fault = fault;
        settle(&world, "creation").await;
        for (name, part) in parts {
            part(&world);
            settle(&world, name).await;
        }
        let calls = world.server.objects().calls;
        (world.outcome(), calls)
    })
}

/// The same end whichever call fails, and it is the one expected.
fn check(parts: &[Part], expected: &str) {
    let (outcome, calls) = run(parts, None);
    assert_eq!(outcome, expected);
    for call in 1..=calls {
        for fault in [Fault::Unanswered, Fault::Refused, Fault::Conflict] {
            let (outcome, _) = run(parts, Some((call, fault)));
            assert_eq!(outcome, expected, "call {call} of {calls}: {fault:?}");
        }
    }
}

fn ended(pods: &[&str], volumes: &[&str], members: &[&str]) -> String {
    format!(
        "pods {pods:?}, volumes {volumes:?}, members {members:?}, stateful sets [\"shop\"], births 1"
    )
}

const THREE: &[&str] = &["shop-0 mds:1", "shop-1 mds:1", "shop-2 mds:1"];
const THREE_VOLUMES: &[&str] = &["data-shop-0", "data-shop-1", "data-shop-2"];
const THREE_ACTIVE: &[&str] = &["shop-0 active", "shop-1 active", "shop-2 active"];

fn scale(world: &World, size: u32) {
    world.edit(|store| store["spec"]["size"] = json!(size));
}

#[test]
fn three_are_born_once() {
    check(&[], &ended(THREE, THREE_VOLUMES, THREE_ACTIVE));
}

#[test]
fn three_become_five_and_three_again_and_volumes_stay() {
    let volumes = [THREE_VOLUMES, &["data-shop-3", "data-shop-4"]].concat();
    check(
        &[
            ("up", |world| scale(world, 5)),
            ("down", |world| scale(world, 3)),
        ],
        &ended(THREE, &volumes, THREE_ACTIVE),
    );
}

#[test]
fn volumes_of_nodes_that_have_left_go_if_they_are_to() {
    let delete: Part = ("up, volumes to be deleted", |world| {
        world.edit(|store| {
            store["spec"]["size"] = json!(4);
            store["spec"]["volumeRetention"] = json!({"whenScaled": "Delete"});
        });
    });
    check(
        &[delete, ("down", |world| scale(world, 3))],
        &ended(THREE, THREE_VOLUMES, THREE_ACTIVE),
    );
}

#[test]
fn another_image_is_rolled_out_one_pod_at_a_time() {
    let pods = ["shop-0 mds:2", "shop-1 mds:2", "shop-2 mds:2"];
    check(
        &[("upgrade", |world| {
            world.edit(|store| store["spec"]["image"] = json!("mds:2"))
        })],
        &ended(&pods, THREE_VOLUMES, THREE_ACTIVE),
    );
}

#[test]
fn a_pod_that_is_down_keeps_its_place_and_one_without_its_volume_is_replaced() {
    let parts: &[Part] = &[
        ("a pod is lost", |world| {
            world.lose(1, false);
            world.step();
        }),
        ("nothing but that", |world| {
            assert_eq!(world.nodes(), 3, "the same nodes")
        }),
        ("a volume is lost", |world| {
            world.lose(2, true);
            world.step();
        }),
    ];
    check(parts, &ended(THREE, THREE_VOLUMES, THREE_ACTIVE));
}

#[test]
fn what_is_deleted_leaves_its_volumes_unless_they_are_to_go() {
    let delete = |world: &World| {
        let mut objects = world.server.objects();
        let mut store = objects.get("mydatastores", world::NAME).unwrap().clone();
        store["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
        objects.put("mydatastores", world::NAME, store);
    };
    let gone = |volumes: &[&str]| {
        format!(
            "pods [], volumes {volumes:?}, members {THREE_ACTIVE:?}, stateful sets [], births 1"
        )
    };
    check(&[("deletion", delete)], &gone(THREE_VOLUMES));
    let with_volumes = |world: &World| {
        world.edit(|store| store["spec"]["volumeRetention"] = json!({"whenDeleted": "Delete"}));
    };
    check(
        &[("retention", with_volumes), ("deletion", delete)],
        &gone(&[]),
    );
}

/// An operator that is slow sees a pod, and another one stands in its place when it comes to act.
#[test]
fn what_is_deleted_is_what_was_looked_at() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(spec());
        settle(&world, "creation").await;
        world.edit(|store| store["spec"]["image"] = json!("mds:2"));
        let context = Context {
            client: world.server.client(),
            database: world.clone(),
        };
        world.step();
        context.round(&world.store().unwrap()).await.unwrap();
        world.step();
        // The next round is to restart the highest pod. Meanwhile that has been restarted already.
        let calls = world.server.objects().calls;
        let before = world.server.uid("pods", "shop-2");
        world.server.objects().on_delete = Some(Box::new(|objects| {
            let pod = objects.get("pods", "shop-2").unwrap().clone();
            let mut another = pod;
            another["metadata"].as_object_mut().unwrap().remove("uid");
            objects.put("pods", "shop-2", another);
        }));
        let refused = context
            .round(&world.store().unwrap())
            .await
            .unwrap_err()
            .to_string();
        assert!(refused.contains("another object"), "{refused}");
        assert!(world.server.objects().calls > calls);
        let after = world.server.uid("pods", "shop-2");
        assert!(
            after.is_some() && after != before,
            "the other pod is still there"
        );
    });
}

#[test]
fn nothing_is_done_while_it_is_paused_or_wrong() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let world = World::new(spec());
        settle(&world, "creation").await;
        let before = world.outcome();
        let context = Context {
            client: world.server.client(),
            database: world.clone(),
        };
        world.edit(|store| {
            store["spec"]["paused"] = json!(true);
            store["spec"]["size"] = json!(5);
        });
        for _ in 0..10 {
            world.step();
            let round = context.round(&world.store().unwrap()).await.unwrap();
            assert!(round.message.contains("paused"), "{round:?}");
        }
        assert_eq!(world.outcome(), before);
        let told = world.store().unwrap().status.unwrap();
        assert!(told.message.contains("paused"), "{told:?}");

        // It goes on where it stood.
        world.edit(|store| store["spec"]["paused"] = json!(false));
        settle(&world, "five").await;
        assert_eq!(world.store().unwrap().status.unwrap().ring_members, 5);
    });
}
