//! Limits on connections, and on the time that a client may take.
//!
//! A slow or malicious client occupies a connection, and with it a file descriptor, some of which the process needs for
//! its database, queue and keys. Therefore, the number of connections is limited, and so is the time that the head of a
//! request may take to arrive (this limit also closes idle connections), that a response may wait to be read and, in
//! [`body`], that a request's body may take to arrive. Large bodies also occupy memory, which is limited as well: they
//! share a budget ([`BodyBudget`]), and a body that arrives too slowly loses its share, so that a few clients cannot
//! block all others.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::HttpBody;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::{Extension, Router};
use futures::StreamExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;
use tokio_io_timeout::TimeoutStream;
use zeroize::Zeroizing;

use super::problem::Problem;
use crate::worker::request::ENVELOPE;

/// Maximum time for the head of a request to arrive, and for a connection to be idle.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// Maximum time that a response may wait for a client that reads none of it.
const WRITE_TIME: Duration = Duration::from_secs(30);
/// The required pace of bodies.
const PACE: Pace = Pace { total: Duration::from_secs(300), grace: Duration::from_secs(10), rate: 64 << 10 };
/// Maximum number of open connections of a listener, if the limit on open files is at least four times that.
const CONNECTIONS: usize = 4096;
/// Bodies of up to this size, in bytes, are read without a share of the budget.
const SMALL: usize = 64 << 10;
/// Minimum budget of larger bodies, in bytes; it is larger if four bodies of the maximum size need more.
const MIN_BUDGET: usize = 256 << 20;
/// Maximum time that a large body waits for its share of the budget.
const BUDGET_WAIT: Duration = Duration::from_secs(10);
/// Pause after a failure to accept a connection.
const ACCEPT_AGAIN: Duration = Duration::from_secs(1);

/// Lets requests wait for a job, while the server is not stopping, and as long as most of its connections are free: a
/// client that is gone is noticed only if it sent nothing after its request, and otherwise keeps its place to the end
/// of its wait.
#[derive(Clone)]
pub(super) struct Waits {
    stop: watch::Receiver<bool>,
    places: Arc<Semaphore>,
}

impl Waits {
    /// Lets half of so many connections wait at the same time.
    pub(super) fn new(stop: watch::Receiver<bool>, connections: usize) -> Self {
        Self { stop, places: Arc::new(Semaphore::new(connections / 2)) }
    }

    /// Returns the result of `wait`, or `None` if the server stops before, or if too many wait already.
    pub(super) async fn until<T>(self, wait: impl Future<Output = T>) -> Option<T> {
        let _place = self.places.try_acquire().ok()?;
        tokio::select! {
            done = wait => Some(done),
            () = stopping(self.stop.clone()) => None,
        }
    }
}

/// Waits until the server is stopping.
async fn stopping(mut stop: watch::Receiver<bool>) {
    // An error means that the sender is gone.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// The minimum pace at which bodies must arrive.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// Maximum time for any body.
    total: Duration,
    /// Time before the minimum rate applies to a body that has a share of the budget.
    grace: Duration,
    /// Minimum rate after that in bytes per second, on average since the body got its share.
    rate: u32,
}

impl Pace {
    /// Returns the deadline for more of a body, counted from its start, when `arrived` bytes have arrived.
    fn patience(self, arrived: usize, has_share: bool) -> Duration {
        if !has_share {
            return self.total;
        }
        (Duration::from_secs(arrived as u64) / self.rate).max(self.grace).min(self.total)
    }

    /// Returns the error for a body that missed its deadline.
    fn missed(self, arrived: usize, patience: Duration) -> Problem {
        let why = if patience == self.total {
            format!("expected the whole body within {} s, got {arrived} bytes of it", self.total.as_secs())
        } else {
            format!(
                "the body arrives too slowly: expected {} bytes a second on average from {} s on, got {arrived} bytes \
                 in {:.1} s",
                self.rate,
                self.grace.as_secs(),
                patience.as_secs_f64()
            )
        };
        Problem::new(StatusCode::REQUEST_TIMEOUT, why)
    }
}

/// The memory for large bodies, in units of [`SMALL`], and the pace at which they must arrive.
#[derive(Clone)]
pub(super) struct BodyBudget {
    units: Arc<Semaphore>,
    pace: Pace,
}

impl BodyBudget {
    /// Creates a budget for four bodies of up to `most` bytes, and at least [`MIN_BUDGET`].
    pub(super) fn for_bodies_of(most: usize) -> Self {
        let bytes = most.saturating_mul(4).max(MIN_BUDGET);
        Self { units: Arc::new(Semaphore::new(bytes.div_ceil(SMALL).min(Semaphore::MAX_PERMITS))), pace: PACE }
    }

    /// Returns the number of free units.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.units.available_permits()
    }
}

/// A complete body.
pub(super) struct Body {
    /// Its content, which may be secret.
    pub(super) bytes: Zeroizing<Vec<u8>>,
    /// Its share of the budget, to be held as long as a copy of the content is in memory.
    pub(super) share: Option<OwnedSemaphorePermit>,
}

/// Limits of a server on its clients.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    head_time: Duration,
    write_time: Duration,
}

/// Serves until `stop` turns true. Open requests are finished first; those that wait for a job stop waiting.
pub async fn serve(listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let files = getrlimit(Resource::Nofile).current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let connections = (files / 4).clamp(16, CONNECTIONS);
    let limits = Limits { connections, head_time: HEAD_TIME, write_time: WRITE_TIME };
    serve_within(limits, listener, router, stop).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let waits = Waits::new(stop.clone(), limits.connections);
    let service = TowerToHyperService::new(router.layer(Extension(waits)));
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time);
    let graceful = GracefulShutdown::new();
    let end = stopping(stop);
    tokio::pin!(end);
    loop {
        let (stream, place) = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut end => break,
        };
        let mut stream = TimeoutStream::new(stream);
        // The timeout runs only while a write is pending, so it does not affect clients that wait for a job.
        stream.set_write_timeout(Some(limits.write_time));
        let connection = graceful.watch(http.serve_connection(TokioIo::new(Box::pin(stream)), service.clone()));
        tokio::spawn(async move {
            // An error is the client's: it disconnected, took too long, or did not speak HTTP.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Waits for a free connection slot, then for the next connection.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(e) if is_of_connection(&e) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted; trying again in a second");
                tokio::time::sleep(ACCEPT_AGAIN).await;
            }
        }
    }
}

/// Whether an error concerns the connection, not the listener.
fn is_of_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// Reads the body of a request whose input may have up to `most` bytes.
pub(super) async fn body(budget: &BodyBudget, request: Request, most: usize) -> Result<Body, Problem> {
    let size = request.body().size_hint();
    // Checked before it waits for its share, and before any of it has arrived.
    if size.lower() > most.saturating_add(ENVELOPE) as u64 {
        return Err(too_large(most));
    }
    let (arrives, largest) = (size.exact().unwrap_or(u64::MAX), most as u64);
    let share = if arrives <= SMALL as u64 {
        None
    } else {
        // A body that turns out to be too large is rejected before it has filled this share.
        let units = arrives.min(largest).div_ceil(SMALL as u64).max(1);
        Some(acquire(budget, u32::try_from(units).unwrap_or(u32::MAX)).await?)
    };
    let bytes = arrived(budget.pace, request, most, share.is_some()).await?;
    Ok(Body { bytes: Zeroizing::new(bytes), share })
}

fn too_large(most: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the input may have at most {most} bytes"))
}

async fn acquire(budget: &BodyBudget, units: u32) -> Result<OwnedSemaphorePermit, Problem> {
    let late = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many large inputs are arriving; try again");
    match tokio::time::timeout(BUDGET_WAIT, budget.units.clone().acquire_many_owned(units)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(late()),
    }
}

/// Reads the bytes of a body, as long as it keeps the pace.
async fn arrived(pace: Pace, request: Request, most: usize, has_share: bool) -> Result<Vec<u8>, Problem> {
    let begun = Instant::now();
    let limit = most.saturating_add(ENVELOPE);
    let announced = usize::try_from(request.body().size_hint().lower()).unwrap_or(limit);
    let mut bytes = Vec::with_capacity(announced.min(limit));
    let mut pieces = request.into_body().into_data_stream();
    loop {
        let patience = pace.patience(bytes.len(), has_share);
        match tokio::time::timeout_at(begun + patience, pieces.next()).await {
            Ok(None) => return Ok(bytes),
            Ok(Some(Ok(piece))) if piece.len() > limit - bytes.len() => return Err(too_large(most)),
            Ok(Some(Ok(piece))) => bytes.extend_from_slice(&piece),
            Ok(Some(Err(_))) => return Err(Problem::new(StatusCode::BAD_REQUEST, "the body could not be read")),
            Err(_) => return Err(pace.missed(bytes.len(), patience)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use axum::body::{Body, Bytes, to_bytes};
    use axum::response::IntoResponse;
    use axum::routing::get;
    use hyper::body::{Frame, SizeHint};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// Starts a server with these limits and returns what stops it. `/` responds at once, `/late` after a while, and
    /// the response of `/endless` never ends.
    async fn server_within(limits: Limits) -> (SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let late = async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            "here"
        };
        let endless = async || {
            let piece = || Ok::<_, io::Error>(Bytes::from_static(&[0; 4096]));
            Body::from_stream(futures::stream::repeat_with(piece))
        };
        let router = Router::new().route("/", get(async || "here"));
        let router = router.route("/late", get(late)).route("/endless", get(endless));
        (addr, stop, tokio::spawn(serve_within(limits, listener, router, stopped)))
    }

    async fn server(connections: usize, head_time: Duration) -> (SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
        server_within(Limits { connections, head_time, write_time: LONG }).await
    }

    /// Sends a request on a new connection, which stays open.
    async fn ask(addr: SocketAddr) -> TcpStream {
        ask_for("/", addr).await
    }

    async fn ask_for(path: &str, addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        stream
    }

    /// Reads until the response is complete.
    async fn answer(stream: &mut TcpStream) -> String {
        let mut got = Vec::new();
        while !got.ends_with(b"here") {
            assert_ne!(stream.read_buf(&mut got).await.unwrap(), 0, "{}", String::from_utf8_lossy(&got));
        }
        String::from_utf8(got).unwrap()
    }

    #[tokio::test]
    async fn a_client_that_is_slow_to_ask_is_cut_off() {
        let (addr, _stop, _) = server(16, Duration::from_secs(1)).await;
        let mut slow = TcpStream::connect(addr).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-").await.unwrap();
        let mut got = Vec::new();
        // Without the limit this would not end.
        slow.read_to_end(&mut got).await.unwrap();
        assert!(!got.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&got));
        assert!(answer(&mut ask(addr).await).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_connection_that_idles_after_its_answer_is_closed() {
        let (addr, _stop, _) = server(16, Duration::from_secs(1)).await;
        let mut idle = ask(addr).await;
        answer(&mut idle).await;
        // Without the limit this would not end.
        assert_eq!(idle.read_to_end(&mut Vec::new()).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_loses_its_place() {
        let write_time = Duration::from_millis(50);
        let (addr, _stop, _) = server_within(Limits { connections: 1, head_time: LONG, write_time }).await;
        let _deaf = ask_for("/endless", addr).await;
        // Without the limit there would never be a slot for this one.
        assert!(answer(&mut ask(addr).await).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn a_client_that_waits_for_its_answer_keeps_its_place() {
        let write_time = Duration::from_millis(20);
        let (addr, _stop, _) = server_within(Limits { connections: 1, head_time: LONG, write_time }).await;
        let mut patient = ask_for("/late", addr).await;
        assert!(answer(&mut patient).await.starts_with("HTTP/1.1 200"));
    }

    #[tokio::test]
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let (addr, _stop, _) = server(1, LONG).await;
        let mut first = ask(addr).await;
        answer(&mut first).await;
        let mut second = ask(addr).await;
        let early = tokio::time::timeout(Duration::from_millis(100), answer(&mut second)).await;
        assert!(early.is_err(), "served alongside the first");
        drop(first);
        answer(&mut second).await;
    }

    #[tokio::test]
    async fn half_of_the_connections_may_wait_until_the_server_stops() {
        let (stop, stopped) = watch::channel(false);
        let waits = Waits::new(stopped, 4);
        let wait = || tokio::spawn(waits.clone().until(std::future::pending::<()>()));
        let first = [wait(), wait()];
        while waits.places.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(waits.clone().until(async { 3 }).await, None, "a third is not made to wait");
        stop.send_replace(true);
        for waiter in first {
            assert_eq!(waiter.await.unwrap(), None);
        }
        assert_eq!(waits.places.available_permits(), 2);
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let (addr, stop, done) = server(16, LONG).await;
        let mut idle = ask(addr).await;
        answer(&mut idle).await;
        stop.send_replace(true);
        done.await.unwrap();
    }

    /// A POST whose body is `first` bytes and, after a while, `then` more; without `then` it never ends.
    fn post(first: usize, then: Option<usize>) -> Request {
        let piece = |bytes: usize| Ok::<_, io::Error>(Bytes::from(vec![b' '; bytes]));
        let pause = tokio::time::sleep(Duration::from_millis(50));
        let rest = async move {
            pause.await;
            match then {
                Some(bytes) => piece(bytes),
                None => std::future::pending().await,
            }
        };
        let pieces = futures::stream::once(async move { piece(first) }).chain(futures::stream::once(rest));
        Request::post("/").body(Body::from_stream(pieces)).unwrap()
    }

    /// Returns the status and text of a rejection.
    async fn refusal(of: Result<super::Body, Problem>) -> (StatusCode, String) {
        let answer = of.err().unwrap().into_response();
        let (status, text) = (answer.status(), to_bytes(answer.into_body(), 4096).await.unwrap());
        (status, String::from_utf8(text.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let pace = Pace { total: Duration::from_millis(10), grace: LONG, rate: 1 };
        let budget = BodyBudget { units: Arc::new(Semaphore::new(1)), pace };
        let (status, why) = refusal(body(&budget, post(3, None), 9).await).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(why.contains("within 0 s, got 3 bytes"), "{why}");
    }

    #[tokio::test]
    async fn a_body_that_arrives_too_slowly_loses_its_share() {
        let pace = Pace { total: LONG, grace: Duration::from_millis(10), rate: 64 << 10 };
        let budget = BodyBudget { units: Arc::new(Semaphore::new(16)), pace };
        let (status, why) = refusal(body(&budget, post(3, None), 1 << 20).await).await;
        assert_eq!(status, StatusCode::REQUEST_TIMEOUT);
        assert!(why.contains("expected 65536 bytes a second") && why.contains("got 3 bytes in 0.0 s"), "{why}");
        assert_eq!(budget.free(), 16);
    }

    #[tokio::test]
    async fn a_body_that_is_ahead_may_pause_and_so_may_one_that_has_no_share() {
        // 600 bytes are ten minutes' worth.
        let budget = BodyBudget {
            units: Arc::new(Semaphore::new(16)),
            pace: Pace { total: LONG, grace: Duration::ZERO, rate: 1 },
        };
        let arrived = body(&budget, post(600, Some(5)), 1 << 20).await.unwrap();
        assert_eq!((arrived.bytes.len(), arrived.share.unwrap().num_permits()), (605, 16));
        assert_eq!(super::arrived(budget.pace, post(0, Some(5)), 1 << 20, false).await.unwrap().len(), 5);
    }

    #[test]
    fn the_pace_is_64_kib_a_second_after_ten_seconds_and_five_minutes_in_all() {
        let seconds = |arrived: usize, has_share| PACE.patience(arrived, has_share).as_secs_f64();
        assert_eq!([0, 640 << 10, 672 << 10, 1 << 20].map(|n| seconds(n, true)), [10., 10., 10.5, 16.]);
        assert_eq!((seconds(64 << 20, true), seconds(0, false)), (300., 300.));
    }

    #[tokio::test]
    async fn a_body_that_was_not_announced_is_refused_once_it_is_too_large() {
        let budget = BodyBudget::for_bodies_of(9);
        let most = body(&budget, post(9, Some(ENVELOPE)), 9).await.unwrap();
        assert_eq!(most.bytes.len(), 9 + ENVELOPE);
        let (status, why) = refusal(body(&budget, post(10, Some(ENVELOPE)), 9).await).await;
        assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{why}");
    }

    /// A body of this announced size of which nothing arrives.
    struct Announced(u64);

    impl HttpBody for Announced {
        type Data = Bytes;
        type Error = io::Error;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
            Poll::Pending
        }
        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.0)
        }
    }

    #[tokio::test]
    async fn a_body_that_is_announced_as_too_large_is_refused_before_it_takes_memory_or_time() {
        let most = 1 << 20;
        let budget = BodyBudget { units: Arc::new(Semaphore::new(0)), pace: PACE };
        let post = |bytes: usize| Request::post("/").body(Body::new(Announced(bytes as u64))).unwrap();
        let answer = body(&budget, post(most + ENVELOPE + 1), most).await.err().unwrap().into_response();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let within = body(&budget, post(most + ENVELOPE), most);
        assert!(tokio::time::timeout(Duration::from_millis(50), within).await.is_err(), "waits for its share");
    }

    #[tokio::test]
    async fn large_bodies_share_a_budget_and_small_ones_do_not_wait() {
        let most = 1 << 20;
        let budget = BodyBudget { units: Arc::new(Semaphore::new(most / SMALL)), pace: PACE };
        let post = |bytes: usize| Request::post("/").body(Body::from(vec![0; bytes])).unwrap();
        let first = body(&budget, post(most), most).await.unwrap();
        assert_eq!(first.bytes.len(), most);
        let second = body(&budget, post(SMALL + 1), most);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err(), "alongside the first");
        assert_eq!(body(&budget, post(SMALL), most).await.unwrap().bytes.len(), SMALL);
        drop(first);
        assert_eq!(second.await.unwrap().bytes.len(), SMALL + 1);
        assert_eq!(BodyBudget::for_bodies_of(64 << 20).free() * SMALL, 256 << 20);
        assert_eq!(BodyBudget::for_bodies_of(1 << 30).free() * SMALL, 4 << 30);
    }
}
