//! The rules of `trait Store`.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prover_worker::model::{
    Attempt, ContentHash, FailureClass, Job, JobError, JobId, JobResult, JobState, NewJob, Priority, Stage, Tries,
};
use prover_worker::store::{
    Cancelled, Counts, Due, Held, JobFilter, Retry, Store, StoreError, StoreSettings, Submitted,
};
use tokio::task::JoinSet;

use crate::fixtures::*;
pub use crate::fleet::*;
pub use crate::storm::*;

/// A place in which a store can be opened repeatedly; new for each test.
pub trait Place: Send + Sync + 'static {
    type Store: Store;
    /// Opens another handle on the same store, as another process would.
    fn open_with(&self, settings: StoreSettings) -> impl Future<Output = Self::Store> + Send;

    fn open(&self) -> impl Future<Output = Self::Store> + Send {
        self.open_with(StoreSettings::default())
    }
}

macro_rules! suite {
    ($name:ident, $place:expr) => {
        mod $name {
            $crate::conformance::suite!(@ $place,
                a_circuit_comes_back_as_it_was_registered,
                new_content_replaces_a_circuit_for_later_jobs_only,
                registering_the_same_circuit_again_changes_nothing,
                circuits_are_listed_by_name,
                a_circuit_is_kept_while_unfinished_jobs_need_it,
                removing_an_unknown_circuit_says_so,
                a_job_comes_back_as_it_was_submitted,
                a_job_of_an_unknown_circuit_is_refused,
                the_same_id_and_body_is_the_same_job,
                the_same_id_with_another_body_is_a_conflict,
                the_same_key_and_body_is_the_same_job,
                the_same_key_with_another_body_is_a_conflict,
                a_repeat_is_known_even_when_its_circuit_is_gone_and_its_job_done,
                jobs_without_a_key_do_not_collide,
                a_refused_submit_leaves_nothing_behind,
                racing_submits_of_one_key_make_one_job,
                racing_submits_of_one_id_make_one_job,
                unknown_jobs_are_none_and_hold_nothing,
                those_that_have_not_ended_are_told_from_those_that_have,
                jobs_are_listed_newest_first_by_state_and_limit,
                a_list_leaves_out_what_may_be_large,
                a_job_is_found_by_its_idempotency_key,
                a_claim_gives_the_job_and_its_input,
                inputs_of_any_bytes_and_sizes_survive,
                an_input_is_read_by_the_holder_only,
                a_claimed_job_cannot_be_claimed_while_its_lease_lasts,
                a_job_whose_time_has_not_come_cannot_be_claimed,
                a_final_job_cannot_be_claimed_or_changed,
                a_lapsed_job_can_be_claimed_and_counts_as_lost,
                racing_claimers_of_a_queued_job_one_wins,
                racing_claimers_of_a_lapsed_job_one_wins,
                a_heartbeat_renews_and_notes_progress,
                a_heartbeat_renews_a_lapsed_lease_that_nobody_took,
                a_heartbeat_of_an_older_attempt_changes_nothing,
                a_progress_that_is_no_fraction_is_bounded,
                a_finish_stores_the_result_and_ends_the_input,
                a_finish_after_a_lapse_that_nobody_used_counts,
                a_finish_of_an_older_attempt_changes_nothing,
                a_redelivery_after_done_does_nothing,
                a_finish_that_is_repeated_is_answered_alike,
                a_failure_is_charged_to_the_budget_of_its_class,
                a_retry_waits_for_its_time_and_then_runs,
                a_failure_for_good_ends_the_input,
                a_stale_workers_failure_does_not_hit_the_new_lease,
                a_failure_that_is_repeated_is_answered_alike,
                the_error_stays_while_it_is_retried_and_goes_with_success,
                a_release_is_no_failed_attempt_and_is_due_at_once,
                the_token_grows_on_every_claim_even_after_a_release,
                a_token_of_a_purged_job_does_not_hold_the_next_one_with_its_id,
                a_release_of_an_older_attempt_changes_nothing,
                a_release_that_is_repeated_is_answered_alike,
                a_queued_job_is_cancelled_at_once,
                a_delayed_retry_is_cancelled_at_once,
                a_running_job_is_cancelled_by_its_holder,
                a_cancel_of_a_final_or_unknown_job_says_so,
                a_cancel_can_be_asked_for_twice,
                a_confirmation_that_nobody_asked_for_changes_nothing,
                a_confirmation_of_an_older_attempt_changes_nothing,
                a_finish_wins_over_a_request_to_cancel,
                a_retry_of_a_job_to_be_cancelled_cancels_it,
                a_release_of_a_job_to_be_cancelled_cancels_it,
                a_failure_for_good_of_a_job_to_be_cancelled_is_a_failure,
                a_lapsed_job_to_be_cancelled_is_cancelled_by_the_next_claim,
                a_heartbeat_still_saves_a_lapsed_job_to_be_cancelled,
                a_cancel_that_races_the_finish_has_one_outcome,
                a_confirmation_that_races_the_finish_one_wins,
                a_confirmation_that_races_the_request_says_what_it_did,
                a_cancel_that_races_the_claim_has_one_outcome,
                a_claim_that_races_the_stale_workers_finish_one_wins,
                an_input_lasts_until_its_job_ends_and_no_longer,
                due_lists_what_is_due_best_first,
                due_is_bounded,
                due_is_empty_when_all_is_in_hand,
                nothing_is_lost_while_the_queue_is_wiped_and_workers_die,
                counts_are_by_state,
                two_handles_see_each_others_jobs,
                reopening_keeps_everything,
                two_handles_work_off_the_jobs_of_several_submitters,
                handles_opened_at_the_same_time_agree,
                times_are_the_databases_and_in_order,
                the_largest_durations_do_no_harm,
                a_store_answers_a_ping,
                queues_see_their_own_jobs_and_find_all_by_id,
                idempotency_keys_belong_to_a_queue_and_ids_to_all,
                jobs_are_listed_by_circuit,
                a_repeat_is_known_by_the_hash_of_a_former_key,
                an_input_keeps_the_name_of_its_key,
                a_rejected_job_has_failed_and_never_ran,
                a_reject_is_idempotent_and_leaves_other_jobs_alone,
                a_submit_takes_the_place_of_a_rejected_job,
                a_reject_takes_the_place_of_one_for_another_reason,
                a_rejected_jobs_key_is_not_taken_by_another_id,
                racing_submits_take_a_rejected_jobs_place_once,
                racing_rejects_and_submits_make_one_job,
                a_paused_queue_gives_nothing_until_it_is_resumed,
                a_paused_circuit_is_held_back_in_every_queue,
                pausing_what_is_paused_changes_nothing,
                a_pause_leaves_running_jobs_alone,
                a_lapsed_job_waits_while_it_is_paused,
                a_lapsed_job_to_be_cancelled_is_cancelled_even_while_paused,
                paused_and_overdue_jobs_take_nobodys_place_among_the_due,
                a_job_that_nobody_began_in_time_fails,
                the_message_says_how_long_a_job_was_to_wait,
                a_job_begun_in_time_has_no_deadline_any_more,
                a_sweep_is_bounded_and_minds_its_own_queue,
                failures_and_lost_workers_go_into_the_history,
                a_retry_that_cancels_is_in_the_history_too,
                a_history_keeps_the_last_fifty,
                a_failed_job_keeps_its_input_but_for_bad_input,
                an_input_is_deleted_once_its_time_is_over,
                inputs_are_deleted_a_bounded_number_at_a_time,
                a_failed_job_can_be_queued_again,
                only_failed_and_cancelled_jobs_are_queued_again,
                a_job_whose_input_is_gone_needs_another,
                a_given_input_replaces_the_one_that_is_held,
                a_job_is_what_its_given_input_asks_for,
                a_job_that_nothing_repeats_says_nothing_of_its_new_input,
                a_rejected_job_queued_again_takes_the_circuit_of_now,
                a_job_queued_again_may_wait_as_long_as_a_new_one,
                a_job_whose_content_is_gone_is_not_queued_again,
                racing_requeues_one_wins,
                a_cancelled_job_of_a_dead_worker_is_cancelled_under_a_pause_too,
                ended_jobs_are_forgotten_by_state,
                the_oldest_are_forgotten_first_and_a_bounded_number,
                what_is_beyond_the_retention_is_forgotten,
                a_forgotten_jobs_id_and_key_are_free_again,
                the_load_counts_what_waits_runs_and_has_ended,
                the_load_tells_how_long_the_oldest_has_waited,
                content_in_use_is_that_of_jobs_that_may_run_yet,
                removable_content_is_known_until_it_is_forgotten,
                a_change_by_any_handle_ends_every_wait,
                a_wait_ends_after_its_time,
                a_change_before_a_wait_is_not_missed,
                a_storm_leaves_everything_in_order,
            );
        }
    };
    (@ $place:expr, $($rule:ident,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
        async fn $rule() {
            $crate::conformance::$rule($place).await;
        }
    )*};
}
pub(crate) use suite;

// Circuits.

pub async fn a_circuit_comes_back_as_it_was_registered(p: impl Place) {
    let store = p.open().await;
    for content in [1, 2] {
        let put = circuit("some.circuit-1_0", content);
        let stored = store.put_circuit(&put).await.unwrap();
        assert!(stored.created_at > 0);
        let mut same = stored.clone();
        same.created_at = 0;
        assert_eq!(same, put);
        assert_eq!(store.circuit(&put.name).await.unwrap(), Some(stored));
    }
    assert_eq!(store.circuit(&name("other")).await.unwrap(), None);
}

pub async fn new_content_replaces_a_circuit_for_later_jobs_only(p: impl Place) {
    let store = p.open().await;
    let before = submitted(&store).await;
    store.put_circuit(&circuit("c", 2)).await.unwrap();
    let after = new_job("c");
    store.submit(&after, plain(INPUT)).await.unwrap();

    let (old, new) = (circuit("c", 1), circuit("c", 2));
    let (before, after) = (job(&store, before).await, job(&store, after.id).await);
    assert_eq!((before.zkey, before.wasm), (old.zkey, old.wasm));
    assert_eq!((after.zkey, after.wasm), (new.zkey, new.wasm));
    assert_eq!(store.circuits().await.unwrap().len(), 1);
}

pub async fn registering_the_same_circuit_again_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let first = store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut again = first.clone();
    again.created_at = 7;
    assert_eq!(store.put_circuit(&again).await.unwrap(), first);
    assert_eq!(store.circuit(&first.name).await.unwrap(), Some(first));
}

pub async fn circuits_are_listed_by_name(p: impl Place) {
    let store = p.open().await;
    for s in ["b", "c", "a"] {
        store.put_circuit(&circuit(s, 1)).await.unwrap();
    }
    let names: Vec<String> = store.circuits().await.unwrap().into_iter().map(|c| c.name.to_string()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}

pub async fn a_circuit_is_kept_while_unfinished_jobs_need_it(p: impl Place) {
    let store = p.open().await;
    let (queued, running) = (submitted(&store).await, submitted(&store).await);
    let attempt = claim(&store, running, LONG).await.unwrap().job.attempt;
    let refusal = |e| match e {
        StoreError::InUse { name: n, unfinished } => {
            assert_eq!(n, name("c"));
            unfinished
        }
        e => panic!("expected InUse, got {e}"),
    };
    assert_eq!(refusal(store.remove_circuit(&name("c")).await.unwrap_err()), 2);
    assert!(store.circuit(&name("c")).await.unwrap().is_some());
    store.cancel(queued).await.unwrap();
    assert_eq!(refusal(store.remove_circuit(&name("c")).await.unwrap_err()), 1);
    store.finish(running, attempt, &result()).await.unwrap();
    assert!(store.remove_circuit(&name("c")).await.unwrap());
    assert_eq!(store.circuit(&name("c")).await.unwrap(), None);
    assert_eq!(job(&store, running).await.result, Some(result()), "a finished job outlives its circuit");
}

pub async fn removing_an_unknown_circuit_says_so(p: impl Place) {
    let store = p.open().await;
    assert!(!store.remove_circuit(&name("c")).await.unwrap());
}

// Submitting.

pub async fn a_job_comes_back_as_it_was_submitted(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("order 'n° 17'; --"));
    new.priority = Priority(i16::MIN);
    let Submitted::Created(job) = store.submit(&new, plain(INPUT)).await.unwrap() else {
        panic!("a new job is created")
    };
    assert_eq!(job.id, new.id);
    assert_eq!(job.circuit, new.circuit);
    assert_eq!(job.zkey, circuit("c", 1).zkey);
    assert_eq!(job.wasm, circuit("c", 1).wasm);
    assert_eq!(job.state, JobState::Queued);
    assert_eq!(job.stage, None);
    assert_eq!(job.progress, 0.0);
    assert_eq!(job.attempt.number, 0);
    assert_eq!(job.tries, Tries::default());
    assert_eq!(job.priority, new.priority);
    assert_eq!(job.idempotency_key, new.idempotency_key.map(String::from));
    assert_eq!((&job.worker, &job.error, &job.result), (&None, &None, &None));
    assert!(!job.cancel_requested);
    assert!(job.created_at > 0);
    assert_eq!((job.queue.as_str(), job.history.len(), job.start_by), ("prove", 0, None));
    assert_eq!(job.run_at, job.created_at);
    assert_eq!((job.started_at, job.finished_at, job.lease_expires_at), (None, None, None));
    assert_eq!(store.job(new.id).await.unwrap(), Some(job));
    assert_eq!(inputs(&store).await, 1);
}

pub async fn a_job_of_an_unknown_circuit_is_refused(p: impl Place) {
    let store = p.open().await;
    let new = new_job("nowhere");
    match store.submit(&new, plain(INPUT)).await {
        Err(StoreError::UnknownCircuit(n)) => assert_eq!(n, new.circuit),
        other => panic!("expected UnknownCircuit, got {other:?}"),
    }
    assert_eq!(store.job(new.id).await.unwrap(), None);
}

pub async fn the_same_id_and_body_is_the_same_job(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let new = new_job("c");
    let first = store.submit(&new, plain(INPUT)).await.unwrap();
    let second = store.submit(&new, plain(INPUT)).await.unwrap();
    assert!(matches!(first, Submitted::Created(_)));
    assert!(matches!(second, Submitted::Existing(_)));
    assert_eq!(first.job(), second.job());
    assert_eq!(store.counts().await.unwrap(), Counts { queued: 1, ..Counts::default() });
    assert_eq!(inputs(&store).await, 1);
}

pub async fn the_same_id_with_another_body_is_a_conflict(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    store.submit(&new, plain(INPUT)).await.unwrap();
    let mut other = new.clone();
    other.body = ContentHash::of(b"something else");
    match store.submit(&other, plain(b"something else")).await {
        Err(StoreError::Conflict { what, id, holder }) => {
            assert_eq!((what, id), (format!("id {}", new.id), new.id));
            assert!(holder.contains("byte for byte"), "{holder}");
        }
        r => panic!("expected Conflict, got {r:?}"),
    }
    assert_eq!(sent(&claim(&store, new.id, LONG).await.unwrap()), INPUT, "the first input stays");
}

pub async fn the_same_key_and_body_is_the_same_job(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    store.submit(&new, plain(INPUT)).await.unwrap();
    let mut again = new.clone();
    again.id = JobId::new();
    match store.submit(&again, plain(INPUT)).await.unwrap() {
        Submitted::Existing(job) => assert_eq!(job.id, new.id),
        Submitted::Created(_) => panic!("the key is taken by this very job"),
    }
    assert_eq!(store.job(again.id).await.unwrap(), None);
    assert_eq!(inputs(&store).await, 1);
}

pub async fn the_same_key_with_another_body_is_a_conflict(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut new = new_job("c");
    new.idempotency_key = Some(key("k"));
    store.submit(&new, plain(INPUT)).await.unwrap();
    let mut other = new_job("c");
    other.idempotency_key = Some(key("k"));
    other.body = ContentHash::of(b"something else");
    match store.submit(&other, plain(b"something else")).await {
        Err(StoreError::Conflict { what, id, .. }) => {
            assert_eq!((what.as_str(), id), ("idempotency key \"k\"", new.id));
        }
        r => panic!("expected Conflict, got {r:?}"),
    }
    assert_eq!(store.job(other.id).await.unwrap(), None);
}

pub async fn a_repeat_is_known_even_when_its_circuit_is_gone_and_its_job_done(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let new = new_job("c");
    store.submit(&new, plain(INPUT)).await.unwrap();
    let attempt = claim(&store, new.id, LONG).await.unwrap().job.attempt;
    store.finish(new.id, attempt, &result()).await.unwrap();
    assert!(store.remove_circuit(&name("c")).await.unwrap());
    match store.submit(&new, plain(INPUT)).await.unwrap() {
        Submitted::Existing(job) => assert_eq!(job.state, JobState::Done),
        Submitted::Created(_) => panic!("a repeat makes no job"),
    }
    assert_eq!(inputs(&store).await, 0, "a repeat brings no input back");
}

pub async fn jobs_without_a_key_do_not_collide(p: impl Place) {
    let store = p.open().await;
    submitted(&store).await;
    submitted(&store).await;
    assert_eq!(store.counts().await.unwrap().queued, 2);
}

pub async fn a_refused_submit_leaves_nothing_behind(p: impl Place) {
    let store = p.open().await;
    let first = submitted(&store).await;
    let mut conflict = new_job("c");
    conflict.id = first;
    conflict.body = ContentHash::of(b"x");
    for _ in 0..5 {
        store.submit(&conflict, plain(b"x")).await.unwrap_err();
        store.submit(&new_job("nowhere"), plain(b"x")).await.unwrap_err();
    }
    assert_eq!(inputs(&store).await, 1);
    assert_eq!(store.counts().await.unwrap().queued, 1);
    submitted(&store).await;
}

async fn racing_submits(p: impl Place, distinct_ids: bool) {
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    handles[0].put_circuit(&circuit("c", 1)).await.unwrap();
    for round in 0..10 {
        let mut new = new_job("c");
        new.idempotency_key = Some(key(&format!("key {round}")));
        let mut tasks = JoinSet::new();
        for n in 0..8 {
            let (store, mut new) = (handles[n % 2].clone(), new.clone());
            if distinct_ids {
                new.id = JobId::new();
            }
            tasks.spawn(async move { store.submit(&new, plain(INPUT)).await.unwrap() });
        }
        let all = tasks.join_all().await;
        assert_eq!(all.iter().filter(|s| matches!(s, Submitted::Created(_))).count(), 1);
        assert!(all.iter().all(|s| s.job() == all[0].job()));
        assert_eq!(handles[0].counts().await.unwrap().queued, round + 1);
        assert_eq!(inputs(&*handles[0]).await, round + 1);
    }
}

pub async fn racing_submits_of_one_key_make_one_job(p: impl Place) {
    racing_submits(p, true).await;
}

pub async fn racing_submits_of_one_id_make_one_job(p: impl Place) {
    racing_submits(p, false).await;
}

// Looking.

pub async fn unknown_jobs_are_none_and_hold_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = (JobId::new(), Attempt { number: 1, submission: 1 });
    assert_eq!(store.job(id).await.unwrap(), None);
    assert!(claim(&store, id, LONG).await.is_none());
    assert_all_lost(&store, id, attempt).await;
    assert_eq!(store.cancel(id).await.unwrap(), None);
}

pub async fn those_that_have_not_ended_are_told_from_those_that_have(p: impl Place) {
    let store = p.open().await;
    let other = p.open_with(StoreSettings { queue: "other".to_owned(), ..StoreSettings::default() }).await;
    let (done, attempt) = claimed(&store, LONG).await;
    store.finish(done, attempt, &result()).await.unwrap();
    let (running, _) = claimed(&store, LONG).await;
    let (queued, elsewhere) = (submitted(&store).await, submitted(&other).await);
    let mut got = store.unfinished(&[done, queued, JobId::new(), running, elsewhere, queued]).await.unwrap();
    let mut expected = [queued, running, elsewhere];
    got.sort();
    expected.sort();
    assert_eq!(got, expected);
    assert_eq!(store.unfinished(&[]).await.unwrap(), []);
}

pub async fn jobs_are_listed_newest_first_by_state_and_limit(p: impl Place) {
    let store = p.open().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(submitted(&store).await);
    }
    for i in [1, 3] {
        store.cancel(ids[i]).await.unwrap();
    }
    let list = async |state, limit| -> Vec<usize> {
        let jobs = store.jobs(JobFilter { state, limit, ..JobFilter::default() }).await.unwrap();
        jobs.iter().map(|j| ids.iter().position(|id| *id == j.id).unwrap()).collect()
    };
    assert_eq!(list(None, 100).await, [4, 3, 2, 1, 0]);
    assert_eq!(list(None, 2).await, [4, 3]);
    assert_eq!(list(None, 0).await, [0; 0]);
    assert_eq!(list(Some(JobState::Queued), 100).await, [4, 2, 0]);
    assert_eq!(list(Some(JobState::Cancelled), 1).await, [3]);
    assert_eq!(list(Some(JobState::Done), u32::MAX).await, [0; 0]);
}

pub async fn a_list_leaves_out_what_may_be_large(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(NONE)).await.unwrap();
    let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
    store.finish(id, attempt, &result()).await.unwrap();
    let job = job(&store, id).await;
    assert_eq!((job.history.len(), job.result.as_ref()), (1, Some(&result())));
    let listed = store.jobs(JobFilter { limit: 9, ..JobFilter::default() }).await.unwrap();
    assert_eq!(listed, [Job { history: Vec::new(), result: None, ..job }]);
}

pub async fn a_job_is_found_by_its_idempotency_key(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let named = NewJob { idempotency_key: Some(key("k")), ..new_job("c") };
    for new in [&named, &NewJob { idempotency_key: Some(key("K")), ..new_job("c") }, &new_job("c")] {
        submit(&store, new).await;
    }
    let list = async |text: &str, filter: JobFilter| -> Vec<JobId> {
        let filter = JobFilter { idempotency_key: Some(key(text)), limit: 9, ..filter };
        store.jobs(filter).await.unwrap().iter().map(|j| j.id).collect()
    };
    let any = JobFilter::default;
    assert_eq!(list("k", any()).await, [named.id]);
    assert_eq!(list("l", any()).await, []);
    let queued = || JobFilter { state: Some(JobState::Queued), circuit: Some(name("c")), ..any() };
    assert_eq!(list("k", queued()).await, [named.id]);
    assert_eq!(list("k", JobFilter { state: Some(JobState::Done), ..any() }).await, []);
    assert_eq!(list("k", JobFilter { circuit: Some(name("d")), ..any() }).await, []);
    assert_eq!(list("k", JobFilter { before: Some(named.id), ..any() }).await, []);
}

// Claiming.

pub async fn a_claim_gives_the_job_and_its_input(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    let claim = store.claim(id, &worker(7), LONG).await.unwrap().unwrap();
    assert_eq!(sent(&claim), INPUT);
    assert_eq!(claim.job.state, JobState::Running);
    assert_eq!(claim.job.attempt.number, 1);
    assert_eq!(claim.job.worker, Some(worker(7)));
    assert_eq!(claim.job.tries, Tries::default());
    assert_eq!((claim.job.stage, claim.job.progress), (Some(Stage::Load), 0.0));
    let lease = claim.job.lease_expires_at.unwrap() - claim.job.started_at.unwrap();
    assert_eq!(lease, LONG.as_millis() as i64, "the lease lasts from the claim");
    assert_eq!(job(&store, id).await, claim.job);
    assert!(!format!("{claim:?}").contains("\"b\""), "a claim does not print its input");
}

pub async fn inputs_of_any_bytes_and_sizes_survive(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    for size in [0, 1, 255, 4096, 16_384, 16_385, 262_144, 3_000_000] {
        let input: Vec<u8> = (0..size).map(|i: usize| (i * 31 + i / 256) as u8).collect();
        let new = new_job("c");
        store.submit(&new, plain(&input)).await.unwrap();
        let claim = claim(&store, new.id, LONG).await.unwrap();
        let read = store.input(new.id, claim.job.attempt).await.unwrap().unwrap();
        assert!(*read == input, "an input of {size} bytes comes back as it was");
        assert!(claim.input.is_some() || size > 16_384, "one of {size} bytes comes with the claim");
        assert!(claim.input.is_none_or(|sent| *sent == input), "{size}");
    }
}

pub async fn an_input_is_read_by_the_holder_only(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let (new, input) = (new_job("c"), vec![7; 300_000]);
    let id = new.id;
    store.submit(&new, plain(&input)).await.unwrap();
    let read = async |attempt| store.input(id, attempt).await.unwrap().map(|read| *read == input);
    let first = claim(&store, id, NONE).await.unwrap().job.attempt;
    assert_eq!(read(first).await, Some(true), "its lease has lapsed, but nobody has taken it");
    assert_eq!(read(first.numbered(first.number + 1)).await, None);
    assert_eq!(read(Attempt { submission: first.submission + 1, ..first }).await, None);
    assert!(store.input(JobId::new(), first).await.unwrap().is_none());

    let second = claim(&store, id, LONG).await.unwrap().job.attempt;
    assert_eq!((read(first).await, read(second).await), (None, Some(true)));
    store.release(id, second).await.unwrap();
    assert_eq!(read(second).await, None);
    let third = claim(&store, id, LONG).await.unwrap().job.attempt;
    assert_eq!(read(third).await, Some(true));
    store.finish(id, third, &result()).await.unwrap();
    assert_eq!(read(third).await, None);
}

pub async fn a_claimed_job_cannot_be_claimed_while_its_lease_lasts(p: impl Place) {
    let store = p.open().await;
    let (id, _) = claimed(&store, LONG).await;
    let before = job(&store, id).await;
    assert!(store.claim(id, &worker(2), LONG).await.unwrap().is_none());
    assert_eq!(job(&store, id).await, before);
    assert_eq!(due_ids(&store).await, []);
}

pub async fn a_job_whose_time_has_not_come_cannot_be_claimed(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(LONG)).await.unwrap();
    assert!(claim(&store, id, LONG).await.is_none());
    assert_eq!(due_ids(&store).await, []);
    assert_eq!(job(&store, id).await.state, JobState::Queued);
}

pub async fn a_final_job_cannot_be_claimed_or_changed(p: impl Place) {
    let store = p.open().await;
    for state in [JobState::Done, JobState::Failed, JobState::Cancelled] {
        let (id, attempt) = claimed(&store, LONG).await;
        end(&store, id, attempt, state).await;
        let before = job(&store, id).await;
        assert_eq!(before.state, state);
        assert!(claim(&store, id, LONG).await.is_none());
        match state {
            JobState::Cancelled => assert_does_not_hold(&store, id, attempt).await,
            _ => assert_all_lost(&store, id, attempt).await,
        }
        assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::TooLate(state)));
        assert_eq!(job(&store, id).await, before);
        assert_eq!(due_ids(&store).await, []);
    }
}

pub async fn a_lapsed_job_can_be_claimed_and_counts_as_lost(p: impl Place) {
    let store = p.open().await;
    let (id, first) = claimed(&store, NONE).await;
    let started = job(&store, id).await.started_at;
    assert_eq!(due_ids(&store).await, [id]);
    for n in 1..=3 {
        let claim = store.claim(id, &worker(2), NONE).await.unwrap().expect("lapsed");
        assert_eq!(claim.job.attempt, first.numbered(first.number + n));
        assert_eq!(claim.job.tries, Tries { lost: n, ..Tries::default() });
        assert_eq!(claim.job.worker, Some(worker(2)));
        assert_eq!(claim.job.started_at, started, "first claimed then");
        assert_eq!(sent(&claim), INPUT);
    }
}

async fn racing_claims(p: impl Place, lapsed: bool) {
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    for _ in 0..50 {
        let id = if lapsed { claimed(&*handles[0], NONE).await.0 } else { submitted(&*handles[0]).await };
        let mut tasks = JoinSet::new();
        for n in 0..8 {
            let store = handles[n % 2].clone();
            tasks.spawn(async move { store.claim(id, &worker(n), LONG).await.unwrap() });
        }
        let won: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        assert_eq!(won.len(), 1, "exactly one claim wins");
        assert_eq!(won[0].job, job(&*handles[1], id).await);
        assert_eq!(won[0].job.attempt.number, 1 + u32::from(lapsed));
    }
}

pub async fn racing_claimers_of_a_queued_job_one_wins(p: impl Place) {
    racing_claims(p, false).await;
}

pub async fn racing_claimers_of_a_lapsed_job_one_wins(p: impl Place) {
    racing_claims(p, true).await;
}

// Holding.

pub async fn a_heartbeat_renews_and_notes_progress(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, Duration::from_secs(60)).await;
    let before = job(&store, id).await;
    assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Prove, 0.25).await.unwrap(), HELD);
    let after = job(&store, id).await;
    assert!(after.lease_expires_at > before.lease_expires_at);
    assert_eq!((after.stage, after.progress), (Some(Stage::Prove), 0.25));
    assert_eq!(after.attempt, before.attempt, "a heartbeat is no claim");

    store.cancel(id).await.unwrap();
    assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Verify, 0.5).await.unwrap(), HELD_AND_CANCELLED);
}

pub async fn a_heartbeat_renews_a_lapsed_lease_that_nobody_took(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, NONE).await;
    assert_eq!(due_ids(&store).await, [id]);
    assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Witness, 0.1).await.unwrap(), HELD);
    assert_eq!(due_ids(&store).await, []);
    assert!(store.claim(id, &worker(2), LONG).await.unwrap().is_none(), "it is in hand again");
    assert_eq!(job(&store, id).await.tries, Tries::default(), "nobody was lost");
}

pub async fn a_heartbeat_of_an_older_attempt_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    claim(&store, id, NONE).await.unwrap();
    let before = job(&store, id).await;
    assert_eq!(store.heartbeat(id, old, LONG, Stage::Prove, 0.9).await.unwrap(), Held::Lost);
    assert_eq!(job(&store, id).await, before);
}

pub async fn a_progress_that_is_no_fraction_is_bounded(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    for (given, kept) in [(f32::NAN, 0.0), (-1.0, 0.0), (7.0, 1.0), (f32::INFINITY, 1.0), (0.1, 0.1)] {
        assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Prove, given).await.unwrap(), HELD);
        assert_eq!(job(&store, id).await.progress, kept);
    }
}

// Finishing.

pub async fn a_finish_stores_the_result_and_ends_the_input(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    assert_eq!(inputs(&store).await, 1);
    assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD);
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.result, Some(result()));
    assert_eq!((job.stage, job.progress), (None, 1.0));
    assert_eq!((job.lease_expires_at, job.finished_at.is_some()), (None, true));
    assert_eq!(inputs(&store).await, 0);
}

pub async fn a_finish_after_a_lapse_that_nobody_used_counts(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, NONE).await;
    assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD);
    assert_eq!(job(&store, id).await.state, JobState::Done);
}

pub async fn a_finish_of_an_older_attempt_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    let new = claim(&store, id, LONG).await.unwrap().job.attempt;
    let before = job(&store, id).await;
    assert_eq!(store.finish(id, old, &result()).await.unwrap(), Held::Lost);
    assert_eq!(
        store.finish(id, new.numbered(new.number + 1), &result()).await.unwrap(),
        Held::Lost,
        "nor does one to come"
    );
    assert_eq!(job(&store, id).await, before);
    assert_eq!(inputs(&store).await, 1, "the new holder still needs the input");
    assert_eq!(store.finish(id, new, &result()).await.unwrap(), HELD);
}

pub async fn a_redelivery_after_done_does_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.finish(id, attempt, &result()).await.unwrap();
    let before = job(&store, id).await;
    assert!(claim(&store, id, LONG).await.is_none(), "no error about a missing input, no second run");
    assert_eq!(store.finish(id, attempt, &other_result()).await.unwrap(), Held::Lost);
    assert_eq!(job(&store, id).await, before);
}

/// Otherwise a done job would be taken for lost after a failover: no files, and nobody is told.
pub async fn a_finish_that_is_repeated_is_answered_alike(p: impl Place) {
    let (store, other) = (p.open().await, p.open().await);
    for answer in [HELD, HELD_AND_CANCELLED] {
        let (id, attempt) = claimed(&store, LONG).await;
        if answer == HELD_AND_CANCELLED {
            store.cancel(id).await.unwrap();
        }
        assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), answer);
        let before = job(&store, id).await;
        for store in [&store, &other] {
            assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), answer);
            assert_eq!(store.finish(id, attempt, &other_result()).await.unwrap(), Held::Lost, "another result");
            let next = attempt.numbered(attempt.number + 1);
            assert_eq!(store.finish(id, next, &result()).await.unwrap(), Held::Lost, "another attempt");
        }
        assert_eq!(job(&store, id).await, before);
    }
}

// Failing.

pub async fn a_failure_is_charged_to_the_budget_of_its_class(p: impl Place) {
    let store = p.open().await;
    let none = Tries::default();
    for (class, tries) in [
        (FailureClass::BadInput, none),
        (FailureClass::Transient, Tries { transient: 1, ..none }),
        (FailureClass::Timeout, Tries { transient: 1, ..none }),
        (FailureClass::Device, Tries { device: 1, ..none }),
        (FailureClass::InvalidProof, Tries { device: 1, ..none }),
        (FailureClass::LostWorker, Tries { lost: 1, ..none }),
    ] {
        for retry in [Retry::After(NONE), Retry::Never] {
            let (id, attempt) = claimed(&store, LONG).await;
            assert_eq!(store.fail(id, attempt, &error(class), retry).await.unwrap(), HELD);
            let job = job(&store, id).await;
            assert_eq!(job.tries, tries);
            assert_eq!(job.error, Some(error(class)));
        }
    }
    // They add up.
    let id = submitted(&store).await;
    for class in [FailureClass::Device, FailureClass::Timeout, FailureClass::InvalidProof] {
        let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
        store.fail(id, attempt, &error(class), Retry::After(NONE)).await.unwrap();
    }
    assert_eq!(job(&store, id).await.tries, Tries { transient: 1, device: 2, lost: 0 });
}

pub async fn a_retry_waits_for_its_time_and_then_runs(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    let delay = Duration::from_millis(300);
    store.heartbeat(id, attempt, LONG, Stage::Prove, 0.7).await.unwrap();
    store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(delay)).await.unwrap();
    let waiting = job(&store, id).await;
    assert_eq!(waiting.state, JobState::Queued);
    assert_eq!((waiting.stage, waiting.progress), (None, 0.0));
    assert_eq!((waiting.lease_expires_at, waiting.finished_at), (None, None));
    assert!(waiting.run_at >= waiting.started_at.unwrap() + 300);
    let claim = loop {
        match claim(&store, id, LONG).await {
            Some(c) => break c,
            None => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    };
    assert!(now_ms() >= waiting.run_at, "not before its time");
    assert_eq!(claim.job.attempt.number, 2);
    assert_eq!(sent(&claim), INPUT, "the input is still there");
}

pub async fn a_failure_for_good_ends_the_input(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    assert_eq!(store.fail(id, attempt, &error(FailureClass::BadInput), Retry::Never).await.unwrap(), HELD);
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Failed);
    assert_eq!((job.stage, job.lease_expires_at, job.finished_at.is_some()), (None, None, true));
    assert_eq!(inputs(&store).await, 0);
}

pub async fn a_stale_workers_failure_does_not_hit_the_new_lease(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    let new = store.claim(id, &worker(2), LONG).await.unwrap().unwrap().job.attempt;
    let before = job(&store, id).await;
    for retry in [Retry::Never, Retry::After(NONE)] {
        assert_eq!(store.fail(id, old, &error(FailureClass::Device), retry).await.unwrap(), Held::Lost);
    }
    assert_eq!(job(&store, id).await, before);
    assert_eq!(store.finish(id, new, &result()).await.unwrap(), HELD);
}

pub async fn a_failure_that_is_repeated_is_answered_alike(p: impl Place) {
    let (store, other) = (p.open().await, p.open().await);
    let why =
        JobError { class: FailureClass::Device, message: "it's \"odd\": \\ {\"a\": 1}\n\t–ünï $[#] %s".to_owned() };
    for retry in [Retry::Never, Retry::After(NONE), Retry::After(LONG)] {
        for answer in [HELD, HELD_AND_CANCELLED] {
            let (id, attempt) = claimed(&store, LONG).await;
            if answer == HELD_AND_CANCELLED {
                store.cancel(id).await.unwrap();
            }
            assert_eq!(store.fail(id, attempt, &why, retry).await.unwrap(), answer);
            let before = job(&store, id).await;
            for store in [&store, &other] {
                assert_eq!(store.fail(id, attempt, &why, retry).await.unwrap(), answer, "{retry:?}");
                for error in [
                    JobError { class: FailureClass::Timeout, ..why.clone() },
                    JobError { message: "something else".to_owned(), ..why.clone() },
                ] {
                    assert_eq!(store.fail(id, attempt, &error, retry).await.unwrap(), Held::Lost, "another error");
                }
            }
            assert_eq!(job(&store, id).await, before);
        }
    }
    // Later attempts and requests to cancel them are another matter.
    let (id, first) = claimed(&store, LONG).await;
    store.fail(id, first, &why, Retry::After(NONE)).await.unwrap();
    let second = claim(&store, id, LONG).await.unwrap().job.attempt;
    store.cancel(id).await.unwrap();
    assert_eq!(store.fail(id, first, &why, Retry::After(NONE)).await.unwrap(), HELD);
    assert_eq!(store.confirm_cancel(id, second).await.unwrap(), HELD_AND_CANCELLED);
    assert_eq!(store.fail(id, first, &why, Retry::After(NONE)).await.unwrap(), HELD);
    assert_eq!(store.fail(id, second, &why, Retry::After(NONE)).await.unwrap(), Held::Lost);
}

pub async fn the_error_stays_while_it_is_retried_and_goes_with_success(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    let claim = claim(&store, id, LONG).await.unwrap();
    assert_eq!(claim.job.error, Some(error(FailureClass::Device)));
    store.finish(id, claim.job.attempt, &result()).await.unwrap();
    let job = job(&store, id).await;
    assert_eq!(job.error, None);
    assert_eq!(job.tries.device, 1, "how it came about stays countable");
}

// Handing back.

pub async fn a_release_is_no_failed_attempt_and_is_due_at_once(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.heartbeat(id, attempt, LONG, Stage::Witness, 0.5).await.unwrap();
    assert_eq!(store.release(id, attempt).await.unwrap(), HELD);
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Queued);
    assert_eq!((job.tries, job.error), (Tries::default(), None));
    assert_eq!((job.stage, job.progress, job.lease_expires_at), (None, 0.0, None));
    assert_eq!(due_ids(&store).await, [id]);
    assert_eq!(sent(&claim(&store, id, LONG).await.unwrap()), INPUT);
}

/// A worker that was frozen meanwhile would publish a proof of the former input.
pub async fn a_token_of_a_purged_job_does_not_hold_the_next_one_with_its_id(p: impl Place) {
    let store = p.open().await;
    let (id, former) = claimed(&store, LONG).await;
    store.finish(id, former, &result()).await.unwrap();
    assert_eq!(purge(&store, &JobState::ALL, NONE, 10).await.unwrap(), [id]);
    submit(&store, &NewJob { id, ..new_job("c") }).await;
    let next = claim(&store, id, LONG).await.unwrap().job.attempt;
    assert_eq!(next.number, former.number, "they are counted from the start");
    assert_all_lost(&store, id, former).await;
    assert_eq!(store.finish(id, next, &result()).await.unwrap(), HELD);
}

pub async fn the_token_grows_on_every_claim_even_after_a_release(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    for n in 1..=4 {
        let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
        assert_eq!(attempt.number, n);
        assert_eq!(store.release(id, attempt).await.unwrap(), HELD);
        assert_does_not_hold(&store, id, attempt).await;
        assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), Held::Lost);
    }
}

/// It leaves nothing of its own, so it is recognised only until the job goes on.
pub async fn a_release_that_is_repeated_is_answered_alike(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    assert_eq!(store.release(id, attempt).await.unwrap(), HELD);
    let before = job(&store, id).await;
    assert_eq!(store.release(id, attempt).await.unwrap(), HELD);
    assert_eq!(job(&store, id).await, before);
    let next = claim(&store, id, LONG).await.unwrap().job.attempt;
    assert_eq!(store.release(id, attempt).await.unwrap(), Held::Lost);
    assert_eq!(store.release(id, next).await.unwrap(), HELD);
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Now));
    assert_eq!(store.release(id, next).await.unwrap(), HELD, "cancelled only since");

    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    for _ in 0..2 {
        assert_eq!(store.release(id, attempt).await.unwrap(), HELD_AND_CANCELLED);
    }
    // What has failed or was done was not released.
    let (id, attempt) = claimed(&store, LONG).await;
    store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    assert_eq!(store.release(id, attempt).await.unwrap(), Held::Lost);
    let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
    store.finish(id, attempt, &result()).await.unwrap();
    assert_eq!(store.release(id, attempt).await.unwrap(), Held::Lost);
}

pub async fn a_release_of_an_older_attempt_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    claim(&store, id, LONG).await.unwrap();
    let before = job(&store, id).await;
    assert_eq!(store.release(id, old).await.unwrap(), Held::Lost);
    assert_eq!(job(&store, id).await, before);
}

// Cancelling.

pub async fn a_queued_job_is_cancelled_at_once(p: impl Place) {
    let store = p.open().await;
    let id = submitted(&store).await;
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Now));
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(job.finished_at.is_some());
    assert!(!job.cancel_requested, "there was nobody to ask");
    assert_eq!(inputs(&store).await, 0);
    assert!(claim(&store, id, LONG).await.is_none());
}

pub async fn a_delayed_retry_is_cancelled_at_once(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(LONG)).await.unwrap();
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Now));
    assert_eq!(job(&store, id).await.state, JobState::Cancelled);
    assert_eq!(inputs(&store).await, 0);
}

pub async fn a_running_job_is_cancelled_by_its_holder(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
    let running = job(&store, id).await;
    assert_eq!(running.state, JobState::Running);
    assert!(running.cancel_requested);
    assert_eq!(inputs(&store).await, 1);
    assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), HELD_AND_CANCELLED);
    let ended = job(&store, id).await;
    assert_eq!(ended.state, JobState::Cancelled);
    assert_eq!((ended.stage, ended.lease_expires_at, ended.finished_at.is_some()), (None, None, true));
    assert_eq!(inputs(&store).await, 0);
    assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), HELD_AND_CANCELLED, "as before");
    assert_eq!(job(&store, id).await, ended);
}

pub async fn a_cancel_of_a_final_or_unknown_job_says_so(p: impl Place) {
    let store = p.open().await;
    for state in [JobState::Done, JobState::Failed, JobState::Cancelled] {
        let (id, attempt) = claimed(&store, LONG).await;
        end(&store, id, attempt, state).await;
        assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::TooLate(state)));
    }
    assert_eq!(store.cancel(JobId::new()).await.unwrap(), None);
}

pub async fn a_cancel_can_be_asked_for_twice(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
    store.confirm_cancel(id, attempt).await.unwrap();
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::TooLate(JobState::Cancelled)));
}

pub async fn a_confirmation_that_nobody_asked_for_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    let before = job(&store, id).await;
    assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), HELD);
    assert_eq!(job(&store, id).await, before);
}

pub async fn a_confirmation_of_an_older_attempt_changes_nothing(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    claim(&store, id, LONG).await.unwrap();
    store.cancel(id).await.unwrap();
    let before = job(&store, id).await;
    assert_eq!(store.confirm_cancel(id, old).await.unwrap(), Held::Lost);
    assert_eq!(job(&store, id).await, before);
}

pub async fn a_finish_wins_over_a_request_to_cancel(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD_AND_CANCELLED);
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Done);
    assert_eq!(job.result, Some(result()));
    assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), Held::Lost);
}

pub async fn a_retry_of_a_job_to_be_cancelled_cancels_it(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    let held = store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    assert_eq!(held, HELD_AND_CANCELLED);
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(job.finished_at.is_some());
    assert_eq!(job.error, Some(error(FailureClass::Device)));
    assert_eq!(inputs(&store).await, 0);
    assert_eq!(due_ids(&store).await, []);
}

pub async fn a_release_of_a_job_to_be_cancelled_cancels_it(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    assert_eq!(store.release(id, attempt).await.unwrap(), HELD_AND_CANCELLED);
    assert_eq!(job(&store, id).await.state, JobState::Cancelled);
    assert_eq!(inputs(&store).await, 0);
    assert_eq!(due_ids(&store).await, []);
}

pub async fn a_failure_for_good_of_a_job_to_be_cancelled_is_a_failure(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.cancel(id).await.unwrap();
    let held = store.fail(id, attempt, &error(FailureClass::BadInput), Retry::Never).await.unwrap();
    assert_eq!(held, HELD_AND_CANCELLED);
    assert_eq!(job(&store, id).await.state, JobState::Failed);
    assert_eq!(inputs(&store).await, 0);
}

pub async fn a_lapsed_job_to_be_cancelled_is_cancelled_by_the_next_claim(p: impl Place) {
    let store = p.open().await;
    let (id, old) = claimed(&store, NONE).await;
    assert_eq!(store.cancel(id).await.unwrap(), Some(Cancelled::Requested));
    assert_eq!(due_ids(&store).await, [id], "somebody has to see to it");
    assert!(store.claim(id, &worker(2), LONG).await.unwrap().is_none());
    let job = job(&store, id).await;
    assert_eq!(job.state, JobState::Cancelled);
    assert!(job.finished_at.is_some());
    assert_eq!(inputs(&store).await, 0);
    assert_eq!(due_ids(&store).await, []);
    assert_does_not_hold(&store, id, old).await;
    // It ended as its holder was asked to end it, and nobody else tells of it.
    assert_eq!(store.release(id, old).await.unwrap(), HELD_AND_CANCELLED);
    assert_eq!(store.confirm_cancel(id, old).await.unwrap(), HELD_AND_CANCELLED);
    assert_eq!(self::job(&store, id).await, job);
}

pub async fn a_heartbeat_still_saves_a_lapsed_job_to_be_cancelled(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, NONE).await;
    store.cancel(id).await.unwrap();
    assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Prove, 0.5).await.unwrap(), HELD_AND_CANCELLED);
    assert!(claim(&store, id, LONG).await.is_none());
    assert_eq!(job(&store, id).await.state, JobState::Running, "its holder lives and will confirm");
}

// Races. Two handles, as in two processes; both orders must have consistent results.

pub async fn a_cancel_that_races_the_finish_has_one_outcome(p: impl Place) {
    let (a, b) = (Arc::new(p.open().await), Arc::new(p.open().await));
    for _ in 0..50 {
        let (id, attempt) = claimed(&*a, LONG).await;
        let cancelling = tokio::spawn({
            let b = b.clone();
            async move { b.cancel(id).await.unwrap() }
        });
        let finished = a.finish(id, attempt, &result()).await.unwrap();
        match cancelling.await.unwrap() {
            Some(Cancelled::Requested) => assert_eq!(finished, HELD_AND_CANCELLED),
            Some(Cancelled::TooLate(state)) => assert_eq!((state, finished), (JobState::Done, HELD)),
            other => panic!("a running job was {other:?}"),
        }
        assert_eq!(job(&*b, id).await.state, JobState::Done);
        assert_eq!(inputs(&*b).await, 0);
    }
}

pub async fn a_confirmation_that_races_the_request_says_what_it_did(p: impl Place) {
    let (store, other) = (p.open().await, p.open().await);
    for _ in 0..100 {
        let (id, attempt) = claimed(&store, LONG).await;
        let (asked, confirmed) = tokio::join!(other.cancel(id), store.confirm_cancel(id, attempt));
        assert_eq!(asked.unwrap(), Some(Cancelled::Requested));
        let state = match confirmed.unwrap() {
            HELD_AND_CANCELLED => JobState::Cancelled,
            held => {
                assert_eq!(held, HELD);
                JobState::Running
            }
        };
        assert_eq!(job(&store, id).await.state, state);
    }
}

pub async fn a_confirmation_that_races_the_finish_one_wins(p: impl Place) {
    let (a, b) = (Arc::new(p.open().await), Arc::new(p.open().await));
    for _ in 0..50 {
        let (id, attempt) = claimed(&*a, LONG).await;
        a.cancel(id).await.unwrap();
        let confirming = tokio::spawn({
            let b = b.clone();
            async move { b.confirm_cancel(id, attempt).await.unwrap() }
        });
        let finished = a.finish(id, attempt, &result()).await.unwrap();
        let state = match (finished, confirming.await.unwrap()) {
            (HELD_AND_CANCELLED, Held::Lost) => JobState::Done,
            (Held::Lost, HELD_AND_CANCELLED) => JobState::Cancelled,
            both => panic!("exactly one wins, got {both:?}"),
        };
        let job = job(&*b, id).await;
        assert_eq!((job.state, job.result.is_some()), (state, state == JobState::Done));
        assert_eq!(inputs(&*b).await, 0);
    }
}

pub async fn a_cancel_that_races_the_claim_has_one_outcome(p: impl Place) {
    let (a, b) = (Arc::new(p.open().await), Arc::new(p.open().await));
    for _ in 0..50 {
        let id = submitted(&*a).await;
        let claiming = tokio::spawn({
            let b = b.clone();
            async move { b.claim(id, &worker(2), LONG).await.unwrap() }
        });
        let cancelled = a.cancel(id).await.unwrap();
        match (cancelled, claiming.await.unwrap()) {
            (Some(Cancelled::Now), None) => assert_eq!(job(&*a, id).await.state, JobState::Cancelled),
            (Some(Cancelled::Requested), Some(claim)) => {
                let beat = b.heartbeat(id, claim.job.attempt, LONG, Stage::Load, 0.0).await.unwrap();
                assert_eq!(beat, HELD_AND_CANCELLED, "the worker hears of it");
                b.confirm_cancel(id, claim.job.attempt).await.unwrap();
            }
            both => panic!("one outcome, got {both:?}"),
        }
        assert_eq!(inputs(&*a).await, 0);
    }
}

pub async fn a_claim_that_races_the_stale_workers_finish_one_wins(p: impl Place) {
    let (a, b) = (Arc::new(p.open().await), Arc::new(p.open().await));
    for _ in 0..50 {
        let (id, old) = claimed(&*a, NONE).await;
        let claiming = tokio::spawn({
            let b = b.clone();
            async move { b.claim(id, &worker(2), LONG).await.unwrap() }
        });
        let finished = a.finish(id, old, &result()).await.unwrap();
        match (finished, claiming.await.unwrap()) {
            (HELD, None) => assert_eq!(job(&*a, id).await.state, JobState::Done),
            (Held::Lost, Some(claim)) => {
                assert_eq!(sent(&claim), INPUT, "the new holder has all it needs");
                assert_eq!(b.finish(id, claim.job.attempt, &result()).await.unwrap(), HELD);
            }
            both => panic!("exactly one wins, got {both:?}"),
        }
        assert_eq!(inputs(&*a).await, 0);
    }
}

// Inputs.

pub async fn an_input_lasts_until_its_job_ends_and_no_longer(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.heartbeat(id, attempt, LONG, Stage::Store, 1.0).await.unwrap();
    assert_eq!(inputs(&store).await, 1);
    store.release(id, attempt).await.unwrap();
    assert_eq!(inputs(&store).await, 1);
    let attempt = claim(&store, id, NONE).await.unwrap().job.attempt;
    store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
    assert_eq!(inputs(&store).await, 1);
    claim(&store, id, NONE).await.unwrap();
    let attempt = claim(&store, id, LONG).await.unwrap().job.attempt;
    assert_eq!(inputs(&store).await, 1);
    store.finish(id, attempt, &result()).await.unwrap();
    assert_eq!(inputs(&store).await, 0);
}

// What is due.

pub async fn due_lists_what_is_due_best_first(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    let mut ids = Vec::new();
    for priority in [0, 5, 0, -5, 5, 0, 5] {
        let mut new = new_job("c");
        new.priority = Priority(priority);
        store.submit(&new, plain(INPUT)).await.unwrap();
        ids.push(new.id);
    }
    claim(&store, ids[1], NONE).await.unwrap(); // lapsed: due
    claim(&store, ids[2], LONG).await.unwrap(); // in hand: not due
    let attempt = claim(&store, ids[6], LONG).await.unwrap().job.attempt;
    store.fail(ids[6], attempt, &error(FailureClass::Device), Retry::After(LONG)).await.unwrap(); // later: not due
    let attempt = claim(&store, ids[5], LONG).await.unwrap().job.attempt;
    store.release(ids[5], attempt).await.unwrap(); // handed back: due
    let due = |(i, p, again)| Due { id: ids[i], priority: Priority(p), again };
    let expected = [(1, 5, true), (4, 5, false), (0, 0, false), (5, 0, true), (3, -5, false)].map(due);
    assert_eq!(store.due(100).await.unwrap(), expected);
    assert_eq!(store.due(3).await.unwrap(), expected[..3]);
}

pub async fn due_is_bounded(p: impl Place) {
    let store = p.open().await;
    for _ in 0..4 {
        claimed(&store, NONE).await;
        submitted(&store).await;
    }
    for limit in [0, 1, 5, 8, u32::MAX] {
        assert_eq!(store.due(limit).await.unwrap().len(), 8.min(limit as usize));
    }
}

pub async fn due_is_empty_when_all_is_in_hand(p: impl Place) {
    let store = p.open().await;
    assert_eq!(store.due(10).await.unwrap(), []);
    claimed(&store, LONG).await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.finish(id, attempt, &result()).await.unwrap();
    assert_eq!(store.due(10).await.unwrap(), []);
}

/// Without any queue: workers that die at every point, and a reconciler that only reads `due`.
pub async fn nothing_is_lost_while_the_queue_is_wiped_and_workers_die(p: impl Place) {
    let store = p.open().await;
    store.put_circuit(&circuit("c", 1)).await.unwrap();
    for _ in 0..12 {
        store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
    }
    let mut rounds = 0;
    loop {
        let due = store.due(5).await.unwrap();
        if due.is_empty() {
            break;
        }
        for (n, Due { id, .. }) in due.into_iter().enumerate() {
            let claim = claim(&store, id, NONE).await.expect("what is due can be claimed");
            let attempt = claim.job.attempt;
            match (n + rounds) % 4 {
                0 => {} // dies at once
                1 => {
                    store.heartbeat(id, attempt, NONE, Stage::Prove, 0.5).await.unwrap(); // dies later
                }
                2 => {
                    store.fail(id, attempt, &error(FailureClass::Device), Retry::After(NONE)).await.unwrap();
                }
                _ => {
                    assert_eq!(store.finish(id, attempt, &result()).await.unwrap(), HELD);
                }
            }
        }
        rounds += 1;
        assert!(rounds < 1000, "jobs get done");
    }
    assert_eq!(store.counts().await.unwrap(), Counts { done: 12, ..Counts::default() });
    assert_eq!(inputs(&store).await, 0);
}

// The rest.

pub async fn counts_are_by_state(p: impl Place) {
    let store = p.open().await;
    assert_eq!(store.counts().await.unwrap(), Counts::default());
    let finals =
        [JobState::Done, JobState::Done, JobState::Done, JobState::Failed, JobState::Failed, JobState::Cancelled];
    for state in finals {
        let (id, attempt) = claimed(&store, LONG).await;
        end(&store, id, attempt, state).await;
    }
    for _ in 0..4 {
        claimed(&store, LONG).await;
    }
    for _ in 0..5 {
        submitted(&store).await;
    }
    assert_eq!(
        store.counts().await.unwrap(),
        Counts { queued: 5, running: 4, done: 3, failed: 2, cancelled: 1, estimated: false }
    );
}

pub async fn two_handles_see_each_others_jobs(p: impl Place) {
    let (a, b) = (p.open().await, p.open().await);
    let id = submitted(&a).await;
    let attempt = claim(&b, id, LONG).await.expect("submitted by the other").job.attempt;
    assert_eq!(job(&a, id).await.state, JobState::Running);
    assert_eq!(a.finish(id, attempt, &result()).await.unwrap(), HELD);
    assert_eq!(job(&b, id).await.state, JobState::Done);
}

pub async fn reopening_keeps_everything(p: impl Place) {
    let store = p.open().await;
    let done = {
        let (id, attempt) = claimed(&store, LONG).await;
        store.finish(id, attempt, &result()).await.unwrap();
        id
    };
    let (running, attempt) = claimed(&store, LONG).await;
    let queued = submitted(&store).await;
    let before = store.jobs(JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap();
    let circuits = store.circuits().await.unwrap();
    drop(store);

    let store = p.open().await;
    assert_eq!(store.jobs(JobFilter { limit: 100, ..JobFilter::default() }).await.unwrap(), before);
    assert_eq!(store.circuits().await.unwrap(), circuits);
    assert_eq!(job(&store, done).await.result, Some(result()));
    assert_eq!(store.finish(running, attempt, &result()).await.unwrap(), HELD, "a lease outlives the handle");
    assert_eq!(sent(&claim(&store, queued, LONG).await.unwrap()), INPUT);
}

pub async fn two_handles_work_off_the_jobs_of_several_submitters(p: impl Place) {
    const JOBS: usize = 60;
    let handles = [Arc::new(p.open().await), Arc::new(p.open().await)];
    handles[0].put_circuit(&circuit("c", 1)).await.unwrap();
    let mut tasks = JoinSet::new();
    for n in 0..4 {
        let store = handles[n % 2].clone();
        tasks.spawn(async move {
            for _ in 0..JOBS / 4 {
                store.submit(&new_job("c"), plain(INPUT)).await.unwrap();
            }
            0
        });
    }
    for n in 0..4 {
        let store = handles[n % 2].clone();
        tasks.spawn(async move {
            let mut finished = 0;
            while store.counts().await.unwrap().done < JOBS as u64 {
                for Due { id, .. } in store.due(8).await.unwrap() {
                    if let Some(claim) = store.claim(id, &worker(n), LONG).await.unwrap() {
                        assert_eq!(store.finish(id, claim.job.attempt, &result()).await.unwrap(), HELD);
                        finished += 1;
                    }
                }
            }
            finished
        });
    }
    let finished: usize = tasks.join_all().await.into_iter().sum();
    assert_eq!(finished, JOBS, "each was done once");
    assert_eq!(inputs(&*handles[1]).await, 0);
}

pub async fn handles_opened_at_the_same_time_agree(p: impl Place) {
    let p = Arc::new(p);
    let mut tasks = JoinSet::new();
    for _ in 0..8 {
        let p = p.clone();
        tasks.spawn(async move {
            let store = p.open().await;
            submitted(&store).await
        });
    }
    tasks.join_all().await;
    assert_eq!(p.open().await.counts().await.unwrap().queued, 8);
}

pub async fn times_are_the_databases_and_in_order(p: impl Place) {
    let before = now_ms();
    let store = p.open().await;
    let (id, attempt) = claimed(&store, LONG).await;
    store.finish(id, attempt, &result()).await.unwrap();
    let job = job(&store, id).await;
    let circuit = store.circuit(&name("c")).await.unwrap().unwrap();
    let times =
        [before, circuit.created_at, job.created_at, job.started_at.unwrap(), job.finished_at.unwrap(), now_ms()];
    assert!(times.is_sorted(), "{times:?}");
}

pub async fn the_largest_durations_do_no_harm(p: impl Place) {
    let store = p.open().await;
    let (id, attempt) = claimed(&store, Duration::MAX).await;
    assert_eq!(store.heartbeat(id, attempt, Duration::MAX, Stage::Prove, 0.5).await.unwrap(), HELD);
    assert!(job(&store, id).await.lease_expires_at.unwrap() > now_ms());
    store.fail(id, attempt, &error(FailureClass::Transient), Retry::After(Duration::MAX)).await.unwrap();
    assert!(job(&store, id).await.run_at > now_ms());
    assert_eq!(due_ids(&store).await, []);
}

pub async fn a_store_answers_a_ping(p: impl Place) {
    p.open().await.ping().await.unwrap();
}

// Helpers.

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as i64
}

/// Brings a running job to a final state.
async fn end(store: &impl Store, id: JobId, attempt: Attempt, state: JobState) {
    let held = match state {
        JobState::Done => store.finish(id, attempt, &result()).await,
        JobState::Failed => store.fail(id, attempt, &error(FailureClass::Device), Retry::Never).await,
        _ => {
            store.cancel(id).await.unwrap();
            store.confirm_cancel(id, attempt).await
        }
    };
    assert!(matches!(held.unwrap(), Held::Yes { .. }));
}

/// A result that no test stores.
fn other_result() -> JobResult {
    JobResult { device: "another".to_owned(), ..result() }
}

/// Asserts that a token does not hold: what only a holder can do returns `Held::Lost`.
async fn assert_does_not_hold(store: &impl Store, id: JobId, attempt: Attempt) {
    let failure = JobError { class: FailureClass::Device, message: "one that no test records".to_owned() };
    assert_eq!(store.heartbeat(id, attempt, LONG, Stage::Prove, 0.5).await.unwrap(), Held::Lost);
    assert_eq!(store.finish(id, attempt, &other_result()).await.unwrap(), Held::Lost);
    assert_eq!(store.fail(id, attempt, &failure, Retry::Never).await.unwrap(), Held::Lost);
    assert_eq!(store.fail(id, attempt, &failure, Retry::After(NONE)).await.unwrap(), Held::Lost);
}

/// Asserts that a token does not hold, and did not hand the job back or confirm its cancellation before.
async fn assert_all_lost(store: &impl Store, id: JobId, attempt: Attempt) {
    assert_does_not_hold(store, id, attempt).await;
    assert_eq!(store.release(id, attempt).await.unwrap(), Held::Lost);
    assert_eq!(store.confirm_cancel(id, attempt).await.unwrap(), Held::Lost);
}
