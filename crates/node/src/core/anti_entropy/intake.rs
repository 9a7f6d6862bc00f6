//! Taking in records that other replicas have sent, for whatever reason they were asked for.

use bytes::Bytes;
use mds_storage::store::Purpose;
use mds_types::Record;

use super::super::Core;
use crate::store_io::{ReplyTo, Ticket};

/// Records as they came over the wire; none if one of them makes no sense.
pub(super) fn decode_all(encoded: &[Bytes]) -> Option<Vec<Record>> {
    let records = encoded.iter().cloned();
    records.map(|bytes| Record::decode(bytes).ok()).collect()
}

impl Core {
    /// Has a record merged here; the operation `id` hears what became of it.
    pub(super) fn merge_here(&mut self, id: u64, purpose: Purpose, record: Record) {
        let ticket = Ticket {
            reply_to: ReplyTo::Me,
            id,
            bytes: record.encoded_len(),
        };
        self.store_backlog += 1;
        self.store_backlog_bytes += ticket.bytes;
        self.batch.push(ticket, purpose, record);
    }
}
