//! Secrets planted in inputs are nowhere but in the message that brought them, until a worker takes it.

use std::fs;
use std::path::Path;

use prover_worker::model::{JobId, JobState};
use prover_worker::worker::ServiceError;

use super::scenarios::metrics;
use super::site::{Fleet, QUEUE, request};
use crate::harness::Site;
use crate::wait::until;

/// A secret value of an input, below the field's modulus.
const SECRET: &str = "718281828459045235360287471352662497757";
/// A secret value in another job, which is bad.
const OTHER: &str = "577215664901532860606512090082402431042";

/// Returns the forms in which a secret might be stored: digits, hexadecimal number, hexadecimal digits of its text,
/// either byte order.
fn forms() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for secret in [SECRET, OTHER] {
        let number: num_bigint::BigUint = secret.parse().unwrap();
        let hex = number.to_str_radix(16);
        let text = hex::encode(secret);
        let (big, little) = (number.to_bytes_be(), number.to_bytes_le());
        for form in [secret.to_owned(), hex.clone(), hex.to_uppercase(), text, hex::encode(&little)] {
            all.push(form.into_bytes());
        }
        all.extend([big, little]);
    }
    all
}

/// Returns the forms found in `place`.
fn found(place: &[u8]) -> Vec<Vec<u8>> {
    let within = |form: &Vec<u8>| place.windows(form.len()).any(|w| w == form.as_slice());
    forms().into_iter().filter(within).collect()
}

fn assert_none(what: &str, place: &[u8]) {
    assert!(!place.is_empty(), "nothing was looked at in {what}");
    let found = found(place);
    let shown: Vec<_> = found.iter().map(|f| String::from_utf8_lossy(f)).collect();
    assert!(found.is_empty(), "{what} holds a secret, as {shown:?}");
}

/// Returns the content of every file below `dir`, except compiled programs.
fn files(dir: &Path) -> Vec<u8> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        all.extend_from_slice(path.to_string_lossy().as_bytes());
        if path.is_dir() && !path.ends_with("modules") {
            all.extend(files(&path));
        } else if path.is_file() {
            all.extend(fs::read(path).unwrap());
        }
    }
    all
}

/// Returns every key and value in Redis, as stored.
fn redis_dump(fleet: &Fleet) -> Vec<u8> {
    let mut all = b"keys: ".to_vec();
    let keys: Vec<Vec<u8>> = fleet.redis(redis::cmd("KEYS").arg("*"));
    for key in keys {
        all.extend_from_slice(&key);
        let kind: String = fleet.redis(redis::cmd("TYPE").arg(&key));
        let value: redis::Value = match kind.as_str() {
            "stream" => fleet.redis(redis::cmd("XRANGE").arg(&key).arg("-").arg("+")),
            "hash" => fleet.redis(redis::cmd("HGETALL").arg(&key)),
            "list" => fleet.redis(redis::cmd("LRANGE").arg(&key).arg(0).arg(-1)),
            "zset" => fleet.redis(redis::cmd("ZRANGE").arg(&key).arg(0).arg(-1)),
            "set" => fleet.redis(redis::cmd("SMEMBERS").arg(&key)),
            "string" => fleet.redis(redis::cmd("GET").arg(&key)),
            other => panic!("key of type {other}"),
        };
        flatten(&value, &mut all);
    }
    all
}

fn flatten(value: &redis::Value, all: &mut Vec<u8>) {
    match value {
        redis::Value::BulkString(bytes) => all.extend_from_slice(bytes),
        redis::Value::Array(values) => values.iter().for_each(|v| flatten(v, all)),
        redis::Value::Map(pairs) => pairs.iter().for_each(|(k, v)| {
            flatten(k, all);
            flatten(v, all);
        }),
        other => all.extend_from_slice(format!("{other:?}").as_bytes()),
    }
}

fn key(name: &str, byte: u8) -> String {
    use base64::Engine;
    format!("{name}:{}", base64::engine::general_purpose::STANDARD.encode([byte; 32]))
}

/// Good jobs, bad jobs, bad messages, a worker that dies with a claimed job: none of their inputs is found in a log,
/// the metrics, the database, Redis or the files, while they wait and when they have ended.
#[test]
fn a_secret_is_nowhere_in_a_fleet() {
    let keys = key("first", 7);
    let fleet = Fleet::with(&[
        ("PROVER_ENCRYPTION_KEYS", &keys),
        ("LOG_LEVEL", "debug"),
        ("PROVER_LEASE_SECS", "1"),
        // Failed jobs keep their inputs, sealed.
        ("PROVER_KEEP_FAILED_INPUT_SECS", "3600"),
    ]);
    let submit = |input: String| fleet.block(fleet.direct().service().submit(request(input)));
    let look = |what: &str, server: Option<&crate::harness::Server>| {
        assert_none(&format!("the database, {what}"), fleet.dump().as_bytes());
        assert_none(&format!("Redis, {what}"), &redis_dump(&fleet));
        assert_none(&format!("the artifacts, {what}"), &files(&fleet.artifacts()));
        if let Some(server) = server {
            assert_none(&format!("the metrics, {what}"), metrics(server).as_bytes());
            assert_none(&format!("the logs, {what}"), fleet.all_logs().as_bytes());
            for log in ["postgres/log", "redis/log"] {
                assert_none(&format!("{log}, {what}"), &fs::read(fleet.dir().join(log)).unwrap());
            }
            assert_none(&format!("the database's journal, {what}"), &files(&fleet.dir().join("postgres/data/pg_wal")));
            for n in 0..2 {
                let dir = fleet.dir().join(format!("worker-{n}"));
                if dir.exists() {
                    assert_none(&format!("worker {n}'s files, {what}"), &files(&dir));
                }
            }
        }
    };

    // The product is public and not close to a secret: only a and b are secret.
    let good = submit(format!(r#"{{"a": "{SECRET}", "b": "{OTHER}"}}"#)).unwrap().job().id;
    let bad = submit(format!(r#"{{"a": "{OTHER}", "c": "{SECRET}"}}"#)).unwrap().job().id;
    let worse = submit(format!(r#"{{"a": "{OTHER}", "b": ["{SECRET}", "{SECRET}"]}}"#)).unwrap().job().id;
    let refused = submit(format!(r#"{{"a": "{SECRET}", "b": {OTHER}"#));
    let Err(ServiceError::Invalid(why)) = refused else { panic!("taken") };
    assert_none("the refusal", why.as_bytes());
    look("while jobs wait", None);

    // A worker dies with a claimed job.
    let mut dies = fleet.serve(0, &["--fault-at", "after_witness:abort"], &[]);
    dies.wait();
    let worker = fleet.serve(1, &[], &[]);
    worker.wait_started();

    let (message, unknown) = (JobId::new(), JobId::new());
    let bodies = [
        format!(r#"{{"id": "{message}", "circuit": "multiplier", "input": {{"a": "{SECRET}", "b": 2}}}}"#),
        format!(r#"{{"id": "{unknown}", "circuit": "nothing", "input": {{"a": "{SECRET}", "b": {OTHER}}}}}"#),
        format!(r#"{{"circuit": "multiplier", "input": {{"a": "{SECRET}", "b": {OTHER}}}, "{SECRET}": {OTHER}}}"#),
        format!(r#"{{"circuit": "multiplier", "priority": "{SECRET}", "input": {OTHER}}}"#),
        format!(r#"not JSON: {SECRET} {OTHER}"#),
    ];
    for body in &bodies {
        fleet.redis::<String>(redis::cmd("XADD").arg(QUEUE).arg("*").arg("job").arg(body));
        fleet.redis::<u64>(redis::cmd("LPUSH").arg(format!("{QUEUE}:inbox")).arg(body));
    }
    for (id, state) in [(good, JobState::Done), (bad, JobState::Failed), (worse, JobState::Failed)] {
        let job = fleet.end(id);
        assert_eq!(job.state, state, "{job:?}");
    }
    until("the messages", || (fleet.jobs().len() >= 5).then_some(()));
    assert_eq!(fleet.end(message).state, JobState::Done);
    assert_eq!(fleet.end(unknown).state, JobState::Failed);
    fleet.wait_settled();
    look("when all have ended", Some(&worker));
    worker.terminate();
}

/// The same on a laptop: the files of the embedded database, without cleaning up.
#[test]
fn a_secret_is_nowhere_in_an_embedded_run() {
    let site = Site::new();
    let keys = key("laptop", 9);
    let env = [("PROVER_ENCRYPTION_KEYS", keys.as_str()), ("LOG_LEVEL", "debug"), ("PROVER_LEASE_SECS", "1")];
    let submit = |name: &str, input: String| {
        let file = site.data().with_file_name(name);
        fs::write(&file, input).unwrap();
        let mut command = site.command(&["submit", "multiplier", "--json", "--input", file.to_str().unwrap()]);
        let done = command.envs(env).output().unwrap();
        fs::remove_file(file).unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let job: serde_json::Value = serde_json::from_slice(&done.stdout).unwrap();
        job["id"].as_str().unwrap().to_owned()
    };
    let good = submit("good.json", format!(r#"{{"a": "{SECRET}", "b": "{OTHER}"}}"#));
    let bad = submit("bad.json", format!(r#"{{"a": "{OTHER}", "c": "{SECRET}"}}"#));
    assert_none("the data folder while jobs wait", &files(&site.data()));
    let mut dies = site.serve(&["--fault-at", "after_witness:abort"], &env);
    dies.wait();
    let worker = site.serve(&[], &env);
    site.wait_for(&good, "done");
    site.wait_for(&bad, "failed");
    assert_none("the data folder", &files(&site.data()));
    assert_none("the logs", format!("{}{}", dies.log(), worker.log()).as_bytes());
    assert_none("the metrics", metrics(&worker).as_bytes());
}

#[test]
fn a_secret_is_found_in_every_form() {
    let number: num_bigint::BigUint = SECRET.parse().unwrap();
    for place in [
        format!("x{SECRET}y").into_bytes(),
        format!("\\x{}", hex::encode(SECRET)).into_bytes(),
        number.to_str_radix(16).into_bytes(),
        number.to_bytes_le(),
        [&[1][..], &number.to_bytes_be(), &[2]].concat(),
    ] {
        assert!(!found(&place).is_empty(), "{place:?}");
    }
    assert!(found(b"nothing of the kind").is_empty());
}
