//! The identity of a data directory.
use std::io;
use mds_storage::Disk;
use mds_types::{ClusterId, IncarnationId};

/// Identity.
#[derive(Clone, Debug)]
pub struct Identity {
    /// i
    pub incarnation: IncarnationId,
    /// c
    pub cluster: ClusterId,
}
impl Identity {
    /// Adopt.
    pub fn adopt_cluster(&mut self, disk: &dyn Disk, cluster: ClusterId) -> io::Result<()> {
        crate::whole_file::write(disk, "raft", "cluster", &cluster.0.to_le_bytes())?;
        self.cluster = cluster;
        Ok(())
    }
}
