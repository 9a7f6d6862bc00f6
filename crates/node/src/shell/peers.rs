//! Links: the data thread's connections to and from peers.
//!
//! A task per other member keeps one link to it dialled; what peers dial comes through the peer port,
//! past its handshake. Of each peer at most one accepted link is served: a later one takes the place of
//! an earlier one, whose end this node may have no way to notice, and so does the news that the peer has
//! been started again or is no member any more. Accepted links that are silent are closed, because
//! diallers ping.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use mds_cluster::ClusterView;
use mds_types::NodeId;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, mpsc, watch};

use super::data_loop::DataLoop;
use super::outlet::Outlet;
use super::{clock, transport};
use crate::core::{Direction, LinkId};

/// An accepted link on which nothing moves for this long is closed: diallers ping every second.
const SILENCE_MAX_NS: u64 = 10_000_000_000;

/// When the last look at the links was longer ago, this process itself was stopped.
const SLEPT_NS: u64 = 1_000_000_000;

/// An accepted connection of a peer, past its handshake.
pub(super) struct AcceptedPeer {
    pub(super) peer: NodeId,
    /// The start of the peer that speaks.
    pub(super) start: Start,
    pub(super) stream: std::net::TcpStream,
    /// What came behind the handshake in the same read.
    pub(super) input: BytesMut,
    /// Its place among the connections that the peer port serves.
    pub(super) place: OwnedSemaphorePermit,
}

/// One start of a node: its number, and what was drawn at it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Start {
    pub(super) boot: u64,
    pub(super) nonce: u64,
}

/// A link in service.
pub(super) struct OpenLink {
    pub(super) outlet: Rc<Outlet>,
    peer: NodeId,
    /// Which start of the peer opened it; none: this node did.
    accepted_from: Option<Start>,
}

/// Takes the link out of service when its task ends, in whatever way.
struct LinkGuard {
    shared: Rc<DataLoop>,
    link: LinkId,
}

impl Drop for LinkGuard {
    fn drop(&mut self) {
        if let Some(open) = self.shared.links.borrow_mut().remove(&self.link) {
            open.outlet.end();
        }
        let mut core = self.shared.core.borrow_mut();
        core.on_link_closed(clock::now(), self.link);
        drop(core);
        self.shared.schedule_flush();
    }
}

/// Serves a link until it ends: reads, and tells the core.
async fn serve_link(
    shared: &Rc<DataLoop>,
    peer: NodeId,
    accepted_from: Option<Start>,
    stream: TcpStream,
    mut input: BytesMut,
) {
    let outlet = Rc::new(Outlet::new(stream));
    let direction = match accepted_from {
        Some(_) => Direction::Accepted,
        None => Direction::Dialled,
    };
    let link = shared
        .core
        .borrow_mut()
        .on_link_open(clock::now(), peer, direction);
    let open = OpenLink {
        outlet: outlet.clone(),
        peer,
        accepted_from,
    };
    shared.links.borrow_mut().insert(link, open);
    let guard = LinkGuard {
        shared: shared.clone(),
        link,
    };
    loop {
        let taken = shared
            .core
            .borrow_mut()
            .on_link_bytes(clock::now(), guard.link, &mut input);
        shared.schedule_flush();
        if let Err(error) = taken {
            tracing::warn!(%peer, %error, "closing the connection to a peer");
            return;
        }
        if !outlet.read(&mut input).await {
            return;
        }
    }
}

/// Keeps the core's view fresh, a dialling task for every other member, and no accepted link of a
/// start that is over.
pub(super) async fn view_task(shared: Rc<DataLoop>, mut views: watch::Receiver<Arc<ClusterView>>) {
    let mut dialling: BTreeMap<NodeId, tokio::task::JoinHandle<()>> = BTreeMap::new();
    loop {
        let view = views.borrow_and_update().clone();
        dialling.retain(|node, task| {
            let is_member = view.members.contains_key(node);
            if !is_member {
                task.abort();
            }
            is_member
        });
        for &node in view.members.keys().filter(|&&node| node != view.me) {
            let dial = || shared.spawn(dial_task(shared.clone(), node));
            dialling.entry(node).or_insert_with(dial);
        }
        for open in shared.links.borrow().values() {
            if open
                .accepted_from
                .is_some_and(|start| is_over(&view, open.peer, start))
            {
                open.outlet.end();
            }
        }
        shared.core.borrow_mut().on_view(view);
        shared.schedule_flush();
        if views.changed().await.is_err() {
            return;
        }
    }
}

/// Whether a start of a node has come to its end, as far as the view knows.
fn is_over(view: &ClusterView, peer: NodeId, start: Start) -> bool {
    view.members.get(&peer).is_none_or(|member| {
        let is_clone = member.boot == start.boot && member.boot_nonce != start.nonce;
        member.boot > start.boot || is_clone
    })
}

/// Keeps a link to one member open, for as long as it is one.
async fn dial_task(shared: Rc<DataLoop>, node: NodeId) {
    let mut backoff = transport::Backoff::default();
    loop {
        let view = shared.view.borrow().clone();
        match transport::dial(&view, &shared.hello, node).await {
            Ok((stream, input)) => {
                tracing::info!(peer = %node, "connected to a peer");
                backoff.reset();
                serve_link(&shared, node, None, stream, input).await;
                tracing::info!(peer = %node, "connection to a peer ended");
            }
            Err(error) => backoff.note(node, &error),
        }
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Serves what comes through the peer port.
pub(super) async fn accepted_task(
    shared: Rc<DataLoop>,
    mut accepted: mpsc::Receiver<AcceptedPeer>,
) {
    while let Some(accepted) = accepted.recv().await {
        let AcceptedPeer {
            peer,
            start,
            stream,
            input,
            place,
        } = accepted;
        let is_late = is_over(&shared.view.borrow(), peer, start);
        if is_late || !make_way(&shared.links.borrow(), peer, start) {
            tracing::info!(%peer, boot = start.boot, "a connection of a start that is over");
            continue;
        }
        match TcpStream::from_std(stream) {
            Ok(stream) => {
                let serving = shared.clone();
                shared.spawn(async move {
                    serve_link(&serving, peer, Some(start), stream, input).await;
                    drop(place);
                });
            }
            Err(error) => tracing::warn!(%error, "an accepted connection is unusable"),
        }
    }
}

/// Ends the accepted links that a new one of the same peer takes the place of. False: it is the new
/// one that is out of date.
fn make_way(links: &BTreeMap<LinkId, OpenLink>, peer: NodeId, start: Start) -> bool {
    let earlier = || {
        let of_peer = links.values().filter(|open| open.peer == peer);
        of_peer.filter_map(|open| Some((open, open.accepted_from?)))
    };
    if earlier().any(|(_, other)| other.boot > start.boot) {
        return false;
    }
    for (open, _) in earlier() {
        open.outlet.end();
    }
    true
}

/// Closes accepted links on which nothing moves.
#[derive(Debug, Default)]
pub(super) struct SilenceWatch {
    last_look_ns: u64,
}

impl SilenceWatch {
    /// To be called more often than once in [`SLEPT_NS`].
    pub(super) fn look(&mut self, now_ns: u64, links: &BTreeMap<LinkId, OpenLink>) {
        let was_asleep = now_ns.saturating_sub(self.last_look_ns) > SLEPT_NS;
        self.last_look_ns = now_ns;
        for open in links.values().filter(|open| open.accepted_from.is_some()) {
            if was_asleep {
                open.outlet.excuse(now_ns);
            } else if now_ns.saturating_sub(open.outlet.alive_ns()) > SILENCE_MAX_NS
                && !open.outlet.is_ended()
            {
                tracing::info!(peer = %open.peer, "closing a silent connection of a peer");
                open.outlet.end();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use mds_cluster::{MemberStage, MemberView};
    use mds_types::{IncarnationId, MemberInfo};

    use super::*;

    const PEER: NodeId = NodeId(2);

    fn start(boot: u64, nonce: u64) -> Start {
        Start { boot, nonce }
    }

    fn open_link(peer: NodeId, accepted_from: Option<Start>) -> OpenLink {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        OpenLink {
            outlet: Rc::new(Outlet::new(TcpStream::from_std(stream).unwrap())),
            peer,
            accepted_from,
        }
    }

    fn ended(links: &BTreeMap<LinkId, OpenLink>) -> Vec<u64> {
        let ended = links.iter().filter(|(_, open)| open.outlet.is_ended());
        ended.map(|(link, _)| link.0).collect()
    }

    /// Two accepted links of different peers, and a dialled one.
    fn three_links() -> BTreeMap<LinkId, OpenLink> {
        BTreeMap::from([
            (LinkId(1), open_link(PEER, Some(start(5, 55)))),
            (LinkId(2), open_link(NodeId(3), Some(start(1, 11)))),
            (LinkId(3), open_link(PEER, None)),
        ])
    }

    fn with_runtime(test: impl FnOnce()) {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        let _entered = runtime.enter();
        test();
    }

    #[test]
    fn a_later_link_of_a_peer_takes_the_place_of_the_earlier() {
        with_runtime(|| {
            let links = three_links();
            assert!(!make_way(&links, PEER, start(4, 44)), "that start is over");
            assert_eq!(ended(&links), []);
            assert!(make_way(&links, PEER, start(5, 55)));
            assert_eq!(ended(&links), [1]);
            assert!(make_way(&links, NodeId(4), start(1, 1)));
            assert_eq!(ended(&links), [1]);
        });
    }

    #[test]
    fn silent_accepted_links_are_closed_unless_we_slept() {
        with_runtime(|| {
            let links = three_links();
            let opened_ns = clock::now().mono_ns;
            let mut silence = SilenceWatch::default();
            // A sleep of a minute: nobody can be blamed for it.
            let woken_ns = opened_ns + 60_000_000_000;
            silence.look(woken_ns, &links);
            let mut now_ns = woken_ns;
            while now_ns < woken_ns + SILENCE_MAX_NS {
                now_ns += SLEPT_NS / 2;
                if now_ns == woken_ns + SILENCE_MAX_NS / 2 {
                    // The second link says something.
                    links[&LinkId(2)].outlet.excuse(now_ns);
                }
                silence.look(now_ns, &links);
                assert_eq!(ended(&links), []);
            }
            silence.look(now_ns + SLEPT_NS / 2, &links);
            assert_eq!(
                ended(&links),
                [1],
                "not the one that spoke, not the dialled one"
            );
        });
    }

    #[test]
    fn a_start_is_over_when_the_members_say_so() {
        let mut view = ClusterView::unborn(NodeId(1), MemberInfo::default(), 1);
        assert!(is_over(&view, PEER, start(5, 55)), "no member");
        let member = MemberView {
            incarnation: IncarnationId(2),
            boot: 5,
            boot_nonce: 55,
            info: MemberInfo::default(),
            stage: MemberStage::Active,
        };
        view.members.insert(PEER, member);
        assert!(!is_over(&view, PEER, start(5, 55)));
        assert!(
            !is_over(&view, PEER, start(6, 66)),
            "its announcement is on the way"
        );
        assert!(is_over(&view, PEER, start(5, 56)), "a clone");
        assert!(is_over(&view, PEER, start(4, 44)));
    }
}
