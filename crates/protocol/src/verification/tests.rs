//! Single cases, and a model of replicas with real sets whose every step is checked.

use super::*;

mod model;

const V1: TopologyVersion = TopologyVersion(1);

fn nodes(ids: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    ids.into_iter().map(NodeId).collect()
}

/// A ledger with others 2 and 3, and roots of epochs 1 and 2.
fn ledger() -> Ledger {
    let mut ledger = Ledger::new(V1, nodes([2, 3]), Epoch(0), 0);
    ledger.close(Epoch(2));
    ledger.set_root(Epoch(1), 11);
    ledger.set_root(Epoch(2), 22);
    ledger
}

fn hear(ledger: &mut Ledger, from: u64, answer: Answer) -> Follow {
    let question = ledger.question_for(NodeId(from)).expect("something to ask");
    ledger.on_answer(NodeId(from), &question, answer)
}

#[test]
fn all_members_have_to_be_equal() {
    let mut ledger = ledger();
    assert_eq!(hear(&mut ledger, 2, Answer::Equal), Follow::Nothing);
    assert_eq!(ledger.verified(false), None);
    ledger.on_silent(NodeId(3));
    assert_eq!(ledger.blocked_by(), [(NodeId(3), Blocked::Silent)]);
    // Pairs go on while one is silent.
    assert_eq!(ledger.question_for(NodeId(2)).unwrap().epoch, Epoch(2));
    hear(&mut ledger, 2, Answer::Equal);
    assert_eq!(ledger.question_for(NodeId(2)), None);
    hear(&mut ledger, 3, Answer::Equal);
    assert_eq!(ledger.verified(false), Some(Epoch(1)));
    assert_eq!(ledger.verified(true), None, "not while the ring changes");
    assert_eq!(ledger.equal_through(), Epoch(1));
    ledger.settle(Epoch(1));
    assert_eq!(ledger.settled(), Epoch(1));
    assert_eq!(ledger.chain(), chain_after(0, 11));
    assert_eq!(ledger.question_for(NodeId(3)).unwrap().settled, Epoch(1));
}

#[test]
fn a_changed_root_has_to_be_asked_about_again() {
    let mut ledger = ledger();
    hear(&mut ledger, 2, Answer::Equal);
    let late = ledger.question_for(NodeId(3)).unwrap();
    ledger.set_root(Epoch(1), 12);
    ledger.on_answer(NodeId(3), &late, Answer::Equal);
    assert_eq!(ledger.verified(false), None);
    assert_eq!(ledger.question_for(NodeId(2)).unwrap().root, 12);
}

#[test]
fn another_topology_counts_for_nothing() {
    let mut ledger = ledger();
    let asked_before = ledger.question_for(NodeId(2)).unwrap();
    hear(&mut ledger, 3, Answer::Equal);
    ledger.set_group(TopologyVersion(2), nodes([2, 3]));
    ledger.on_answer(NodeId(2), &asked_before, Answer::Equal);
    assert_eq!(ledger.blocked_by().len(), 2, "all is asked anew");
    assert_eq!(
        ledger.answer(&asked_before),
        Answer::OtherTopology {
            version: TopologyVersion(2)
        }
    );
}

#[test]
fn who_has_settled_more_is_believed_if_the_past_is_the_same() {
    let mut ledger = ledger();
    let chain = chain_after(chain_after(0, 11), 22);
    let ahead = Answer::Ahead {
        settled: Epoch(2),
        chain,
    };
    hear(&mut ledger, 2, ahead);
    assert!(!ledger.needs_rebuild());
    for epoch in [1, 2] {
        assert_eq!(ledger.verified(true), Some(Epoch(epoch)));
        ledger.settle(Epoch(epoch));
    }
    assert_eq!((ledger.verified(true), ledger.chain()), (None, chain));
}

#[test]
fn who_differs_from_a_verified_member_is_wrong() {
    let mut ledger = ledger();
    let ahead = Answer::Ahead {
        settled: Epoch(1),
        chain: 5,
    };
    hear(&mut ledger, 2, ahead);
    assert_eq!(ledger.verified(false), None);
    assert!(ledger.needs_rebuild());
    ledger.rebuild();
    assert!(!ledger.needs_rebuild());
    assert_eq!(ledger.question_for(NodeId(2)), None);
    let question = Question {
        epoch: Epoch(1),
        root: 0,
        settled: Epoch(0),
        chain: 0,
        version: V1,
    };
    assert!(matches!(ledger.answer(&question), Answer::Behind { .. }));
    ledger.rebuilt(Epoch(1), 5);
    assert_eq!((ledger.settled(), ledger.chain()), (Epoch(1), 5));
    assert_eq!(ledger.roots_wanted().collect::<Vec<_>>(), [Epoch(2)]);
}

#[test]
fn at_equal_watermarks_the_majority_is_right() {
    let diverged = |chain| Answer::Diverged { chain };
    let mut one = ledger();
    hear(&mut one, 2, diverged(7));
    assert!(!one.needs_rebuild(), "one against one");
    assert_eq!(one.blocked_by()[0], (NodeId(2), Blocked::Diverged));
    hear(&mut one, 3, diverged(8));
    assert!(!one.needs_rebuild(), "nobody is in the majority");
    hear(&mut one, 3, diverged(7));
    assert!(one.needs_rebuild());
}

#[test]
fn what_is_compared_at_a_time_is_bounded() {
    let mut ledger = Ledger::new(V1, nodes([2]), Epoch(0), 0);
    ledger.close(Epoch(1_000));
    let wanted: Vec<Epoch> = ledger.roots_wanted().collect();
    assert_eq!(wanted.len() as u64, EPOCHS_COMPARED_MAX);
    for epoch in 1..=1_000 {
        ledger.set_root(Epoch(epoch), 1);
    }
    let mut asked = 0;
    while let Some(question) = ledger.question_for(NodeId(2)) {
        ledger.on_answer(NodeId(2), &question, Answer::Equal);
        asked += 1;
    }
    assert_eq!(asked, EPOCHS_COMPARED_MAX);
    assert_eq!(ledger.equal_through(), Epoch(EPOCHS_COMPARED_MAX));
}

/// A partition with one replica verifies alone.
#[test]
fn a_group_of_one_is_equal_to_itself() {
    let mut ledger = Ledger::new(V1, nodes([]), Epoch(0), 0);
    assert_eq!(ledger.verified(false), None, "nothing is closed");
    ledger.close(Epoch(1));
    ledger.set_root(Epoch(1), 3);
    assert_eq!(ledger.verified(false), Some(Epoch(1)));
}
