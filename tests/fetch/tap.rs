//! What stands between a client and a server, and goes silent at the command that a test wants: the
//! client is then killed at exactly that place.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "test code")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

pub struct Tap {
    pub port: u16,
    stop: Arc<Mutex<Option<Stop>>>,
}

struct Stop {
    command: &'static str,
    left: usize,
    reached: Sender<()>,
}

impl Tap {
    pub fn open(server: SocketAddr) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop: Arc<Mutex<Option<Stop>>> = Arc::default();
        let shared = stop.clone();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server) = (client.unwrap(), TcpStream::connect(server).unwrap());
                let (mut down_from, mut down_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut down_from, &mut down_to);
                    let _ = down_to.shutdown(Shutdown::Both);
                });
                let stop = shared.clone();
                std::thread::spawn(move || up(client, server, &stop));
            }
        });
        Tap { port, stop }
    }

    /// Goes silent before the so-manieth line with this word in it, over all connections from now on.
    pub fn stop_at(&self, command: &'static str, times: usize) -> Receiver<()> {
        let (reached, receiver) = channel();
        *self.stop.lock().unwrap() = Some(Stop { command, left: times, reached });
        receiver
    }

    pub fn stop_nowhere(&self) {
        *self.stop.lock().unwrap() = None;
    }
}

/// From the client to the server, line by line.
fn up(mut client: TcpStream, mut server: TcpStream, stop: &Mutex<Option<Stop>>) {
    let mut pending = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = client.read(&mut buffer) {
        pending.extend_from_slice(&buffer[..read]);
        while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = pending.drain(..=end).collect();
            if is_reached(&line, stop) {
                // Nothing more gets through; the client is about to be killed.
                let _ = std::io::copy(&mut client, &mut std::io::sink());
                let _ = server.shutdown(Shutdown::Both);
                return;
            }
            if server.write_all(&line).is_err() {
                return;
            }
        }
    }
    let _ = server.shutdown(Shutdown::Both);
}

fn is_reached(line: &[u8], stop: &Mutex<Option<Stop>>) -> bool {
    let line = String::from_utf8_lossy(line);
    let mut stop = stop.lock().unwrap();
    let Some(wanted) = stop.as_mut().filter(|wanted| line.contains(wanted.command)) else { return false };
    wanted.left -= 1;
    if wanted.left > 0 {
        return false;
    }
    wanted.reached.send(()).unwrap();
    *stop = None;
    true
}
