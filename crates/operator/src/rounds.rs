//! All resources, each in rounds of its own.
//!
//! Rounds of different resources run at the same time, up to a bound; one resource has one round at a time. A round that hangs, because
//! its database or the API server does, keeps nobody else waiting, and is given up after [`ROUND`]. It polls, rather than
//! watches: most of what a decision depends on (stages, epochs, who is waited for) is the database's to tell, and cannot be watched.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::crd::MyDataStore;
use crate::database::Database;
use crate::reconcile::{Context, Round};

/// Resources whose rounds run at the same time, at most.
const ROUNDS_MAX: usize = 16;

/// How often the list of resources is read.
const LIST_EVERY: Duration = Duration::from_secs(1);

/// A list, or an event, that is not answered within this time is done without.
const CALL: Duration = Duration::from_secs(5);

/// A round takes so long at most. More than a node takes to answer a request.
const ROUND: Duration = Duration::from_secs(90);

/// How soon a resource is looked at again whose round failed.
const AFTER_ERROR: Duration = Duration::from_secs(5);

/// What is counted.
#[derive(Default)]
pub struct Counts {
    /// 1 if this process acts.
    pub leads: AtomicU64,
    /// Looks at a resource.
    pub rounds: AtomicU64,
    /// Rounds that failed.
    pub errors: AtomicU64,
    /// Actions decided on.
    pub actions: AtomicU64,
    /// Resources that wait for something.
    pub waiting: AtomicU64,
    /// Resources that are looked after.
    pub resources: AtomicU64,
}

impl Counts {
    /// As Prometheus reads them.
    pub fn text(&self) -> String {
        let rows = [
            ("leader", "gauge", "1 if this process acts.", &self.leads),
            (
                "resources",
                "gauge",
                "Resources that are looked after.",
                &self.resources,
            ),
            (
                "waiting",
                "gauge",
                "Resources that wait for something.",
                &self.waiting,
            ),
            (
                "rounds_total",
                "counter",
                "Looks at a resource.",
                &self.rounds,
            ),
            (
                "actions_total",
                "counter",
                "Actions decided on.",
                &self.actions,
            ),
            (
                "errors_total",
                "counter",
                "Rounds that failed.",
                &self.errors,
            ),
        ];
        let rows = rows.map(|(name, kind, help, value)| {
            let value = value.load(Ordering::Relaxed);
            format!(
                "# HELP mds_operator_{name} {help}\n# TYPE mds_operator_{name} {kind}\nmds_operator_{name} {value}\n"
            )
        });
        rows.concat()
    }
}

/// What is known of a resource between its rounds: nothing that a decision depends on.
struct Last {
    said: String,
    next: Instant,
    generation: Option<i64>,
}

/// Rounds without end.
pub async fn all_rounds<D: Database>(
    context: &Context<D>,
    namespace: Option<&str>,
    counts: &Counts,
) {
    let api: Api<MyDataStore> = match namespace {
        Some(namespace) => Api::namespaced(context.client.clone(), namespace),
        None => Api::all(context.client.clone()),
    };
    let mut last: BTreeMap<String, Last> = BTreeMap::new();
    let mut running: BTreeSet<String> = BTreeSet::new();
    let mut rounds = FuturesUnordered::new();
    let mut tick = interval(LIST_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            Some((name, generation, round)) = rounds.next(), if !rounds.is_empty() => {
                running.remove(&name);
                let Round { message: said, again, .. } = round;
                last.insert(name, Last { said, next: Instant::now() + again, generation });
            }
            _ = tick.tick() => {
                let Some(stores) = list(&api, counts).await else {
                    continue;
                };
                let names: BTreeSet<String> = stores.iter().map(key).collect();
                last.retain(|name, _| names.contains(name));
                counts.resources.store(names.len() as u64, Ordering::Relaxed);
                let waiting = last.values().filter(|last| !last.said.is_empty()).count();
                counts.waiting.store(waiting as u64, Ordering::Relaxed);
                for store in stores {
                    let name = key(&store);
                    // A changed resource need not wait for its time.
                    let is_due = last.get(&name).is_none_or(|last| {
                        Instant::now() >= last.next || last.generation != store.metadata.generation
                    });
                    if is_due && running.len() < ROUNDS_MAX && running.insert(name.clone()) {
                        let said = last.get(&name).map(|last| last.said.clone());
                        rounds.push(one_round(context, store, said, counts));
                    }
                }
            }
        }
    }
}

async fn list(api: &Api<MyDataStore>, counts: &Counts) -> Option<Vec<MyDataStore>> {
    let reason = match timeout(CALL, api.list(&ListParams::default())).await {
        Ok(Ok(list)) => return Some(list.items),
        Ok(Err(error)) => error.to_string(),
        Err(_) => "no answer".to_owned(),
    };
    counts.errors.fetch_add(1, Ordering::Relaxed);
    tracing::warn!(reason, "the resources cannot be listed");
    None
}

/// One round, and an event if it has something else to say than the one before.
async fn one_round<D: Database>(
    context: &Context<D>,
    store: MyDataStore,
    said: Option<String>,
    counts: &Counts,
) -> (String, Option<i64>, Round) {
    counts.rounds.fetch_add(1, Ordering::Relaxed);
    let reason = match timeout(ROUND, context.round(&store)).await {
        Ok(Ok(round)) => Ok(round),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("no end within {} s", ROUND.as_secs())),
    };
    let round = reason.unwrap_or_else(|message| {
        counts.errors.fetch_add(1, Ordering::Relaxed);
        Round {
            message,
            reason: "Error",
            failed: true,
            again: AFTER_ERROR,
        }
    });
    if !matches!(round.reason, "Waiting" | "Done" | "Error" | "Invalid") {
        counts.actions.fetch_add(1, Ordering::Relaxed);
    }
    if said.unwrap_or_default() != round.message {
        let mut event = round.clone();
        if event.message.is_empty() {
            "all is as it was asked for".clone_into(&mut event.message);
        }
        tracing::info!(
            resource = key(&store),
            reason = event.reason,
            "{}",
            event.message
        );
        let now = k8s_openapi::jiff::Timestamp::now();
        // It is not known whether it was written, and does not matter.
        let _ = timeout(CALL, context.event(&store, &event, &format!("{now:.0}"))).await;
    }
    (key(&store), store.metadata.generation, round)
}

fn key(store: &MyDataStore) -> String {
    format!(
        "{}/{}",
        store.namespace().unwrap_or_default(),
        store.name_any()
    )
}
