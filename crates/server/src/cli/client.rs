//! The HTTP client behind the commands.
//!
//! It is given one or more addresses. The next is tried when nothing can have happened at the one
//! before: it could not be reached, or it said that nothing was done. A write that was sent and not
//! answered is *never* sent again by itself: its outcome is unknown, and the user decides.

use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::{HeaderMap, Method, Request, StatusCode};

use super::output::Failure;
use crate::http::bodies::ErrorBody;

/// How long to wait for a connection to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait for a whole answer, unless a command says otherwise. Longer than any usual
/// request timeout of a node, so that the node's own answer comes first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// An answer longer than this is not read, bytes. Beyond the largest value and the largest page.
const ANSWER_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// No node could be reached: nothing was done.
    #[error("no node answers at {0}: is it running? (`mydatastore lab` starts a cluster)")]
    Unreachable(String),
    /// The request went out and no answer came back.
    #[error("{addr} did not answer: {reason}")]
    NoAnswer {
        /// The node.
        addr: String,
        /// Why.
        reason: String,
    },
    /// What came back makes no sense.
    #[error("{addr} does not answer like a MyDataStore node: {reason}")]
    Strange {
        /// The node.
        addr: String,
        /// Why.
        reason: String,
    },
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        Failure::unavailable(error.to_string())
    }
}

/// A node's answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Which node answered.
    pub addr: String,
    /// Status code.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Vec<u8>,
}

impl Reply {
    /// The body as a document.
    ///
    /// # Errors
    /// [`ClientError::Strange`].
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, ClientError> {
        serde_json::from_slice(&self.body).map_err(|error| ClientError::Strange {
            addr: self.addr.clone(),
            reason: error.to_string(),
        })
    }

    /// What went wrong, as the node says.
    pub fn error(&self) -> ErrorBody {
        self.json().unwrap_or_else(|_| ErrorBody {
            error: format!(
                "{} answered {}: {}",
                self.addr,
                self.status,
                String::from_utf8_lossy(&self.body[..self.body.len().min(200)]).trim()
            ),
            ..ErrorBody::default()
        })
    }

    /// Header text, if there.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// The failure that a status code of 400 and above is.
    pub fn failure(&self) -> Failure {
        let error = self.error();
        match self.status {
            StatusCode::NOT_FOUND => Failure::not_found(error.error),
            StatusCode::GATEWAY_TIMEOUT if error.retry_token.is_some() => {
                let token = error.retry_token.unwrap_or_default();
                Failure::unknown(format!(
                    "{}\nto make it certain, send the same write again with --retry-token {token}",
                    error.error
                ))
            }
            StatusCode::GATEWAY_TIMEOUT => Failure::unavailable(error.error),
            status if status.is_client_error() => Failure::usage(error.error),
            _ => Failure::unavailable(error.error),
        }
    }
}

/// What to send.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    method: Method,
    path: String,
    headers: Vec<(&'a str, String)>,
    body: Option<&'a [u8]>,
    timeout: Duration,
}

impl<'a> Call<'a> {
    /// A request for a path.
    pub fn new(method: Method, path: impl Into<String>) -> Call<'a> {
        Call {
            method,
            path: path.into(),
            headers: Vec::new(),
            body: None,
            timeout: ANSWER_TIMEOUT,
        }
    }

    /// With a body.
    pub fn body(mut self, body: &'a [u8]) -> Call<'a> {
        self.body = Some(body);
        self
    }

    /// With a header.
    pub fn header(mut self, name: &'a str, value: impl Into<String>) -> Call<'a> {
        self.headers.push((name, value.into()));
        self
    }

    /// With another patience.
    pub fn timeout(mut self, timeout: Duration) -> Call<'a> {
        self.timeout = timeout;
        self
    }
}

/// Talks to the first of some nodes that is there.
#[derive(Clone, Debug)]
pub struct Client {
    addrs: Vec<String>,
    agent: ureq::Agent,
}

impl Client {
    /// A client of these addresses: `host:port`, or several with commas.
    ///
    /// # Errors
    /// In words, when one is not an address.
    pub fn new(addrs: &str) -> Result<Client, String> {
        let mut list = Vec::new();
        for addr in addrs
            .split(',')
            .map(str::trim)
            .filter(|addr| !addr.is_empty())
        {
            let bare = addr
                .strip_prefix("http://")
                .unwrap_or(addr)
                .trim_end_matches('/');
            let url = format!("http://{bare}/");
            let uri: Result<ureq::http::Uri, _> = url.parse();
            let whole = uri
                .ok()
                .filter(|uri| uri.path() == "/" && uri.port().is_some());
            if whole.is_none() {
                return Err(format!(
                    "`{addr}` is not the HTTP address of a node: host:port"
                ));
            }
            list.push(bare.to_owned());
        }
        if list.is_empty() {
            return Err("no node is given: --node host:port".to_owned());
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .build();
        Ok(Client {
            addrs: list,
            agent: config.into(),
        })
    }

    /// Asks for a path and expects a document.
    ///
    /// # Errors
    /// A [`Failure`] with the exit code that fits.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Failure> {
        let reply = self.call(&Call::new(Method::GET, path))?;
        match reply.status.is_success() {
            true => Ok(reply.json()?),
            false => Err(reply.failure()),
        }
    }

    /// Sends a request to the first node that is there and does not say "nothing done".
    ///
    /// # Errors
    /// [`ClientError`], by whether something may have happened.
    pub fn call(&self, call: &Call<'_>) -> Result<Reply, ClientError> {
        let mut refused = None;
        for addr in &self.addrs {
            match self.call_at(addr, call) {
                // Nothing was done here: another node may be able to.
                Ok(reply) if reply.status == StatusCode::SERVICE_UNAVAILABLE => {
                    refused = Some(reply);
                }
                Err(ClientError::Unreachable(_)) => {}
                // A read can be asked again of anyone.
                Err(ClientError::NoAnswer { .. }) if call.method == Method::GET => {}
                decided => return decided,
            }
        }
        refused.ok_or_else(|| ClientError::Unreachable(self.addrs.join(", ")))
    }

    /// Sends a request to one node.
    ///
    /// # Errors
    /// [`ClientError`], by whether something may have happened.
    pub fn call_at(&self, addr: &str, call: &Call<'_>) -> Result<Reply, ClientError> {
        let strange = |reason: String| ClientError::Strange {
            addr: addr.to_owned(),
            reason,
        };
        let mut builder = Request::builder()
            .method(call.method.clone())
            .uri(format!("http://{addr}{}", call.path));
        for (name, value) in &call.headers {
            builder = builder.header(*name, value);
        }
        let answered = match call.body {
            Some(body) => {
                let request = builder
                    .body(body)
                    .map_err(|error| strange(error.to_string()))?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(call.timeout)).build())
            }
            None => {
                let request = builder
                    .body(())
                    .map_err(|error| strange(error.to_string()))?;
                let request = self.agent.configure_request(request);
                self.agent
                    .run(request.timeout_global(Some(call.timeout)).build())
            }
        };
        let mut answered = answered.map_err(|error| classify(addr, error))?;
        let body = answered
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_vec()
            .map_err(|error| classify(addr, error))?;
        Ok(Reply {
            addr: addr.to_owned(),
            status: answered.status(),
            headers: answered.headers().clone(),
            body,
        })
    }
}

/// Whether something may have happened before a request failed.
fn classify(addr: &str, error: ureq::Error) -> ClientError {
    use std::io::ErrorKind;
    let unsent = match &error {
        ureq::Error::HostNotFound
        | ureq::Error::ConnectionFailed
        | ureq::Error::Timeout(ureq::Timeout::Resolve | ureq::Timeout::Connect) => true,
        ureq::Error::Io(io) => matches!(
            io.kind(),
            ErrorKind::ConnectionRefused
                | ErrorKind::HostUnreachable
                | ErrorKind::NetworkUnreachable
                | ErrorKind::AddrNotAvailable
        ),
        _ => false,
    };
    match unsent {
        true => ClientError::Unreachable(addr.to_owned()),
        false => ClientError::NoAnswer {
            addr: addr.to_owned(),
            reason: error.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener};

    /// Answers one connection with these bytes, and closes.
    fn one_answer(answer: &'static [u8]) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 1024];
            let _ = stream.read(&mut head);
            let _ = stream.write_all(answer);
        });
        addr
    }

    /// An address where nobody listens.
    fn nobody() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
    }

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";
    const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

    fn put(addrs: &[SocketAddr]) -> Result<Reply, ClientError> {
        let list: Vec<String> = addrs.iter().map(SocketAddr::to_string).collect();
        let client = Client::new(&list.join(",")).unwrap();
        client.call(&Call::new(Method::PUT, "/v1/kv/a").body(b"v"))
    }

    #[test]
    fn the_next_node_is_tried_when_nothing_was_done() {
        let reply = put(&[nobody(), one_answer(BUSY), one_answer(OK)]).unwrap();
        assert_eq!(
            (reply.status, reply.body.as_slice()),
            (StatusCode::OK, &b"ok"[..])
        );
        assert!(matches!(
            put(&[nobody(), nobody()]),
            Err(ClientError::Unreachable(_))
        ));
        let busy = put(&[one_answer(BUSY), nobody()]).unwrap();
        assert_eq!(busy.failure().code(), 3);
    }

    #[test]
    fn an_unanswered_write_is_not_sent_again() {
        let second = TcpListener::bind("127.0.0.1:0").unwrap();
        second.set_nonblocking(true).unwrap();
        let answer = put(&[one_answer(b""), second.local_addr().unwrap()]);
        assert!(
            matches!(answer, Err(ClientError::NoAnswer { .. })),
            "{answer:?}"
        );
        assert!(second.accept().is_err(), "the write went to a second node");
    }

    #[test]
    fn an_unanswered_read_is_asked_of_the_next() {
        let addrs = format!("{},{}", one_answer(b""), one_answer(OK));
        let client = Client::new(&addrs).unwrap();
        assert!(client.call(&Call::new(Method::GET, "/")).is_ok());
    }

    #[test]
    fn addresses_are_checked() {
        for text in [
            "",
            ",",
            "no-port",
            "http://a:1/path",
            "a b:1",
            "https://a:1",
        ] {
            assert!(Client::new(text).is_err(), "{text}");
        }
        let client = Client::new("http://a:1/, b:2").unwrap();
        assert_eq!(client.addrs, ["a:1", "b:2"]);
    }
}
