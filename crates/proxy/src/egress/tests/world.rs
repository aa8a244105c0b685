//! A network without a sandbox: connections say by a table where they wanted to go.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use rustls::{ClientConfig, RootCertStore};
use sandpail_spec::SecretKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use super::super::outside::{self, Outside};
use super::super::{EgressPolicy, Network, Sockets, World as Around};
use crate::tls::{Ca, Mint};
use crate::{Arrival, Audit, AuditRecord, DummyKey, Guest};

/// By the client's port: where its connection "was redirected" from.
static DESTINATIONS: LazyLock<Mutex<HashMap<u16, SocketAddrV4>>> = LazyLock::new(Mutex::default);

/// What is outside.
#[derive(Debug)]
pub(super) struct Elsewhere {
    /// Names and their addresses; each time one is asked for, the first list is used up unless it is the last.
    names: Mutex<HashMap<String, Vec<Vec<IpAddr>>>>,
    /// What really listens at an address.
    servers: Mutex<HashMap<SocketAddr, SocketAddr>>,
    /// Addresses that were connected to.
    pub(super) dialled: Mutex<Vec<SocketAddr>>,
    tls: Arc<ClientConfig>,
    mint: Mint,
}

#[async_trait]
impl Outside for Elsewhere {
    async fn resolve(&self, name: &str) -> io::Result<Vec<IpAddr>> {
        let mut names = self.names.lock().unwrap();
        let lists = names.get_mut(name).ok_or(io::ErrorKind::NotFound)?;
        Ok(if lists.len() > 1 { lists.remove(0) } else { lists[0].clone() })
    }

    fn is_own(&self, address: IpAddr) -> bool {
        address == Ipv4Addr::new(93, 1, 1, 1)
    }

    async fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        self.dialled.lock().unwrap().push(to);
        let server = self.servers.lock().unwrap().get(&to).copied().ok_or(io::ErrorKind::ConnectionRefused)?;
        TcpStream::connect(server).await
    }

    fn tls(&self) -> io::Result<Arc<ClientConfig>> {
        Ok(Arc::clone(&self.tls))
    }
}

#[derive(Debug, Default)]
pub(super) struct Records(pub(super) Mutex<Vec<AuditRecord>>);

impl Audit for Records {
    fn record(&self, record: AuditRecord) {
        self.0.lock().unwrap().push(record);
    }
}

pub(super) struct World {
    pub(super) network: Network,
    pub(super) guest: Arc<Guest>,
    pub(super) elsewhere: Arc<Elsewhere>,
    pub(super) records: Arc<Records>,
    connections: SocketAddr,
    names: SocketAddr,
    trust: Arc<ClientConfig>,
}

/// What a server outside got, and what it says to it.
pub(super) type Talk = fn(&str) -> String;

fn trusting(ca: &Ca) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.certificate().as_bytes()).unwrap()).unwrap();
    Arc::new(outside::client(roots).unwrap())
}

pub(super) fn policy(json: &str) -> EgressPolicy {
    serde_json::from_str(json).unwrap()
}

impl World {
    pub(super) fn new(json: &str) -> Self {
        let ca = Ca::generate("outside").unwrap();
        let elsewhere = Arc::new(Elsewhere {
            names: Mutex::default(),
            servers: Mutex::default(),
            dialled: Mutex::default(),
            tls: trusting(&ca),
            mint: Mint::new(ca).unwrap(),
        });
        let records = Arc::new(Records::default());
        let key = DummyKey { id: "AK".to_owned(), secret: SecretKey::new("s") };
        let guest = Arc::new(Guest::new("sandbox", key, Arc::clone(&records) as Arc<dyn Audit>));
        let sockets = Sockets {
            connections: std::net::TcpListener::bind("127.0.0.1:0").unwrap(),
            names: std::net::UdpSocket::bind("127.0.0.1:0").unwrap(),
        };
        let (connections, names) = (sockets.connections.local_addr().unwrap(), sockets.names.local_addr().unwrap());
        let own = Ca::generate("sandbox").unwrap();
        let trust = trusting(&own);
        let around = Around {
            serve: Arc::new(|stream, arrival, guest| Box::pin(say_arrival(stream, arrival, guest))),
            outside: Arc::clone(&elsewhere) as Arc<dyn Outside>,
            destination: |stream| DESTINATIONS.lock().unwrap().get(&stream.peer_addr().ok()?.port()).copied(),
        };
        let network = Network::start_in(around, Arc::clone(&guest), sockets, policy(json), own).unwrap();
        Self { network, guest, elsewhere, records, connections, names, trust }
    }

    /// A name outside, with lists of addresses that come one after the other.
    pub(super) fn name(&self, name: &str, lists: &[&[&str]]) {
        let lists = lists.iter().map(|list| list.iter().map(|address| address.parse().unwrap()).collect()).collect();
        self.elsewhere.names.lock().unwrap().insert(name.to_owned(), lists);
    }

    /// A server outside at this address. It reads a head (to an empty line), or what comes at once, and answers; over TLS if it
    /// has a name for it.
    pub(super) async fn server(&self, at: &str, tls_name: Option<&str>, talk: Talk) -> Arc<Mutex<Vec<String>>> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let local = listener.local_addr().unwrap();
        self.elsewhere.servers.lock().unwrap().insert(at.parse().unwrap(), local);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let tls = tls_name.map(|name| TlsAcceptor::from(self.elsewhere.mint.config(name).unwrap()));
        let shared = Arc::clone(&heard);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (heard, tls) = (Arc::clone(&shared), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                converse(stream, heard, talk).await;
                            }
                        }
                        None => converse(stream, heard, talk).await,
                    }
                });
            }
        });
        heard
    }

    /// Asks the name server.
    pub(super) async fn ask(&self, name: &str) -> Result<Option<Ipv4Addr>, ResponseCode> {
        self.ask_for(name, RecordType::A).await
    }

    pub(super) async fn ask_for(&self, name: &str, kind: RecordType) -> Result<Option<Ipv4Addr>, ResponseCode> {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(&question(name, kind), self.names).await.unwrap();
        let mut packet = vec![0; 1024];
        let len = within(socket.recv(&mut packet)).await.unwrap();
        read_answer(&packet[..len])
    }

    /// Connects as a sandbox would, to an address.
    pub(super) async fn connect(&self, to: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let port = socket.local_addr().unwrap().port();
        DESTINATIONS.lock().unwrap().insert(port, to.parse().unwrap());
        within(socket.connect(self.connections)).await.unwrap()
    }

    /// Connects without having been redirected.
    pub(super) async fn connect_directly(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        DESTINATIONS.lock().unwrap().remove(&socket.local_addr().unwrap().port());
        within(socket.connect(self.connections)).await.unwrap()
    }

    /// Asks for a name, and connects to what it got.
    pub(super) async fn connect_by_name(&self, name: &str, port: u16) -> TcpStream {
        let address = self.ask(name).await.unwrap().unwrap();
        self.connect(&format!("{address}:{port}")).await
    }

    pub(super) async fn tls(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        within(TlsConnector::from(Arc::clone(&self.trust)).connect(name, stream)).await
    }

    /// TLS by the certificates of the outside, as a sandbox with public certificates sees it.
    pub(super) async fn public_tls(&self, stream: TcpStream, name: &str) -> io::Result<TlsStream<TcpStream>> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        within(TlsConnector::from(Arc::clone(&self.elsewhere.tls)).connect(name, stream)).await
    }

    pub(super) fn dialled(&self) -> Vec<String> {
        self.elsewhere.dialled.lock().unwrap().iter().map(ToString::to_string).collect()
    }

    /// The rules that were told of, waiting for `count` of them.
    pub(super) async fn rules(&self, count: usize) -> Vec<&'static str> {
        let rules =
            || -> Vec<_> { self.records.0.lock().unwrap().iter().filter_map(|record| record.refused).collect() };
        within(async {
            while rules().len() < count {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        rules()
    }
}

/// Nothing here takes long.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), work).await.expect("it takes too long")
}

/// Sends text and reads until the other side ends, or a connection broke.
pub(super) async fn say(stream: &mut (impl super::super::Stream + ?Sized), text: &str) -> String {
    let _result = stream.write_all(text.as_bytes()).await;
    read_all(stream).await
}

pub(super) async fn read_all(stream: &mut (impl super::super::Stream + ?Sized)) -> String {
    let mut all = Vec::new();
    let mut chunk = [0; 4096];
    while let Ok(len @ 1..) = within(stream.read(&mut chunk)).await {
        all.extend_from_slice(&chunk[..len]);
    }
    String::from_utf8(all).unwrap()
}

pub(super) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message.to_vec().unwrap()
}

pub(super) fn read_answer(packet: &[u8]) -> Result<Option<Ipv4Addr>, ResponseCode> {
    let message = Message::from_vec(packet).unwrap();
    if message.metadata.response_code != ResponseCode::NoError {
        return Err(message.metadata.response_code);
    }
    Ok(message.answers.first().map(|record| match &record.data {
        RData::A(address) => address.0,
        other => panic!("{other}"),
    }))
}

/// Stands for S3: says how it was reached.
async fn say_arrival(mut stream: Box<dyn super::super::Stream>, arrival: Arrival, guest: Arc<Guest>) {
    let text = read_head(&mut stream).await;
    let text = text.lines().next().unwrap_or_default();
    let answer = format!("{} {} {} {} {text}", guest.id(), arrival.host, arrival.is_tls, arrival.port);
    stream.write_all(answer.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn converse(mut stream: impl super::super::Stream, heard: Arc<Mutex<Vec<String>>>, talk: Talk) {
    let greeting = talk("");
    if !greeting.is_empty() && stream.write_all(greeting.as_bytes()).await.is_err() {
        return;
    }
    loop {
        let text = read_head(&mut stream).await;
        if text.is_empty() {
            return;
        }
        let answer = talk(&text);
        heard.lock().unwrap().push(text);
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// To an empty line, or to the end of a line that is none of HTTP's.
async fn read_head(stream: &mut (impl super::super::Stream + ?Sized)) -> String {
    let mut bytes = Vec::new();
    while let Ok(byte) = stream.read_u8().await {
        bytes.push(byte);
        let is_http = bytes.windows(5).any(|word| word == b"HTTP/");
        if bytes.ends_with(b"\r\n\r\n") || (byte == b'\n' && !is_http) {
            break;
        }
    }
    String::from_utf8(bytes).unwrap()
}
