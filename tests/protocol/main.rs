//! The job protocol as a model: every interleaving of submitters, workers, the reconciler and faults, within bounds.
//! Protocols that are wrong in one place show that the checker finds violations.
#![allow(clippy::unwrap_used, missing_docs)]

mod model;
mod replay;
mod search;

use std::collections::BTreeSet;
use std::time::Duration;

use model::{
    ATTEMPT_GROWS, Action, CANCELLED_RESTS, FINAL_IS_FINAL, HOLDER_ALONE, Mutation, NO_DOUBLE_FINISH, NO_INPUT_LEFT,
    Protocol,
};
use prover_worker::store::{SqliteStore, StoreSettings};
use replay::Walked;
use stateright::{Checker, HasDiscoveries, Model, Path};

type Found = Option<Path<model::State, Action>>;

/// Checks every property in every state, then that every state has a path to the end.
fn holds(model: Protocol) {
    let begun = std::time::Instant::now();
    let checker = model.clone().checker().threads(2).spawn_bfs().join();
    let safe = begun.elapsed();
    checker.assert_properties();
    let reach = search::search(&model);
    println!(
        "{model:?}: {} states, depth {}, safety in {safe:?}, both in {:?}",
        reach.states,
        checker.max_depth(),
        begun.elapsed()
    );
    assert_eq!(reach.states, checker.unique_state_count(), "both searches see the same states");
    assert_eq!(reach.stuck, None, "{} stuck states, the first: {:?}", reach.stuck_states, reach.at);
}

/// Returns a path to a state that violates a property.
fn breaks(model: Protocol, property: &'static str) -> Found {
    let only = HasDiscoveries::AnyOf(BTreeSet::from([property]));
    model.checker().threads(2).finish_when(only).spawn_bfs().join().discovery(property)
}

fn broken(mutation: Mutation) -> Protocol {
    Protocol { broken: Some(mutation), ..Protocol::new(1, 2, 2, 2) }
}

#[test]
fn two_jobs_and_two_workers_survive_every_two_faults() {
    holds(Protocol::new(2, 2, 2, 1));
}

#[test]
fn one_job_and_three_workers_survive_every_three_faults() {
    holds(Protocol::new(1, 3, 3, 2));
}

/// The queue is disposable: acknowledging before the work loses nothing either, because the store has the job.
#[test]
fn early_acknowledgements_lose_nothing_while_there_is_a_reconciler() {
    holds(Protocol { ack_first: true, ..Protocol::new(2, 2, 2, 1) });
}

/// What a single fault of one kind loses of a job whose submitter and workers are otherwise well.
fn lost(reconcile: bool, ack_first: bool, only: fn(Action) -> bool) -> Option<Vec<Action>> {
    search::search(&Protocol { reconcile, ack_first, only: Some(only), ..Protocol::new(1, 2, 1, 0) }).stuck
}

#[test]
fn without_a_reconciler_an_early_acknowledgement_loses_the_job() {
    let crash = |a| matches!(a, Action::Crash(_));
    let way = lost(false, true, crash).expect("a lost job");
    assert!(matches!(way.last(), Some(Action::Crash(_))), "{way:?}");
    assert_eq!(lost(true, true, crash), None);
}

/// It is handed out again before the lease has lapsed, refused, and acknowledged.
#[test]
fn without_a_reconciler_a_late_acknowledgement_loses_the_job_too() {
    let crash = |a| matches!(a, Action::Crash(_));
    let way = lost(false, false, crash).expect("a lost job");
    assert!(way.iter().any(|a| matches!(a, Action::Upkeep(_))), "{way:?}");
    assert_eq!(lost(true, false, crash), None);
}

#[test]
fn without_a_reconciler_a_flushed_queue_loses_the_job() {
    let flush = |a| matches!(a, Action::Flush);
    let way = lost(false, false, flush).expect("a lost job");
    assert_eq!(way.last(), Some(&Action::Flush), "{way:?}");
    assert_eq!(lost(true, false, flush), None);
}

#[test]
fn without_a_reconciler_nobody_hears_of_a_retry() {
    let fail = |a| matches!(a, Action::Fail(..));
    let way = lost(false, false, fail).expect("a lost job");
    assert!(matches!(way.last(), Some(Action::RunAt(_) | Action::Ack(_) | Action::Fail(..))), "{way:?}");
    assert_eq!(lost(true, false, fail), None);
}

#[test]
fn a_finish_without_a_fence_is_caught() {
    for property in [NO_DOUBLE_FINISH, FINAL_IS_FINAL, HOLDER_ALONE] {
        let way = breaks(broken(Mutation::FinishUnfenced), property).expect(property).into_actions();
        assert!(matches!(way.last(), Some(Action::Finish(_))), "{property}: {way:?}");
    }
}

#[test]
fn a_finish_that_leaves_the_input_is_caught() {
    breaks(broken(Mutation::FinishKeepsInput), NO_INPUT_LEFT).expect("an input left behind");
}

#[test]
fn a_heartbeat_that_renews_a_lost_lease_is_caught() {
    let way = breaks(broken(Mutation::HeartbeatUnfenced), HOLDER_ALONE).expect("a stale heartbeat").into_actions();
    assert!(matches!(way.last(), Some(Action::Heartbeat(_))), "{way:?}");
}

#[test]
fn a_claim_that_ignores_a_cancel_is_caught() {
    let way =
        breaks(broken(Mutation::ClaimIgnoresCancel), CANCELLED_RESTS).expect("a cancelled job ran").into_actions();
    assert!(way.iter().any(|a| matches!(a, Action::Cancel(_))), "{way:?}");
    assert!(matches!(way.last(), Some(Action::Claim(_))), "{way:?}");
}

#[test]
fn a_requeue_that_forgets_the_fencing_token_is_caught() {
    breaks(broken(Mutation::RequeueResetsAttempt), ATTEMPT_GROWS).expect("a token that shrank");
}

/// Paths with more of everything than an exhaustive search could handle.
fn long() -> Protocol {
    Protocol::new(2, 3, 40, 8)
}

async fn walk(model: &Protocol, keep_failed_inputs: Duration) -> Walked {
    let folder = tempfile::tempdir().unwrap();
    let settings = StoreSettings { keep_failed_inputs, ..StoreSettings::default() };
    let store = SqliteStore::open(&folder.path().join("jobs.db"), settings).await.unwrap();
    let walked = replay::walk(&store, model, !keep_failed_inputs.is_zero(), 100, 120).await;
    store.close().await;
    walked
}

/// The model's store and a real one agree along paths with every fault.
#[tokio::test]
async fn the_sqlite_store_does_what_the_model_says() {
    for keep in [Duration::ZERO, Duration::from_secs(3600)] {
        let walked = walk(&long(), keep).await;
        println!("{walked:?}");
        // Enough of each for the comparison to be meaningful.
        let seen = [walked.done, walked.reclaimed, walked.refused, walked.requeued, walked.expired];
        assert!(seen.iter().all(|n| *n >= 10), "{walked:?}");
    }
}

#[tokio::test]
#[should_panic(expected = "inputs held")]
async fn a_store_that_differs_in_an_input_is_noticed() {
    walk(&Protocol { broken: Some(Mutation::FinishKeepsInput), ..long() }, Duration::ZERO).await;
}

#[tokio::test]
#[should_panic(expected = "the store gave")]
async fn a_store_that_differs_in_a_claim_is_noticed() {
    walk(&Protocol { broken: Some(Mutation::ClaimIgnoresCancel), ..long() }, Duration::ZERO).await;
}
