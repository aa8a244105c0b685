//! The sandbox's name server. It knows the internal names, the endpoints of mounts, and the hosts that the policy lets; for
//! these it gives addresses of the sandbox's own (see [`super::names`]), and all others do not exist.

use std::io;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType, rdata::A};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::dial::{self, DialError};
use super::{Shared, intercept};

/// Longest question over UDP, which is longer than any honest one.
const QUESTION_LEN_MAX: usize = 4096;
/// Questions of one TCP connection.
const QUESTION_COUNT_MAX: usize = 256;
/// For the next question of a TCP connection.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may remember an address, in seconds. Addresses keep their names much longer.
const TTL: u32 = 60;

/// Answers questions over UDP until the socket fails.
pub(super) async fn serve_packets(shared: Arc<Shared>, socket: UdpSocket) -> io::Result<()> {
    let socket = Arc::new(socket);
    let mut packet = vec![0; QUESTION_LEN_MAX];
    loop {
        let (len, from) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            // What an earlier answer's receiver says that is gone by now.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return Err(error),
        };
        let Some(question) = packet.get(..len).and_then(Question::parse) else { continue };
        // Beyond so many at a time they are not answered, and clients ask again.
        let Ok(permit) = Arc::clone(&shared.questions).try_acquire_owned() else { continue };
        let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
        tokio::spawn(async move {
            if let Some(answer) = answer(&shared, question).await {
                // A client need not wait for its answer.
                let _result = socket.send_to(&answer, from).await;
            }
            drop(permit);
        });
    }
}

/// Answers questions over TCP until the client ends.
pub(super) async fn serve_stream(shared: &Arc<Shared>, stream: &mut tokio::net::TcpStream) -> io::Result<()> {
    for _ in 0..QUESTION_COUNT_MAX {
        let mut question = Vec::new();
        timeout(IDLE_TIMEOUT, async {
            let len = stream.read_u16().await?;
            question.resize(usize::from(len), 0);
            stream.read_exact(&mut question).await
        })
        .await??;
        let Some(question) = Question::parse(&question) else { return Ok(()) };
        let Some(answer) = answer(shared, question).await else { return Ok(()) };
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        stream.write_all(&[&len.to_be_bytes(), answer.as_slice()].concat()).await?;
    }
    Ok(())
}

/// What is asked, as far as it can be read.
#[derive(Debug)]
struct Question {
    answer: Message,
    /// The name, lower-case and without the dot at the end, and the kind of record; none if the answer is known.
    asked: Option<(String, RecordType)>,
}

impl Question {
    /// `None` for what deserves no answer.
    fn parse(packet: &[u8]) -> Option<Self> {
        let id = u16::from_be_bytes(packet.get(..2)?.try_into().ok()?);
        let Ok(message) = Message::from_vec(packet) else {
            // An answer to an answer could go on for ever.
            let is_question = packet.get(2)? & 0x80 == 0;
            let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
            return is_question.then_some(Self { answer, asked: None });
        };
        if message.metadata.message_type != MessageType::Query {
            return None;
        }
        let refused = |code| Some(Self { answer: Message::error_msg(id, message.metadata.op_code, code), asked: None });
        if message.metadata.op_code != OpCode::Query {
            return refused(ResponseCode::NotImp);
        }
        let [query] = message.queries.as_slice() else { return refused(ResponseCode::FormErr) };
        if query.query_class() != DNSClass::IN {
            return refused(ResponseCode::Refused);
        }
        let mut answer = Message::response(id, OpCode::Query);
        answer.metadata.recursion_desired = message.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(query.clone());
        if message.edns.is_some() {
            answer.set_edns(Edns::new());
        }
        let name = query.name().to_ascii().to_ascii_lowercase();
        let name = name.strip_suffix('.').unwrap_or(&name).to_owned();
        let asked = (name, query.query_type());
        Some(Self { answer, asked: Some(asked) })
    }
}

/// The answer, ready to send.
async fn answer(shared: &Arc<Shared>, question: Question) -> Option<Vec<u8>> {
    let Question { mut answer, asked } = question;
    if let Some((name, kind)) = asked {
        let found = look_up(shared, &name, kind).await;
        match found {
            Ok(Some(address)) => {
                let name = answer.queries.first()?.name().clone();
                answer.add_answer(Record::from_rdata(name, TTL, RData::A(A(address))));
            }
            // There is such a name, and it has nothing of this kind.
            Ok(None) => {}
            Err(code) => answer.metadata.response_code = code,
        }
    }
    answer.to_vec().ok()
}

async fn look_up(
    shared: &Arc<Shared>,
    name: &str,
    kind: RecordType,
) -> Result<Option<std::net::Ipv4Addr>, ResponseCode> {
    if !is_host_name(name) {
        return Err(ResponseCode::NXDomain);
    }
    let is_ours = intercept::is_internal(name) || intercept::is_endpoint(&shared.guest, name);
    if !is_ours {
        let policy = shared.policy.borrow().clone();
        let checked = if kind == RecordType::A {
            dial::addresses(&*shared.outside, &policy, name).await.map(drop)
        } else {
            policy.check_name(name).map_err(DialError::from)
        };
        match checked {
            Ok(()) => {}
            Err(DialError::Forbidden(forbidden)) => {
                if kind == RecordType::A {
                    shared.tell_refused("RESOLVE", name, forbidden.rule());
                }
                return Err(ResponseCode::NXDomain);
            }
            Err(error) => {
                tracing::debug!(sandbox = shared.guest.id(), name, %error, "a name has no address");
                return Err(ResponseCode::NXDomain);
            }
        }
    }
    if kind != RecordType::A {
        return Ok(None);
    }
    let address = shared.names.lock().unwrap_or_else(PoisonError::into_inner).address(name);
    address.map(Some).ok_or(ResponseCode::ServFail)
}

/// Letters, digits, hyphens and underscores, with dots between. Everything else is no host's name.
fn is_host_name(name: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
    name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;

    use super::*;

    #[test]
    fn questions() {
        let mut message = Message::query();
        message.add_query(Query::query(Name::from_ascii("WWW.Example.com.").unwrap(), RecordType::A));
        let packet = message.to_vec().unwrap();
        let asked = |packet: &[u8]| Question::parse(packet).and_then(|question| question.asked);
        assert_eq!(asked(&packet), Some(("www.example.com".to_owned(), RecordType::A)));
        let code = |packet: &[u8]| Question::parse(packet).map(|question| question.answer.metadata.response_code);
        // Cut off, which is a question all the same.
        assert_eq!(code(&packet[..packet.len() - 3]), Some(ResponseCode::FormErr));
        for len in 0..3 {
            assert_eq!(code(&packet[..len]), None);
        }
        let mut answer = packet.clone();
        answer[2] |= 0x80;
        assert_eq!(code(&answer), None);
        assert_eq!(code(&answer[..20]), None);
        let mut two = message.clone();
        two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
        assert_eq!(code(&two.to_vec().unwrap()), Some(ResponseCode::FormErr));
        let mut update = packet.clone();
        update[2] = 5 << 3;
        assert_eq!(code(&update), Some(ResponseCode::NotImp));
        let mut chaos = packet;
        let last = chaos.len() - 1;
        chaos[last] = 3;
        assert_eq!(code(&chaos), Some(ResponseCode::Refused));
    }

    #[test]
    fn host_names() {
        assert!(is_host_name("a-b.c_d.e1"));
        for name in ["", "a..b", ".a", "a b", "a\\046b", "ä", "a/b", "a:1"] {
            assert!(!is_host_name(name), "{name}");
        }
    }
}
