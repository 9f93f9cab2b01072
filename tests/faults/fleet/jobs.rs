//! The jobs of a soak, determined by the seed, and their submitters: through the service and as messages of producers.
//! Each is sent again until it is known to have arrived, and once more on purpose.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prover_worker::model::{JobId, JobState, Priority};
use prover_worker::store::{Cancelled, Submitted};
use prover_worker::worker::{JobService, ServiceError, SubmitRequest};
use sqlx::{Connection, PgConnection, Row};
use uuid::Uuid;

use super::schedule::Dice;
use super::servers::Postgres;
use super::site::{QUEUE, request, try_redis};

/// Maximum of jobs submitted and not ended.
const WINDOW: u64 = 120;
/// Concurrent submitters.
const SUBMITTERS: u64 = 4;
/// How long a producer waits for its message to be recorded before it sends it again.
const PATIENCE: Duration = Duration::from_secs(2);

/// How a job is submitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Way {
    /// A submit under an idempotency key.
    Service,
    /// Two concurrent submits under one idempotency key.
    Together,
    /// `XADD` of a message.
    Stream,
    /// `LPUSH` of a message.
    List,
}

/// A planned job.
#[derive(Clone, Debug)]
pub struct Planned {
    pub a: u64,
    pub b: u64,
    pub way: Way,
    /// Whether its input lacks a signal, so that it must fail.
    pub bad: bool,
    /// Whether it is cancelled soon after its submit.
    pub cancel: bool,
    /// Its idempotency key, or its id as its producer writes it.
    pub name: String,
    priority: i16,
}

impl Planned {
    pub fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed ^ number.wrapping_mul(0xd134_2543_de82_ef95));
        let way = match dice.within(0, 9) {
            0..=5 => Way::Service,
            6 => Way::Together,
            7 | 8 => Way::Stream,
            _ => Way::List,
        };
        let as_uuid = matches!(way, Way::Stream | Way::List) && dice.within(0, 1) == 0;
        let uuid = Uuid::from_u64_pair(dice.next(), dice.next());
        let name = if as_uuid { uuid.to_string() } else { format!("order {number} of {seed:x}") };
        let (a, b) = (dice.within(2, 1 << 30), dice.within(2, 1 << 30));
        let (bad, priority) = (dice.within(0, 39) == 0, dice.within(0, 2) as i16 - 1);
        let cancel = !bad && way == Way::Service && dice.within(0, 19) == 0;
        Self { a, b, way, bad, cancel, name, priority }
    }

    fn input(&self) -> String {
        let Self { a, b, .. } = self;
        if self.bad { format!(r#"{{"a": "{a}"}}"#) } else { format!(r#"{{"a": "{a}", "b": {b}}}"#) }
    }

    fn request(&self) -> SubmitRequest {
        let key = Some(self.name.parse().unwrap());
        SubmitRequest { idempotency_key: key, priority: Priority(self.priority), ..request(self.input()) }
    }

    fn command(&self) -> redis::Cmd {
        let (name, input, priority) = (&self.name, self.input(), self.priority);
        let body = format!(r#"{{"id": "{name}", "circuit": "multiplier", "priority": {priority}, "input": {input}}}"#);
        match self.way {
            Way::List => redis::cmd("LPUSH").arg(format!("{QUEUE}:inbox")).arg(body).to_owned(),
            _ => redis::cmd("XADD").arg(QUEUE).arg("*").arg("job").arg(body).to_owned(),
        }
    }

    /// Returns whether a job in the store is this one.
    pub fn is(&self, job: &prover_worker::model::Job) -> bool {
        job.idempotency_key.as_deref() == Some(&self.name) || self.name.parse() == Ok(job.id)
    }
}

/// Returns the command for an entry that offers a job by its id, as a worker writes it.
pub fn offer_again(id: JobId) -> redis::Cmd {
    redis::cmd("XADD").arg(QUEUE).arg("*").arg("id").arg(id.to_string()).to_owned()
}

/// Counts of what happened.
#[derive(Default, Debug)]
pub struct Tally {
    /// Submits that failed and were repeated.
    pub submits_repeated: AtomicU64,
    /// Repeated submits that found the job: the first answer was lost.
    pub answers_lost: AtomicU64,
    /// Messages that did not arrive within a producer's patience and were sent again.
    pub messages_resent: AtomicU64,
    /// Jobs cancelled while they waited, while they ran, and when it was too late.
    pub cancels: [AtomicU64; 3],
    /// Ids offered a second time.
    pub offers_doubled: AtomicU64,
    /// Messages sent a second time at once.
    pub messages_doubled: AtomicU64,
}

/// Submits jobs as the fleet ends earlier ones.
pub struct Feed {
    seed: u64,
    /// Jobs that may be submitted so far.
    pub allowed: AtomicU64,
    /// Jobs whose submission has begun.
    pub next: AtomicU64,
    /// Jobs that have ended.
    pub ended: AtomicU64,
    /// Messages sent and not yet seen in the store.
    open: Mutex<HashMap<u64, (Planned, Instant)>>,
    /// Offers that Redis has not accepted yet.
    owed: Mutex<Vec<JobId>>,
    pub wrong: Mutex<Vec<String>>,
    pub tally: Tally,
    service: JobService,
    postgres: u16,
    redis: u16,
}

impl Feed {
    /// Starts submitting: through `service`, and as messages to the Redis server at port `redis`. Looks up their jobs
    /// at the PostgreSQL server at port `postgres`.
    pub fn start(seed: u64, service: JobService, postgres: u16, redis: u16) -> Arc<Self> {
        let feed = Arc::new(Self {
            seed,
            allowed: AtomicU64::new(0),
            next: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            open: Mutex::default(),
            owed: Mutex::default(),
            wrong: Mutex::default(),
            tally: Tally::default(),
            service,
            postgres,
            redis,
        });
        for _ in 0..SUBMITTERS {
            tokio::spawn(feed.clone().submit());
        }
        tokio::spawn(feed.clone().resend_missing());
        feed
    }

    async fn submit(self: Arc<Self>) {
        loop {
            let number = self.next.load(Ordering::SeqCst);
            let room = self.allowed.load(Ordering::SeqCst).min(self.ended.load(Ordering::SeqCst) + WINDOW);
            let taken = number < room
                && self.next.compare_exchange(number, number + 1, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if !taken {
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
            let planned = Planned::new(self.seed, number);
            match planned.way {
                Way::Service => {
                    let id = self.submit_until_answered(&planned).await;
                    self.owed.lock().unwrap().push(id);
                    if planned.cancel {
                        self.cancel(id).await;
                    }
                }
                Way::Together => {
                    let (one, two) =
                        tokio::join!(self.submit_until_answered(&planned), self.submit_until_answered(&planned));
                    if one != two {
                        self.wrong.lock().unwrap().push(format!("{} is two jobs, {one} and {two}", planned.name));
                    }
                    self.owed.lock().unwrap().push(one);
                }
                Way::Stream | Way::List => {
                    for _ in 0..2 {
                        // A message that Redis does not accept is sent again later.
                        let _ = try_redis::<redis::Value>(self.redis, &planned.command()).await;
                    }
                    self.tally.messages_doubled.fetch_add(1, Ordering::SeqCst);
                    self.open.lock().unwrap().insert(number, (planned, Instant::now()));
                }
            }
        }
    }

    /// Submits until there is an answer, and returns the job's id.
    async fn submit_until_answered(&self, planned: &Planned) -> JobId {
        let mut repeated = false;
        loop {
            match self.service.submit(planned.request()).await {
                Ok(submitted) => {
                    if repeated && matches!(submitted, Submitted::Existing(_)) {
                        self.tally.answers_lost.fetch_add(1, Ordering::SeqCst);
                    }
                    return submitted.job().id;
                }
                Err(ServiceError::Store(_)) => {
                    repeated = true;
                    self.tally.submits_repeated.fetch_add(1, Ordering::SeqCst);
                }
                Err(e) => self.wrong.lock().unwrap().push(format!("{} is refused: {e}", planned.name)),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Cancels until there is an answer.
    async fn cancel(&self, id: JobId) {
        loop {
            let outcome = match self.service.cancel(id).await {
                Ok(Cancelled::Now) => Some(0),
                Ok(Cancelled::Requested) => Some(1),
                // The job may have been cancelled by this call, if an earlier answer was lost.
                Ok(Cancelled::TooLate(JobState::Done | JobState::Cancelled)) => Some(2),
                Err(ServiceError::Store(_)) => None,
                other => {
                    self.wrong.lock().unwrap().push(format!("the cancel of {id}: {other:?}"));
                    None
                }
            };
            if let Some(outcome) = outcome {
                self.tally.cancels[outcome].fetch_add(1, Ordering::SeqCst);
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends messages again that have not arrived.
    async fn resend_missing(self: Arc<Self>) {
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let owed = std::mem::take(&mut *self.owed.lock().unwrap());
            for id in owed {
                match try_redis::<String>(self.redis, &offer_again(id)).await {
                    Ok(_) => drop(self.tally.offers_doubled.fetch_add(1, Ordering::SeqCst)),
                    Err(_) => self.owed.lock().unwrap().push(id),
                }
            }
            let late: Vec<(u64, Planned)> = {
                let open = self.open.lock().unwrap();
                let late = open.iter().filter(|(_, (_, sent))| sent.elapsed() > PATIENCE);
                late.map(|(n, (planned, _))| (*n, planned.clone())).collect()
            };
            let Ok(recorded) = self.recorded(&late).await else { continue };
            for (number, planned) in late {
                if recorded.contains(&number) {
                    self.open.lock().unwrap().remove(&number);
                } else if try_redis::<redis::Value>(self.redis, &planned.command()).await.is_ok() {
                    self.tally.messages_resent.fetch_add(1, Ordering::SeqCst);
                    self.open.lock().unwrap().insert(number, (planned, Instant::now()));
                }
            }
        }
    }

    /// Returns which of these the store has.
    async fn recorded(&self, these: &[(u64, Planned)]) -> sqlx::Result<Vec<u64>> {
        if these.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = these.iter().map(|(_, p)| p.name.as_str()).collect();
        let mut c = PgConnection::connect(&Postgres::url(self.postgres)).await?;
        let there = "SELECT coalesce(idempotency_key, id::text) FROM jobs \
                     WHERE idempotency_key = ANY($1) OR id::text = ANY($1)";
        let rows = sqlx::query(there).bind(&names).fetch_all(&mut c).await?;
        let there: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
        Ok(these.iter().filter(|(_, p)| there.contains(&p.name)).map(|(n, _)| *n).collect())
    }
}

#[test]
fn the_seed_decides_the_jobs() {
    let all: Vec<Planned> = (0..1000).map(|n| Planned::new(7, n)).collect();
    for way in [Way::Service, Way::Together, Way::Stream, Way::List] {
        assert!(all.iter().any(|p| p.way == way), "{way:?}");
    }
    assert_eq!(all[5].name, Planned::new(7, 5).name);
    assert_ne!((all[5].a, all[5].b), (Planned::new(8, 5).a, Planned::new(8, 5).b));
    let names: std::collections::HashSet<&str> = all.iter().map(|p| p.name.as_str()).collect();
    assert_eq!(names.len(), all.len());
}
