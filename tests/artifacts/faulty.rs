//! A store in memory that disconnects, fails, corrupts and counts as it is told.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetRange, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result, UploadPart,
};

/// Faults to inject.
#[derive(Debug, Default)]
pub struct Plan {
    /// Downloads get no byte from this offset on, this many times.
    pub break_at: Option<(u64, u32)>,
    /// Downloads that would get a byte from here on hang.
    pub stall_at: Option<u64>,
    /// Number of requests of any kind that fail.
    pub fail: u32,
    /// Number of uploaded pieces that fail.
    pub fail_parts: u32,
    /// Whether one bit of each download is flipped.
    pub corrupt: bool,
    /// Whether every request is refused for lack of permission.
    pub refuse: bool,
}

/// Requests seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    pub requests: u32,
    pub puts: u32,
    pub aborted: u32,
    /// Ranges of downloads.
    pub gets: Vec<Range<u64>>,
    /// Largest piece uploaded or downloaded, in bytes.
    pub largest: u64,
    /// Bytes of pieces in flight, now and at most.
    pub under_way: u64,
    pub most_under_way: u64,
}

#[derive(Debug, Default)]
struct State {
    plan: Mutex<Plan>,
    seen: Mutex<Seen>,
    /// Downloads wait while this is locked.
    gate: tokio::sync::Mutex<()>,
}

/// The store.
#[derive(Debug, Default, Clone)]
pub struct Faulty {
    inner: Arc<InMemory>,
    state: Arc<State>,
}

impl Faulty {
    pub fn plan(&self) -> MutexGuard<'_, Plan> {
        self.state.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> MutexGuard<'_, Seen> {
        self.state.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the requests since the last call.
    pub fn seen(&self) -> Seen {
        std::mem::take(&mut *self.record())
    }

    /// Makes downloads wait until the guard is dropped.
    pub async fn hold(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.state.gate.lock().await
    }

    /// Returns the number of requests since the last [`Faulty::seen`].
    pub fn requests(&self) -> u32 {
        self.record().requests
    }

    /// Replaces an object's content, bypassing all faults.
    pub async fn overwrite(&self, at: &str, bytes: Vec<u8>) {
        self.inner.put(&Path::from(at), bytes.into()).await.unwrap();
    }

    /// Returns the names of the objects, sorted.
    pub async fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.inner.list(None).map(|m| m.unwrap().location.to_string()).collect().await;
        names.sort();
        names
    }

    fn request(&self) -> Result<()> {
        self.record().requests += 1;
        let mut plan = self.plan();
        if plan.refuse {
            return Err(Error::PermissionDenied { path: "x".to_owned(), source: "not for you".into() });
        }
        if plan.fail > 0 {
            plan.fail -= 1;
            return Err(fault("out of order"));
        }
        Ok(())
    }

    fn begin(&self, bytes: u64) -> UnderWay {
        let mut seen = self.record();
        seen.largest = seen.largest.max(bytes);
        seen.under_way += bytes;
        seen.most_under_way = seen.most_under_way.max(seen.under_way);
        UnderWay(self.clone(), bytes)
    }
}

fn fault(what: &'static str) -> Error {
    Error::Generic { store: "faulty", source: what.into() }
}

struct UnderWay(Faulty, u64);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut seen = self.0.record();
        seen.under_way = seen.under_way.saturating_sub(self.1);
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[derive(Debug)]
struct FaultyUpload(Box<dyn MultipartUpload>, Faulty);

#[async_trait]
impl MultipartUpload for FaultyUpload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        let fails = {
            let mut plan = self.1.plan();
            let fails = plan.fail_parts > 0;
            plan.fail_parts -= u32::from(fails);
            fails
        };
        let under_way = self.1.begin(data.content_length() as u64);
        let put = self.0.put_part(data);
        async move {
            let _under_way = under_way;
            tokio::task::yield_now().await;
            if fails { Err(fault("a piece was lost")) } else { put.await }
        }
        .boxed()
    }

    async fn complete(&mut self) -> Result<PutResult> {
        self.1.request()?;
        self.0.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.1.record().aborted += 1;
        self.0.abort().await
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        self.request()?;
        self.record().puts += 1;
        self.inner.put_opts(location, payload, opts).await
    }

    async fn put_multipart_opts(&self, location: &Path, opts: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.request()?;
        self.record().puts += 1;
        let upload = self.inner.put_multipart_opts(location, opts).await?;
        Ok(Box::new(FaultyUpload(upload, self.clone())))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        self.request()?;
        if options.head {
            return self.inner.get_opts(location, options).await;
        }
        drop(self.state.gate.lock().await);
        if let Some(GetRange::Bounded(range)) = &options.range {
            self.record().gets.push(range.clone());
        }
        let mut got = self.inner.get_opts(location, options).await?;
        let stalls = self.plan().stall_at.is_some_and(|at| got.range.end > at);
        if stalls {
            futures::future::pending::<()>().await;
        }
        let under_way = self.begin(got.range.end - got.range.start);
        let GetResultPayload::Stream(inner) = got.payload else { panic!("a stream from memory") };
        let chunks: Vec<Result<Bytes>> = inner.collect().await;
        let mut bytes: Vec<u8> = chunks.into_iter().flat_map(|c| c.unwrap().to_vec()).collect();
        let broken = {
            let mut plan = self.plan();
            if plan.corrupt && !bytes.is_empty() {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            match &mut plan.break_at {
                Some((at, times)) if *times > 0 && got.range.end > *at => {
                    *times -= 1;
                    bytes.truncate(usize::try_from(at.saturating_sub(got.range.start)).unwrap());
                    true
                }
                _ => false,
            }
        };
        // In small chunks, as from a network.
        let mut bits: Vec<Result<Bytes>> = bytes.chunks(1 << 20).map(|b| Ok(Bytes::copy_from_slice(b))).collect();
        if broken {
            bits.push(Err(fault("the connection broke off")));
        }
        let stream = futures::stream::iter(bits).then(move |bit| {
            let _under_way = &under_way;
            async move {
                tokio::task::yield_now().await;
                bit
            }
        });
        got.payload = GetResultPayload::Stream(stream.boxed());
        Ok(got)
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        match self.request() {
            Ok(()) => self.inner.delete_stream(locations),
            Err(e) => futures::stream::iter([Err(e)]).boxed(),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
