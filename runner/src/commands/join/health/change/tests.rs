use super::*;
use crate::commands::join::health::judge::tests::{DOWN_AFTER, master, now, replica, seen, this, view};
use crate::commands::join::health::seen::NodeAnswer;

fn other() -> Endpoint {
    Endpoint::new("10.0.0.8", 6379)
}

/// A state: what the server answers, which master each Sentinel reports, and whether one Sentinel fails over.
fn state(answer: NodeAnswer, names: [&Endpoint; 3], fails_over: bool, now: Instant) -> SeenNodes {
    let mut seen =
        seen(answer, (0..3).map(|index| view(index, names[usize::from(index)], now, Duration::ZERO)), now);
    seen.views.get_mut("0").unwrap().is_failing_over = fails_over;
    seen
}

fn told(before: &mut Before, seen: &SeenNodes, now: Instant) -> Vec<&'static str> {
    // A second look at the same state finds nothing new.
    let changes = before.next(seen, now);
    assert!(before.next(seen, now).is_empty());
    changes.iter().map(|change| change.what.as_str()).collect()
}

#[test]
fn a_handover_is_told_on_both_sides_once() {
    let (us, them, now) = (&this(), &other(), now());
    let mut before = Before::default();
    let mut told = |answer, names, fails_over| told(&mut before, &state(answer, names, fails_over, now), now);
    assert!(told(master(0), [us; 3], false).is_empty(), "as it was found");
    assert_eq!(told(master(0), [us; 3], true), ["failover-begun"]);
    assert_eq!(told(replica(), [us, them, us], true), ["demoted"]);
    assert_eq!(told(replica(), [us, them, them], true), ["failover-ended"]);
    // The Sentinel that leads the failover reports it for a while longer.
    assert!(told(replica(), [them; 3], true).is_empty());
    assert!(told(replica(), [them; 3], false).is_empty());
    // The server is a master again. For this node, that is a promotion.
    assert_eq!(told(master(0), [them; 3], false), ["promoted"]);
    assert_eq!(told(master(0), [us; 3], false), ["failover-begun", "failover-ended"]);
}

#[test]
fn a_promotion_is_told_however_late_it_is_seen() {
    let (us, now) = (&this(), now());
    let state = state(master(0), [us; 3], false, now);
    assert_eq!(told(&mut Before::started(true), &state, now), ["promoted"]);
    assert!(told(&mut Before::started(false), &state, now).is_empty());
}

#[test]
fn whoever_was_master_before_is_told() {
    let (us, them, now) = (&this(), &other(), now());
    let mut before = Before::default();
    before.next(&state(replica(), [them; 3], false, now), now);
    let changes = before.next(&state(master(0), [us; 3], false, now), now);
    let ended = changes.iter().find(|change| change.what == What::FailoverEnded).unwrap();
    assert_eq!((&ended.master, &ended.previous), (&Some(us.clone()), &Some(them.clone())));
}

#[test]
fn an_old_master_is_fenced_and_then_demoted() {
    let (us, them, now) = (&this(), &other(), now());
    let mut before = Before::default();
    let mut told = |answer, names| told(&mut before, &state(answer, names, false, now), now);
    assert!(told(master(0), [us; 3]).is_empty());
    assert_eq!(told(master(0), [them; 3]), ["failover-begun", "failover-ended", "fenced"]);
    assert_eq!(told(replica(), [them; 3]), ["demoted"]);
}

#[test]
fn a_network_that_comes_back_ends_the_fence() {
    let (us, now) = (&this(), now());
    let later = now + 2 * DOWN_AFTER;
    let mut before = Before::default();
    let cut = |mut seen: SeenNodes, at| {
        seen.last_answer = Some((at, master(60)));
        seen
    };
    assert!(told(&mut before, &state(master(0), [us; 3], false, now), now).is_empty());
    // By then the Sentinels' answers are old, and the replica has gone.
    let silent = cut(state(master(0), [us; 3], false, now), later);
    assert_eq!(told(&mut before, &silent, later), ["fenced"]);
    assert_eq!(told(&mut before, &state(master(0), [us; 3], false, later), later), ["unfenced"]);
}

#[test]
fn a_failover_that_is_given_up_has_ended_too() {
    let (us, now) = (&this(), now());
    let mut before = Before::default();
    let mut told = |fails_over, at| told(&mut before, &state(master(0), [us; 3], fails_over, at), at);
    assert!(told(false, now).is_empty());
    assert_eq!(told(true, now), ["failover-begun"]);
    assert!(told(false, now).is_empty(), "another may go on with it");
    assert!(told(true, now + ABORTED_AFTER / 2).is_empty());
    assert!(told(false, now + ABORTED_AFTER).is_empty());
    assert_eq!(told(false, now + 2 * ABORTED_AFTER), ["failover-ended"]);
    assert!(told(false, now + 3 * ABORTED_AFTER).is_empty());
}
