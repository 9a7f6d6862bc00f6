//! Which of several operators acts: whoever holds a Lease.
//!
//! A holder renews it every [`RENEW`]. One that has not managed to for [`GIVES_UP`], counted from when its last success was *asked for*,
//! stops; others may take over when they have not seen the lease change for [`EXPIRES`], which is longer, each by its
//! own clock: so that clocks need not agree, and a holder has stopped before another begins. Whatever the API server does, answer late or
//! never, no call is waited for beyond that moment.
//!
//! What it does not do: stop what is on its way already. A request that was sent before the lease was lost may arrive after it: that is
//! why every action may be carried out twice, and deletes name what they mean by its uid.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// How often the lease is renewed, and how soon one that is held by another is looked at again.
const RENEW: Duration = Duration::from_secs(2);
/// One call. Shorter than [`GIVES_UP`], so that one that hangs is not the last.
const CALL: Duration = Duration::from_secs(3);
/// A holder that could not renew for so long stops.
const GIVES_UP: Duration = Duration::from_secs(10);
/// A lease that was not seen to change for so long is free.
const EXPIRES: Duration = Duration::from_secs(15);

const NAME: &str = "mds-operator";

/// The lease, and who this is.
pub struct Lease {
    api: Api<KubeLease>,
    identity: String,
}

/// What came of trying to renew it.
enum Renewal {
    Done,
    /// Somebody else holds it.
    Lost,
    /// No answer, or a refusal: nobody knows.
    Failed,
}

impl Lease {
    /// The lease of a namespace.
    pub fn new(client: Client, namespace: &str, identity: &str) -> Lease {
        Lease {
            api: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
        }
    }

    /// Waits until this one holds the lease; until when it does without renewing it.
    pub async fn acquire(&self) -> Instant {
        let mut seen: (Option<String>, Instant) = (None, Instant::now());
        loop {
            match self.read().await {
                Ok(None) => {
                    let began = Instant::now();
                    if self.write(None, &self.identity).await.is_ok() {
                        return began + GIVES_UP;
                    }
                }
                Ok(Some((version, holder))) => {
                    if seen.0 != version {
                        seen = (version.clone(), Instant::now());
                    }
                    let is_free = holder.is_empty() || holder == self.identity;
                    let began = Instant::now();
                    if (is_free || seen.1.elapsed() >= EXPIRES)
                        && self.write(version, &self.identity).await.is_ok()
                    {
                        return began + GIVES_UP;
                    }
                }
                Err(error) => tracing::warn!(error, "the lease cannot be read"),
            }
            sleep(RENEW).await;
        }
    }

    /// Renews the lease, which is held `until` then; returns when it is lost, or might be.
    pub async fn keep(&self, mut until: Instant) {
        loop {
            let began = Instant::now();
            match timeout_at(until, self.renew()).await {
                Ok(Renewal::Done) => until = began + GIVES_UP,
                Ok(Renewal::Failed) => {}
                Ok(Renewal::Lost) | Err(_) => return,
            }
            if timeout_at(until, sleep(RENEW)).await.is_err() {
                return;
            }
        }
    }

    /// Gives the lease back, so that the next one need not wait for it to expire.
    pub async fn release(&self) {
        if let Ok(Some((version, holder))) = self.read().await
            && holder == self.identity
            && let Err(error) = self.write(version, "").await
        {
            tracing::warn!(error, "the lease could not be given back: it will expire");
        }
    }

    async fn renew(&self) -> Renewal {
        match self.read().await {
            Ok(Some((version, holder))) if holder == self.identity => {
                match self.write(version, &self.identity).await {
                    Ok(()) => Renewal::Done,
                    Err(_) => Renewal::Failed,
                }
            }
            Ok(_) => Renewal::Lost,
            Err(_) => Renewal::Failed,
        }
    }

    /// Its version, and who holds it.
    async fn read(&self) -> Result<Option<(Option<String>, String)>, String> {
        let lease = timeout(CALL, self.api.get_opt(NAME)).await;
        let lease = lease.map_err(|_| "no answer")?;
        let lease = lease.map_err(|error| error.to_string())?;
        Ok(lease.map(|lease| {
            let holder = lease.spec.and_then(|spec| spec.holder_identity);
            (lease.metadata.resource_version, holder.unwrap_or_default())
        }))
    }

    /// Writes a holder's name; fails if somebody else wrote since `version`.
    async fn write(&self, version: Option<String>, holder: &str) -> Result<(), String> {
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease = serde_json::from_value(json!({
            "metadata": {"name": NAME, "resourceVersion": version},
            "spec": {
                "holderIdentity": holder, "leaseDurationSeconds": EXPIRES.as_secs(), "renewTime": format!("{now:.6}"),
            },
        }));
        let lease: KubeLease = lease.map_err(|error| error.to_string())?;
        let params = PostParams::default();
        let written = async {
            match version {
                None => self.api.create(&params, &lease).await,
                Some(_) => self.api.replace(NAME, &params, &lease).await,
            }
        };
        let written = timeout(CALL, written).await.map_err(|_| "no answer")?;
        written.map(drop).map_err(|error| error.to_string())
    }
}
