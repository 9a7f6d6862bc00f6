//! The words of MyDataStore: identifiers, clocks, versions, records, topology and limits.
//!
//! Everything here is a plain value. No file, socket, clock or random number is touched: time and
//! identity are arguments. The other crates build on these types in a straight line (see
//! `ARCHITECTURE.md`), so whatever two of them must agree on, byte for byte, lives here:
//!
//! - [`ids`]: who and where: nodes, incarnations, clusters, epochs, partitions;
//! - [`hlc`]: the hybrid logical clock that stamps writes;
//! - [`record`]: the record, its version, the **merge law**, and its one binary form;
//! - [`slot`]: which slot and partition a key belongs to (Redis Cluster's CRC16);
//! - [`topology`]: members, the agreed ring, and the configuration a cluster is born with;
//! - [`ring`]: two rings in transition, and which one is written and read in which stage;
//! - [`epochs`]: the floors that tie the order of epochs to that of versions;
//! - [`limits`]: every bound that more than one crate respects, with its unit;
//! - [`mutation`]: planted bugs for the simulator, compiled into nothing else.

pub mod epochs;
pub mod hlc;
pub mod ids;
pub mod limits;
pub mod mutation;
pub mod record;
pub mod ring;
pub mod slot;
pub mod topology;

pub use epochs::EpochFloors;
pub use hlc::{Hlc, HlcClock, HlcError};
pub use ids::{ClusterId, Epoch, IncarnationId, NodeId, PartitionId, RequestId, TopologyVersion};
pub use record::{Body, DecodeError, Digest, Kind, Record, Version};
pub use ring::{Ring, RingStage, RingUse, Rings};
pub use topology::{ClusterConfig, MemberInfo, Topology, TopologyMember};
