//! **Every version lies above the floor of its epoch.**
//!
//! What is collected is older than all that may still come in, because whatever may still come in is of later
//! epochs and so above their floors (trap T9). The floors are those that Raft agreed on, as nodes show them.

use std::collections::BTreeMap;

use mds_cluster::ClusterView;
use mds_types::{Epoch, Hlc, Record};

use super::Broken;

const INVARIANT: &str = "versions lie above the floor of their epoch";

/// The agreed floors.
#[derive(Default)]
pub(super) struct StampsAboveFloors {
    floors: BTreeMap<Epoch, Hlc>,
}

impl StampsAboveFloors {
    /// What a node shows.
    pub(super) fn shown(&mut self, view: &ClusterView) {
        let last = self.floors.keys().next_back().map_or(0, |epoch| epoch.0);
        for epoch in (last + 1..=view.epoch.0).map(Epoch) {
            self.floors.insert(epoch, view.floors.floor(epoch));
        }
    }

    /// The floor of an epoch; that of the latest known one for one still to come.
    pub(super) fn floor(&self, epoch: Epoch) -> Hlc {
        let known = self.floors.range(..=epoch).next_back();
        known.map_or(Hlc(0), |(_, floor)| *floor)
    }

    /// A record that a replica shows.
    pub(super) fn visible(&self, node: usize, record: &Record) -> Option<Broken> {
        let floor = self.floors.get(&record.epoch)?;
        (record.version.hlc <= *floor && floor.0 > 0).then(|| {
            let (key, version, epoch) = (&record.key, record.version, record.epoch);
            let detail = format!(
                "node {} shows {key:?} at {version} of epoch {epoch}, the floor of which is {}",
                node + 1,
                floor.0
            );
            (INVARIANT, detail)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use mds_types::EpochFloors;

    use super::super::tests_support::{record, view};
    use super::*;

    #[test]
    fn a_version_below_its_floor_is_seen() {
        let mut floors = EpochFloors::default();
        floors.begin(Epoch(1), Hlc(0));
        floors.begin(Epoch(2), Hlc(7));
        let mut watch = StampsAboveFloors::default();
        let mut view = view(1);
        (view.epoch, view.floors) = (Epoch(2), Arc::new(floors));
        watch.shown(&view);
        let of = |hlc, epoch| Record {
            epoch: Epoch(epoch),
            ..record(1, hlc)
        };
        assert_eq!(watch.visible(0, &of(5, 1)), None);
        assert_eq!(watch.visible(0, &of(8, 2)), None);
        assert!(watch.visible(0, &of(7, 2)).is_some());
        assert_eq!(watch.visible(0, &of(7, 3)), None, "not known yet");
        assert_eq!(watch.floor(Epoch(1)), Hlc(0));
        assert_eq!(watch.floor(Epoch(9)), Hlc(7));
    }
}
