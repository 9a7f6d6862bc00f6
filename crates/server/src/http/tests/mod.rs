//! The front-end over a real socket, before the stand-in database.

mod cluster;
mod data;
mod epochs;
mod limits;
mod profile;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mds_cluster::state::{Blocker, Quorums, WaitsFor};
use mds_cluster::{RingRequest, Standing, TransitionView};
use mds_node::api::{Op, RequestError, Stamp};
use mds_types::{Epoch, Hlc, NodeId, RequestId, RingStage, Version};
use proptest::prelude::*;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::bodies::PageBody;
use super::{App, router, server};
use crate::config::{Effective, FIELDS, NodeConfig, Origin};
use crate::database::Database;
use crate::database::fake::{FakeDatabase, three_members};
use crate::http::percent_encode;

/// A front-end on a port of its own, on a thread of its own, as in a node.
struct Served {
    addr: SocketAddr,
    database: Arc<FakeDatabase>,
    agent: ureq::Agent,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Served {
    fn new() -> Served {
        Served::with(|_| ())
    }

    fn with(change: impl FnOnce(&mut NodeConfig)) -> Served {
        let mut config = NodeConfig::default();
        change(&mut config);
        let connections_max = config.http_connections_max;
        let effective = Effective {
            config,
            origins: vec![Origin::Default; FIELDS.len()],
        };
        let database = FakeDatabase::new();
        let app = App::new(Arc::clone(&database) as Arc<dyn Database>, effective);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let mut builder = tokio::runtime::Builder::new_current_thread();
            let runtime = builder.enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = tokio::net::TcpListener::from_std(listener).unwrap();
                let shutdown = async { drop(stopped.await) };
                server::serve(listener, router(app), connections_max, shutdown).await;
            });
        });
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build();
        Served {
            addr,
            database,
            agent: agent.into(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }

    fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("http://{}{path}", self.addr));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = match body.is_empty() && method != "PUT" && method != "POST" {
            true => self.agent.run(request.body(()).unwrap()),
            false => self.agent.run(request.body(body).unwrap()),
        };
        let mut response = response.unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        Answer {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().read_to_vec().unwrap(),
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.call("GET", path, &[], &[])
    }

    fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.call("PUT", path, &[], body)
    }

    /// Sends bytes as they are and reads until the server closes.
    fn raw(&self, bytes: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        // The server may close while we still send: what it answered counts.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

struct Answer {
    status: u16,
    headers: ureq::http::HeaderMap,
    body: Vec<u8>,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    fn header(&self, name: &str) -> &str {
        self.headers[name].to_str().unwrap()
    }
}

const TOKEN: &str = "0000000001000000-0000000000000002";
const RETRY_TOKEN: &str = "0000000001000000-0000000000000002-1f-000000000000abcd";

fn stamp() -> Stamp {
    Stamp {
        version: token(),
        epoch: Epoch(0x1f),
        content: 0xabcd,
    }
}

fn token() -> Version {
    Version {
        hlc: Hlc(0x0100_0000),
        node: NodeId(2),
    }
}
