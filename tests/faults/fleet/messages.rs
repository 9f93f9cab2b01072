//! Bad messages of producers, and messages during outages.

use std::collections::HashMap;

use prover_worker::model::{Circuit, FailureClass, Job, JobId, JobState};
use rustix::process::Signal;
use sqlx::{Connection, PgConnection};

use super::scenarios::{address, get, metrics};
use super::schedule::Door;
use super::servers::Postgres;
use super::site::{Fleet, QUEUE, request};
use crate::circuits::circuits;
use crate::harness::Server;
use crate::wait::until;

fn xadd(body: impl redis::ToSingleRedisArg) -> redis::Cmd {
    redis::cmd("XADD").arg(QUEUE).arg("*").arg("job").arg(body).to_owned()
}

fn lpush(body: &str) -> redis::Cmd {
    redis::cmd("LPUSH").arg(format!("{QUEUE}:inbox")).arg(body).to_owned()
}

/// Returns a message with a valid input of the circuit `multiplier`, whose public value is 42.
fn good(id: JobId) -> String {
    format!(r#"{{"id": "{id}", "circuit": "multiplier", "input": {{"a": 6, "b": "7"}}}}"#)
}

/// Returns the ids and states in a queue's `:ended` stream, sorted, because a proof's end is announced only after its
/// files are written.
fn ends_told(fleet: &Fleet, queue: &str) -> Vec<(String, String)> {
    let range = redis::cmd("XRANGE").arg(format!("{queue}:ended")).arg("-").arg("+").to_owned();
    let told: Vec<(String, HashMap<String, String>)> = fleet.redis(&range);
    let mut told: Vec<_> = told.into_iter().map(|(_, e)| (e["id"].clone(), e["state"].clone())).collect();
    told.sort();
    told
}

/// Waits until the `:ended` stream announces the end of each of these jobs.
fn assert_all_are_told(fleet: &Fleet, jobs: &[Job]) {
    let mut ends: Vec<_> = jobs.iter().map(|j| (j.id.to_string(), j.state.to_string())).collect();
    ends.sort();
    until("all to be told", || (ends_told(fleet, QUEUE) == ends).then_some(()));
}

/// Waits until a message is recorded and its job has ended.
fn recorded(fleet: &Fleet, id: JobId) -> Job {
    until(format_args!("message {id}"), || fleet.jobs().into_iter().find(|j| j.id == id));
    fleet.end(id)
}

/// Part of the inputs of bad messages, of which nothing may be kept or logged.
const SECRET: &str = "\"a\": \"31415926535\", \"b\": 2";

fn assert_log_is_clean(worker: &Server) {
    let log = worker.log();
    assert!(!log.contains("31415926535") && !log.contains("panicked"), "{log}");
}

/// What is wrong with a message that has an id is recorded as the error of a failed job with that id. Nothing is
/// retried forever, nothing of a message is kept, and the worker lives on.
#[test]
fn bad_messages_with_an_id_become_failed_jobs() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[("PROVER_MAX_INPUT_BYTES", "64M")]);
    worker.wait_started();
    // The rest of the message after its id, and what the job's error must say.
    let rejected = [
        (format!(r#""circuit": "nothing", "input": {{{SECRET}}}"#), "nothing"),
        (format!(r#""circuit": 7, "input": {{{SECRET}}}"#), "circuit"),
        (r#""circuit": "multiplier""#.to_owned(), "input"),
        (format!(r#""circuit": "multiplier", "input": {{{SECRET}}}, "priorty": 1"#), "priority"),
        (format!(r#""circuit": "../../etc", "input": {{{SECRET}}}"#), "circuit"),
        (r#""circuit": "multiplier", "input": [3, 1, 4]"#.to_owned(), ""),
    ];
    let rejected = rejected.map(|(rest, why)| {
        let id = JobId::new();
        (id, format!(r#"{{"id": "{id}", {rest}}}"#), why)
    });
    for (_, body, _) in &rejected {
        fleet.redis::<String>(&xadd(body.as_str()));
    }
    let large = JobId::new();
    let mut huge = format!(r#"{{"id": "{large}", "circuit": "multiplier", "input": {{"a": ""#).into_bytes();
    huge.resize(100_000_000, b'9');
    huge.extend_from_slice(br#"", "b": 2}}"#);
    let size = huge.len();
    fleet.redis::<String>(&xadd(huge));
    // The job itself finds out that the circuit does not take its input.
    let short = JobId::new();
    fleet.redis::<u64>(&lpush(&format!(r#"{{"id": "{short}", "circuit": "multiplier", "input": {{"a": 5}}}}"#)));
    let last = JobId::new();
    fleet.redis::<String>(&xadd(good(last)));
    fleet.assert_proved(&recorded(&fleet, last), 42);

    let refused = rejected.iter().map(|(id, _, why)| (*id, *why)).chain([(large, "PROVER_MAX_INPUT_BYTES")]);
    for (id, why) in refused {
        let job = recorded(&fleet, id);
        let error = job.error.as_ref().unwrap();
        assert_eq!(
            (job.state, error.class, job.attempt.number),
            (JobState::Failed, FailureClass::BadInput, 0),
            "{job:?}"
        );
        assert!(error.message.contains(why), "{why:?}: {job:?}");
    }
    let job = recorded(&fleet, short);
    assert_eq!(
        (job.state, job.attempt.number, job.error.unwrap().class),
        (JobState::Failed, 1, FailureClass::BadInput)
    );

    fleet.wait_settled();
    assert_eq!(fleet.json(&["queue", "aside"]), serde_json::json!([]));
    let jobs = fleet.jobs();
    assert_eq!(jobs.len(), rejected.len() + 3, "{jobs:#?}");
    assert_eq!(fleet.inputs_held(), 0);
    assert!(jobs.iter().any(|j| j.error.as_ref().is_some_and(|e| e.message.contains(&size.to_string()))));
    assert_all_are_told(&fleet, &jobs);

    // The same bad message again is the same failed job.
    fleet.redis::<String>(&xadd(rejected[0].1.as_str()));
    fleet.wait_settled();
    assert_eq!(fleet.jobs(), jobs);
    assert_log_is_clean(&worker);
}

/// A message whose id cannot be used is noted among those set aside, with what is wrong with it; the worker lives on.
#[test]
fn bad_messages_without_an_id_are_set_aside() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[]);
    worker.wait_started();
    let first = fleet.submit(2, 3);
    let aside = [
        "this is not JSON".to_owned(),
        String::new(),
        "[1, 2, 3]".to_owned(),
        r#"{"circuit": "multiplier"}"#.to_owned(),
        r#"{"id": 7, "circuit": "multiplier", "input": {}}"#.to_owned(),
        format!(r#"{{"id": "{}", "circuit": "multiplier", "input": {{{SECRET}}}}}"#, "x".repeat(300)),
        // An id that exists with another body.
        format!(r#"{{"id": "{first}", "circuit": "multiplier", "input": {{{SECRET}}}}}"#),
        "\u{1}\u{2}".to_owned(),
    ];
    for body in &aside {
        fleet.redis::<String>(&xadd(body.as_str()));
    }
    fleet.redis::<u64>(&lpush("neither is this"));
    // Entries of another shape altogether.
    fleet.redis::<String>(redis::cmd("XADD").arg(QUEUE).arg("*").arg("what").arg("ever"));
    fleet.redis::<String>(redis::cmd("XADD").arg(QUEUE).arg("*").arg("id").arg("no-uuid"));
    // The id of an unknown job is not set aside: the queue may be older than the store.
    fleet.redis::<String>(redis::cmd("XADD").arg(QUEUE).arg("*").arg("id").arg(JobId::new().to_string()));
    let last = JobId::new();
    fleet.redis::<String>(&xadd(good(last)));
    fleet.assert_proved(&recorded(&fleet, last), 42);
    fleet.assert_proved(&fleet.end(first), 6);

    fleet.wait_settled();
    let noted = fleet.json(&["queue", "aside"]);
    let noted = noted.as_array().unwrap();
    assert_eq!(noted.len(), aside.len() + 3, "{noted:#?}");
    assert!(noted.iter().all(|n| !n["why"].as_str().unwrap().is_empty() && n["sha256"].as_str().unwrap().len() == 64));
    let jobs = fleet.jobs();
    assert_eq!(jobs.len(), 2, "{jobs:#?}");
    assert_eq!(fleet.inputs_held(), 0);
    assert_all_are_told(&fleet, &jobs);
    assert_log_is_clean(&worker);
}

/// A producer whose circuit is registered late just sends its message again: the rejected job is replaced, and proved
/// once.
#[test]
fn a_rejected_message_sent_again_is_proved_once() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[]);
    worker.wait_started();
    let body = r#"{"id": "order 4711", "circuit": "late", "input": {"a": 6, "b": "7"}}"#;
    let sent = || fleet.redis::<String>(&xadd(body));
    sent();
    let in_state = |state: JobState| {
        until(format_args!("one job, {state}"), || match fleet.jobs().as_slice() {
            [job] if job.state == state => Some(job.clone()),
            _ => None,
        })
    };
    let rejected = in_state(JobState::Failed);
    assert_eq!(rejected.error.as_ref().unwrap().message, "no circuit late is registered");
    sent();
    fleet.wait_settled();
    assert_eq!(fleet.jobs(), std::slice::from_ref(&rejected), "the same again for the same reason");

    let store = fleet.direct().store();
    let multiplier = fleet.block(store.circuit(&"multiplier".parse().unwrap())).unwrap().unwrap();
    let late = Circuit { name: "late".parse().unwrap(), ..multiplier };
    fleet.block(store.put_circuit(&late)).unwrap();
    sent();
    let done = in_state(JobState::Done);
    assert_eq!((done.id, &done.idempotency_key, done.zkey), (rejected.id, &rejected.idempotency_key, late.zkey));
    fleet.assert_proved(&done, 42);
    sent();
    fleet.wait_settled();
    assert_eq!(fleet.jobs(), [done], "once more is the same job");
    assert_eq!(fleet.json(&["queue", "aside"]), serde_json::json!([]));
}

/// A worker takes a message while the database is out of reach, and dies. The message is still there for the next
/// worker, which was started while the database was still out of reach.
#[test]
fn a_message_outlives_the_worker_that_took_it() {
    let fleet = Fleet::new();
    // The database does not answer this worker. It takes messages until it notices, which takes longer the longer its
    // lease is.
    let first = fleet.serve(0, &[], &[("PROVER_LEASE_SECS", "120")]);
    first.wait_started();
    // The worker creates the group with its first read, which it does once a heartbeat has succeeded.
    let groups = || fleet.redis::<usize>(redis::cmd("EXISTS").arg(QUEUE));
    until("the group of consumers", || (groups() == 1).then_some(()));
    fleet.door(Door::Postgres).hold(true);
    let ids = [JobId::new(), JobId::new()];
    fleet.redis::<String>(&xadd(good(ids[0])));
    fleet.redis::<u64>(&lpush(&good(ids[1])));
    let taken = || {
        let pending: redis::Value = fleet.redis(redis::cmd("XPENDING").arg(QUEUE).arg("workers"));
        matches!(pending, redis::Value::Array(of) if of.first() == Some(&redis::Value::Int(2)))
    };
    until("the messages to be taken", || taken().then_some(()));
    first.signal(Signal::KILL);
    assert!(taken(), "a message that is not recorded is acknowledged");
    fleet.door(Door::Postgres).refuse(true);
    fleet.door(Door::Postgres).hold(false);
    assert!(fleet.jobs().is_empty());
    // The next worker is started before the database is back, and waits for it.
    let second = fleet.serve(1, &[], &[("PROVER_LEASE_SECS", "1")]);
    second.wait_log("the worker starts once its database is available", 1);
    // Its endpoints show a process that is alive and waits, and for what.
    let health = |path| get(&address(&second, "metrics"), path);
    assert!(health("/healthz").starts_with("HTTP/1.1 200"));
    let ready = health("/readyz");
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("waiting for its store"), "{ready}");
    let seen = health("/metrics");
    assert!(seen.contains(&format!("store_up{{queue=\"{QUEUE}\"}} 0")), "{seen}");
    fleet.door(Door::Postgres).refuse(false);
    second.wait_started();
    until("the messages to be recorded", || (fleet.jobs().len() == 2).then_some(()));
    for id in ids {
        fleet.assert_proved(&fleet.end(id), 42);
    }
    fleet.wait_settled();
}

/// An outage of Redis moves a counter once or twice; a gauge shows how long it lasts.
#[test]
fn an_outage_of_redis_is_seen_for_as_long_as_it_lasts() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[]);
    worker.wait_started();
    let up = |is: u8| {
        let line = format!("queue_up{{queue=\"{QUEUE}\"}} {is}");
        until(&line, || metrics(&worker).contains(&line).then_some(()));
    };
    up(1);
    for _ in 0..2 {
        fleet.door(Door::Redis).refuse(true);
        up(0);
        fleet.door(Door::Redis).refuse(false);
        up(1);
    }
}

/// While the database is out of reach, a worker leaves messages in the queue; its log has one line on the beginning and
/// one on the end of the outage, and none for each message. Messages it had taken are handled as soon as the database
/// is back.
#[test]
fn an_outage_of_the_database_holds_messages_back_and_is_told_once() {
    let fleet = Fleet::new();
    let worker = fleet.serve(0, &[], &[("PROVER_LEASE_SECS", "3600")]);
    worker.wait_started();
    fleet.door(Door::Postgres).refuse(true);
    let ids: Vec<_> = (0..40).map(|_| JobId::new()).collect();
    let (early, late) = ids.split_at(20);
    let send = |ids: &[JobId]| {
        for id in ids {
            fleet.redis::<String>(&xadd(good(*id)));
        }
    };
    send(early);
    worker.wait_log("the database fails", 1);
    send(late);
    fleet.door(Door::Postgres).refuse(false);
    worker.wait_log("the database answers again", 1);
    until("the messages to be recorded", || (fleet.jobs().len() == ids.len()).then_some(()));
    for id in ids {
        fleet.assert_proved(&fleet.end(id), 42);
    }
    fleet.wait_settled();
    let log = worker.log();
    assert!(log.lines().any(|l| l.contains("the database fails") && l.contains("postgres://127.0.0.1")), "{log}");
    assert_eq!(worker.count("could not be recorded yet") + worker.count("trying again"), 0, "{log}");
}

/// Staging next to production, on one Redis and by mistake with the same queue name: each works on its own jobs, and
/// producers' messages go to the workers that were there first until these have left.
#[test]
fn a_second_database_on_one_queue_takes_no_messages_of_the_first() {
    let fleet = Fleet::new();
    let mut worker = fleet.serve(0, &[], &[]);
    worker.wait_started();
    let owner = || fleet.redis::<Option<String>>(redis::cmd("GET").arg(format!("{QUEUE}:database")));
    until("the queue to be the fleet's", || owner().filter(|o| o.starts_with("postgres postgres.public ")));

    fleet.block(async {
        let mut c = PgConnection::connect(&Postgres::url(fleet.postgres.port)).await.unwrap();
        sqlx::raw_sql("CREATE DATABASE staging").execute(&mut c).await.unwrap();
    });
    let url = Postgres::url(fleet.postgres.port).replace("/postgres?", "/staging?");
    let env = [("DATABASE_URL", url.as_str())];
    let run = |args: &[&str]| {
        let done = fleet.command(1, args).envs(env).arg("--json").output().unwrap();
        let said: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        (done.status.success(), said)
    };
    let (key, wasm) = (fleet.dir().join("multiplier.zkey"), circuits().join("multiplier.wasm"));
    let files = ["--zkey", key.to_str().unwrap(), "--wasm", wasm.to_str().unwrap()];
    assert!(run(&[&["circuits", "add", "multiplier"][..], &files].concat()).0);
    let staging = fleet.serve(1, &[], &env);
    staging.wait_log("workers of another database have this queue", 1);
    // `doctor` names the mistake.
    let (sound, found) = run(&["doctor"]);
    assert!(!sound && found.to_string().contains("workers of another database have this queue"), "{found}");

    let (ids, late) = ((0..20).map(|_| JobId::new()).collect::<Vec<_>>(), JobId::new());
    for id in &ids {
        fleet.redis::<String>(&xadd(good(*id)));
    }
    let input = fleet.dir().join("input.json");
    std::fs::write(&input, r#"{"a": 3, "b": 5}"#).unwrap();
    let (_, own) = run(&["submit", "multiplier", "--input", input.to_str().unwrap(), "--wait"]);
    assert_eq!(own["state"], "done", "{own}");
    until("the messages to be recorded", || (fleet.jobs().len() == ids.len()).then_some(()));
    for id in &ids {
        fleet.assert_proved(&fleet.end(*id), 42);
    }
    let of_staging = || run(&["jobs"]).1.as_array().unwrap().len();
    assert_eq!(of_staging(), 1);

    worker.terminate();
    assert!(worker.wait().success());
    fleet.redis::<String>(&xadd(good(late)));
    until("the message to be taken by who is there now", || (of_staging() == 2).then_some(()));
    assert_eq!(fleet.jobs().len(), ids.len());
}

/// The commands come from another queue with the same database and Redis, because an id names a job of any queue.
#[test]
fn a_job_of_another_queue_is_left_to_its_own_workers_and_listeners() {
    let fleet = Fleet::new();
    let own = fleet.serve(0, &[], &[]);
    let other = fleet.serve(1, &[], &[("QUEUE_NAME", "other")]);
    own.wait_started();
    other.wait_started();
    let input = fleet.dir().join("input.json");
    std::fs::write(&input, r#"{"a": 6, "b": 7}"#).unwrap();
    let by_other = |args: &[&str]| {
        let done = fleet.command(2, args).env("QUEUE_NAME", "other").output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    };
    let mut ends = Vec::new();
    for _ in 0..8 {
        let id = fleet.block(fleet.direct().service().submit(request(r#"{"a": 6}"#.to_owned()))).unwrap().job().id;
        assert_eq!(fleet.end(id).state, JobState::Failed);
        ends.push((id.to_string(), "failed".to_owned()));
        by_other(&["jobs", "requeue", &id.to_string(), "--input", input.to_str().unwrap()]);
        let done = fleet.end(id);
        fleet.assert_proved(&done, 42);
        ends.push((id.to_string(), "done".to_owned()));
        assert_eq!(done.queue, QUEUE);
    }
    by_other(&["queue", "pause"]);
    fleet.json(&["queue", "pause"]);
    let waits = fleet.submit(2, 3);
    by_other(&["cancel", &waits.to_string()]);
    ends.push((waits.to_string(), "cancelled".to_owned()));
    ends.sort();
    until("all to be told where they belong", || (ends_told(&fleet, QUEUE) == ends).then_some(()));
    assert_eq!(ends_told(&fleet, "other"), []);
    // No job was started by the other queue's workers.
    let metrics = metrics(&other);
    assert!(metrics.contains("jobs_processed_total{queue=\"other\"} 0"), "{metrics}");
}
