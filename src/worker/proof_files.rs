//! The files of proofs among the artifacts: copies for people. The store has the authoritative proofs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use metrics::counter;

use super::Context;
use crate::artifacts::{ArtifactError, Artifacts};
use crate::model::{JobId, JobResult, JobState};
use crate::store::{JobFilter, Purge, Store, StoreError};
use crate::telemetry;

/// Most proofs whose files are written at once.
pub(super) const WRITTEN_AT_ONCE: usize = 32;
/// Most jobs whose files are removed at once.
const REMOVED_AT_ONCE: usize = 32;
/// Finished jobs whose files are looked for at start.
const LATEST: u32 = 200;
/// How long writing the files of a proof may take. When it fails, they are restored once someone asks for the proof.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long after its end the files of a job may still be written by its worker, as the database's clock sees it.
pub(super) const WRITTEN_WITHIN: Duration = Duration::from_secs(15);

/// Writes the files of a proof that is in the store. A failure is counted and logged.
pub(super) async fn copy(ctx: &Context, job: JobId, result: &JobResult) {
    let write = async {
        let _place = ctx.copies.acquire().await;
        write(&ctx.artifacts, job, result).await
    };
    let why = match tokio::time::timeout(WRITE_TIMEOUT, write).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("not within {} s", WRITE_TIMEOUT.as_secs()),
    };
    counter!(telemetry::PROOF_FILES_FAILED).increment(1);
    tracing::warn!(%job, error = why, "the proof is in the store, but its files could not be written");
}

/// Restores files of the latest finished jobs that a crash after the commit left out.
pub(super) async fn restore_latest(ctx: Arc<Context>) {
    let done = JobFilter { state: Some(JobState::Done), limit: LATEST, ..JobFilter::default() };
    let Ok(jobs) = ctx.store.jobs(done).await else { return };
    for job in jobs {
        if matches!(ctx.artifacts.has_proof(job.id).await, Ok(false))
            && let Ok(Some(job)) = ctx.store.job(job.id).await
            && let Some(result) = &job.result
            && restore(&*ctx.store, &ctx.artifacts, job.id, result).await.is_ok()
        {
            tracing::info!(job = %job.id, "proof files restored");
        }
    }
}

/// Writes the files of a proof if they are missing.
pub(super) async fn restore(
    store: &dyn Store,
    artifacts: &Artifacts,
    job: JobId,
    result: &JobResult,
) -> Result<(), ArtifactError> {
    if artifacts.has_proof(job).await? {
        return Ok(());
    }
    write(artifacts, job, result).await?;
    // A purge may have come between, and found no files to remove.
    if matches!(store.job(job).await, Ok(None)) { artifacts.remove_proof(job).await } else { Ok(()) }
}

async fn write(artifacts: &Artifacts, job: JobId, result: &JobResult) -> Result<(), ArtifactError> {
    artifacts.put_proof(job, &result.proof_json, &result.public_json).await
}

/// What a purge did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Purged {
    /// Jobs deleted.
    pub jobs: u64,
    /// Jobs kept, because their proof files could not be removed.
    pub kept: u64,
    /// Jobs left, because somebody else had their rows locked.
    pub locked: u64,
}

/// Deletes the jobs that a purge is for, each few of them after their proof files: nothing would come back for the
/// files of jobs that are gone. A job whose files cannot be removed is kept, and one whose row is locked left to the
/// next purge.
pub(super) async fn purge(store: &dyn Store, artifacts: &Artifacts, which: &Purge<'_>) -> Result<Purged, StoreError> {
    let mut purged = Purged::default();
    let mut first_error = None;
    loop {
        let skip = u32::try_from(purged.kept + purged.locked).unwrap_or(u32::MAX);
        let old = store.purgeable(which, REMOVED_AT_ONCE as u32, skip).await?;
        let (cleared, errors) = many_at_once(&old, |job| artifacts.remove_proof(job)).await;
        purged.kept += errors.len() as u64;
        first_error = first_error.or(errors.into_iter().next());
        if !cleared.is_empty() {
            let deleted: HashSet<JobId> = store.purge(which, &cleared).await?.into_iter().collect();
            purged.jobs += deleted.len() as u64;
            for job in cleared.iter().filter(|job| !deleted.contains(job)) {
                // Another purge may have deleted it, or it was queued again.
                if store.job(*job).await?.is_some_and(|job| which.states.contains(&job.state)) {
                    purged.locked += 1;
                }
            }
        }
        if old.len() < REMOVED_AT_ONCE {
            break;
        }
    }
    if let Some(error) = first_error {
        let kept = purged.kept;
        tracing::warn!(kept, %error, "jobs are kept, because their proof files could not be removed");
    }
    Ok(purged)
}

/// Removes something of each job. Returns the jobs for which that succeeded, and the errors of the others.
async fn many_at_once<E, F>(jobs: &[JobId], remove: impl Fn(JobId) -> F) -> (Vec<JobId>, Vec<E>)
where
    F: Future<Output = Result<(), E>>,
{
    let each = jobs.iter().copied().map(|job| {
        let removed = remove(job);
        async move { removed.await.map(|()| job) }
    });
    // Collected first: a stream over borrowed jobs would make this future's `Send` depend on lifetimes.
    let each: Vec<_> = each.collect();
    let mut done = futures::stream::iter(each).buffer_unordered(REMOVED_AT_ONCE);
    let (mut removed, mut errors) = (Vec::new(), Vec::new());
    while let Some(answer) = done.next().await {
        match answer {
            Ok(job) => removed.push(job),
            Err(error) => errors.push(error),
        }
    }
    (removed, errors)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::model::{Circuit, ContentHash, FailureClass, JobError, NewJob, Priority, StageTimes, WorkerId};
    use crate::store::{Input, Retry, SqliteStore, StoreSettings};

    /// A purge deletes a job between a look at it and the writing of its files.
    #[tokio::test]
    async fn files_of_a_deleted_job_are_not_restored() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("jobs.db"), StoreSettings::default()).await.unwrap();
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let (proof_json, public_json) = ("{}".to_owned(), "[]".to_owned());
        let result = JobResult { proof_json, public_json, device: String::new(), times: StageTimes::default() };
        let job = JobId::new();
        restore(&store, &artifacts, job, &result).await.unwrap();
        assert!(!artifacts.has_proof(job).await.unwrap());
        assert!(!dir.path().join("proofs").join(job.to_string()).exists());
    }

    /// Nothing would come back for the files of jobs that are gone.
    #[tokio::test]
    async fn a_job_is_deleted_only_once_its_files_are() {
        let dir = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&dir.path().join("jobs.db"), StoreSettings::default()).await.unwrap();
        let store: Arc<dyn Store> = Arc::new(store);
        let artifacts = Artifacts::local(dir.path()).unwrap();
        let name = "c".parse().unwrap();
        let (zkey, wasm) = (ContentHash([1; 32]), None);
        let circuit = Circuit { name, zkey, wasm, n_vars: 2, n_public: 1, domain_size: 4, created_at: 0 };
        store.put_circuit(&circuit).await.unwrap();
        let id = JobId::new();
        let (body, former_bodies) = (NewJob::unrepeatable(id), Vec::new());
        let (idempotency_key, priority, start_within) = (None, Priority(0), None);
        let circuit = circuit.name;
        let new = NewJob { id, circuit, idempotency_key, body, former_bodies, priority, start_within };
        store.submit(&new, Input { bytes: b"x", key: "" }).await.unwrap();
        let claim = store.claim(id, &WorkerId("w".to_owned()), WRITE_TIMEOUT).await.unwrap().unwrap();
        let error = JobError { class: FailureClass::Device, message: String::new() };
        store.fail(id, claim.job.attempt, &error, Retry::Never).await.unwrap();

        // What is no file cannot be removed as one.
        let files = dir.path().join("proofs").join(id.to_string()).join("public.json");
        std::fs::create_dir_all(files.join("odd")).unwrap();
        let which = Purge { states: &JobState::ALL, older_than: Duration::ZERO };
        let purge = async || super::purge(&*store, &artifacts, &which).await.unwrap();
        assert_eq!(purge().await, Purged { kept: 1, ..Purged::default() });
        assert!(store.job(id).await.unwrap().is_some());
        std::fs::remove_dir_all(files).unwrap();
        assert_eq!(purge().await, Purged { jobs: 1, ..Purged::default() });
        assert!(store.job(id).await.unwrap().is_none());
    }

    /// One after the other, a remote store would remove the files of only a few jobs a second.
    #[tokio::test]
    async fn proofs_are_removed_many_at_once_and_one_failure_ends_nothing() {
        let jobs: Vec<JobId> = (0..100).map(|_| JobId::new()).collect();
        let (begun, full) = (AtomicUsize::new(0), tokio::sync::Barrier::new(REMOVED_AT_ONCE));
        let (removed, errors) = many_at_once(&jobs, async |_| {
            let n = begun.fetch_add(1, Ordering::SeqCst) + 1;
            if n <= REMOVED_AT_ONCE {
                // The first ones continue only once as many as are allowed are in progress.
                full.wait().await;
            }
            if n % 2 == 0 { Err("made up") } else { Ok(()) }
        })
        .await;
        assert_eq!((begun.into_inner(), removed.len(), errors.len()), (100, 50, 50));
    }
}
