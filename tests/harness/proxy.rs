//! A TCP proxy on the loopback that cuts, slows and silences what goes through it, when a test says so.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Free,
    /// Some kilobytes a second.
    Slow,
    /// Not at all; connections stay open.
    Silent,
    /// Only the first bytes of each answer; connections stay open.
    Half,
}

/// Forwards until the test process ends.
pub struct Proxy {
    pub port: u16,
    state: Arc<State>,
}

struct State {
    flow: Mutex<Flow>,
    /// Goes up with each cut; a connection belongs to the one at which it began.
    cuts: AtomicU64,
}

/// How often a connection looks whether it is cut.
const LOOK: Duration = Duration::from_millis(20);
/// Bytes per look of a slow connection.
const SLOW: usize = 128;
/// Bytes of an answer that still come.
const HALF: usize = 16;

impl Proxy {
    /// A proxy in front of a port of this machine.
    pub fn start(target: u16) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let state = Arc::new(State { flow: Mutex::new(Flow::Free), cuts: AtomicU64::new(0) });
        let shared = state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // Without a server behind the proxy the client sees its connection closed.
                let Ok(server) = TcpStream::connect(("127.0.0.1", target)) else { continue };
                let began = shared.cuts.load(Ordering::SeqCst);
                let (Ok(client2), Ok(server2)) = (client.try_clone(), server.try_clone()) else { continue };
                for (from, to, answers) in [(client, server2, false), (server, client2, true)] {
                    let shared = shared.clone();
                    std::thread::spawn(move || forward(&from, &to, answers, began, &shared));
                }
            }
        });
        Proxy { port, state }
    }

    pub fn cut(&self) {
        self.state.cuts.fetch_add(1, Ordering::SeqCst);
    }

    /// How bytes go through from now on.
    pub fn set(&self, flow: Flow) {
        *self.state.flow.lock().expect("no thread panics") = flow;
    }
}

fn forward(mut from: &TcpStream, mut to: &TcpStream, answers: bool, began: u64, state: &State) {
    let mut buffer = [0; 16384];
    let _ = from.set_read_timeout(Some(LOOK));
    let flow = || *state.flow.lock().expect("no thread panics");
    let is_cut = || state.cuts.load(Ordering::SeqCst) != began;
    while !is_cut() {
        if flow() != Flow::Free {
            std::thread::sleep(LOOK);
        }
        let most = match flow() {
            Flow::Free => buffer.len(),
            Flow::Slow => SLOW,
            Flow::Half => HALF,
            Flow::Silent => continue,
        };
        let read = match from.read(&mut buffer[..most]) {
            Ok(0) => break,
            Ok(read) => read,
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted) => continue,
            Err(_) => break,
        };
        // What came while the flow was changed waits, too.
        while flow() == Flow::Silent && !is_cut() {
            std::thread::sleep(LOOK);
        }
        if is_cut() || to.write_all(&buffer[..read]).is_err() {
            break;
        }
        while answers && flow() == Flow::Half && !is_cut() {
            std::thread::sleep(LOOK);
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
