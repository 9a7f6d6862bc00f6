//! Which of several operators acts: whoever holds a Lease.
//!
//! A holder renews it every [`RENEW`]; one that was not renewed for [`EXPIRES`], by the *looker's* own clock, may be taken over. Two may
//! still overlap for a moment, if a holder stalls between renewing and acting: that is why every action may be
//! carried out twice.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease as KubeLease;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::json;

/// How often the lease is renewed.
const RENEW: Duration = Duration::from_secs(3);
/// A lease that was not seen to change for so long is free.
const EXPIRES: Duration = Duration::from_secs(12);
/// A holder that could not renew for so long stops.
const GIVES_UP: Duration = Duration::from_secs(9);

const NAME: &str = "mds-operator";

/// The lease, and who this is.
pub(crate) struct Lease {
    api: Api<KubeLease>,
    identity: String,
}

impl Lease {
    /// The lease of a namespace.
    pub(crate) fn new(client: Client, namespace: &str, identity: &str) -> Lease {
        Lease {
            api: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
        }
    }

    /// Waits until this one holds the lease.
    pub(crate) async fn acquire(&self) {
        let mut seen: (Option<String>, Instant) = (None, Instant::now());
        loop {
            match self.api.get_opt(NAME).await {
                Ok(None) => {
                    if self.write(None).await.is_ok() {
                        return;
                    }
                }
                Ok(Some(lease)) => {
                    let version = lease.metadata.resource_version.clone();
                    let holder = lease
                        .spec
                        .as_ref()
                        .and_then(|spec| spec.holder_identity.clone());
                    let is_mine = holder.as_deref() == Some(self.identity.as_str());
                    if seen.0 != version {
                        seen = (version.clone(), Instant::now());
                    }
                    let is_free = holder.is_none_or(|holder| holder.is_empty());
                    if (is_mine || is_free || seen.1.elapsed() >= EXPIRES)
                        && self.write(version).await.is_ok()
                    {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "the lease cannot be read"),
            }
            tokio::time::sleep(RENEW).await;
        }
    }

    /// Renews the lease; returns when it is lost.
    pub(crate) async fn keep(&self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < GIVES_UP {
            tokio::time::sleep(RENEW).await;
            let Ok(Some(lease)) = self.api.get_opt(NAME).await else {
                continue;
            };
            let holder = lease.spec.and_then(|spec| spec.holder_identity);
            if holder.as_deref() != Some(self.identity.as_str()) {
                return;
            }
            if self.write(lease.metadata.resource_version).await.is_ok() {
                renewed = Instant::now();
            }
        }
    }

    /// Writes this one's name; fails if somebody else wrote since `version`.
    async fn write(
        &self,
        version: Option<String>,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease: KubeLease = serde_json::from_value(json!({
            "metadata": {"name": NAME, "resourceVersion": version},
            "spec": {
                "holderIdentity": self.identity, "leaseDurationSeconds": EXPIRES.as_secs(),
                "renewTime": format!("{now:.6}"),
            },
        }))?;
        match version {
            None => self.api.create(&PostParams::default(), &lease).await?,
            Some(_) => {
                self.api
                    .replace(NAME, &PostParams::default(), &lease)
                    .await?
            }
        };
        Ok(())
    }
}
