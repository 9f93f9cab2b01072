//! A device's desk: witnesses wait here for the device, and those of one circuit go to it together.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use metrics::histogram;
use tokio::sync::{Notify, oneshot};

use super::failure::Ended;
use super::fleet::Device;
use super::lease::Lease;
use crate::backend::LoadedKey;
use crate::groth16::{self, BatchJob, ProveError, Proved};
use crate::model::{FailureClass, StopToken, Witness};
use crate::registry::ReadyCircuit;
use crate::telemetry;

/// How batches are gathered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Batching {
    /// Most proofs at once; what the device is best at when unset.
    pub(super) most: Option<usize>,
    /// How long a batch that is not full waits for more.
    pub(super) linger: Duration,
}

/// A witness to be proved.
pub(super) struct Order {
    pub(super) key: Arc<dyn LoadedKey>,
    pub(super) circuit: Arc<ReadyCircuit>,
    pub(super) witness: Witness,
    /// The job's own token.
    pub(super) stop: StopToken,
    pub(super) lease: Arc<Lease>,
    answer: oneshot::Sender<Result<Proved, Ended>>,
}

/// Orders that wait.
pub(super) struct Desk {
    waiting: Mutex<VecDeque<Order>>,
    came: Notify,
    batching: Batching,
}

impl Desk {
    pub(super) fn new(batching: Batching) -> Self {
        Self { waiting: Mutex::default(), came: Notify::new(), batching }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Order>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves an order; its answer comes when the device has dealt with it, or never where the worker's code panicked.
    pub(super) fn leave(
        &self,
        key: Arc<dyn LoadedKey>,
        circuit: Arc<ReadyCircuit>,
        witness: Witness,
        stop: StopToken,
        lease: Arc<Lease>,
    ) -> oneshot::Receiver<Result<Proved, Ended>> {
        let (answer, answered) = oneshot::channel();
        self.lock().push_back(Order { key, circuit, witness, stop, lease, answer });
        self.came.notify_one();
        answered
    }

    /// The oldest order and others of its circuit, as many as the device likes at once.
    async fn next(&self) -> Vec<Order> {
        let mut batch = vec![self.first().await];
        let most = self.batching.most.unwrap_or_else(|| batch[0].key.batch()).max(1);
        let until = tokio::time::Instant::now() + self.batching.linger;
        loop {
            self.gather(&mut batch, most);
            if batch.len() >= most || tokio::time::timeout_at(until, self.came.notified()).await.is_err() {
                break;
            }
        }
        // The wake-up of an order that is left for another batch may have been heard here.
        if !self.lock().is_empty() {
            self.came.notify_one();
        }
        batch
    }

    async fn first(&self) -> Order {
        loop {
            if let Some(order) = self.lock().pop_front() {
                return order;
            }
            self.came.notified().await;
        }
    }

    fn gather(&self, batch: &mut Vec<Order>, most: usize) {
        let mut waiting = self.lock();
        let mut at = 0;
        while batch.len() < most
            && let Some(order) = waiting.get(at)
        {
            if !Arc::ptr_eq(&order.key, &batch[0].key) {
                at += 1;
            } else if let Some(order) = waiting.remove(at) {
                batch.push(order);
            }
        }
    }
}

/// Takes batches from a device's desk to the device, for ever.
pub(super) async fn serve(device: Arc<Device>, allowed: Duration) {
    loop {
        let batch = device.desk.next().await;
        histogram!(telemetry::BATCH_SIZE, "device" => device.label.clone()).record(batch.len() as f64);
        let device = device.clone();
        // Orders that a panic took with it are told by the loss of their answer's sender.
        let _ = tokio::task::spawn_blocking(move || prove(&device, batch, allowed)).await;
    }
}

/// Proves a batch and answers each order. Each has the time of all, since all wait for each other.
fn prove(device: &Device, batch: Vec<Order>, allowed: Duration) {
    let n = u32::try_from(batch.len()).unwrap_or(u32::MAX);
    let begun = Instant::now();
    let bounded: Vec<StopToken> = batch.iter().map(|o| o.stop.with_deadline(begun + allowed * n)).collect();
    let proved = match batch.as_slice() {
        [one] => {
            vec![groth16::prove(one.key.as_ref(), &one.circuit.verifier, &one.witness, &bounded[0], one.lease.as_ref())]
        }
        many => {
            let jobs = many.iter().zip(&bounded).map(|(o, stop)| BatchJob { witness: &o.witness, stop });
            groth16::prove_batch(many[0].key.as_ref(), &many[0].circuit.verifier, &jobs.collect::<Vec<_>>())
        }
    };
    let share = begun.elapsed() / n.max(1);
    for (order, proved) in batch.into_iter().zip(proved) {
        let done = judge(device, &order.stop, proved, share, allowed);
        // Whoever left the order may have stopped waiting.
        let _ = order.answer.send(done);
    }
}

/// Notes how the device did.
fn judge(
    device: &Device,
    job: &StopToken,
    proved: Result<Proved, ProveError>,
    share: Duration,
    allowed: Duration,
) -> Result<Proved, Ended> {
    match proved {
        Ok(proved) => {
            device.succeeded(share);
            Ok(proved)
        }
        Err(e) => Err(match Ended::from(e).within(job, "the proof", allowed) {
            Ended::Failed(mut error) => {
                if error.class == FailureClass::InvalidProof && device.is_cpu() {
                    // The reference arithmetic computed it: the witness does not satisfy the circuit.
                    error.class = FailureClass::BadInput;
                }
                device.failed(error.class, share);
                Ended::Failed(error)
            }
            stopped => stopped,
        }),
    }
}
