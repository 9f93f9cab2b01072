//! Four workers, thousands of real proofs, and everything that can go wrong meanwhile.
//!
//! `FAULT_SEED` determines what happens, to which worker, and after how many jobs; without it, two fixed seeds run.
//! `FAULT_SECONDS` repeats rounds for this long (`just soak`). How the processes interleave is up to the machine.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use prover_worker::model::{FailureClass, Job, JobId, JobState};
use prover_worker::worker::retry::LOST_WORKERS;
use rustix::process::Signal;
use serde_json::Value;
use sqlx::{Connection, PgConnection, Row};
use std::os::unix::process::ExitStatusExt;

use super::disk::TinyDisk;
use super::jobs::{Feed, Planned, offer_again};
use super::schedule::{Door, Event, ROUND, TINY, WORKERS, round};
use super::servers::Postgres;
use super::site::Fleet;
use crate::harness::Server;
use crate::wait::HANG;

/// Leases of the workers.
const LEASE: Duration = Duration::from_secs(2);
/// Rounds if `FAULT_SECONDS` is not set.
const ROUNDS: u64 = 3;
/// Extra jobs while a worker still waits for the one that is to kill or stop it.
const MORE: u64 = 20;
/// Interval at which the conductor looks.
const LOOK: Duration = Duration::from_millis(10);

/// What the store shows, polled all the time.
#[derive(Default)]
struct Watch {
    /// Time of the last poll.
    at: Option<Instant>,
    /// Jobs in the store that have not ended.
    open: i64,
    /// Running jobs by worker.
    running: HashMap<String, u64>,
    /// Attempt and digest of each result when it was first seen.
    results: HashMap<String, (i64, String)>,
    changed: Vec<String>,
}

async fn watch(port: u16, feed: Arc<Feed>, watch: Arc<Mutex<Watch>>) {
    let mut connection = None;
    let mut results_at = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(25)).await;
        if connection.is_none() {
            connection = PgConnection::connect(&Postgres::url(port)).await.ok();
        }
        let Some(c) = &mut connection else { continue };
        let results = results_at.elapsed() > Duration::from_secs(1);
        if look(c, results, &feed, &watch).await.is_err() {
            connection = None;
        } else if results {
            results_at = Instant::now();
        }
    }
}

async fn look(c: &mut PgConnection, results: bool, feed: &Feed, watch: &Mutex<Watch>) -> sqlx::Result<()> {
    let begun = Instant::now();
    let ended = "SELECT count(*) FILTER (WHERE finished_at IS NOT NULL), \
                 count(*) FILTER (WHERE finished_at IS NULL) FROM jobs";
    let ended = sqlx::query(ended).fetch_one(&mut *c).await?;
    let running = sqlx::query("SELECT worker, count(*) FROM jobs WHERE state = 'running' GROUP BY worker");
    let running = running.fetch_all(&mut *c).await?;
    let results = if results {
        let done = "SELECT id::text, attempt, md5(result) FROM jobs WHERE state = 'done'";
        sqlx::query(done).fetch_all(&mut *c).await?
    } else {
        Vec::new()
    };
    feed.ended.store(ended.get::<i64, _>(0) as u64, Ordering::SeqCst);
    let mut watch = watch.lock().unwrap();
    (watch.at, watch.open) = (Some(begun), ended.get(1));
    watch.running = running.iter().map(|row| (row.get(0), row.get::<i64, _>(1) as u64)).collect();
    for row in results {
        let (id, now): (String, (i64, String)) = (row.get(0), (row.get(1), row.get(2)));
        let first = watch.results.entry(id.clone()).or_insert_with(|| now.clone()).clone();
        if first != now {
            watch.changed.push(format!("the result of job {id} changed from {first:?} to {now:?}"));
        }
    }
    Ok(())
}

/// State of a worker, as far as the conductor controls it.
#[derive(Clone, PartialEq, Debug)]
enum Stand {
    Well,
    /// It will kill itself.
    Dies,
    /// It will stop itself.
    Freezes,
    /// It is stopped; `by_itself` if it would stop itself again.
    Frozen {
        since: Instant,
        by_itself: bool,
    },
    /// It was told to end, by SIGTERM or SIGKILL, and will be restarted with these arguments.
    Leaves {
        killed: bool,
        then: Vec<String>,
    },
}

struct Worker {
    server: Server,
    stand: Stand,
    args: Vec<String>,
}

impl Worker {
    fn started(&self) -> bool {
        self.server.count("worker started") > 0
    }

    /// Returns its id in the store.
    fn id(&self) -> Option<String> {
        worker_id(&self.server.lines().lock().unwrap())
    }
}

fn worker_id(lines: &[String]) -> Option<String> {
    let line = lines.iter().find(|l| l.contains("worker started"))?;
    Some(serde_json::from_str::<Value>(line).ok()?["worker"].as_str()?.to_owned())
}

/// A process that has ended.
struct Past {
    lines: Arc<Mutex<Vec<String>>>,
    killed: bool,
}

/// What must be undone.
#[derive(Clone, Copy, Debug)]
enum Undo {
    StartPostgres,
    StartRedis,
    Release(Door),
    Accept(Door),
}

#[derive(Clone, Copy, Debug)]
enum When {
    At(Instant),
    Ended(u64),
}

/// Makes everything happen.
struct Conductor {
    workers: Vec<Worker>,
    past: Vec<Past>,
    undo: Vec<(When, Undo)>,
    counts: BTreeMap<String, u64>,
    progress: (u64, Instant),
    feed: Arc<Feed>,
    watch: Arc<Mutex<Watch>>,
    // Last, because all of the above depends on it.
    disk: TinyDisk,
    fleet: Fleet,
}

impl Conductor {
    fn new(seed: u64) -> Self {
        let fleet = Fleet::with(&[
            ("PROVER_LEASE_SECS", &LEASE.as_secs().to_string()),
            ("PROVER_GRACE_SECS", "2"),
            ("PROVER_PROVE_TIMEOUT_SECS", "600"),
        ]);
        let disk = TinyDisk::new(fleet.dir().join("tiny"), &fleet.artifacts());
        let (postgres, redis, service) = (fleet.postgres.port, fleet.redis.port, fleet.service());
        let watched = Arc::new(Mutex::new(Watch::default()));
        let feed = fleet.block(async { Feed::start(seed, service, postgres, redis) });
        fleet.runtime.spawn(watch(postgres, feed.clone(), watched.clone()));
        let mut conductor = Self {
            fleet,
            disk,
            feed,
            watch: watched,
            workers: Vec::new(),
            past: Vec::new(),
            undo: Vec::new(),
            counts: BTreeMap::new(),
            progress: (0, Instant::now()),
        };
        for n in 0..WORKERS {
            let server = conductor.serve(n, &[]);
            conductor.workers.push(Worker { server, stand: Stand::Well, args: Vec::new() });
        }
        conductor
    }

    fn serve(&self, n: usize, args: &[String]) -> Server {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let url = self.disk.url();
        let env: &[(&str, &str)] = if n == TINY { &[("PROVER_ARTIFACTS_URL", &url)] } else { &[] };
        self.fleet.serve(n, &args, env)
    }

    fn ended(&self) -> u64 {
        self.feed.ended.load(Ordering::SeqCst)
    }

    fn count(&mut self, what: impl Into<String>) {
        *self.counts.entry(what.into()).or_default() += 1;
    }

    /// Does what is due, and checks that the fleet makes progress.
    fn tick(&mut self) {
        std::thread::sleep(LOOK);
        let ended = self.ended();
        // A worker does not start without its servers, nor does a message arrive. If no worker is left, or none has a
        // job to end, the servers come back.
        let at_work = |w: &Worker| w.started() && !matches!(w.stand, Stand::Frozen { .. });
        let fed = self.feed.next.load(Ordering::SeqCst) >= self.feed.allowed.load(Ordering::SeqCst);
        let idle = fed && self.watch.lock().unwrap().open == 0 || !self.workers.iter().any(at_work);
        let due = |when: &When| match *when {
            When::At(at) => at <= Instant::now(),
            When::Ended(n) => n <= ended || idle,
        };
        let (now, later) = std::mem::take(&mut self.undo).into_iter().partition(|(when, _)| due(when));
        self.undo = later;
        let now: Vec<(When, Undo)> = now;
        for (_, what) in now {
            self.undo(what);
        }
        for n in 0..WORKERS {
            self.look_after(n);
        }
        if self.progress.0 != ended {
            self.progress = (ended, Instant::now());
        }
        assert!(self.progress.1.elapsed() < HANG, "nothing ends any more:\n{}", self.describe());
        let (changed, wrong) = (self.watch.lock().unwrap().changed.clone(), self.feed.wrong.lock().unwrap().clone());
        assert!(changed.is_empty() && wrong.is_empty(), "{changed:?} {wrong:?}");
    }

    fn undo(&mut self, what: Undo) {
        match what {
            Undo::StartPostgres => self.fleet.postgres.start(),
            Undo::StartRedis => self.fleet.redis.start(),
            Undo::Release(door) => self.fleet.door(door).hold(false),
            Undo::Accept(door) => self.fleet.door(door).refuse(false),
        }
    }

    /// Restarts a worker that ended as expected, and wakes one that was stopped for long enough.
    fn look_after(&mut self, n: usize) {
        let worker = &mut self.workers[n];
        if let Some(status) = worker.server.ended() {
            let (started, args) = (worker.started(), worker.args.clone());
            let log = worker.server.log();
            let (killed, what, then) = match worker.stand.clone() {
                // Its servers were down.
                _ if !started && status.code() == Some(1) => (false, "started in vain".to_owned(), args),
                Stand::Leaves { killed: true, then } => (true, "SIGKILL".to_owned(), then),
                Stand::Leaves { killed: false, then } => {
                    assert!(status.success(), "worker {n} ends with {status} at SIGTERM:\n{log}");
                    (false, "drained".to_owned(), then)
                }
                Stand::Dies if status.signal() == Some(9) => {
                    (true, format!("SIGKILL at {}", args[1].replace(":abort", "")), Vec::new())
                }
                stand => panic!("worker {n}, {stand:?}, ended by itself with {status}:\n{log}"),
            };
            if !started {
                std::thread::sleep(LOOK * 10);
            }
            self.count(what);
            self.start(n, then, killed);
            return;
        }
        match worker.stand {
            Stand::Freezes if worker.server.count("fault point reached") > 0 => {
                worker.stand = Stand::Frozen { since: Instant::now(), by_itself: true };
                self.count("froze before its commit");
            }
            // A claimed job may freeze it again.
            Stand::Leaves { killed: false, .. } => worker.server.signal(Signal::CONT),
            Stand::Frozen { since, by_itself } => {
                let id = worker.id();
                let watch = self.watch.lock().unwrap();
                let late = watch.at.is_some_and(|at| at > since + LEASE);
                let holds = id.is_some_and(|id| watch.running.contains_key(&id));
                // Others have taken over its jobs.
                if late && !holds {
                    worker.server.signal(Signal::CONT);
                    worker.stand = Stand::Well;
                    if by_itself {
                        worker.server.terminate();
                        worker.stand = Stand::Leaves { killed: false, then: Vec::new() };
                    }
                }
            }
            _ => {}
        }
    }

    /// Starts a worker in place of one that has ended.
    fn start(&mut self, n: usize, args: Vec<String>, killed: bool) {
        let server = self.serve(n, &args);
        let stand = match args.last() {
            Some(fault) if fault.ends_with(":abort") => Stand::Dies,
            Some(_) => Stand::Freezes,
            None => Stand::Well,
        };
        let before = std::mem::replace(&mut self.workers[n], Worker { server, stand, args });
        self.past.push(Past { lines: before.server.lines(), killed });
    }

    fn wait(&mut self, mut ready: impl FnMut(&mut Self) -> bool) {
        while !ready(self) {
            self.tick();
        }
    }

    /// Waits until a worker has been through what was planned for it. That takes jobs, of which more are submitted as
    /// needed.
    fn ready(&mut self, n: usize) {
        self.wait(|c| {
            let ready = c.workers[n].stand == Stand::Well && c.workers[n].started();
            if !ready && c.feed.allowed.load(Ordering::SeqCst) < c.ended() + MORE {
                c.feed.allowed.fetch_add(MORE, Ordering::SeqCst);
            }
            ready
        });
    }

    fn leave(&mut self, n: usize, killed: bool, then: &[&str]) {
        self.ready(n);
        let worker = &mut self.workers[n];
        worker.server.signal(if killed { Signal::KILL } else { Signal::TERM });
        worker.stand = Stand::Leaves { killed, then: then.iter().map(|a| (*a).to_owned()).collect() };
    }

    fn happen(&mut self, event: &Event) {
        eprintln!("{} jobs have ended: {event:?}", self.ended());
        let after = |ms| When::At(Instant::now() + Duration::from_millis(ms));
        match *event {
            Event::DieAt { worker, point } => {
                self.leave(worker, false, &["--fault-at", &format!("{point}:abort")]);
                self.count("worker told to die");
            }
            Event::FreezeBeforeCommit { worker } => {
                self.leave(worker, false, &["--fault-at", "before_commit:freeze"]);
            }
            Event::Stop { worker } => {
                self.ready(worker);
                let worker = &mut self.workers[worker];
                worker.server.signal(Signal::STOP);
                worker.stand = Stand::Frozen { since: Instant::now(), by_itself: false };
                self.count("SIGSTOP");
            }
            Event::Kill { worker } => self.leave(worker, true, &[]),
            Event::Drain { worker } => self.leave(worker, false, &[]),
            Event::Flush => {
                // It may be down.
                self.wait(|c| !c.undo.iter().any(|(_, what)| matches!(what, Undo::StartRedis)));
                self.fleet.redis::<String>(&redis::cmd("FLUSHALL"));
                self.count("FLUSHALL");
            }
            Event::RedisGone { jobs } => {
                self.fleet.redis.kill();
                self.undo.push((When::Ended(self.ended() + jobs), Undo::StartRedis));
                self.count("Redis killed");
            }
            Event::PostgresCrash { ms } => {
                self.wait(|c| !c.undo.iter().any(|(_, what)| matches!(what, Undo::StartPostgres)));
                self.fleet.postgres.crash();
                self.undo.push((after(ms), Undo::StartPostgres));
                self.count("PostgreSQL stopped at once");
            }
            Event::Cut { door, bytes } => {
                self.fleet.door(door).cut_in(bytes);
                self.count(format!("{door:?} to be cut"));
            }
            Event::Hold { door, ms } => {
                self.fleet.door(door).hold(true);
                self.undo.push((after(ms), Undo::Release(door)));
                self.count(format!("{door:?} held up"));
            }
            Event::Refuse { door, ms } => {
                self.fleet.door(door).refuse(true);
                self.undo.push((after(ms), Undo::Accept(door)));
                self.count(format!("{door:?} cut off"));
            }
            Event::DiskFull => {
                self.disk.fill();
                self.count("disk full");
            }
            Event::DiskFree => self.disk.free(),
        }
    }

    /// Repairs everything and waits until every worker is well.
    fn repair(&mut self) {
        self.wait(|c| c.undo.is_empty());
        for n in 0..WORKERS {
            self.ready(n);
        }
    }

    fn describe(&self) -> String {
        let stands: Vec<String> =
            self.workers.iter().map(|w| format!("{:?} started={}", w.stand, w.started())).collect();
        let (seen, running) = {
            let watch = self.watch.lock().unwrap();
            (watch.at.map(|at| at.elapsed()), watch.running.clone())
        };
        let jobs = async {
            let mut c = PgConnection::connect(&Postgres::url(self.fleet.postgres.port)).await?;
            let open = "SELECT t::text FROM jobs t WHERE finished_at IS NULL ORDER BY seq LIMIT 10";
            let rows = sqlx::query(open).fetch_all(&mut c).await?;
            Ok::<_, sqlx::Error>(rows.iter().map(|row| row.get(0)).collect::<Vec<String>>())
        };
        let jobs = self.fleet.block(async { tokio::time::timeout(Duration::from_secs(5), jobs).await });
        format!(
            "{} of {} ended; store seen {seen:?} ago; running by {:?}; to be undone: {:?}\nworkers: {stands:#?}\n\
             {:#?}\njobs: {jobs:#?}",
            self.ended(),
            self.feed.allowed.load(Ordering::SeqCst),
            running,
            self.undo,
            self.feed.tally,
        )
    }
}

/// Prints how to repeat the run if the test fails.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("replay with FAULT_SEED={}", self.0);
        }
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}: expected a whole number, got {value:?}")))
}

#[test]
fn nothing_is_lost_and_nothing_is_done_twice() {
    let seed = number("FAULT_SEED").unwrap_or(20_261_124);
    let seconds = number("FAULT_SECONDS").map(Duration::from_secs);
    eprintln!("FAULT_SEED={seed}, {seconds:?}");
    let _replay = Replay(seed);
    let begun = Instant::now();
    let mut conductor = Conductor::new(seed);
    let mut rounds = 0;
    while rounds == 0 || seconds.map_or(rounds < ROUNDS, |s| begun.elapsed() < s) {
        rounds += 1;
        let before = conductor.feed.allowed.fetch_add(ROUND, Ordering::SeqCst);
        for (at, event) in round(seed, rounds) {
            conductor.wait(|c| c.ended() >= before + at);
            conductor.happen(&event);
        }
    }
    conductor.repair();
    let total = conductor.feed.allowed.load(Ordering::SeqCst);
    conductor.wait(|c| c.ended() >= total);
    eprintln!("{total} jobs ended after {:?}", begun.elapsed());
    let jobs = conductor.fleet.jobs();
    late_offers(&conductor, &jobs);
    conductor.fleet.wait_settled();
    assert_eq!(conductor.fleet.jobs(), jobs, "what comes late changes nothing");

    let mut workers = std::mem::take(&mut conductor.workers);
    for worker in &workers {
        worker.server.terminate();
    }
    for worker in &mut workers {
        let status = worker.server.wait();
        assert!(status.success(), "{status}; log:\n{}", worker.server.log());
        conductor.past.push(Past { lines: worker.server.lines(), killed: false });
    }
    let ended = Ended::of(&conductor, seed, total, &jobs);
    eprintln!("{ended:#?}\n{:#?}\n{:#?}", conductor.counts, conductor.feed.tally);
    eprintln!("whole: {:?}", begun.elapsed());
}

/// Offers every job again, now that all have ended.
fn late_offers(conductor: &Conductor, jobs: &[Job]) {
    for job in jobs {
        conductor.fleet.redis::<String>(&offer_again(job.id));
    }
}

/// What the logs say about a job.
#[derive(Default)]
struct Told {
    /// Attempts whose worker logged that the job is done.
    done: Vec<u64>,
    /// Attempts whose end was refused by the store.
    refused: Vec<u64>,
    /// Workers that do not know whether their end was recorded.
    unsure: u64,
}

/// Summary of a run.
#[derive(Debug, Default)]
struct Ended {
    done: u64,
    bad_input: u64,
    cancelled: u64,
    quarantined: u64,
    /// Ends by workers whose lease another had taken over: refused.
    stale_ends_refused: u64,
    /// Ends that were recorded but whose answer was lost.
    commits_unheard: u64,
    /// Done jobs whose worker was killed before it could log it.
    commits_untold: u64,
    claims: u64,
    proofs_not_copied: u64,
    panics: u64,
}

impl Ended {
    /// Checks that everything is as it must be.
    fn of(conductor: &Conductor, seed: u64, total: u64, jobs: &[Job]) -> Self {
        let mut ended = Self::default();
        let mut told: HashMap<JobId, Told> = HashMap::new();
        let mut killed = HashSet::new();
        for past in &conductor.past {
            let lines = past.lines.lock().unwrap();
            if past.killed {
                killed.extend(worker_id(&lines));
            }
            ended.read(&lines, &mut told);
        }
        assert_eq!(ended.panics, 0, "a worker's code panicked");

        assert_eq!(jobs.len() as u64, total, "as many jobs as were submitted");
        let by_name: HashMap<String, &Job> = jobs
            .iter()
            .flat_map(|job| {
                [Some(job.id.to_string()), job.idempotency_key.clone()].into_iter().flatten().map(move |n| (n, job))
            })
            .collect();
        for number in 0..total {
            let planned = Planned::new(seed, number);
            let Some(job) = by_name.get(&planned.name) else { panic!("job {} is lost", planned.name) };
            assert!(planned.is(job));
            ended.judge(conductor, &planned, job, told.remove(&job.id).unwrap_or_default(), &killed);
        }
        assert_eq!(conductor.fleet.inputs_held(), 0, "an input is left behind");
        let held = conductor.fleet.block(conductor.fleet.direct().queue().depth()).unwrap();
        assert_eq!(held, 0, "the queue's depth");
        assert!(ended.done * 10 >= total * 9, "most jobs are done: {ended:?}");
        assert!(ended.stale_ends_refused > 0, "no stale worker tried to end a job: {ended:?}");
        assert!(ended.proofs_not_copied > 0, "the full disk was met by nobody: {ended:?}");
        for door in [Door::Postgres, Door::Redis] {
            assert!(conductor.fleet.door(door).cuts() > 0, "{door:?} was never cut in the middle");
        }
        ended
    }

    fn read(&mut self, lines: &[String], told: &mut HashMap<JobId, Told>) {
        let mut attempts: HashMap<JobId, u64> = HashMap::new();
        for line in lines {
            self.panics += u64::from(line.contains("panicked"));
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let Some(job) = line["job"].as_str().and_then(|id| id.parse::<JobId>().ok()) else { continue };
            let said = line["message"].as_str().unwrap_or_default();
            let of = told.entry(job).or_default();
            match said {
                "job claimed" => {
                    self.claims += 1;
                    attempts.insert(job, line["attempt"].as_u64().unwrap());
                }
                "job done" => of.done.push(attempts[&job]),
                _ if said.starts_with("lease lost") => of.refused.push(line["attempt"].as_u64().unwrap()),
                _ if said.starts_with("the end of the attempt could not be written") => of.unsure += 1,
                // A draining worker does not wait for the answer to an end that it has sent.
                _ if said.starts_with("job could not be handed back") => of.unsure += 1,
                _ if said.starts_with("job had ended") => of.unsure += 1,
                _ if said.contains("its files could not be written") => self.proofs_not_copied += 1,
                _ => {}
            }
        }
    }

    fn judge(&mut self, conductor: &Conductor, planned: &Planned, job: &Job, told: Told, killed: &HashSet<String>) {
        let last = u64::from(job.attempt.number);
        let stale = told.refused.iter().filter(|a| **a != last).count();
        self.stale_ends_refused += stale as u64;
        match job.state {
            JobState::Done => {
                assert!(!planned.bad, "{job:?}");
                conductor.fleet.assert_proved(job, planned.a * planned.b);
                self.done += 1;
            }
            JobState::Failed => {
                let error = job.error.as_ref().unwrap();
                match error.class {
                    FailureClass::BadInput if planned.bad => self.bad_input += 1,
                    FailureClass::LostWorker if job.tries.lost >= LOST_WORKERS => {
                        assert!(error.message.contains("workers died or fell silent"), "{job:?}");
                        self.quarantined += 1;
                    }
                    _ => panic!("failed without a reason to: {job:?}"),
                }
                assert!(told.done.is_empty(), "done {:?} and failed: {job:?}", told.done);
                return;
            }
            JobState::Cancelled => {
                assert!(planned.cancel && job.result.is_none() && told.done.is_empty(), "{job:?}");
                self.cancelled += 1;
                return;
            }
            _ => panic!("not ended: {job:?}"),
        }
        match told.done.as_slice() {
            [attempt] => assert_eq!(*attempt, last, "another attempt's result is kept: {job:?}"),
            [] if told.refused.contains(&last) || told.unsure > 0 => self.commits_unheard += 1,
            [] => {
                let worker = &job.worker.as_ref().unwrap().0;
                assert!(killed.contains(worker), "nobody says it ended this job: {job:?}");
                self.commits_untold += 1;
            }
            many => panic!("ended by attempts {many:?}: {job:?}"),
        }
    }
}
