//! Messages of producers that write directly into the queue. They are recorded in the store first, and are then jobs
//! like any other.
//!
//! A message is acknowledged only once the store has the job, or once the message is rejected or set aside, so that it
//! is delivered again after a crash. Recording is idempotent, because a message's job has the same id each time.

use metrics::counter;
use uuid::Uuid;

use super::dispatch::acknowledge;
use super::outage::log_unless;
use super::service::{ServiceError, SubmitRequest, refuse};
use super::{Context, request};
use crate::model::{CircuitName, FailureClass, IdempotencyKey, Job, JobError, JobId, Priority};
use crate::queue::{Delivery, EndNotice, Message, Offer};
use crate::store::{StoreError, Submitted};
use crate::telemetry;

/// What happens to a message.
enum MessageFate {
    Recorded(Box<Job>),
    /// It is unusable, but has an id under which its sender finds the reason.
    Rejected,
    SetAside(String),
    /// The database fails: it goes back to the queue at once, so that it does not wait in this worker for longer than
    /// the outage.
    Back,
    /// It cannot be recorded for another reason: it is delivered again once the worker has held it for too long.
    Later,
}

/// A job's identity as given by its producer: a UUID is the id; any other text is the job's idempotency key, and its id
/// is derived from the queue's name and the text.
struct Identity {
    id: JobId,
    key: Option<IdempotencyKey>,
}

/// The namespace of derived ids, so that they do not collide with those of other programs.
const NAMESPACE: Uuid = Uuid::from_u128(0x5072_7657_6d65_7373_8167_6500_7075_7265);

fn derived(queue: &str, kind: &str, text: &str) -> JobId {
    JobId(Uuid::new_v5(&NAMESPACE, format!("{kind}\n{queue}\n{text}").as_bytes()))
}

fn identity(queue: &str, text: &str) -> Result<Identity, String> {
    if let Ok(id) = text.parse() {
        return Ok(Identity { id, key: None });
    }
    match text.parse() {
        Ok(key) => Ok(Identity { id: derived(queue, "id", text), key: Some(key) }),
        Err(e) => Err(format!("id: {e}")),
    }
}

/// Processes a message.
pub(super) async fn take(ctx: &Context, delivery: Delivery) {
    let Offer::Message(message) = &delivery.offer else { return };
    if ctx.outage.lasts() {
        return put_back(ctx, delivery).await;
    }
    match record(ctx, message).await {
        MessageFate::Recorded(job) => {
            count("recorded");
            ctx.service.offer(&job).await;
            acknowledge(ctx, &[delivery]).await;
        }
        MessageFate::Rejected => {
            count("rejected");
            acknowledge(ctx, &[delivery]).await;
        }
        MessageFate::SetAside(why) => {
            count("set_aside");
            tracing::warn!(source = %message.source, why, "message set aside");
            if let Err(error) = ctx.queue.set_aside(delivery, &why).await {
                tracing::warn!(%error, "a message could not be set aside; it will be offered again");
            }
        }
        MessageFate::Back => put_back(ctx, delivery).await,
        MessageFate::Later => {}
    }
}

fn count(outcome: &'static str) {
    counter!(telemetry::MESSAGES, "outcome" => outcome).increment(1);
}

async fn put_back(ctx: &Context, delivery: Delivery) {
    if let Err(error) = ctx.queue.put_back(delivery).await {
        tracing::debug!(%error, "a message could not be put back; it will be offered again");
    }
}

async fn record(ctx: &Context, message: &Message) -> MessageFate {
    let queue = &ctx.options.queue;
    let text = |name| request::text_member(&message.body, name);
    if message.size > message.body.len() as u64 {
        let why = format!("the message has {} bytes, more than allowed (PROVER_MAX_INPUT_BYTES)", message.size);
        return reject(ctx, text("id"), text("circuit"), why).await;
    }
    let parts = match request::parse(&message.body) {
        Ok(parts) => parts,
        Err(why) => return reject(ctx, text("id"), text("circuit"), why).await,
    };
    let own = match parts.id.as_deref().map(|text| identity(queue, text)).transpose() {
        Ok(own) => own.unwrap_or_else(|| Identity { id: derived(queue, "entry", &message.source), key: None }),
        Err(why) => return MessageFate::SetAside(why),
    };
    let circuit = parts.circuit.parse::<CircuitName>().map_err(|e| e.to_string());
    let key = parts.idempotency_key.as_deref().map(str::parse::<IdempotencyKey>).transpose();
    let key = key.map_err(|e| format!("idempotency_key: {e}"));
    let why = match circuit.and_then(|circuit| Ok((circuit, key?))) {
        Err(why) => why,
        Ok((circuit, key)) => {
            let request = SubmitRequest {
                id: Some(own.id),
                circuit,
                input: parts.input,
                idempotency_key: key.or(own.key),
                priority: Priority(parts.priority),
            };
            match ctx.service.record(request).await {
                Ok(Submitted::Created(job) | Submitted::Existing(job)) => return MessageFate::Recorded(Box::new(job)),
                Err(ServiceError::Conflict(why)) => return MessageFate::SetAside(why),
                Err(e @ (ServiceError::Store(_) | ServiceError::Artifact(_) | ServiceError::Seal(_))) => {
                    let covered = matches!(&e, ServiceError::Store(error) if ctx.outage.note_failure(error));
                    log_unless!(covered, warn, source = %message.source, error = %e, "a message could not be recorded yet");
                    return if covered { MessageFate::Back } else { MessageFate::Later };
                }
                // The process ends.
                Err(ServiceError::Interrupted(e)) if e.is_cancelled() => return MessageFate::Later,
                // Also a check that panicked: it would do so each time.
                Err(e) => e.to_string(),
            }
        }
    };
    reject(ctx, parts.id, Some(parts.circuit), why).await
}

/// Records under its id why a message is unusable, if it has an id.
async fn reject(ctx: &Context, id: Option<String>, circuit: Option<String>, why: String) -> MessageFate {
    let Some(own) = id.and_then(|text| identity(&ctx.options.queue, &text).ok()) else {
        return MessageFate::SetAside(why);
    };
    // An invalid name cannot be stored.
    let known = circuit.and_then(|name| name.parse().ok());
    let Some(circuit) = known.or_else(|| "unknown".parse::<CircuitName>().ok()) else {
        return MessageFate::SetAside(why);
    };
    let error = JobError { class: FailureClass::BadInput, message: why };
    match ctx.store.reject(&refuse(own.id, circuit, own.key, &error), &error).await {
        Ok(rejected) => {
            tracing::warn!(job = %own.id, error = %error.message, "message rejected");
            if let Submitted::Created(job) = rejected {
                ctx.service.announce_ended(vec![EndNotice::of(&job, job.state)]).await;
            }
            MessageFate::Rejected
        }
        // The id belongs to another job, which is left alone.
        Err(StoreError::Conflict { what, id, .. }) => {
            MessageFate::SetAside(format!("{}; {what} is taken by job {id}", error.message))
        }
        Err(error) => {
            let covered = ctx.outage.note_failure(&error);
            log_unless!(covered, warn, job = %own.id, %error, "a rejected message could not be recorded yet");
            if covered { MessageFate::Back } else { MessageFate::Later }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_is_a_uuid_or_any_text() {
        let id = JobId::new();
        let own = identity("q", &id.to_string()).unwrap();
        assert_eq!((own.id, own.key), (id, None));
        let own = identity("q", "order 7").unwrap();
        assert_eq!(own.key.as_ref().map(IdempotencyKey::as_str), Some("order 7"));
        assert_eq!(own.id, identity("q", "order 7").unwrap().id, "the same each time");
        assert_ne!(own.id, identity("p", "order 7").unwrap().id);
        assert_ne!(own.id, derived("q", "entry", "order 7"));
        // As documented in docs/producers.md, so that producers can find their jobs.
        let documented = identity("prove", "order-4711").unwrap().id;
        assert_eq!(documented.to_string(), "23c03d31-9234-5021-9ba0-fc8f67624ca0");
        for none in ["", "a\0b", &"x".repeat(257)] {
            assert!(identity("q", none).is_err(), "{none:?}");
        }
    }
}
