//! The task that reads deliveries, and those who wait for them.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use redis::{RedisResult, Value};
use tokio::time::Instant;

use super::link::{backoff, invalid};
use super::{CHUNK, CUT, OWNED_FOR, READ_BYTES, Shared, after, message, millis};
use crate::model::JobId;
use crate::queue::{Delivery, Message, Offer, QueueError};

/// Longest time between two looks while somebody waits.
const LOOK: Duration = Duration::from_millis(200);
/// How long one blocking read lasts: a mark that it takes when nobody waits any more is lost, so not long.
const BLOCK: Duration = Duration::from_secs(1);
/// How long what nobody asks for is kept.
const KEEP: Duration = Duration::from_millis(100);

/// What was read, and who asks for more.
#[derive(Default)]
pub(super) struct Hand {
    ready: VecDeque<Delivery>,
    /// What all who wait take at most.
    wanted: usize,
    /// Rounds of reading that began, and that ended.
    begun: u64,
    ended: u64,
    /// The last round, if it failed.
    failed: Option<(u64, String)>,
    /// After a failure, until the next round.
    paused: bool,
    closed: bool,
}

impl Hand {
    pub(super) fn close(&mut self) {
        self.closed = true;
    }

    pub(super) fn take(&mut self, max: usize) -> Vec<Delivery> {
        let n = self.ready.len().min(max);
        self.ready.drain(..n).collect()
    }
}

/// One who waits. Gone, it asks for nothing.
struct Asking<'a> {
    shared: &'a Shared,
    max: usize,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.shared.lock().wanted -= self.max;
    }
}

/// Takes what the reader has or will have. It looks at least once, however short the wait. Everything is taken in the
/// very poll that returns it, so a dropped future has taken nothing.
pub(super) async fn pop(shared: &Shared, max: usize, wait: Duration) -> Result<Vec<Delivery>, QueueError> {
    // More than this is not read at once, and a sum of these does not overflow.
    let max = max.min(CHUNK);
    let deadline = after(wait);
    let (_asking, round) = {
        let mut hand = shared.lock();
        hand.wanted += max;
        (Asking { shared, max }, hand.begun + 1)
    };
    shared.asked.notify_one();
    loop {
        let mut arrived = pin!(shared.arrived.notified());
        arrived.as_mut().enable();
        let late = Instant::now() >= deadline;
        {
            let mut hand = shared.lock();
            let taken = if hand.closed { Vec::new() } else { hand.take(max) };
            if !taken.is_empty() {
                return Ok(taken);
            }
            // While the reader pauses after a failure, nobody waits longer than they said.
            if let Some((failed, why)) = &hand.failed
                && (*failed >= round || (late && hand.paused))
            {
                return Err(QueueError::Unavailable(why.clone()));
            }
            if late && (hand.ended >= round || hand.closed) {
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

/// What one look brought.
struct Round {
    deliveries: Vec<Delivery>,
    /// Entries that are neither id nor message, with their receipts.
    odd: Vec<(String, Message)>,
    /// Until the next delayed id.
    due: Option<Duration>,
    /// Whether there may be more to reclaim.
    again: bool,
}

/// Reads for as long as the queue is open.
pub(super) async fn read(shared: Arc<Shared>) {
    let mut failures = 0;
    let mut reclaim_at = Instant::now();
    let mut blocked = None;
    while let Some(wanted) = demand(&shared).await {
        let reclaim = Instant::now() >= reclaim_at;
        shared.lock().begun += 1;
        let (wait, got) = match look(&shared, wanted, reclaim).await {
            Ok(round) => {
                failures = 0;
                if reclaim && !round.again {
                    reclaim_at = after(shared.settings.reclaim_after / 2);
                }
                set_aside(&shared, round.odd).await;
                let got = !round.deliveries.is_empty();
                end(&shared, round.deliveries, None);
                (round.due.map_or(LOOK, |due| due.clamp(Duration::from_millis(5), LOOK)), got)
            }
            Err(e) => {
                failures += 1;
                let why = match e {
                    QueueError::Unavailable(why) | QueueError::Unfit(why) => why,
                };
                end(&shared, Vec::new(), Some(why));
                tokio::select! {
                    () = shared.closing.notified() => return,
                    () = tokio::time::sleep(backoff(failures)) => {}
                }
                // Even if nobody asks now: who asks next waits for a look of its own.
                shared.lock().paused = false;
                continue;
            }
        };
        if got {
            continue;
        }
        // A read that blocks is kept over several looks: dropped, it would take a mark and wake nobody.
        let mark = blocked.get_or_insert_with(|| Box::pin(mark(shared.clone())));
        tokio::select! {
            () = mark => blocked = None,
            () = shared.asked.notified() => {}
            () = shared.closing.notified() => return,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Waits until somebody asks for more than is there, and says how much more. None once the queue is closed.
async fn demand(shared: &Shared) -> Option<usize> {
    loop {
        let (wanted, ready, closed) = {
            let hand = shared.lock();
            (hand.wanted, hand.ready.len(), hand.closed)
        };
        if closed {
            return None;
        }
        if wanted > ready {
            return Some((wanted - ready).min(CHUNK));
        }
        tokio::select! {
            () = shared.asked.notified() => {}
            () = shared.closing.notified() => return None,
            () = tokio::time::sleep(KEEP), if ready > 0 => give_back(shared).await,
        }
    }
}

/// Puts back what nobody asks for: another worker may be free.
async fn give_back(shared: &Shared) {
    let left = {
        let mut hand = shared.lock();
        if hand.wanted > 0 {
            return;
        }
        hand.take(usize::MAX)
    };
    if let Err(e) = shared.put_back(&left).await {
        // They are pending still, and will be reclaimed.
        tracing::debug!("{} deliveries were not put back: {e}", left.len());
    }
}

fn end(shared: &Shared, deliveries: Vec<Delivery>, failed: Option<String>) {
    {
        let mut hand = shared.lock();
        hand.ended = hand.begun;
        hand.paused = failed.is_some();
        hand.failed = failed.map(|why| (hand.begun, why));
        hand.ready.extend(deliveries);
    }
    shared.arrived.notify_waiters();
}

/// Waits for a mark in the list that wakes workers.
async fn mark(shared: Arc<Shared>) {
    let [.., key, _] = &shared.keys;
    let mut pop = redis::cmd("BLPOP");
    pop.arg(key).arg(BLOCK.as_secs());
    if shared.blocking.command::<Value>(&pop, BLOCK).await.is_err() {
        // Whatever is wrong, the looks go on in their own time.
        tokio::time::sleep(LOOK).await;
    }
}

async fn set_aside(shared: &Shared, odd: Vec<(String, Message)>) {
    for (receipt, message) in odd {
        let Some(parts) = receipt.split_once(' ') else { continue };
        let why = "expected an entry with a field `job` (a JSON object) or `id` (a UUID), got other fields";
        tracing::warn!(source = message.source, size = message.size, "an entry of the queue was set aside: {why}");
        if let Err(e) = shared.set_aside(parts, &message, why).await {
            // It is pending still, and will be reclaimed.
            tracing::warn!(source = message.source, "it could not be taken out: {e}");
        }
    }
}

async fn look(shared: &Shared, wanted: usize, reclaim: bool) -> Result<Round, QueueError> {
    let settings = &shared.settings;
    let idle = if reclaim { millis(settings.reclaim_after).max(1) } else { 0 };
    let mut invocation = shared.prepare(&shared.scripts.pop);
    invocation.arg(&settings.consumer).arg(wanted).arg(READ_BYTES.max(settings.max_message));
    invocation.arg(settings.max_message).arg(CUT.min(settings.max_message)).arg(idle);
    invocation.arg(shared.database()).arg(millis(OWNED_FOR));
    let reply = shared.commands.script(&invocation).await?;
    round(reply).map_err(|e| QueueError::Unavailable(e.to_string()))
}

fn round(reply: Value) -> RedisResult<Round> {
    let wrong = || invalid("expected entries, a time and a mark from the queue's script");
    let Value::Array(parts) = reply else { return Err(wrong()) };
    let Ok([Value::Array(entries), Value::Int(due), Value::Int(again)]) = <[Value; 3]>::try_from(parts) else {
        return Err(wrong());
    };
    let due = u64::try_from(due).ok().map(Duration::from_millis);
    let mut round = Round { deliveries: Vec::new(), odd: Vec::new(), due, again: again == 1 };
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
                    Err(_) => round.odd.push((receipt, message(id.clone().into_bytes(), id.len() as u64, entry))),
                }
            }
            _ => {
                let (source, size) = (text(next()?), text(next()?).parse().map_err(|_| wrong())?);
                let message = message(next()?, size, source);
                if kind == "m" {
                    round.deliveries.push(Delivery { offer: Offer::Message(message), receipt });
                } else {
                    round.odd.push((receipt, message));
                }
            }
        }
    }
    Ok(round)
}

/// Keys and ids are text; whatever is not is shown as such.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8_lossy(&bytes).into_owned()
}
