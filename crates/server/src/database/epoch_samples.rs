//! Verification, copying and changes of the ring as numbers.

use mds_cluster::ClusterView;
use mds_node::core::{SyncReport, SyncStats};
use mds_types::RingStage;

use super::Sample;
use super::epochs::EpochsReport;

/// What the ledger says, and whom verification waits for.
pub(super) fn ledger_samples(
    report: &EpochsReport,
    view: &ClusterView,
    now_ms: u64,
) -> Vec<Sample> {
    let gauge = |name, help, value: u64| Sample::gauge(name, help, value as f64);
    let partitions = [
        ("held", report.partitions.held),
        ("streaming", report.partitions.streaming),
        ("wiping", report.partitions.wiping),
        ("absent", report.partitions.absent),
    ];
    let partitions = partitions.map(|(state, count)| {
        gauge(
            "partitions",
            "Partitions, by whether and how they are here.",
            count,
        )
        .with("state", state)
    });
    let mut samples = Vec::from(partitions);
    samples.extend([
        gauge(
            "closed_epoch",
            "The epoch that was closed last here.",
            report.closed.0,
        ),
        gauge(
            "oldest_unverified_epoch",
            "The oldest epoch that is not verified in all partitions held here, closed or not.",
            report.oldest_unverified().0,
        ),
        gauge(
            "watermark_lag_epochs",
            "Epochs that are closed and not verified in all partitions held here.",
            report.lag_epochs(),
        ),
        Sample::gauge(
            "verified_lag_seconds",
            "How long the oldest of them has been closed.",
            report.lag_ms as f64 / 1e3,
        ),
        gauge(
            "verification_blockers",
            "Members without which some closed epoch cannot be verified here.",
            report.blocked.len() as u64,
        ),
    ]);
    for (node, since_ms) in &report.blocked {
        let waited_ms = now_ms.saturating_sub(*since_ms);
        let name = view.info(*node).map(|info| info.name.clone());
        let sample = Sample::gauge(
            "verification_blocked_seconds",
            "How long this member has been waited for, so that some closed epoch can be verified here.",
            waited_ms as f64 / 1e3,
        );
        samples.push(
            sample
                .with("node", node.to_string())
                .with("name", name.unwrap_or_default()),
        );
    }
    samples
}

/// What anti-entropy has cost and brought.
pub(super) fn sync_samples(report: &SyncReport) -> Vec<Sample> {
    let counter = Sample::counter;
    let gauge = |name, help, value: u64| Sample::gauge(name, help, value as f64);
    let stats = &report.stats;
    let mut samples = exchanged(stats);
    samples.extend([
        counter(
            "sync_comparisons",
            "Roots of a partition's epoch compared with another replica.",
            stats.comparisons,
        ),
        counter(
            "sync_differences",
            "Comparisons that found a difference.",
            stats.differences,
        ),
        counter(
            "sync_settled",
            "Epochs of partitions that this replica has settled.",
            stats.settled,
        ),
        counter(
            "sync_partitions_rebuilt",
            "Partitions found to be wrong here, and wiped to be copied anew.",
            stats.rebuilt,
        ),
        counter(
            "copied_partitions",
            "Partitions copied here to the end.",
            stats.partitions_streamed,
        ),
        counter(
            "copied_bytes",
            "Bytes of records received while partitions were copied here.",
            stats.streamed_bytes,
        ),
        gauge(
            "copy_partitions_left",
            "Partitions that this node has to get and that are not whole here yet.",
            report.copying.left,
        ),
        gauge(
            "copy_partitions_unverified",
            "Partitions that change hands and are not verified here yet.",
            report.copying.unverified,
        ),
    ]);
    samples
}

/// What went over the wire, each both ways.
fn exchanged(stats: &SyncStats) -> Vec<Sample> {
    let pairs = [
        (
            "sync_messages",
            "Messages of anti-entropy.",
            [stats.messages, stats.messages_received],
        ),
        (
            "sync_bytes",
            "Bytes of these messages.",
            [stats.bytes, stats.bytes_received],
        ),
        (
            "sync_rows",
            "Index rows in these messages.",
            [stats.rows_sent, stats.rows],
        ),
        (
            "sync_records",
            "Records in these messages, to repair what was missing.",
            [stats.records_sent, stats.records],
        ),
        (
            "copied_records",
            "Records in these messages, to copy whole partitions.",
            [stats.streamed_sent, stats.streamed],
        ),
    ];
    let both_ways = |(name, help, counts): (_, _, [u64; 2])| {
        let directions = ["sent", "received"].into_iter().zip(counts);
        directions.map(move |(direction, count)| {
            Sample::counter(name, help, count).with("direction", direction)
        })
    };
    pairs.into_iter().flat_map(both_ways).collect()
}

/// Where a change of the ring stands: 1 at its stage, 0 at all others.
pub(super) fn transition_samples(view: &ClusterView) -> Vec<Sample> {
    let stage = view.transition.stage;
    let mut samples: Vec<Sample> = RingStage::ALL
        .into_iter()
        .map(|one| {
            Sample::gauge(
                "transition_stage",
                "1 at the stage that the ring is in, 0 at the others.",
                f64::from(u8::from(one == stage)),
            )
            .with("stage", one.to_string())
        })
        .collect();
    samples.push(Sample::gauge(
        "transition_blockers",
        "Members that the ring's present stage waits for.",
        view.transition.blocked_by.len() as f64,
    ));
    samples
}

#[cfg(test)]
mod tests {
    use mds_types::{MemberInfo, NodeId};

    use super::*;
    use crate::database::Reading;

    fn all(report: &EpochsReport) -> Vec<Sample> {
        let view = ClusterView::unborn(NodeId(1), MemberInfo::default(), 1);
        let mut samples = ledger_samples(report, &view, 5_000);
        samples.extend(sync_samples(&SyncReport::default()));
        samples.extend(transition_samples(&view));
        samples
    }

    #[test]
    fn every_number_is_documented_and_those_of_one_name_follow_one_another() {
        let blocked = EpochsReport {
            blocked: vec![(NodeId(2), 1_000), (NodeId(3), 4_000)],
            ..EpochsReport::default()
        };
        let documented = include_str!("../../../../docs/http.md");
        let samples = all(&blocked);
        let mut names: Vec<&str> = samples.iter().map(|sample| sample.name).collect();
        names.dedup();
        for name in &names {
            let is_there = ["`", "{", "_total`", "_total{"]
                .iter()
                .any(|end| documented.contains(&format!("`{name}{end}")));
            assert!(is_there, "{name} is not in docs/http.md");
        }
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn who_is_waited_for_is_named_and_the_stage_is_one() {
        let blocked = EpochsReport {
            blocked: vec![(NodeId(2), 1_000)],
            ..EpochsReport::default()
        };
        let samples = all(&blocked);
        let of = |name: &str| -> Vec<&Sample> {
            samples.iter().filter(|one| one.name == name).collect()
        };
        let waited = of("verification_blocked_seconds");
        assert_eq!(waited.len(), 1);
        assert_eq!(waited[0].reading, Reading::Gauge(4.0));
        assert_eq!(waited[0].labels[0], ("node", NodeId(2).to_string()));
        let at: Vec<&Sample> = of("transition_stage")
            .into_iter()
            .filter(|one| one.reading == Reading::Gauge(1.0))
            .collect();
        assert_eq!(at.len(), 1);
        assert_eq!(at[0].labels, [("stage", "stable".to_owned())]);
        assert!(
            all(&EpochsReport::default())
                .iter()
                .all(|one| one.name != "verification_blocked_seconds")
        );
    }
}
