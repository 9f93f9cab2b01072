//! Connections: how many, and how long a client may take.
//!
//! A client that is slow, or means harm, costs a connection, and a connection costs a file descriptor, of which the
//! process needs some for its database, queue and keys. So there is a bound on connections, on the time a request's head
//! takes to arrive (idle connections are closed by it, too) and, in [`body`], on that of its body. Large bodies cost
//! memory besides, which there is a bound on as well.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};

use super::problem::Problem;

/// How long the head of a request may take, and how long a connection may be idle.
const HEAD_TIME: Duration = Duration::from_secs(30);
/// How long a body may take.
const BODY_TIME: Duration = Duration::from_secs(300);
/// Open connections of a listener: so many, where files can be opened four times as often.
const CONNECTIONS: usize = 4096;
/// Bytes of a JSON submit beside its input.
pub(super) const ENVELOPE: usize = 64 << 10;
/// Bodies of up to so many bytes are read as they come.
const SMALL: usize = 64 << 10;
/// Bytes of larger ones at a time: of four as large as one may be, and so many at least.
const LARGE_BYTES: usize = 256 << 20;
/// How long one of them waits for others.
const TURN: Duration = Duration::from_secs(10);
/// How long a listener rests that cannot accept.
const REST: Duration = Duration::from_secs(1);

/// The end of the server.
#[derive(Clone)]
pub(super) struct Stopping(watch::Receiver<bool>);

impl Stopping {
    /// Returns when the server is to end.
    pub(super) async fn now(mut self) {
        // An error means that whoever could say stop is gone.
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// Room for large bodies, in units of [`SMALL`].
#[derive(Clone)]
pub(super) struct Room(Arc<Semaphore>);

impl Room {
    /// Room for several bodies that are as large as one may be.
    pub(super) fn for_bodies_of(most: usize) -> Self {
        let bytes = most.saturating_mul(4).max(LARGE_BYTES);
        Self(Arc::new(Semaphore::new(bytes.div_ceil(SMALL).min(Semaphore::MAX_PERMITS))))
    }
}

/// A body that has arrived, and its part of the room.
pub(super) struct Body {
    bytes: Bytes,
    _room: Option<OwnedSemaphorePermit>,
}

impl std::ops::Deref for Body {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

/// How the server treats its clients.
#[derive(Debug, Clone, Copy)]
struct Limits {
    connections: usize,
    head_time: Duration,
}

/// Serves until `stop` turns true; open requests are finished first, and those that wait for a job wait no longer.
pub async fn serve(listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let files = getrlimit(Resource::Nofile).current.and_then(|n| usize::try_from(n).ok()).unwrap_or(usize::MAX);
    let connections = (files / 4).clamp(16, CONNECTIONS);
    serve_within(Limits { connections, head_time: HEAD_TIME }, listener, router, stop).await;
}

async fn serve_within(limits: Limits, listener: TcpListener, router: Router, stop: watch::Receiver<bool>) {
    let stopping = Stopping(stop);
    let service = TowerToHyperService::new(router.layer(Extension(stopping.clone())));
    let places = Arc::new(Semaphore::new(limits.connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(limits.head_time);
    let graceful = GracefulShutdown::new();
    let end = stopping.now();
    tokio::pin!(end);
    loop {
        let (stream, place) = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            () = &mut end => break,
        };
        let connection = graceful.watch(http.serve_connection(TokioIo::new(stream), service.clone()));
        tokio::spawn(async move {
            // An error is the client's: it went away, took too long, or did not speak HTTP.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    graceful.shutdown().await;
}

/// The next connection, once there is a place for it.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            Err(e) if is_of_connection(&e) => {}
            Err(error) => {
                tracing::error!(%error, "connections cannot be accepted; trying again in a second");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

/// Whether an error is that of the connection, not of the listener.
fn is_of_connection(e: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(e.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// A request's body, within the router's limit; `most` is what that says of inputs.
pub(super) async fn body(room: &Room, request: Request, most: usize) -> Result<Body, Problem> {
    let size = request.body().size_hint();
    // Before it waits for room, and before anything of it has arrived.
    if size.lower() > most.saturating_add(ENVELOPE) as u64 {
        return Err(too_large(most));
    }
    let (arrives, largest) = (size.exact().unwrap_or(u64::MAX), most as u64);
    let _room = if arrives <= SMALL as u64 {
        None
    } else {
        // One that is larger than it may be is refused before it has filled its part.
        let units = arrives.min(largest).div_ceil(SMALL as u64).max(1);
        Some(turn(room, u32::try_from(units).unwrap_or(u32::MAX)).await?)
    };
    Ok(Body { bytes: body_within(BODY_TIME, request, most).await?, _room })
}

fn too_large(most: usize) -> Problem {
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the input may have at most {most} bytes"))
}

async fn turn(room: &Room, units: u32) -> Result<OwnedSemaphorePermit, Problem> {
    let late = || Problem::new(StatusCode::SERVICE_UNAVAILABLE, "too many large inputs arrive just now; try again");
    match tokio::time::timeout(TURN, room.0.clone().acquire_many_owned(units)).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(late()),
    }
}

async fn body_within(time: Duration, request: Request, most: usize) -> Result<Bytes, Problem> {
    match tokio::time::timeout(time, Bytes::from_request(request, &())).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(e)) if e.status() == StatusCode::PAYLOAD_TOO_LARGE => Err(too_large(most)),
        Ok(Err(e)) => Err(Problem::new(e.status(), "the body could not be read")),
        Err(_) => {
            let why = format!("the body did not arrive within {} s", time.as_secs());
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, why))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::net::SocketAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use axum::body::Body;
    use axum::response::IntoResponse;
    use axum::routing::get;
    use futures::StreamExt;
    use hyper::body::{Frame, SizeHint};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;

    const LONG: Duration = Duration::from_secs(600);

    /// A server with `/` within such limits, and what ends it.
    async fn server(connections: usize, head_time: Duration) -> (SocketAddr, watch::Sender<bool>, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let router = Router::new().route("/", get(async || "here"));
        let limits = Limits { connections, head_time };
        (addr, stop, tokio::spawn(serve_within(limits, listener, router, stopped)))
    }

    /// Asks on a new connection, which stays open.
    async fn ask(addr: SocketAddr) -> TcpStream {
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        stream
    }

    /// Reads until the answer is there.
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
    async fn connections_beyond_the_bound_wait_for_a_place() {
        let (addr, _stop, _) = server(1, LONG).await;
        let mut first = ask(addr).await;
        answer(&mut first).await;
        let mut second = ask(addr).await;
        let early = tokio::time::timeout(Duration::from_millis(100), answer(&mut second)).await;
        assert!(early.is_err(), "served beside the first");
        drop(first);
        answer(&mut second).await;
    }

    #[tokio::test]
    async fn idle_connections_do_not_hold_up_the_end() {
        let (addr, stop, done) = server(16, LONG).await;
        let mut idle = ask(addr).await;
        answer(&mut idle).await;
        stop.send_replace(true);
        done.await.unwrap();
    }

    #[tokio::test]
    async fn a_body_that_does_not_end_is_given_up() {
        let post = |body: Body| Request::post("/").body(body).unwrap();
        assert_eq!(body_within(LONG, post(Body::from("abc")), 3).await.unwrap(), "abc");
        let endless = futures::stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"{")) });
        let endless = Body::from_stream(endless.chain(futures::stream::pending()));
        let answer = body_within(Duration::from_millis(10), post(endless), 3).await.unwrap_err().into_response();
        assert_eq!(answer.status(), StatusCode::REQUEST_TIMEOUT);
    }

    /// A body of which nothing arrives.
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
    async fn a_body_that_is_announced_as_too_large_is_refused_before_it_takes_room_or_time() {
        let most = 1 << 20;
        let room = Room(Arc::new(Semaphore::new(0)));
        let post = |bytes: usize| Request::post("/").body(Body::new(Announced(bytes as u64))).unwrap();
        let answer = body(&room, post(most + ENVELOPE + 1), most).await.err().unwrap().into_response();
        assert_eq!(answer.status(), StatusCode::PAYLOAD_TOO_LARGE);
        let within = body(&room, post(most + ENVELOPE), most);
        assert!(tokio::time::timeout(Duration::from_millis(50), within).await.is_err(), "waits for room");
    }

    #[tokio::test]
    async fn large_bodies_share_a_bounded_room_and_small_ones_do_not_wait() {
        let most = 1 << 20;
        let room = Room(Arc::new(Semaphore::new(most / SMALL)));
        let post = |bytes: usize| Request::post("/").body(Body::from(vec![0; bytes])).unwrap();
        let first = body(&room, post(most), most).await.unwrap();
        assert_eq!(first.len(), most);
        let second = body(&room, post(SMALL + 1), most);
        tokio::pin!(second);
        assert!(tokio::time::timeout(Duration::from_millis(50), &mut second).await.is_err(), "beside the first");
        assert_eq!(body(&room, post(SMALL), most).await.unwrap().len(), SMALL);
        drop(first);
        assert_eq!(second.await.unwrap().len(), SMALL + 1);
        assert_eq!(Room::for_bodies_of(64 << 20).0.available_permits() * SMALL, 256 << 20);
        assert_eq!(Room::for_bodies_of(1 << 30).0.available_permits() * SMALL, 4 << 30);
    }
}
