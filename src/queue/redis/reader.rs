//! The task that reads deliveries, and the callers of `pop` that wait for them.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Value};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::link::{backoff, invalid};
use super::{KEPT_BYTES, MAX_PER_CALL, OWNED_FOR, READ_BYTES, Shared, after, message, millis};
use crate::model::JobId;
use crate::queue::{Delivery, Message, Offer, QueueError};

/// Maximum time between two reading rounds while a caller waits.
const POLL_EVERY: Duration = Duration::from_millis(200);
/// How long one blocking read lasts. Not long, because a wake-up mark that it takes when no caller waits any more is
/// lost.
const BLOCK_FOR: Duration = Duration::from_secs(1);
/// How long deliveries without a caller are kept.
const KEEP_FOR: Duration = Duration::from_millis(100);

/// Deliveries that were read and not yet taken, and the demand for more.
#[derive(Default)]
pub(super) struct Buffer {
    ready: VecDeque<Delivery>,
    /// Total number of deliveries that the waiting callers accept.
    wanted: usize,
    /// Number of reading rounds that began, and number of the last one that ended.
    begun: u64,
    ended: u64,
    /// The number of the last round and its error, if it failed.
    failed: Option<(u64, QueueError)>,
    /// Whether the reader pauses: after a failure, until the next round.
    paused: bool,
    closed: bool,
    /// Whether the reader has ended, for whatever reason.
    unread: bool,
}

impl Buffer {
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn take(&mut self, max: usize) -> Vec<Delivery> {
        let n = self.ready.len().min(max);
        self.ready.drain(..n).collect()
    }

    /// Fails if the queue is open and nobody reads it: then no delivery would ever come.
    pub(super) fn check_reader(&self) -> Result<(), QueueError> {
        if self.unread && !self.closed {
            let why = "the task that reads the queue has ended, which only a restart of this program repairs";
            return Err(QueueError::Unavailable(why.into()));
        }
        Ok(())
    }
}

/// A waiting caller of `pop`. Dropping it withdraws its demand.
struct Waiter<'a> {
    shared: &'a Shared,
    max: usize,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.shared.lock().wanted -= self.max;
    }
}

/// Takes deliveries that the reader has or will have. Waits for at least one round, however short `wait` is. Everything
/// is taken in the same poll that returns it, so a dropped future has taken nothing.
pub(super) async fn pop(shared: &Shared, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
    // No more than this is read at once, and a sum of these does not overflow.
    let max = max.min(MAX_PER_CALL);
    let deadline = after(wait);
    let (_waiter, round) = {
        let mut buffer = shared.lock();
        buffer.wanted += max;
        (Waiter { shared, max }, buffer.begun + 1)
    };
    shared.asked.notify_one();
    loop {
        let mut arrived = pin!(shared.arrived.notified());
        arrived.as_mut().enable();
        let late = Instant::now() >= deadline;
        {
            let mut buffer = shared.lock();
            let taken = if buffer.closed { Vec::new() } else { buffer.take(max) };
            if !taken.is_empty() {
                return Ok(taken);
            }
            buffer.check_reader()?;
            // While the reader pauses after a failure, no caller waits longer than it asked to.
            if let Some((failed, error)) = &buffer.failed
                && (*failed >= round || (late && buffer.paused))
            {
                return Err(error.clone());
            }
            if late && (buffer.ended >= round || buffer.closed) {
                return Ok(Vec::new());
            }
        }
        if late {
            arrived.await;
        } else {
            let _ = tokio::time::timeout_at(deadline, arrived).await;
        }
    }
}

/// What one reading round found.
struct Round {
    deliveries: Vec<Delivery>,
    /// Entries that are neither an id nor a message, with their receipts.
    malformed: Vec<(String, Message)>,
    /// Time until the next delayed id is due.
    due: Option<Duration>,
    /// Whether there may be more entries to reclaim.
    more: bool,
}

/// Starts the task that reads while the queue is open.
pub(super) fn spawn(shared: Arc<Shared>) -> JoinHandle<()> {
    let end = End(shared.clone());
    tokio::spawn(async move {
        // Dropped with the task, even if that never runs.
        let _end = end;
        read(shared).await;
    })
}

/// Tells those who wait for deliveries, when dropped, that the reader has ended: also by a panic or with its runtime.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.lock().unread = true;
        self.0.arrived.notify_waiters();
    }
}

async fn read(shared: Arc<Shared>) {
    let mut failures = 0;
    let mut reclaim_at = Instant::now();
    let mut blocked = None;
    while let Some(wanted) = demand(&shared).await {
        let reclaim = Instant::now() >= reclaim_at;
        shared.lock().begun += 1;
        let (wait, got) = match read_round(&shared, wanted, reclaim).await {
            Ok(round) => {
                failures = 0;
                if reclaim && !round.more {
                    reclaim_at = after(shared.settings.reclaim_after / 2);
                }
                set_aside(&shared, round.malformed).await;
                let got = !round.deliveries.is_empty();
                end_round(&shared, round.deliveries, None);
                (round.due.map_or(POLL_EVERY, |due| due.clamp(Duration::from_millis(5), POLL_EVERY)), got)
            }
            Err(e) => {
                failures += 1;
                end_round(&shared, Vec::new(), Some(e));
                tokio::select! {
                    () = shared.closing.notified() => return,
                    () = tokio::time::sleep(backoff(failures)) => {}
                }
                // Even if no caller waits now: the next one waits for a round of its own.
                shared.lock().paused = false;
                continue;
            }
        };
        if got {
            continue;
        }
        // A blocking read is kept over several rounds: dropped, it would consume a mark without waking anyone.
        let mark = blocked.get_or_insert_with(|| Box::pin(mark(shared.clone())));
        tokio::select! {
            () = mark => blocked = None,
            () = shared.asked.notified() => {}
            () = shared.closing.notified() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Waits until callers want more than is there, and returns how much more; `None` once the queue is closed.
async fn demand(shared: &Shared) -> Option<usize> {
    loop {
        let (wanted, ready, closed) = {
            let buffer = shared.lock();
            (buffer.wanted, buffer.ready.len(), buffer.closed)
        };
        if closed {
            return None;
        }
        if wanted > ready {
            return Some((wanted - ready).min(MAX_PER_CALL));
        }
        tokio::select! {
            () = shared.asked.notified() => {}
            () = shared.closing.notified() => return None,
            () = tokio::time::sleep(KEEP_FOR), if ready > 0 => give_back(shared).await,
        }
    }
}

/// Puts back deliveries without a caller, because another worker may be free.
async fn give_back(shared: &Shared) {
    let left = {
        let mut buffer = shared.lock();
        if buffer.wanted > 0 {
            return;
        }
        buffer.take(usize::MAX)
    };
    if let Err(e) = shared.put_back(&left).await {
        // They are still pending, and will be reclaimed.
        tracing::debug!("could not put back {} deliveries: {e}", left.len());
    }
}

fn end_round(shared: &Shared, deliveries: Vec<Delivery>, failed: Option<QueueError>) {
    {
        let mut buffer = shared.lock();
        buffer.ended = buffer.begun;
        buffer.paused = failed.is_some();
        buffer.failed = failed.map(|error| (buffer.begun, error));
        buffer.ready.extend(deliveries);
    }
    shared.arrived.notify_waiters();
}

/// Waits for a mark in the list that wakes workers.
async fn mark(shared: Arc<Shared>) {
    let mut pop = redis::cmd("BLPOP");
    pop.arg(&shared.keys.wake).arg(BLOCK_FOR.as_secs());
    if shared.blocking.command::<Value>(&pop, BLOCK_FOR).await.is_err() {
        // Whatever is wrong, the rounds continue at their own interval.
        tokio::time::sleep(POLL_EVERY).await;
    }
}

async fn set_aside(shared: &Shared, malformed: Vec<(String, Message)>) {
    for (receipt, message) in malformed {
        let Some(parts) = receipt.split_once(' ') else { continue };
        let why = "expected an entry with a field `job` (a JSON object) or `id` (a UUID), got other fields";
        tracing::warn!(source = message.source, size = message.size, "an entry of the queue was set aside: {why}");
        if let Err(e) = shared.set_aside(parts, &message, why).await {
            // It is still pending, and will be reclaimed.
            tracing::warn!(source = message.source, "the entry could not be removed from its stream: {e}");
        }
    }
}

async fn read_round(shared: &Shared, wanted: usize, reclaim: bool) -> Result<Round, QueueError> {
    let settings = &shared.settings;
    let idle = if reclaim { millis(settings.reclaim_after).max(1) } else { 0 };
    let mut invocation = shared.prepare(&shared.scripts.pop);
    invocation.arg(&settings.consumer).arg(wanted).arg(READ_BYTES.max(settings.max_message));
    invocation.arg(settings.max_message).arg(KEPT_BYTES.min(settings.max_message)).arg(idle);
    invocation.arg(shared.database()).arg(millis(OWNED_FOR));
    let reply = shared.commands.script(&invocation).await?;
    parse_round(reply).map_err(|e| QueueError::Unavailable(e.to_string()))
}

fn parse_round(reply: Value) -> RedisResult<Round> {
    let wrong = || invalid("expected entries, a time and a mark from the queue's script");
    let Value::Array(parts) = reply else { return Err(wrong()) };
    let Ok([Value::Array(entries), Value::Int(due), Value::Int(more)]) = <[Value; 3]>::try_from(parts) else {
        return Err(wrong());
    };
    let due = u64::try_from(due).ok().map(Duration::from_millis);
    let mut round = Round { deliveries: Vec::new(), malformed: Vec::new(), due, more: more == 1 };
    for entry in entries {
        let Value::Array(fields) = entry else { return Err(wrong()) };
        let mut bytes = fields.into_iter().map(|v| match v {
            Value::BulkString(bytes) => Ok(bytes),
            _ => Err(wrong()),
        });
        let mut next = || bytes.next().ok_or_else(wrong)?;
        let (kind, band, entry) = (text(next()?), text(next()?), text(next()?));
        let receipt = format!("{band} {entry}");
        match kind.as_str() {
            "j" => {
                let id = text(next()?);
                match id.parse::<JobId>() {
                    Ok(id) => round.deliveries.push(Delivery { offer: Offer::Job(id), receipt }),
                    Err(_) => round.malformed.push((receipt, message(id.clone().into_bytes(), id.len() as u64, entry))),
                }
            }
            _ => {
                let (source, size) = (text(next()?), text(next()?).parse().map_err(|_| wrong())?);
                let message = message(next()?, size, source);
                if kind == "m" {
                    round.deliveries.push(Delivery { offer: Offer::Message(message), receipt });
                } else {
                    round.malformed.push((receipt, message));
                }
            }
        }
    }
    Ok(round)
}

/// Keys and ids are text; anything else is converted lossily.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}
