//! What the oracle reads off the wire, just before a node takes it in: by which rings requests were routed, and who
//! was told to be equal to whom.
//!
//! Nearly all frames are passed over by their kind, undecoded.

use bytes::{Buf, Bytes};
use mds_node::sync_io::RootOf;
use mds_node::wire::{
    KIND_GET, KIND_PUT, KIND_ROOTS, KIND_ROOTS_REPLY, Message, Roots, RootsReply, Verdict, decode,
};
use mds_types::{Epoch, NodeId, PartitionId, TopologyVersion};

use crate::env::Env;
use crate::network::ConnId;

/// Bytes before a frame's kind, of which the first four are the length of what follows.
const FRAME_HEADER_BYTES: usize = 8;

/// The whole messages among some bytes, as far as anybody is interested.
#[derive(Default)]
pub(super) struct Heard {
    /// By which versions of the rings writes were routed, if there are any that may be too old.
    pub(super) puts: Vec<TopologyVersion>,
    /// Likewise reads.
    pub(super) gets: Vec<TopologyVersion>,
    questions: Vec<Roots>,
    answers: Vec<RootsReply>,
}

impl Heard {
    /// Looks at bytes that have arrived. Requests are of interest once there are rings too old to be served.
    pub(super) fn of(mut input: &[u8], accepted_from: TopologyVersion) -> Heard {
        let mut heard = Heard::default();
        let has_old_rings = accepted_from > TopologyVersion(0);
        while input.len() > FRAME_HEADER_BYTES {
            let bytes = (&input[..4]).get_u32_le() as usize;
            let Some(frame) = input.get(FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + bytes) else {
                break;
            };
            input = &input[FRAME_HEADER_BYTES + bytes..];
            let is_of_interest = match frame.first() {
                Some(&(KIND_PUT | KIND_GET)) => has_old_rings,
                Some(&(KIND_ROOTS | KIND_ROOTS_REPLY)) => true,
                _ => false,
            };
            if is_of_interest {
                heard.take(Bytes::copy_from_slice(frame));
            }
        }
        heard
    }

    fn take(&mut self, frame: Bytes) {
        match decode(frame) {
            Ok(Some(Message::Put(put))) => self.puts.push(TopologyVersion(put.topology)),
            Ok(Some(Message::Get(get))) => self.gets.push(TopologyVersion(get.topology)),
            Ok(Some(Message::Roots(roots))) => self.questions.push(roots),
            Ok(Some(Message::RootsReply(reply))) => self.answers.push(reply),
            _ => {}
        }
    }

    /// Whether there are requests among them that were routed by rings too old to be served.
    pub(super) fn has_old_requests(&self, accepted_from: TopologyVersion) -> bool {
        let mut routed = self.puts.iter().chain(&self.gets);
        routed.any(|version| *version < accepted_from)
    }

    /// Tells the oracle which sets were asked about on a connection, and which of them the other side has found equal.
    /// `name` and `me`: who hears it.
    pub(super) fn note_comparisons(
        self,
        conn: ConnId,
        name: (usize, u64),
        me: NodeId,
        env: &mut Env,
    ) {
        for roots in self.questions {
            // Whoever hears the question will answer it.
            let items = roots.items.iter().filter_map(|item| {
                Some(RootOf {
                    partition: PartitionId(u16::try_from(item.partition).ok()?),
                    epoch: Epoch(item.epoch),
                    root: u128::from_le_bytes((&item.root[..]).try_into().ok()?),
                })
            });
            let asked = (me, TopologyVersion(roots.topology), items.collect());
            env.compared.insert((conn, roots.id), asked);
        }
        for reply in self.answers {
            let Some((member, version, items)) = env.compared.remove(&(conn, reply.id)) else {
                continue;
            };
            for (root, answer) in items.iter().zip(&reply.answers) {
                if Verdict::try_from(answer.verdict) == Ok(Verdict::Equal) {
                    env.watch.seen_equal(name, root, member, version);
                }
            }
        }
    }
}
