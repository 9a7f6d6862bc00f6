//! The Kubernetes operator of MyDataStore: it scales, upgrades and mends a cluster, and only when the data is safe.
//!
//! It speaks to Kubernetes by its API and to the database by HTTP alone. What to do is decided by a pure function
//! ([`decide`]) from what was seen; looking and acting is [`reconcile`]'s part. It keeps no state of its own.

pub mod children;
pub mod crd;
pub mod database;
pub mod decide;
pub mod lease;
pub mod manifests;
pub mod reconcile;
pub mod rounds;
pub mod run;
