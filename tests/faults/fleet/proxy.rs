//! A TCP proxy in front of a server, which can cut connections in the middle, stall them, and refuse them.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// Maximum of bytes forwarded at a time.
const PIECE: usize = 4096;

#[derive(Default)]
struct State {
    /// Both ends of each open connection.
    open: Vec<(u64, TcpStream, TcpStream)>,
    /// Bytes until every connection is cut.
    cut_in: Option<u64>,
    held: bool,
    refuses: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    closed: AtomicBool,
    cuts: AtomicU64,
}

/// A TCP proxy in this process, to a port of this machine.
pub struct Proxy {
    shared: Arc<Shared>,
    pub port: u16,
}

impl Proxy {
    pub fn new(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::new(Shared::default());
        let all = shared.clone();
        std::thread::spawn(move || {
            for (number, client) in (0..).zip(listener.incoming()) {
                if all.closed.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(client) = client else { continue };
                if let Ok(server) = TcpStream::connect(("127.0.0.1", server)) {
                    let _ = all.connect(number, client, server);
                }
            }
        });
        Self { shared, port }
    }

    /// Cuts every connection.
    pub fn cut(&self) {
        self.shared.cut(&mut self.shared.state.lock().unwrap());
    }

    /// Cuts every connection once this many more bytes have passed, in the middle of whatever they belong to.
    pub fn cut_in(&self, bytes: u64) {
        self.shared.state.lock().unwrap().cut_in = Some(bytes);
    }

    /// Returns how many cuts came while something was passing.
    pub fn cuts(&self) -> u64 {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// While `held`, forwards nothing and closes nothing; afterwards forwards what has waited.
    pub fn hold(&self, held: bool) {
        self.shared.state.lock().unwrap().held = held;
        self.shared.changed.notify_all();
    }

    /// While `refuses`, accepts no new connections and cuts the existing ones.
    pub fn refuse(&self, refuses: bool) {
        let mut state = self.shared.state.lock().unwrap();
        state.refuses = refuses;
        if refuses {
            self.shared.cut(&mut state);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::SeqCst);
        self.hold(false);
        self.cut();
        // Wakes the listener.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

impl Shared {
    fn connect(self: &Arc<Self>, number: u64, client: TcpStream, server: TcpStream) -> std::io::Result<()> {
        client.set_nodelay(true)?;
        server.set_nodelay(true)?;
        {
            // Checked under the lock of the list: a connection that arrived while the door closed must not stay open.
            let mut state = self.state.lock().unwrap();
            if state.refuses {
                return Ok(());
            }
            state.open.push((number, client.try_clone()?, server.try_clone()?));
        }
        for (from, to) in [(client.try_clone()?, server.try_clone()?), (server, client)] {
            let shared = self.clone();
            std::thread::spawn(move || {
                shared.pass_on(&from, &to);
                let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
                shared.state.lock().unwrap().open.retain(|(n, ..)| *n != number);
            });
        }
        Ok(())
    }

    /// Forwards from one to the other until either ends.
    fn pass_on(&self, mut from: &TcpStream, mut to: &TcpStream) {
        let mut piece = [0; PIECE];
        while let Ok(n) = from.read(&mut piece)
            && n > 0
        {
            let mut pass = &piece[..n];
            {
                let mut state = self.state.lock().unwrap();
                while state.held {
                    state = self.changed.wait(state).unwrap();
                }
                if let Some(left) = state.cut_in {
                    if left < n as u64 {
                        pass = &piece[..left as usize];
                        let _ = to.write_all(pass);
                        self.cuts.fetch_add(1, Ordering::SeqCst);
                        return self.cut(&mut state);
                    }
                    state.cut_in = Some(left - n as u64);
                }
            }
            if to.write_all(pass).is_err() {
                return;
            }
        }
    }

    fn cut(&self, state: &mut State) {
        state.cut_in = None;
        for (_, client, server) in state.open.drain(..) {
            let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
        }
    }
}

/// Starts a server that sends back what it receives.
fn echo() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let (mut from, mut to) = (&stream, &stream);
                let _ = std::io::copy(&mut from, &mut to);
            });
        }
    });
    port
}

#[test]
fn the_door_passes_cuts_holds_and_refuses() {
    let door = Proxy::new(echo());
    let knock = || TcpStream::connect(("127.0.0.1", door.port)).unwrap();
    let say = |mut s: &TcpStream, what: &[u8]| s.write_all(what);
    let hear = |mut s: &TcpStream, n: usize| {
        let mut heard = vec![0; n];
        s.read_exact(&mut heard).map(|()| heard)
    };
    let rest = |mut s: &TcpStream| {
        let mut heard = Vec::new();
        // A reset is an end too.
        let _ = s.read_to_end(&mut heard);
        heard.len()
    };

    let (one, two) = (knock(), knock());
    say(&one, b"one").unwrap();
    say(&two, b"two").unwrap();
    assert_eq!((hear(&one, 3).unwrap(), hear(&two, 3).unwrap()), (b"one".to_vec(), b"two".to_vec()));

    // Ten bytes in, ten back: five of the latter pass. The idle connection is cut too.
    door.cut_in(15);
    say(&one, &[7; 10]).unwrap();
    assert_eq!((rest(&one), rest(&two), door.cuts()), (5, 0, 1));

    let three = knock();
    door.hold(true);
    say(&three, b"held").unwrap();
    three.set_nonblocking(true).unwrap();
    assert_eq!(hear(&three, 1).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    three.set_nonblocking(false).unwrap();
    door.hold(false);
    assert_eq!(hear(&three, 4).unwrap(), b"held");

    door.refuse(true);
    assert_eq!((rest(&three), rest(&knock())), (0, 0));
    door.refuse(false);
    let four = knock();
    say(&four, b"four").unwrap();
    assert_eq!(hear(&four, 4).unwrap(), b"four");
}
