//! A queue that workers share: streams on a Redis server.
//!
//! # Keys
//!
//! `<q>` is the queue's name.
//!
//! | key | what |
//! |---|---|
//! | `<q>:high`, `<q>`, `<q>:low` | streams of priorities above, at and below 0, each with the group `workers` |
//! | `<q>:high:again`, `<q>:again`, `<q>:low:again` | stream of each band for ids that come again, read first |
//! | `<q>:ids` | hash: id to the band (`h`, `n`, `l`; capital: again) and entry of the *newest* entry made for it |
//! | `<q>:delayed`, `<q>:delayed:priority` | sorted set: id by due time in ms of the server's clock; hash: id to band |
//! | `<q>:inbox` | list to which producers `LPUSH` messages |
//! | `<q>:aside` | stream of records of messages set aside, the last 1,000 |
//! | `<q>:ended` | stream of jobs that have ended, the last 10,000 or so; not read by workers |
//! | `<q>:wake` | list of marks, each of which wakes one blocked worker |
//! | `<q>:database` | the database whose workers use the queue, for half a minute after the last of them looked |
//!
//! # Rules
//!
//! * An entry is in its stream from its creation until it is processed: once delivered, it is also pending in the
//!   group; once acknowledged, it is deleted. So the number of waiting entries is a stream's length minus its pending
//!   entries, and nothing is trimmed.
//! * An id **waits** while its newest entry is in its stream and has not been delivered. Pushing an id that waits does
//!   nothing. Otherwise (never seen, held by a worker, lost with a deleted stream) a push makes a new entry, which
//!   becomes the newest. So an id has at most one entry that waits, and one more for each delivery that was not
//!   acknowledged, however often it is pushed.
//! * An id that a worker had before and that returns (put back, delay passed, [`Precedence::Returning`]) is older than
//!   those that no worker had: it goes to the band's stream for such ids, and if it waits in the other stream, it
//!   moves.
//! * `ack` removes the entry that was delivered and no other, and clears `<q>:ids` only if it names that entry. So it
//!   never removes what was pushed in the meantime.
//! * An entry that was pending for [`RedisSettings::reclaim_after`] is delivered again, to any worker, unless the id
//!   has a newer entry, which serves for both. A worker that gets an id on which another still works is refused by the
//!   store.
//! * A message keeps its source when it is put back (in a field `source` next to `job`), so that it remains one job.
//! * While workers of one database use the queue, it accepts and delivers nothing for those of another (staging next to
//!   production, say): they would take each other's messages, and run jobs that nobody there asked for. Workers may
//!   finish the deliveries they hold when that begins.
//! * A server whose memory is full (`maxmemory-policy noeviction`) takes nothing new: pushes, delays and producers'
//!   messages are refused. Whatever moves, delivers or ends an entry still works, because nothing else would free the
//!   memory (`write_when_full` in `common.lua`).
//!
//! Every change is one script, so no crash leaves half of one. A missing group is created again, from the stream's
//! beginning: if the server's data is wiped at any moment, the next call continues.
//!
//! # Older workers
//!
//! Workers of versions without the streams for ids that come again do not read these streams, and treat an id that
//! waits there as one that waits nowhere: it gets a second entry, from them or at the next look of a reconciler, and
//! the store refuses the second worker. A message that was put back waits for a newer worker.
//!
//! # Waiting
//!
//! Deliveries are read by a script that does not block, never by a blocking read: XREADGROUP would transfer a message
//! whole, however large, whereas the script truncates it. A worker that finds nothing blocks on `<q>:wake`, on a
//! separate connection, to which `push` adds marks. It looks again after 200 ms at the latest, because producers'
//! messages (XADD, LPUSH) leave no mark, and sooner if a delayed id is due sooner.
//!
//! One task reads for all of a process's callers of `pop`, as much as they ask for together. A delivery whose caller is
//! gone when it arrives goes to the next caller; if none comes soon, it is put back.

mod link;
mod reader;
mod server;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use redis::{Client, IntoConnectionInfo, Script, ScriptInvocation, Value};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use zeroize::Zeroizing;

use self::link::Link;
use self::reader::Buffer;
use super::{Delivery, EndNotice, Message, Offer, Precedence, Queue, QueueError, SetAside};
use crate::model::{JobId, Priority, locked};

/// Maximum number of ids or deliveries in one call of a script.
const MAX_PER_CALL: usize = 500;
/// Number of bytes kept of a message that is too large.
const KEPT_BYTES: usize = 64 << 10;
/// Number of bytes of messages read at a time, at least.
const READ_BYTES: usize = 8 << 20;
/// Number of messages set aside that are remembered.
const MAX_ASIDE: usize = 1000;
/// Approximate number of ended jobs that are remembered.
const MAX_ENDED: usize = 10_000;
/// A consumer that holds nothing is never considered dead before this time.
const DEAD_AFTER: Duration = Duration::from_secs(300);
/// How long a queue whose workers fell silent belongs to their database: several times as long as live workers are
/// silent.
const OWNED_FOR: Duration = Duration::from_secs(30);

/// Settings of a [`RedisQueue`].
#[derive(Clone)]
pub struct RedisSettings {
    /// The server's URL: `redis://`, `rediss://` (TLS), `redis+unix://` or `unix://`; may contain a password.
    pub url: String,
    /// The queue's name.
    pub queue: String,
    /// This process's name in the consumer group. It must be unique for each start, or else the deliveries of a process
    /// that died are taken for those of its successor.
    pub consumer: String,
    /// How long a delivery may stay unacknowledged before it is offered again.
    pub reclaim_after: Duration,
    /// Size in bytes of the largest message that is read whole.
    pub max_message: usize,
}

impl std::fmt::Debug for RedisSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = self.url.as_str().into_connection_info().map(|i| i.addr().to_string());
        f.debug_struct("RedisSettings")
            .field("address", &address.as_deref().unwrap_or("(unreadable)"))
            .field("queue", &self.queue)
            .field("consumer", &self.consumer)
            .field("reclaim_after", &self.reclaim_after)
            .field("max_message", &self.max_message)
            .finish()
    }
}

/// Ids and messages in Redis (6.2 or later) or Valkey, for any number of workers.
///
/// Ids are ordered by band of priority (above, at, below 0), then by age. The methods fail with
/// [`QueueError::Unavailable`] while the server does not answer, after half a minute at most.
pub struct RedisQueue {
    shared: Arc<Shared>,
    reader: Mutex<Option<JoinHandle<()>>>,
    /// Where upkeep continues its scan of the ids.
    scan: Mutex<String>,
}

impl std::fmt::Debug for RedisQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisQueue").field("settings", &self.shared.settings).finish_non_exhaustive()
    }
}

/// What the queue and its reader both use.
struct Shared {
    settings: RedisSettings,
    keys: Keys,
    /// The identity of the database; empty if there is none.
    database: Mutex<String>,
    scripts: Scripts,
    commands: Link,
    /// The connection for blocking reads.
    blocking: Link,
    buffer: Mutex<Buffer>,
    /// Signals that a caller of `pop` waits.
    asked: Notify,
    /// Signals that the reader has deliveries or an error, or has ended.
    arrived: Notify,
    closing: Notify,
}

struct Scripts {
    push: Script,
    push_after: Script,
    pop: Script,
    ack: Script,
    put_back: Script,
    restore: Script,
    set_aside: Script,
    depth: Script,
    upkeep: Script,
    leave: Script,
    check: Script,
}

macro_rules! script {
    ($name:literal) => {
        Script::new(concat!(include_str!("common.lua"), include_str!($name)))
    };
}

impl Scripts {
    fn new() -> Self {
        Self {
            push: script!("push.lua"),
            push_after: script!("push_after.lua"),
            pop: script!("pop.lua"),
            ack: script!("ack.lua"),
            put_back: script!("put_back.lua"),
            restore: script!("restore.lua"),
            set_aside: script!("set_aside.lua"),
            depth: script!("depth.lua"),
            upkeep: script!("upkeep.lua"),
            leave: script!("leave.lua"),
            check: script!("check.lua"),
        }
    }
}

/// The names of a queue's keys.
struct Keys {
    /// The streams: of high, normal and low priority, each with that of returning ids first.
    streams: [String; 6],
    ids: String,
    delayed: String,
    delayed_bands: String,
    inbox: String,
    aside: String,
    wake: String,
    database: String,
}

impl Keys {
    fn of(queue: &str) -> Self {
        let key = |suffix: &str| format!("{queue}{suffix}");
        Self {
            streams: [":high:again", ":high", ":again", "", ":low:again", ":low"].map(key),
            ids: key(":ids"),
            delayed: key(":delayed"),
            delayed_bands: key(":delayed:priority"),
            inbox: key(":inbox"),
            aside: key(":aside"),
            wake: key(":wake"),
            database: key(":database"),
        }
    }

    /// Returns all keys, in the order in which `common.lua` expects them.
    fn all(&self) -> impl Iterator<Item = &str> {
        let Self { streams, ids, delayed, delayed_bands, inbox, aside, wake, database } = self;
        let others = [ids, delayed, delayed_bands, inbox, aside, wake, database];
        streams.iter().chain(others).map(String::as_str)
    }
}

/// Returns the letter by which the scripts know a stream.
fn band(priority: Priority, precedence: Precedence) -> &'static str {
    match (priority.0, precedence) {
        (1.., Precedence::New) => "h",
        (1.., Precedence::Returning) => "H",
        (0, Precedence::New) => "n",
        (0, Precedence::Returning) => "N",
        (_, Precedence::New) => "l",
        (_, Precedence::Returning) => "L",
    }
}

fn millis(d: Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

/// Returns the band and the entry of a delivery.
fn receipt(delivery: &Delivery) -> Result<(&str, &str), QueueError> {
    let foreign = || QueueError::Unavailable("expected a delivery of this queue".into());
    delivery.receipt.split_once(' ').ok_or_else(foreign)
}

/// Returns the id of a delivery; empty for a message.
fn id_text(delivery: &Delivery) -> String {
    match &delivery.offer {
        Offer::Job(id) => id.to_string(),
        Offer::Message(_) => String::new(),
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Buffer> {
        // No code that holds the lock can panic midway.
        locked(&self.buffer)
    }

    fn database(&self) -> String {
        locked(&self.database).clone()
    }

    fn prepare<'a>(&self, script: &'a Script) -> ScriptInvocation<'a> {
        let mut invocation = script.prepare_invoke();
        for key in self.keys.all() {
            invocation.key(key);
        }
        invocation
    }

    async fn push(&self, ids: &[(JobId, Priority)], precedence: Precedence) -> Result<(), QueueError> {
        for chunk in ids.chunks(MAX_PER_CALL) {
            let mut invocation = self.prepare(&self.scripts.push);
            invocation.arg(self.database());
            for (id, priority) in chunk {
                invocation.arg(band(*priority, precedence)).arg(id.to_string());
            }
            let _added: u64 = self.commands.script(&invocation).await?;
        }
        Ok(())
    }

    async fn put_back(&self, deliveries: &[Delivery]) -> Result<(), QueueError> {
        for chunk in deliveries.chunks(MAX_PER_CALL) {
            let mut invocation = self.prepare(&self.scripts.put_back);
            for delivery in chunk {
                let (band, entry) = receipt(delivery)?;
                let source = match &delivery.offer {
                    Offer::Job(_) => "",
                    Offer::Message(m) => &m.source,
                };
                invocation.arg(band).arg(entry).arg(id_text(delivery)).arg(source);
            }
            let gone: Vec<usize> = self.commands.script(&invocation).await?;
            for delivery in gone.iter().filter_map(|n| chunk.get(n.wrapping_sub(1))) {
                self.restore(delivery).await?;
            }
        }
        Ok(())
    }

    /// Adds a message again whose entry is gone (the server lost its data), if all of it is here.
    async fn restore(&self, delivery: &Delivery) -> Result<(), QueueError> {
        let Offer::Message(message) = &delivery.offer else { return Ok(()) };
        if message.body.len() as u64 != message.size {
            return Ok(());
        }
        let (band, _) = receipt(delivery)?;
        let mut invocation = self.prepare(&self.scripts.restore);
        invocation.arg(band).arg(&message.source).arg(message.body.as_slice());
        self.commands.script(&invocation).await
    }

    async fn set_aside(&self, receipt: (&str, &str), message: &Message, why: &str) -> Result<(), QueueError> {
        let mut invocation = self.prepare(&self.scripts.set_aside);
        invocation.arg(receipt.0).arg(receipt.1).arg(&message.source).arg(why).arg(message.size);
        invocation.arg(hex::encode(Sha256::digest(message.body.as_slice()))).arg(MAX_ASIDE);
        self.commands.script(&invocation).await
    }
}

impl RedisQueue {
    /// Connects, and checks that the server is suitable. A server that does not answer yet is no error, because jobs
    /// are found in the store in the meantime; the queue connects as soon as it answers.
    ///
    /// # Errors
    /// [`QueueError::Unfit`] for an invalid address or an unsuitable server.
    pub async fn open(settings: RedisSettings) -> Result<Self, QueueError> {
        if settings.url.starts_with("rediss:") && rustls::crypto::CryptoProvider::get_default().is_none() {
            // If another thread was faster, a provider is installed as well.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        // The error is not passed on: it may quote the URL.
        let client = Client::open(settings.url.as_str()).map_err(|_| {
            let expected =
                "expected redis://USER:PASSWORD@HOST:PORT/DB, rediss://… or redis+unix:///PATH as its address";
            QueueError::Unfit(format!("{expected}, with special characters in the password percent-encoded"))
        })?;
        let shared = Arc::new(Shared {
            keys: Keys::of(&settings.queue),
            database: Mutex::default(),
            scripts: Scripts::new(),
            commands: Link::new(client.clone()),
            blocking: Link::new(client),
            buffer: Mutex::default(),
            asked: Notify::new(),
            arrived: Notify::new(),
            closing: Notify::new(),
            settings,
        });
        match server::check(&shared.commands).await {
            Err(QueueError::Unavailable(error)) => {
                tracing::warn!(error, "the queue's server does not answer yet; jobs are found in the store meanwhile");
            }
            checked => checked?,
        }
        let reader = reader::spawn(shared.clone());
        Ok(Self { shared, reader: Mutex::new(Some(reader)), scan: Mutex::new("0".into()) })
    }

    fn take_reader(&self) -> Option<JoinHandle<()>> {
        locked(&self.reader).take()
    }
}

impl Drop for RedisQueue {
    fn drop(&mut self) {
        if let Some(reader) = self.take_reader() {
            reader.abort();
        }
    }
}

#[async_trait]
impl Queue for RedisQueue {
    async fn push(&self, ids: &[(JobId, Priority)], precedence: Precedence) -> Result<(), QueueError> {
        self.shared.push(ids, precedence).await
    }

    async fn push_after(&self, id: JobId, priority: Priority, delay: Duration) -> Result<(), QueueError> {
        let mut invocation = self.shared.prepare(&self.shared.scripts.push_after);
        // Up to a thousand years: a score cannot hold more digits than that.
        invocation
            .arg(id.to_string())
            .arg(band(priority, Precedence::Returning))
            .arg(millis(delay).min(31_536_000_000_000));
        invocation.arg(self.shared.database());
        self.shared.commands.script(&invocation).await
    }

    async fn pop(&self, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
        if max == 0 {
            return Ok(Vec::new());
        }
        reader::pop(&self.shared, max, wait).await
    }

    async fn ack(&self, deliveries: &[Delivery]) -> Result<(), QueueError> {
        for chunk in deliveries.chunks(MAX_PER_CALL) {
            let mut invocation = self.shared.prepare(&self.shared.scripts.ack);
            for delivery in chunk {
                let (band, entry) = receipt(delivery)?;
                invocation.arg(band).arg(entry).arg(id_text(delivery));
            }
            let () = self.shared.commands.script(&invocation).await?;
        }
        Ok(())
    }

    async fn put_back(&self, delivery: Delivery) -> Result<(), QueueError> {
        self.shared.put_back(&[delivery]).await
    }

    async fn set_aside(&self, delivery: Delivery, why: &str) -> Result<(), QueueError> {
        match &delivery.offer {
            Offer::Job(_) => self.ack(&[delivery]).await,
            Offer::Message(message) => self.shared.set_aside(receipt(&delivery)?, message, why).await,
        }
    }

    async fn aside(&self, limit: usize) -> Result<Vec<SetAside>, QueueError> {
        let mut range = redis::cmd("XREVRANGE");
        range.arg(&self.shared.keys.aside).arg("+").arg("-").arg("COUNT").arg(limit.clamp(1, MAX_ASIDE));
        let reply: redis::streams::StreamRangeReply = self.shared.commands.command(&range, Duration::ZERO).await?;
        let records = reply.ids.into_iter().map(|entry| {
            let text = |name: &str| entry.get::<String>(name).unwrap_or_default();
            SetAside {
                at: entry.id.split('-').next().and_then(|ms| ms.parse().ok()).unwrap_or_default(),
                source: text("source"),
                why: text("why"),
                size: text("size").parse().unwrap_or_default(),
                sha256: text("sha256"),
            }
        });
        Ok(records.take(limit).collect())
    }

    async fn announce_ended(&self, ended: &[EndNotice]) -> Result<(), QueueError> {
        let mut result = Ok(());
        for EndNotice { id, queue, key, state } in ended {
            let mut add = redis::cmd("XADD");
            add.arg(format!("{queue}:ended")).arg("MAXLEN").arg("~").arg(MAX_ENDED).arg("*");
            add.arg("id").arg(id.to_string()).arg("state").arg(state.as_str());
            if let Some(key) = key {
                add.arg("key").arg(key);
            }
            // A stream that this user may not write to does not affect the others.
            if let Err(e) = self.shared.commands.command::<Value>(&add, Duration::ZERO).await {
                result = Err(e);
            }
        }
        result
    }

    fn belong_to(&self, database: &str) {
        database.clone_into(&mut locked(&self.shared.database));
    }

    async fn depth(&self) -> Result<u64, QueueError> {
        self.shared.commands.script(&self.shared.prepare(&self.shared.scripts.depth)).await
    }

    async fn ping(&self) -> Result<(), QueueError> {
        self.shared.lock().check_reader()?;
        let mut invocation = self.shared.prepare(&self.shared.scripts.check);
        invocation.arg(self.shared.database());
        self.shared.commands.script(&invocation).await
    }

    async fn upkeep(&self) -> Result<(), QueueError> {
        let settings = &self.shared.settings;
        let dead_after = settings.reclaim_after.saturating_mul(10).max(DEAD_AFTER);
        let scan = locked(&self.scan).clone();
        let mut invocation = self.shared.prepare(&self.shared.scripts.upkeep);
        invocation.arg(&settings.consumer).arg(millis(dead_after)).arg(scan);
        invocation.arg(self.shared.database()).arg(millis(OWNED_FOR));
        let next: String = self.shared.commands.script(&invocation).await?;
        *locked(&self.scan) = next;
        Ok(())
    }

    async fn close(&self) -> Result<(), QueueError> {
        self.shared.lock().close();
        self.shared.closing.notify_one();
        self.shared.arrived.notify_waiters();
        if let Some(reader) = self.take_reader() {
            // The task ends once its last call has been answered, which takes a bounded time.
            let _ = reader.await;
        }
        let left = self.shared.lock().take(usize::MAX);
        self.shared.put_back(&left).await?;
        let mut invocation = self.shared.prepare(&self.shared.scripts.leave);
        invocation.arg(&self.shared.settings.consumer).arg(self.shared.database());
        self.shared.commands.script(&invocation).await
    }
}

/// Returns the instant after `wait`, which is limited to a year.
fn after(wait: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(wait.min(Duration::from_secs(31_536_000))).unwrap_or(now)
}

/// Creates a message from its parts.
fn message(body: Vec<u8>, size: u64, source: String) -> Message {
    Message { body: Zeroizing::new(body), size, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `common.lua` reads them.
    #[test]
    fn the_keys_are_in_the_order_of_the_scripts() {
        let keys = Keys::of("q");
        let expected = [
            "q:high:again",
            "q:high",
            "q:again",
            "q",
            "q:low:again",
            "q:low",
            "q:ids",
            "q:delayed",
            "q:delayed:priority",
            "q:inbox",
            "q:aside",
            "q:wake",
            "q:database",
        ];
        assert_eq!(keys.all().collect::<Vec<_>>(), expected);
    }
}
