//! Servers of objects, each a process of one test.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::wait::HANG;

/// Account of Azurite, and its key.
pub const ACCOUNT: &str = "pwtest";
pub const KEY: &[u8] = b"hunter2";
/// Version of the interface, as used in the request that creates the container.
const VERSION: &str = "2021-08-06";

/// A server and, if this test started it, its process.
pub struct Server {
    pub url: String,
    process: Option<Child>,
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

impl Server {
    fn start(command: impl Fn(&str) -> Command) -> Self {
        // Another process may take the port in between; then another port is tried.
        for _ in 0..5 {
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
            let mut command = command(&port.to_string());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut process = command.spawn().unwrap();
            let begun = Instant::now();
            while process.try_wait().unwrap().is_none() {
                if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    return Self { url: format!("http://127.0.0.1:{port}"), process: Some(process) };
                }
                assert!(begun.elapsed() < HANG, "{command:?} does not listen");
                std::thread::sleep(Duration::from_millis(50));
            }
        }
        panic!("the server ends at once");
    }

    /// Sends a request with these headers and no body, and returns the answer.
    fn ask(&self, line: &str, headers: &str) -> String {
        let host = self.url.trim_start_matches("http://");
        let mut connection = TcpStream::connect(host).unwrap();
        let request =
            format!("{line} HTTP/1.1\r\nHost: {host}\r\n{headers}Content-Length: 0\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    }
}

fn unused(of: &str) -> String {
    format!("pw-test-{of}{}", uuid::Uuid::new_v4().simple())
}

fn moto_server() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/moto/bin/moto_server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::iter::once(own).chain(std::env::split_paths(&path).map(|d| d.join("moto_server"))).find(|p| p.is_file())
}

/// Starts S3 by moto's server, with an empty bucket: the server at `TEST_S3_URL`, or one of the test's own from
/// `target/moto` (see scripts/moto.sh) or `PATH`.
pub fn s3() -> Option<(Server, String)> {
    let server = match std::env::var("TEST_S3_URL") {
        Ok(url) => Server { url, process: None },
        Err(_) => {
            let program = moto_server()?;
            Server::start(|port| {
                let mut command = Command::new(&program);
                command.args(["-H", "127.0.0.1", "-p", port]);
                command
            })
        }
    };
    let bucket = unused("");
    let answer = server.ask(&format!("PUT /{bucket}"), "");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Some((server, bucket))
}

/// Starts Azure's Blob Storage by Azurite from `TEST_NODE_MODULES`, with an empty container.
pub fn azurite() -> Option<(Server, String)> {
    let program = PathBuf::from(std::env::var_os("TEST_NODE_MODULES")?).join("azurite/dist/src/blob/main.js");
    if !program.is_file() {
        return None;
    }
    let mut server = Server::start(|port| {
        let mut command = Command::new("node");
        command.arg(&program).args(["--blobPort", port, "--inMemoryPersistence", "--disableTelemetry"]);
        command.arg("--skipApiVersionCheck");
        command.env("AZURITE_ACCOUNTS", format!("{ACCOUNT}:{}", BASE64_STANDARD.encode(KEY)));
        command
    });
    let container = unused("c");
    let refused = server.ask("GET /", "");
    let date = refused.lines().find_map(|l| l.strip_prefix("Date: ")).expect("the server's time").trim();
    let what = format!("/{ACCOUNT}/{ACCOUNT}/{container}\nrestype:container");
    let signed = format!("PUT{}x-ms-date:{date}\nx-ms-version:{VERSION}\n{what}", "\n".repeat(12));
    let mut mac = Hmac::<Sha256>::new_from_slice(KEY).unwrap();
    mac.update(signed.as_bytes());
    let signature = BASE64_STANDARD.encode(mac.finalize().into_bytes());
    let authorization = format!("Authorization: SharedKey {ACCOUNT}:{signature}");
    let headers = format!("x-ms-date: {date}\r\nx-ms-version: {VERSION}\r\n{authorization}\r\n");
    let made = server.ask(&format!("PUT /{ACCOUNT}/{container}?restype=container"), &headers);
    assert!(made.starts_with("HTTP/1.1 201"), "{made}");
    server.url = format!("{}/{ACCOUNT}", server.url);
    Some((server, container))
}

/// Reads a request's head, up to the empty line.
fn head(connection: &mut TcpStream) -> String {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") && matches!(connection.read(&mut byte), Ok(1)) {
        request.push(byte[0]);
    }
    String::from_utf8(request).unwrap()
}

/// Google's XML interface in front of an S3 server. Decodes paths in which every other character is encoded, which that
/// server does not understand, and replaces tokens by a signature, which it does not check.
pub fn as_googles(server: &Server) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let (at, to) = (listener.local_addr().unwrap(), server.url.trim_start_matches("http://").to_owned());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let (mut client, mut server) = (connection.unwrap(), TcpStream::connect(&to).unwrap());
            std::thread::spawn(move || {
                let head = head(&mut client);
                let Some((line, fields)) = head.split_once("\r\n") else { return };
                let line = line.replace("%2D", "-").replace("%2F", "/");
                let kept = fields.lines().filter(|f| !f.is_empty() && !f.to_lowercase().starts_with("authorization:"));
                let fields: String = kept.map(|field| format!("{field}\r\n")).collect();
                let length =
                    fields.lines().find_map(|f| f.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
                let signed = "Authorization: AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, \
                              SignedHeaders=host, Signature=0\r\nConnection: close\r\n\r\n";
                server.write_all(format!("{line}\r\n{fields}{signed}").as_bytes()).unwrap();
                std::io::copy(&mut (&client).take(length.unwrap_or(0)), &mut server).unwrap();
                // The client may have hung up.
                let _ = std::io::copy(&mut server, &mut client);
            });
        }
    });
    at
}

/// Answers each request with what `answer` returns for its head: status, type and body.
pub fn answering(answer: impl Fn(&str) -> (&'static str, &'static str, String) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let at = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.unwrap();
            let (status, kind, body) = answer(&head(&mut connection));
            let head = format!("HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nConnection: close\r\n");
            let _ = connection.write_all(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
        }
    });
    at
}
