//! A device's batcher: witnesses wait in it for the device, and those of the same circuit are proved as a batch.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use metrics::histogram;
use tokio::sync::{Notify, oneshot};

use super::capacity::Share;
use super::device::Device;
use super::failure::AttemptError;
use super::lease::Lease;
use crate::backend::{BackendError, LoadedKey};
use crate::groth16::{self, BatchJob, ProveError, Proved};
use crate::model::{FailureClass, StopToken, Witness, locked};
use crate::registry::ReadyCircuit;
use crate::telemetry;

/// A proof on a GPU checks its timeout between steps. Beyond that it has as long again to finish its step, up to this;
/// then it counts as hanging.
const MAX_STEP: Duration = Duration::from_secs(30);

/// Receives the result of an order.
type Answer = oneshot::Sender<Result<Proved, AttemptError>>;

/// How batches are formed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    /// Most proofs in a batch; the number the device prefers when unset.
    pub(super) max: Option<usize>,
    /// How long a batch that is not full waits for more orders.
    pub(super) linger: Duration,
}

/// A witness to be proved.
pub(super) struct Order {
    pub(super) key: Arc<dyn LoadedKey>,
    circuit: Arc<ReadyCircuit>,
    witness: Arc<Witness>,
    /// The job's token, without its deadline: the wait in the batcher does not count as the job's time.
    stop: StopToken,
    /// What is left of the job's time when its proof starts.
    left: Duration,
    lease: Arc<Lease>,
}

impl Order {
    /// Returns the job's token, with the deadline for work that starts now.
    fn stop_token(&self, now: Instant) -> StopToken {
        now.checked_add(self.left).map_or_else(|| self.stop.clone(), |at| self.stop.with_deadline(at))
    }
}

/// The queue of a [`Batcher`].
#[derive(Default)]
struct Waiting {
    orders: VecDeque<(Order, Answer)>,
    /// Why no orders are taken: an entry for each call to the device that does not return.
    closed: Vec<String>,
}

/// Gathers the orders that wait for a device into batches.
pub(super) struct Batcher {
    waiting: Mutex<Waiting>,
    submitted: Notify,
    closing: Notify,
    batching: Batching,
}

impl Batcher {
    pub(super) fn new(batching: Batching) -> Self {
        Self { waiting: Mutex::default(), submitted: Notify::new(), closing: Notify::new(), batching }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        locked(&self.waiting)
    }

    /// Refuses new orders and those that wait, until the batcher is opened as often as it was closed.
    pub(super) fn close(&self, why: &str) {
        let refused = {
            let mut waiting = self.lock();
            waiting.closed.push(why.to_owned());
            std::mem::take(&mut waiting.orders)
        };
        self.closing.notify_waiters();
        refuse(refused.into_iter().map(|(_, answer)| answer), why);
    }

    /// Waits until the batcher is closed, and returns the reason.
    pub(super) async fn closed(&self) -> String {
        loop {
            let closing = self.closing.notified();
            if let Some(why) = self.lock().closed.last() {
                return why.clone();
            }
            closing.await;
        }
    }

    pub(super) fn open(&self) {
        self.lock().closed.pop();
    }

    pub(super) fn is_closed(&self) -> bool {
        !self.lock().closed.is_empty()
    }

    /// Adds an order. The result arrives when the device has processed it; the sender is dropped without one if the
    /// worker panicked. `stop` has the job's deadline, which is extended by the time that the order waits here.
    pub(super) fn submit(
        &self,
        key: Arc<dyn LoadedKey>,
        circuit: Arc<ReadyCircuit>,
        witness: Arc<Witness>,
        stop: &StopToken,
        lease: Arc<Lease>,
    ) -> oneshot::Receiver<Result<Proved, AttemptError>> {
        let (answer, answered) = oneshot::channel();
        let mut waiting = self.lock();
        match waiting.closed.last() {
            Some(why) => refuse([answer], why),
            None => {
                let left = stop.deadline().map_or(Duration::MAX, |at| at.saturating_duration_since(Instant::now()));
                let order = Order { key, circuit, witness, stop: stop.without_deadline(), left, lease };
                waiting.orders.push_back((order, answer));
                self.submitted.notify_one();
            }
        }
        drop(waiting);
        answered
    }

    /// Waits for the oldest order, and returns it with others of its circuit, up to the batch size.
    async fn next(&self) -> Vec<(Order, Answer)> {
        let (mut batch, size) = self.first().await;
        let until = tokio::time::Instant::now() + self.batching.linger;
        while batch.len() < size && tokio::time::timeout_at(until, self.submitted.notified()).await.is_ok() {
            gather(&mut self.lock().orders, &mut batch, size);
        }
        // The notification of an order that is for another batch may have been consumed here.
        if !self.lock().orders.is_empty() {
            self.submitted.notify_one();
        }
        batch
    }

    /// Waits for the oldest order, and takes it and others of its circuit at once, before another call of the device
    /// does. Returns them with the batch size.
    async fn first(&self) -> (Vec<(Order, Answer)>, usize) {
        loop {
            if let Some(begun) = self.begin() {
                return begun;
            }
            self.submitted.notified().await;
        }
    }

    fn begin(&self) -> Option<(Vec<(Order, Answer)>, usize)> {
        let orders = &mut self.lock().orders;
        let mut batch = vec![orders.pop_front()?];
        let size = self.batch_size(&batch[0].0);
        gather(orders, &mut batch, size);
        Some((batch, size))
    }

    /// Returns the batch size for an order's circuit: the configured one, or else what the device prefers.
    fn batch_size(&self, order: &Order) -> usize {
        self.batching.max.unwrap_or_else(|| order.key.preferred_batch()).max(1)
    }

    /// Returns how many proofs of a full batch the device makes at the same time: as many as it prefers. It works on a
    /// larger batch in several [rounds].
    pub(super) fn at_once(&self, order: &Order) -> usize {
        order.key.preferred_batch().max(1).min(self.batch_size(order))
    }
}

/// Moves orders of the batch's circuit to the batch, up to `size`.
fn gather(orders: &mut VecDeque<(Order, Answer)>, batch: &mut Vec<(Order, Answer)>, size: usize) {
    let mut at = 0;
    while batch.len() < size
        && let Some((order, _)) = orders.get(at)
    {
        if !Arc::ptr_eq(&order.key, &batch[0].0.key) {
            at += 1;
        } else if let Some(order) = orders.remove(at) {
            batch.push(order);
        }
    }
}

fn refuse(answers: impl IntoIterator<Item = Answer>, why: &str) {
    for answer in answers {
        let _ = answer.send(Err(AttemptError::failed(FailureClass::Device, why)));
    }
}

/// Takes batches from a device's batcher to the device, forever.
pub(super) async fn serve(device: Arc<Device>, allowed: Duration) {
    loop {
        let (batch, answers): (Vec<_>, Vec<_>) = device.batcher.next().await.into_iter().unzip();
        histogram!(telemetry::BATCH_SIZE, "device" => device.label.clone()).record(batch.len() as f64);
        let ready = async { (device.capacity.share_for(&batch).await, device.capacity.turn().await) };
        let (share, turn) = tokio::select! {
            biased;
            why = device.batcher.closed() => {
                refuse(answers, &why);
                continue;
            }
            ready = ready => ready,
        };
        let within = allowed * rounds(&batch);
        batch.iter().for_each(|order| order.lease.begin_proof());
        let at_work = device.clone();
        let mut proving = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            prove(&at_work, batch, share.as_ref(), allowed)
        });
        // The CPU may be slow in a step, but does not hang.
        let patience = (!device.is_cpu()).then(|| within + allowed.min(MAX_STEP));
        let proved = match patience {
            Some(patience) => tokio::time::timeout(patience, &mut proving).await,
            None => Ok((&mut proving).await),
        };
        match proved {
            Ok(Ok(proved)) => {
                for (answer, done) in answers.into_iter().zip(proved) {
                    // The job may have stopped waiting.
                    let _ = answer.send(done);
                }
            }
            // The jobs notice that the sender is dropped.
            Ok(Err(_)) => drop(answers),
            Err(_) => {
                let patience = patience.unwrap_or_default();
                let why =
                    format!("{} hangs: a proof did not finish within {:.0} s", device.label, patience.as_secs_f64());
                device.take_out_of_use(&why, patience);
                refuse(answers, &why);
                // Nothing can end the call, and further calls would only hang too.
                let _ = proving.await;
                device.batcher.open();
            }
        }
    }
}

/// Returns the number of rounds a device needs for a batch, at the number of proofs it prefers at a time. Each takes as
/// long as a proof.
fn rounds(batch: &[Order]) -> u32 {
    rounds_of(batch.len(), batch.first().map_or(1, |order| order.key.preferred_batch()))
}

fn rounds_of(proofs: usize, at_once: usize) -> u32 {
    u32::try_from(proofs.div_ceil(at_once.max(1))).unwrap_or(u32::MAX)
}

/// Proves a batch and returns one result per order. Each order gets the time of the whole batch, because all wait for
/// each other.
fn prove(
    device: &Device,
    batch: Vec<Order>,
    share: Option<&Share>,
    allowed: Duration,
) -> Vec<Result<Proved, AttemptError>> {
    let n = u32::try_from(batch.len()).unwrap_or(u32::MAX);
    let begun = Instant::now();
    let until = begun + allowed * rounds(&batch);
    let jobs: Vec<StopToken> = batch.iter().map(|o| o.stop_token(begun)).collect();
    let bounded: Vec<StopToken> = jobs.iter().map(|job| job.with_deadline(until)).collect();
    let proved = match batch.as_slice() {
        [one] => {
            vec![groth16::prove(one.key.as_ref(), &one.circuit.verifier, &one.witness, &bounded[0], one.lease.as_ref())]
        }
        many => {
            let jobs = many.iter().zip(&bounded).map(|(o, stop)| BatchJob { witness: &o.witness, stop });
            groth16::prove_batch(many[0].key.as_ref(), &many[0].circuit.verifier, &jobs.collect::<Vec<_>>())
        }
    };
    let took = begun.elapsed() / n.max(1);
    let busy = took.mul_f64(share.map_or(1.0, |share| share.of_time));
    let at_once = batch.first().map_or(1, |order| device.at_once(order));
    let judged = jobs.iter().zip(proved).map(|(job, proved)| match proved {
        Ok(proved) => {
            device.succeeded(took, busy, at_once);
            Ok(proved)
        }
        Err(error) => Err(judge(device, job, error, (took, busy), allowed)),
    });
    judged.collect()
}

/// Records a failed proof, and determines what is at fault.
fn judge(
    device: &Device,
    job: &StopToken,
    error: ProveError,
    (took, busy): (Duration, Duration),
    allowed: Duration,
) -> AttemptError {
    if let ProveError::Backend(e @ BackendError::OutOfMemory { .. }) = error {
        device.lacked_memory(busy);
        return e.into();
    }
    match AttemptError::from(error).within(job, "the proof", allowed) {
        AttemptError::Failed(error) => {
            let mut class = error.class;
            if class == FailureClass::InvalidProof && device.is_cpu() {
                // The CPU is not at fault: either the witness does not satisfy the circuit, or the key in memory is
                // damaged. The attempt finds out which.
                class = FailureClass::BadInput;
                device.capacity.note_proof(took, busy, None);
            }
            device.failed(class, busy);
            AttemptError::Failed(error)
        }
        stopped => stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proofs_that_are_made_at_once_take_the_time_of_one() {
        for (proofs, at_once, expected) in [(1, 1, 1), (3, 1, 3), (8, 8, 1), (9, 8, 2), (2, 0, 2), (1, 8, 1)] {
            assert_eq!(rounds_of(proofs, at_once), expected, "{proofs} by {at_once}");
        }
    }
}
