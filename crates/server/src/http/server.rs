//! The listener: connections in, answers out, an orderly end.
//!
//! One task a connection, on the thread that runs this. More connections than the limit wait in the
//! kernel's queue. Every wait for a client has an end ([`super::limits`]), so a slow or silent client
//! holds its connection only for a while.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::limits;

/// Serves until `shutdown` completes, then lets requests in progress finish, for
/// [`limits::DRAIN_TIMEOUT`] at most.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: u32,
    shutdown: impl Future<Output = ()>,
) {
    let connections_max = connections_max.max(1);
    let connections = Arc::new(Semaphore::new(connections_max as usize));
    let (stop, stopping) = watch::channel(false);
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = accept(&listener, &connections) => accepted,
        };
        let (stream, peer, permit) = accepted;
        tokio::spawn(connection(
            stream,
            peer,
            router.clone(),
            stopping.clone(),
            permit,
        ));
    }
    drop(listener);
    // Fails only when no connection is there to hear it.
    let _ = stop.send(true);
    let all = connections.acquire_many(connections_max);
    if tokio::time::timeout(limits::DRAIN_TIMEOUT, all)
        .await
        .is_err()
    {
        let left = connections_max as usize - connections.available_permits();
        tracing::warn!(
            left,
            "HTTP connections were still busy at shutdown and are cut"
        );
    }
}

/// The next connection, once there is room for one.
async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    loop {
        let Ok(permit) = Arc::clone(connections).acquire_owned().await else {
            // The semaphore is never closed; should it be, there is nothing more to accept.
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, peer)) => return (stream, peer, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept an HTTP connection");
                tokio::time::sleep(limits::ACCEPT_RETRY_PAUSE).await;
            }
        }
    }
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    mut stopping: watch::Receiver<bool>,
    _permit: OwnedSemaphorePermit,
) {
    // Without these two the connection works, only less well.
    let _ = stream.set_nodelay(true);
    let _ = SockRef::from(&stream).set_tcp_user_timeout(Some(limits::SEND_STALL_TIMEOUT));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits::HEAD_READ_TIMEOUT)
        .max_headers(limits::HEADERS_MAX)
        .max_header_size(limits::HEAD_BYTES_MAX);
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    // An error means that the listener is gone: that is a stop too.
    let stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        // A client's business: it went away, was too slow or spoke something else.
        tracing::debug!(%peer, %error, "HTTP connection ended early");
    }
}
