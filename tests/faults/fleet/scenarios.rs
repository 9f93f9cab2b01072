//! Small fleets in the situations that users of such systems complain about.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prover_worker::model::{FailureClass, JobState};
use prover_worker::store::Cancelled;
use prover_worker::worker::retry::LOST_WORKERS;
use prover_worker::worker::{ServiceError, SubmitRequest};
use rustix::process::Signal;
use serde_json::Value;

use super::schedule::{Dice, Door};
use super::site::{Fleet, QUEUE, request};
use crate::harness::Server;
use crate::wait::until;

/// A lease that outlasts every wait of a test: a job that ends before did not wait for it to lapse.
const LONG: (&str, &str) = ("PROVER_LEASE_SECS", "3600");
const SHORT: (&str, &str) = ("PROVER_LEASE_SECS", "1");

/// Returns the address on which a worker listens.
pub fn address(server: &Server, what: &str) -> String {
    let wanted = format!("\"what\":\"{what}\"");
    until("the worker to listen", || {
        let log = server.log();
        let line = log.lines().find(|l| l.contains(&wanted))?;
        Some(serde_json::from_str::<Value>(line).unwrap()["addr"].as_str().unwrap().to_owned())
    })
}

pub fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

pub fn metrics(server: &Server) -> String {
    get(&address(server, "metrics"), "/metrics")
}

/// 220 clients poll a worker for the state of its jobs until the last has ended: every job is claimed and done
/// meanwhile, and no lease lapses.
#[test]
fn a_storm_of_status_polls_stalls_nothing() {
    let fleet = Fleet::new();
    let ids: Vec<_> = (2..62).map(|i| fleet.submit(i, 7)).collect();
    let workers = [0, 1].map(|n| fleet.serve(n, &[], &[("PROVER_API_ADDR", "127.0.0.1:0")]));
    let doors = workers.each_ref().map(|w| address(w, "api"));
    let (over, polls) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|s| {
        for poller in 0..220 {
            let (over, polls, ids, door) = (&over, &polls, &ids, &doors[poller % 2]);
            s.spawn(move || {
                for id in ids.iter().cycle().skip(poller) {
                    if over.load(Ordering::SeqCst) {
                        return;
                    }
                    let answer = get(door, &format!("/v1/jobs/{id}"));
                    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
                    polls.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        // Each client has polled before the storm may end.
        until("60 jobs to end in the storm", || {
            (fleet.ended() == 60 && polls.load(Ordering::SeqCst) >= 220).then(|| over.store(true, Ordering::SeqCst))
        });
    });
    for job in fleet.jobs() {
        assert_eq!((job.state, job.attempt.number), (JobState::Done, 1), "{job:?}");
    }
    eprintln!("{} polls", polls.into_inner());
}

/// Redis is wiped while two workers work: every job ends, once.
#[test]
fn a_wiped_queue_loses_nothing() {
    let fleet = Fleet::new();
    let ids: Vec<_> = (2..102).map(|i| fleet.submit(i, 3)).collect();
    let workers = [0, 1].map(|n| fleet.serve(n, &[], &[LONG]));
    for ended in [10, 40, 70] {
        fleet.wait_ended(ended);
        fleet.redis::<String>(&redis::cmd("FLUSHALL"));
    }
    for (id, i) in ids.iter().zip(2..) {
        let job = fleet.end(*id);
        assert_eq!(job.attempt.number, 1, "{job:?}");
        fleet.assert_proved(&job, i * 3);
    }
    fleet.wait_settled();
    assert_eq!(fleet.inputs_held(), 0);
    until("100 lines on jobs done", || {
        (workers.iter().map(|w| w.count("job done")).sum::<usize>() == 100).then_some(())
    });
}

/// A server without free memory refuses offers, and answers everything else.
#[test]
fn a_full_queue_stops_nothing() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[LONG]);
    worker.wait_started();
    let memory = |bytes: &str| {
        let mut set = redis::cmd("CONFIG");
        assert_eq!(fleet.redis::<String>(set.arg("SET").arg("maxmemory").arg(bytes)), "OK");
    };
    memory("1");
    let ids: Vec<_> = (2..22).map(|i| fleet.submit(i, 3)).collect();
    for (id, i) in ids.iter().zip(2..) {
        let job = fleet.end(*id);
        assert_eq!(job.attempt.number, 1, "{job:?}");
        fleet.assert_proved(&job, i * 3);
    }
    worker.wait_log("the queue takes no jobs", 1);
    memory("0");
    let id = fleet.submit(6, 7);
    fleet.assert_proved(&fleet.end(id), 42);
    fleet.wait_settled();
}

/// No worker can take a job while the database is away, so the one that has proved it can wait for the database as
/// well.
#[test]
fn a_proof_outlives_an_outage_longer_than_its_lease() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &["--fault-at", "before_commit:freeze"], &[SHORT]);
    worker.wait_started();
    let id = fleet.submit(6, 7);
    worker.wait_log("fault point reached", 1);
    worker.wait_stopped();
    fleet.door(Door::Postgres).refuse(true);
    worker.signal(Signal::CONT);
    worker.wait_log("no heartbeat goes through", 1);
    std::thread::sleep(Duration::from_secs(4));
    fleet.door(Door::Postgres).refuse(false);
    let job = fleet.end(id);
    assert_eq!((job.attempt.number, job.tries.lost), (1, 0), "{job:?}\n{}", worker.log());
    fleet.assert_proved(&job, 42);
}

/// It is read apart from the claim, so that it does not delay the claims of others.
#[test]
fn a_job_with_a_large_input_is_proved() {
    let fleet = Fleet::new();
    let input = format!(r#"{{"a": "6",{} "b": 7}}"#, " ".repeat(600_000));
    let id = fleet.block(fleet.service().submit(request(input))).unwrap().job().id;
    let _worker = fleet.serve(0, &[], &[LONG]);
    let job = fleet.end(id);
    assert_eq!(job.attempt.number, 1);
    fleet.assert_proved(&job, 42);
    fleet.wait_settled();
}

/// Killed between commit and acknowledgement: the entry is delivered again, to another worker, and nothing is done
/// again.
#[test]
fn a_delivery_that_comes_again_after_the_commit_does_nothing() {
    let fleet = Fleet::new();
    let mut first = fleet.serve(0, &["--fault-at", "after_commit:abort"], &[SHORT]);
    first.wait_started();
    let id = fleet.submit(6, 7);
    assert_eq!(first.wait().signal(), Some(9));
    let done = fleet.job(id);
    fleet.assert_proved(&done, 42);
    let pending: u64 = fleet.redis(redis::cmd("XLEN").arg(QUEUE));
    assert_eq!(pending, 1, "the queue has not heard");

    let second = fleet.serve(1, &[], &[SHORT]);
    fleet.wait_settled();
    assert_eq!(second.count("job claimed"), 0, "{}", second.log());
    assert_eq!(fleet.job(id), done);
    assert_eq!(fleet.inputs_held(), 0);
    // The copy that the first worker could not write.
    let copy = fleet.artifacts().join("proofs").join(id.to_string()).join("proof.json");
    until("the proof's files", || copy.exists().then_some(()));
}

/// Each job is cancelled at another moment of its life. The job ends as the answer to the cancel said.
#[test]
fn a_cancel_that_races_completion_has_one_outcome() {
    const JOBS: u64 = 60;
    let fleet = Fleet::new();
    let _workers = [0, 1].map(|n| fleet.serve(n, &[], &[LONG]));
    let (mut dice, mut outcomes) = (Dice::new(3), HashMap::new());
    let mut told = Vec::new();
    for i in 0..JOBS {
        let id = fleet.submit(i + 2, 5);
        std::thread::sleep(Duration::from_millis(dice.within(0, 25)));
        told.push((id, fleet.block(fleet.service().cancel(id)).unwrap()));
    }
    for ((id, told), i) in told.into_iter().zip(0..) {
        let job = fleet.end(id);
        match told {
            Cancelled::Now => assert_eq!((job.state, job.attempt.number), (JobState::Cancelled, 0), "{job:?}"),
            Cancelled::Requested => assert!(matches!(job.state, JobState::Done | JobState::Cancelled), "{job:?}"),
            Cancelled::TooLate(state) => assert_eq!((job.state, state), (JobState::Done, JobState::Done), "{job:?}"),
        }
        if job.state == JobState::Done {
            fleet.assert_proved(&job, (i + 2) * 5);
        } else {
            assert!(job.result.is_none(), "{job:?}");
        }
        *outcomes.entry((format!("{told:?}"), job.state)).or_insert(0) += 1;
    }
    eprintln!("{outcomes:?}");
    assert_eq!(fleet.inputs_held(), 0);
    fleet.wait_settled();
}

/// A worker wakes up to report a failure while another holds the job: the other's lease, the job's budgets and its
/// history stay as they are.
#[test]
fn a_stale_failure_does_not_hit_the_new_lease() {
    let fleet = Fleet::new();
    let one = ("WORKER_CONCURRENCY", "1");
    let stale = fleet.serve(0, &["--fault-at", "after_claim:freeze"], &[SHORT, one]);
    stale.wait_started();
    // The circuit does not take it, so the worker that computes its witness fails it for good.
    let bad = fleet.block(fleet.service().submit(request(r#"{"a": 1, "c": 2}"#.to_owned()))).unwrap().job().id;
    stale.wait_log("fault point reached", 1);
    let mut holder = fleet.serve(1, &["--fault-at", "after_claim:sleep"], &[SHORT, one, ("PROVER_GRACE_SECS", "0")]);
    holder.wait_log("fault point reached", 1);
    let held = fleet.job(bad);
    assert_eq!((held.state, held.attempt.number, held.tries.lost), (JobState::Running, 2, 1), "{held:?}");

    stale.signal(Signal::CONT);
    stale.wait_log("lease lost", 1);
    let after = fleet.job(bad);
    assert_eq!((after.state, after.attempt, &after.worker), (held.state, held.attempt, &held.worker), "{after:?}");
    assert_eq!((after.tries, &after.error, &after.history), (held.tries, &held.error, &held.history), "{after:?}");
    // It would take the job again.
    drop(stale);

    holder.terminate();
    assert!(holder.wait().success(), "{}", holder.log());
    let _last = fleet.serve(2, &[], &[SHORT]);
    let job = fleet.end(bad);
    let class = job.error.as_ref().unwrap().class;
    assert_eq!((job.state, class, job.attempt.number), (JobState::Failed, FailureClass::BadInput, 3), "{job:?}");
    assert_eq!(job.tries.lost, 1, "{job:?}");
    fleet.wait_settled();
}

/// A job that kills worker after worker is set aside with its reason, in a fleet as on one machine; the other jobs end
/// well.
#[test]
fn a_job_that_kills_every_worker_is_put_aside() {
    let fleet = Fleet::new();
    let poison = fleet.submit(2, 3);
    for _ in 0..LOST_WORKERS {
        let mut dies = fleet.serve(0, &["--fault-at", "after_claim:abort"], &[SHORT, ("WORKER_CONCURRENCY", "1")]);
        assert_eq!(dies.wait().signal(), Some(9), "{}", dies.log());
    }
    let others = [fleet.submit(2, 4), fleet.submit(2, 5)];
    let survivor = fleet.serve(1, &[], &[SHORT]);
    let job = fleet.end(poison);
    let error = job.error.as_ref().unwrap();
    assert_eq!((job.state, error.class), (JobState::Failed, FailureClass::LostWorker), "{job:?}");
    assert_eq!(job.attempt.number, LOST_WORKERS + 1, "{job:?}");
    assert_eq!(job.history.len() as u32, LOST_WORKERS + 1, "{job:?}");
    assert!(error.message.contains(&format!("{LOST_WORKERS} workers died")), "{}", error.message);
    for (id, product) in others.into_iter().zip([8, 10]) {
        fleet.assert_proved(&fleet.end(id), product);
    }
    until("its input to go", || (fleet.inputs_held() == 0).then_some(()));
    fleet.wait_settled();
    survivor.terminate();
}

/// A worker that is told to end hands back what it cannot finish, and another takes it at once: leases are an hour
/// here.
#[test]
fn what_a_draining_worker_hands_back_is_taken_at_once() {
    let fleet = Fleet::new();
    let mut first = fleet.serve(0, &["--fault-at", "after_witness:sleep"], &[LONG, ("PROVER_GRACE_SECS", "0")]);
    first.wait_started();
    let ids = [fleet.submit(3, 4), fleet.submit(3, 5), fleet.submit(3, 6)];
    first.wait_log("fault point reached", 3);
    let second = fleet.serve(1, &[], &[LONG]);
    second.wait_started();
    first.terminate();
    assert!(first.wait().success(), "{}", first.log());
    assert_eq!(first.count("job handed back"), 3, "{}", first.log());
    for (id, product) in ids.into_iter().zip([12, 15, 18]) {
        let job = fleet.end(id);
        fleet.assert_proved(&job, product);
        assert_eq!((job.attempt.number, job.tries.lost, job.history.len()), (2, 0, 0), "{job:?}");
    }
    fleet.wait_settled();
}

/// The answer to a submit is lost with its connection; repeating the submit gives the same job.
#[test]
fn a_submit_that_is_repeated_is_one_job() {
    let fleet = Fleet::new();
    let mut failed = 0;
    for i in 0..30u64 {
        // Cut at another byte each time.
        fleet.door(Door::Postgres).cut_in(i * 97);
        let submit = || {
            let key = Some(format!("order {i}").parse().unwrap());
            fleet.block(fleet.service().submit(SubmitRequest { idempotency_key: key, ..fleet.request(i + 2, 2) }))
        };
        let id = until("the submit", || match submit() {
            Ok(submitted) => Some(submitted.job().id),
            Err(ServiceError::Store(_)) => {
                failed += 1;
                None
            }
            Err(e) => panic!("{e}"),
        });
        assert_eq!(submit().unwrap().job().id, id);
    }
    eprintln!("{failed} submits failed, {} cuts", fleet.door(Door::Postgres).cuts());
    assert!(fleet.door(Door::Postgres).cuts() > 0);
    assert_eq!(fleet.jobs().len(), 30);
}

/// A pause that was left on shows in a worker's metrics, even if no job that could run waits.
#[test]
fn what_is_held_back_shows_in_the_metrics() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[]);
    worker.wait_started();
    let shows = |queue: u8, circuits: u8| {
        let lines = [("queue_paused", queue), ("circuits_paused", circuits)];
        until("the metrics to show what is held back", || {
            let text = metrics(&worker);
            lines.iter().all(|(m, n)| text.contains(&format!("\n{m}{{queue=\"{QUEUE}\"}} {n}"))).then_some(())
        });
    };
    shows(0, 0);
    fleet.json(&["circuits", "pause", "multiplier"]);
    shows(0, 1);
    fleet.json(&["queue", "pause"]);
    fleet.submit(6, 7);
    shows(1, 1);
    fleet.json(&["circuits", "resume", "multiplier"]);
    fleet.json(&["queue", "resume"]);
    shows(0, 0);
    fleet.wait_ended(1);
}
