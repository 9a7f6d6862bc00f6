//! The first words on a data connection, and whether they are good enough.
//!
//! Both sides say who they are and whom they think they talk to, before any data flows. The
//! decision is a pure function of the [`ClusterView`]: a node of another cluster, an address that
//! now belongs to somebody else, a wiped or copied directory, a differing configuration are all
//! refused here, with words for an operator.

use mds_types::{ClusterId, IncarnationId, NodeId};

use crate::view::ClusterView;

/// The data protocol that this build speaks.
pub const PROTOCOL_VERSION: u16 = 1;

/// Bytes of an encoded [`Hello`]: always the same.
pub const HELLO_BYTES: usize = 79;

const MAGIC: [u8; 4] = *b"MDSH";

/// How one side introduces itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// See [`PROTOCOL_VERSION`].
    pub protocol: u16,
    /// The cluster that the speaker is part of.
    pub cluster: ClusterId,
    /// The speaker.
    pub from: NodeId,
    /// The speaker's data directory.
    pub incarnation: IncarnationId,
    /// The speaker's start number.
    pub boot: u64,
    /// Drawn at that start.
    pub nonce: u64,
    /// Whom the speaker thinks it talks to.
    pub to: NodeId,
    /// Fingerprint of the speaker's [`mds_types::ClusterConfig`].
    pub fingerprint: u64,
    /// What the connection is for: the owner of the connection gives it its meaning.
    pub channel: u8,
}

/// Why a [`Hello`] is not accepted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum HelloRefusal {
    /// Not the bytes of a hello.
    #[error("the other side does not speak this protocol: is the port right?")]
    Malformed,
    /// Another protocol version.
    #[error("protocol version {theirs} is spoken, this node speaks {ours}: upgrade the older one")]
    Protocol {
        /// The speaker's.
        theirs: u16,
        /// This node's.
        ours: u16,
    },
    /// This node does not know its cluster yet. Worth another try.
    #[error("this node has not learnt its cluster's configuration yet")]
    NotReady,
    /// Another cluster.
    #[error("node {from} is of cluster {theirs}, this node of {ours}: its address is wrong")]
    Cluster {
        /// The speaker.
        from: NodeId,
        /// Its cluster.
        theirs: ClusterId,
        /// This node's.
        ours: ClusterId,
    },
    /// Meant for somebody else: an address has changed hands. Worth another try.
    #[error("meant for node {meant}, but this is {me}: the address has changed hands")]
    NotMe {
        /// Whom the speaker wanted.
        meant: NodeId,
        /// This node.
        me: NodeId,
    },
    /// Not a member, as far as this node knows. Worth another try.
    #[error("node {0} is not a member as far as this node knows")]
    NotAMember(NodeId),
    /// A member's node id with another directory.
    #[error("node {0} does not have the data directory that it is a member with")]
    Incarnation(NodeId),
    /// An older start, or another copy of the directory.
    #[error(
        "start {boot} of node {from} is over: another start of its data directory has been seen"
    )]
    Superseded {
        /// The speaker.
        from: NodeId,
        /// The start it speaks for.
        boot: u64,
    },
    /// The configurations differ.
    #[error("the cluster configuration of node {0} differs from this node's")]
    Fingerprint(NodeId),
}

impl HelloRefusal {
    /// Whether the same hello may be accepted later: this node may be behind, or gossip was.
    pub fn is_temporary(&self) -> bool {
        matches!(
            self,
            HelloRefusal::NotReady | HelloRefusal::NotMe { .. } | HelloRefusal::NotAMember(_)
        )
    }
}

impl Hello {
    /// The binary form: fixed length, little-endian.
    pub fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0u8; HELLO_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4..6].copy_from_slice(&self.protocol.to_le_bytes());
        bytes[6..22].copy_from_slice(&self.cluster.0.to_le_bytes());
        bytes[22..30].copy_from_slice(&self.from.0.to_le_bytes());
        bytes[30..46].copy_from_slice(&self.incarnation.0.to_le_bytes());
        bytes[46..54].copy_from_slice(&self.boot.to_le_bytes());
        bytes[54..62].copy_from_slice(&self.nonce.to_le_bytes());
        bytes[62..70].copy_from_slice(&self.to.0.to_le_bytes());
        bytes[70..78].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[78] = self.channel;
        bytes
    }

    /// Reads the binary form. Of a later protocol version only magic and version are looked at, so
    /// that the refusal can name the version.
    ///
    /// # Errors
    /// [`HelloRefusal::Malformed`] or [`HelloRefusal::Protocol`].
    pub fn decode(bytes: &[u8]) -> Result<Hello, HelloRefusal> {
        if bytes.len() < 6 || bytes[0..4] != MAGIC {
            return Err(HelloRefusal::Malformed);
        }
        let protocol = u16::from_le_bytes([bytes[4], bytes[5]]);
        if protocol != PROTOCOL_VERSION {
            return Err(HelloRefusal::Protocol {
                theirs: protocol,
                ours: PROTOCOL_VERSION,
            });
        }
        if bytes.len() != HELLO_BYTES {
            return Err(HelloRefusal::Malformed);
        }
        Ok(Hello {
            protocol,
            cluster: ClusterId(u128_at(bytes, 6)),
            from: NodeId(u64_at(bytes, 22)),
            incarnation: IncarnationId(u128_at(bytes, 30)),
            boot: u64_at(bytes, 46),
            nonce: u64_at(bytes, 54),
            to: NodeId(u64_at(bytes, 62)),
            fingerprint: u64_at(bytes, 70),
            channel: bytes[78],
        })
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u128_at(bytes: &[u8], at: usize) -> u128 {
    let mut word = [0u8; 16];
    word.copy_from_slice(&bytes[at..at + 16]);
    u128::from_le_bytes(word)
}

/// Whether the speaker of `hello` may be talked to, as far as `view` knows.
///
/// # Errors
/// The first reason not to; [`HelloRefusal::is_temporary`] says whether to try again.
pub fn check_hello(view: &ClusterView, hello: &Hello) -> Result<(), HelloRefusal> {
    if hello.protocol != PROTOCOL_VERSION {
        let theirs = hello.protocol;
        return Err(HelloRefusal::Protocol {
            theirs,
            ours: PROTOCOL_VERSION,
        });
    }
    let Some(config) = &view.config else {
        return Err(HelloRefusal::NotReady);
    };
    let (from, theirs, ours) = (hello.from, hello.cluster, view.cluster);
    if theirs != ours || ours.is_none() {
        return Err(HelloRefusal::Cluster { from, theirs, ours });
    }
    if hello.to != view.me {
        return Err(HelloRefusal::NotMe {
            meant: hello.to,
            me: view.me,
        });
    }
    let Some(member) = view.members.get(&from) else {
        return Err(HelloRefusal::NotAMember(from));
    };
    if member.incarnation != hello.incarnation {
        return Err(HelloRefusal::Incarnation(from));
    }
    let boot = hello.boot;
    if boot < member.boot || (boot == member.boot && hello.nonce != member.boot_nonce) {
        return Err(HelloRefusal::Superseded { from, boot });
    }
    if hello.fingerprint != config.fingerprint() {
        return Err(HelloRefusal::Fingerprint(from));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use mds_types::{ClusterConfig, MemberInfo};
    use proptest::prelude::*;

    use super::*;
    use crate::view::{MemberStage, MemberView};

    const ME: NodeId = NodeId(1);
    const OTHER: NodeId = NodeId(2);

    fn view() -> ClusterView {
        let mut view = ClusterView::unborn(ME, MemberInfo::default(), 1);
        view.cluster = ClusterId(7);
        view.config = Some(ClusterConfig::default());
        let member = MemberView {
            incarnation: IncarnationId(2),
            boot: 5,
            boot_nonce: 55,
            info: MemberInfo::default(),
            stage: MemberStage::Active,
        };
        view.members.insert(OTHER, member);
        view
    }

    fn hello() -> Hello {
        Hello {
            protocol: PROTOCOL_VERSION,
            cluster: ClusterId(7),
            from: OTHER,
            incarnation: IncarnationId(2),
            boot: 5,
            nonce: 55,
            to: ME,
            fingerprint: ClusterConfig::default().fingerprint(),
            channel: 3,
        }
    }

    #[test]
    fn every_field_is_checked() {
        let view = view();
        let good = hello();
        assert_eq!(check_hello(&view, &good), Ok(()));
        let later = Hello {
            boot: 6,
            nonce: 66,
            ..good
        };
        assert_eq!(
            check_hello(&view, &later),
            Ok(()),
            "its announcement is still on the way"
        );
        let (theirs, ours) = (ClusterId(8), ClusterId(7));
        for (bad, refusal) in [
            (
                Hello {
                    protocol: 9,
                    ..good
                },
                HelloRefusal::Protocol { theirs: 9, ours: 1 },
            ),
            (
                Hello {
                    cluster: theirs,
                    ..good
                },
                HelloRefusal::Cluster {
                    from: OTHER,
                    theirs,
                    ours,
                },
            ),
            (
                Hello { to: OTHER, ..good },
                HelloRefusal::NotMe {
                    meant: OTHER,
                    me: ME,
                },
            ),
            (
                Hello {
                    from: NodeId(3),
                    ..good
                },
                HelloRefusal::NotAMember(NodeId(3)),
            ),
            (
                Hello {
                    incarnation: IncarnationId(3),
                    ..good
                },
                HelloRefusal::Incarnation(OTHER),
            ),
            (
                Hello { boot: 4, ..good },
                HelloRefusal::Superseded {
                    from: OTHER,
                    boot: 4,
                },
            ),
            (
                Hello { nonce: 56, ..good },
                HelloRefusal::Superseded {
                    from: OTHER,
                    boot: 5,
                },
            ),
            (
                Hello {
                    fingerprint: 0,
                    ..good
                },
                HelloRefusal::Fingerprint(OTHER),
            ),
        ] {
            assert_eq!(check_hello(&view, &bad), Err(refusal));
        }
        let unborn = ClusterView::unborn(ME, MemberInfo::default(), 1);
        assert_eq!(check_hello(&unborn, &good), Err(HelloRefusal::NotReady));
    }

    proptest! {
        #[test]
        fn a_hello_survives_the_way(
            cluster in any::<u128>(), from in any::<u64>(), incarnation in any::<u128>(),
            boot in any::<u64>(), nonce in any::<u64>(), to in any::<u64>(),
            fingerprint in any::<u64>(), channel in any::<u8>(),
        ) {
            let hello = Hello {
                protocol: PROTOCOL_VERSION,
                cluster: ClusterId(cluster),
                from: NodeId(from),
                incarnation: IncarnationId(incarnation),
                boot,
                nonce,
                to: NodeId(to),
                fingerprint,
                channel,
            };
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = Hello::decode(&bytes);
            let mut framed = hello().encode()[..6].to_vec();
            framed.extend_from_slice(&bytes);
            if let Ok(read) = Hello::decode(&framed) {
                prop_assert_eq!(&read.encode()[..], &framed[..]);
            }
        }
    }
}
