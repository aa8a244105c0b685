//! A proxy that counts HTTP requests, and breaks them on demand.
//!
//! It looks only at what clients send, hands bytes on unchanged and knows nothing of the S3 client under test,
//! so that its counts are independent. Signatures stay valid, for they cover the `Host` the client used.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

/// What goes wrong with the requests that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Answered with 503 `SlowDown`.
    SlowDown,
    /// Answered with 500 `InternalError`.
    InternalError,
    /// The connection is cut instead of an answer.
    Reset,
    /// The answer ends after so many bytes, head included.
    Truncate(usize),
    /// Answered with 403 `AccessDenied`.
    AccessDenied,
    /// Handed on so much later, whether the client is still there or not.
    Late(Duration),
}

#[derive(Debug)]
struct Rule {
    matches: String,
    fault: Fault,
    left: usize,
}

#[derive(Debug, Default)]
struct State {
    requests: Vec<String>,
    rules: Vec<Rule>,
    connections: Vec<TcpStream>,
    latency: Duration,
    hangs: bool,
    bytes_sent: u64,
}

/// A proxy in front of one server; it ends when dropped.
#[derive(Debug)]
pub struct Proxy {
    addr: SocketAddr,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Listens on a free port and hands on to `upstream`.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let addr = listener.local_addr()?;
        let state = Arc::new(Mutex::new(State::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&state), Arc::clone(&stop));
        thread::spawn(move || {
            for client in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(client) = client else { continue };
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    // A broken connection is the client's to notice.
                    let _ = serve(&client, upstream, &shared);
                    let _ = client.shutdown(Shutdown::Both);
                });
            }
        });
        Ok(Self { addr, state, stop })
    }

    /// The URL that a client is given.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Breaks the next `count` requests whose line (such as `PUT /bucket/key COPY`) contains `matches`.
    pub fn break_next(&self, matches: &str, fault: Fault, count: usize) {
        self.state().rules.push(Rule { matches: matches.to_owned(), fault, left: count });
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.state().rules.clear();
    }

    /// Lets every request wait first, as a distant server would.
    pub fn set_latency(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Takes requests and answers none, or answers them now.
    pub fn set_hanging(&self, hangs: bool) {
        self.state().hangs = hangs;
    }

    /// The requests since the last call: method, target, and `COPY` when there is a copy source.
    pub fn take(&self) -> Vec<String> {
        let mut state = self.state();
        state.bytes_sent = 0;
        std::mem::take(&mut state.requests)
    }

    /// The bytes of request bodies since the last [`Proxy::take`].
    pub fn bytes_sent(&self) -> u64 {
        self.state().bytes_sent
    }

    /// The requests since the last call by kind, and how many they are in total.
    pub fn take_counts(&self) -> (BTreeMap<&'static str, usize>, usize) {
        let requests = self.take();
        let mut counts = BTreeMap::new();
        for request in &requests {
            *counts.entry(kind(request)).or_default() += 1;
        }
        (counts, requests.len())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        self.set_hanging(false);
        for connection in &self.state().connections {
            let _ = connection.shutdown(Shutdown::Both);
        }
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The kind of a request as [`Proxy::take`] writes it.
pub fn kind(request: &str) -> &'static str {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let copy = request.ends_with(" COPY");
    let query = target.split_once('?').map_or("", |(_, query)| query);
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match method {
        "GET" if has("list-type") || has("delimiter") || has("prefix") => "LIST",
        "GET" if !query.is_empty() && !has("x-id") => "GET?",
        "GET" => "GET",
        "HEAD" => "HEAD",
        "PUT" if has("partNumber") && copy => "COPY-PART",
        "PUT" if has("partNumber") => "PART",
        "PUT" if copy => "COPY",
        "PUT" => "PUT",
        "POST" if has("uploads") => "CREATE-MULTIPART",
        "POST" if has("uploadId") => "COMPLETE-MULTIPART",
        "POST" if has("delete") => "DELETE-MANY",
        "DELETE" => "DELETE",
        _ => "OTHER",
    }
}

fn serve(client: &TcpStream, upstream: SocketAddr, state: &Mutex<State>) -> io::Result<()> {
    let server = TcpStream::connect(upstream)?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    {
        let mut state = lock(state);
        // Reuse the list's room: long tests open many connections.
        state.connections.retain(|open| open.peer_addr().is_ok());
        state.connections.push(client.try_clone()?);
        state.connections.push(server.try_clone()?);
    }
    // How many more bytes the client may be told, when an answer is to be cut.
    let budget = Arc::new(Mutex::new(None::<usize>));
    let answers = {
        let (mut from, mut to, budget) = (server.try_clone()?, client.try_clone()?, Arc::clone(&budget));
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(len @ 1..) = from.read(&mut buffer) {
                let mut allowed = len;
                let mut cut = false;
                if let Some(left) = budget.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
                    cut = *left <= len;
                    allowed = len.min(*left);
                    *left -= allowed;
                }
                if to.write_all(&buffer[..allowed]).is_err() || cut {
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Both);
            let _ = from.shutdown(Shutdown::Both);
        })
    };
    let result = requests(client, &server, state, &budget);
    let _ = server.shutdown(Shutdown::Write);
    // The last answer may still be on its way.
    let _ = answers.join();
    result
}

fn requests(
    mut client: &TcpStream,
    mut server: &TcpStream,
    state: &Mutex<State>,
    budget: &Mutex<Option<usize>>,
) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(64 << 10, client);
    loop {
        let mut head = Vec::new();
        loop {
            let len = reader.read_until(b'\n', &mut head)?;
            if len == 0 {
                return Ok(());
            }
            if head.ends_with(b"\r\n\r\n") {
                break;
            }
        }
        let text = String::from_utf8_lossy(&head).into_owned();
        let header = |name: &str| {
            text.lines().skip(1).find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let copy = if header("x-amz-copy-source").is_some() { " COPY" } else { "" };
        let request: Vec<&str> = text.lines().next().unwrap_or_default().split(' ').collect();
        let request = format!("{} {}{copy}", request[0], request.get(1).copied().unwrap_or_default());
        let body_len: u64 = header("content-length").and_then(|len| len.parse().ok()).unwrap_or(0);
        let chunked = header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"));

        let (fault, latency) = {
            let mut state = lock(state);
            state.requests.push(request.clone());
            state.bytes_sent += body_len;
            let rule = state.rules.iter_mut().find(|rule| rule.left > 0 && request.contains(&rule.matches));
            let fault = rule.map(|rule| {
                rule.left -= 1;
                rule.fault
            });
            (fault, state.latency)
        };
        if !latency.is_zero() {
            thread::sleep(latency);
        }
        while lock(state).hangs {
            thread::sleep(Duration::from_millis(20));
        }
        match fault {
            Some(Fault::Reset) => {
                let _ = server.shutdown(Shutdown::Both);
                return client.shutdown(Shutdown::Both);
            }
            Some(Fault::SlowDown) => return refuse(&mut client, "503 Service Unavailable", "SlowDown"),
            Some(Fault::InternalError) => return refuse(&mut client, "500 Internal Server Error", "InternalError"),
            Some(Fault::AccessDenied) => return refuse(&mut client, "403 Forbidden", "AccessDenied"),
            Some(Fault::Truncate(len)) => *budget.lock().unwrap_or_else(PoisonError::into_inner) = Some(len),
            Some(Fault::Late(by)) => thread::sleep(by),
            None => {}
        }
        server.write_all(&head)?;
        if chunked {
            pass_chunks(&mut reader, &mut server)?;
        } else if io::copy(&mut (&mut reader).take(body_len), &mut server)? < body_len {
            return Ok(());
        }
    }
}

fn refuse(client: &mut &TcpStream, status: &str, code: &str) -> io::Result<()> {
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>made by the test</Message></Error>");
    write!(
        client,
        "HTTP/1.1 {status}\r\ncontent-type: application/xml\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    client.flush()?;
    // The client may still be sending a body; take it, so that it reads the answer and not a reset.
    client.shutdown(Shutdown::Write)?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut sink = vec![0; 64 << 10];
    while matches!(client.read(&mut sink), Ok(1..)) {}
    Ok(())
}

fn pass_chunks(reader: &mut BufReader<&TcpStream>, server: &mut &TcpStream) -> io::Result<()> {
    loop {
        let mut line = Vec::new();
        reader.read_until(b'\n', &mut line)?;
        server.write_all(&line)?;
        let text = String::from_utf8_lossy(&line);
        let size = text.trim().split(';').next().unwrap_or_default();
        let len = u64::from_str_radix(size, 16).map_err(io::Error::other)?;
        // Chunk and its line end; the last one has no bytes, and trailers up to an empty line may follow.
        if len > 0 {
            io::copy(&mut reader.take(len + 2), server)?;
            continue;
        }
        loop {
            let mut trailer = Vec::new();
            reader.read_until(b'\n', &mut trailer)?;
            server.write_all(&trailer)?;
            if trailer == b"\r\n" || trailer.is_empty() {
                return Ok(());
            }
        }
    }
}
