//! Where each request of a connection begins and ends, and whether its head is one that we take. Pure.
//!
//! ```text
//!            ┌───────────── length 0 ◄──────────────┐
//!            ▼                                      │
//! ─► Head ───┼─ length n ─► Body ── n bytes ────────┤
//!            └─ chunked ──► ChunkSize ─► ChunkData ─► ChunkEnd
//!                               │ ▲───────────────────────┘
//!                               └ 0 ─► Trailers ── empty line ─► Head
//! ```

use crate::Denied;

/// Longest head in bytes: S3 allows 8 KiB of headers, signatures and tokens need some more.
const HEAD_LEN_MAX: usize = 64 * 1024;
/// Most headers.
const HEADERS_MAX: usize = 100;
/// Longest line of a chunk's size: 16 digits and CRLF.
const SIZE_LINE_MAX: usize = 18;
/// Most bytes of trailers.
const TRAILERS_LEN_MAX: usize = 4096;
/// S3's largest object, and more than that with `aws-chunked` around it. No single number of a framing is larger.
const LEN_MAX: u64 = 6 << 40;

/// Methods that pass; what they may do is decided later.
const METHODS: [&[u8]; 7] = [b"GET", b"HEAD", b"PUT", b"POST", b"DELETE", b"OPTIONS", b"PATCH"];

/// Headers that are of the connection, which the framing looks at.
const MEANT: [&str; 9] = [
    "host",
    "content-length",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
    "connection",
    "proxy-connection",
    "te",
    "expect",
];

/// Trailers that would change the request, were they merged into its headers.
const FORBIDDEN_TRAILERS: [&str; 15] = [
    "authorization",
    "connection",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "expect",
    "host",
    "keep-alive",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Defines the rules, and the list of all.
macro_rules! rules {
    ($($name:ident = $kind:ident $text:literal;)*) => {
        /// What can be wrong with a connection's bytes.
        pub(crate) mod rule {
            use crate::Denied;

            $(pub(crate) const $name: Denied = Denied::$kind($text);)*

            /// All of them, so that one can be named by its index.
            pub(crate) const ALL: &[Denied] = &[$($name),*];
        }
    };
}

rules! {
    CHUNK_END = Malformed "a chunk is longer than its size";
    HEAD_LEN = TooLarge "the head of the request is larger than 64 KiB";
    CHUNK_SIZE = Malformed "the size of a chunk must be 1 to 16 hexadecimal digits, and nothing else";
    CHUNK_LEN = TooLarge "a chunk is larger than any object";
    TRAILERS_LEN = TooLarge "the trailers of the request are larger than 4 KiB";
    TRAILER_COUNT = TooLarge "the request has more than 100 trailers";
    TRAILER = Malformed "a trailer of the request names a header that cannot be a trailer";
    LINE_END = Malformed "a line does not end in CRLF";
    FOLDED = Malformed "a header is folded";
    NO_COLON = Malformed "a header has no colon";
    HEADER_NAME = Malformed "the name of a header is not a token";
    CONTROL = Malformed "a header holds a control character";
    HEADER_COUNT = TooLarge "the request has more than 100 headers";
    HOST = Malformed "the Host header is not a host and a port";
    HOST_TWICE = Malformed "the Host header is given twice";
    LENGTH = Malformed "Content-Length is not a number";
    BODY_LEN = TooLarge "the body is larger than any object";
    LENGTH_TWICE = Malformed "Content-Length is given twice";
    TRANSFER_ENCODING = Malformed "Transfer-Encoding must be chunked, once";
    UPGRADE = Malformed "connections are not upgraded";
    CONNECTION = Malformed "Connection may say close or keep-alive";
    TE = Malformed "TE may say trailers only";
    EXPECT = Malformed "Expect may say 100-continue only";
    REQUEST_LINE = Malformed "the request line is not METHOD, URL, HTTP/1.1";
    VERSION = Malformed "only HTTP/1.1 is spoken here";
    METHOD = Method "this method is not taken";
    URL = Malformed "the URL holds a character that must be percent-encoded";
    URL_FORM = Malformed "the URL must be a path";
    EMPTY_LINE = Malformed "there is an empty line before the request";
    NO_HOST = Malformed "there is no Host header";
    URL_HOST = Malformed "the URL names another host than the Host header";
    BOTH_LENGTHS = Malformed "Content-Length and Transfer-Encoding are given together";
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Head,
    Body { left: u64 },
    ChunkSize,
    ChunkData { left: u64 },
    ChunkEnd,
    Trailers,
}

/// What the lines of a head said so far.
#[derive(Debug, Default)]
struct Head {
    has_request_line: bool,
    header_count: usize,
    /// The authority of a URL in absolute form.
    authority: Option<String>,
    host: Option<String>,
    content_length: Option<u64>,
    is_chunked: bool,
}

/// What may be passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// This many bytes of the input are good.
    Pass(usize),
    /// The input ends before something that must be seen whole.
    More,
}

/// Follows one connection.
#[derive(Debug)]
pub(crate) struct Framing {
    state: State,
    head: Head,
    /// Bytes of the head, line or trailers that were looked at already.
    scanned: usize,
    /// Bytes of trailers that passed.
    trailers_len: usize,
    trailer_count: usize,
}

impl Framing {
    pub(crate) fn new() -> Self {
        Self { state: State::Head, head: Head::default(), scanned: 0, trailers_len: 0, trailer_count: 0 }
    }

    /// Whether the connection is between two requests, or in a head that did not pass yet.
    pub(crate) fn is_at_head(&self) -> bool {
        self.state == State::Head
    }

    /// How many bytes of a body pass without being looked at.
    pub(crate) fn blind(&self) -> u64 {
        match self.state {
            State::Body { left } | State::ChunkData { left } => left,
            State::Head | State::ChunkSize | State::ChunkEnd | State::Trailers => 0,
        }
    }

    /// Counts bytes that passed because of [`Self::blind`].
    pub(crate) fn passed(&mut self, len: u64) {
        self.state = match self.state {
            State::Body { left } if left == len => State::Head,
            State::Body { left } => State::Body { left: left.saturating_sub(len) },
            State::ChunkData { left } if left == len => State::ChunkEnd,
            State::ChunkData { left } => State::ChunkData { left: left.saturating_sub(len) },
            state => state,
        };
    }

    /// Looks at `input`, which begins where the last pass ended (what was not passed must come again, with more).
    ///
    /// # Errors
    /// [`Denied`]: the connection must end.
    pub(crate) fn step(&mut self, input: &[u8]) -> Result<Step, Denied> {
        if input.is_empty() {
            return Ok(Step::More);
        }
        match self.state {
            State::Head => self.head(input),
            State::Body { left } | State::ChunkData { left } => {
                let len = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
                self.passed(len as u64);
                Ok(Step::Pass(len))
            }
            State::ChunkSize => self.chunk_size(input),
            State::ChunkEnd => match input {
                [b'\r', b'\n', ..] => {
                    self.state = State::ChunkSize;
                    Ok(Step::Pass(2))
                }
                [b'\r'] => Ok(Step::More),
                _ => Err(rule::CHUNK_END),
            },
            State::Trailers => self.trailers(input),
        }
    }

    fn head(&mut self, input: &[u8]) -> Result<Step, Denied> {
        while let Some((line, next)) = line(input, self.scanned)? {
            if next > HEAD_LEN_MAX {
                return Err(rule::HEAD_LEN);
            }
            self.scanned = next;
            if !line.is_empty() {
                self.head.line(line)?;
                continue;
            }
            let head = std::mem::take(&mut self.head);
            self.scanned = 0;
            self.state = head.framing()?;
            return Ok(Step::Pass(next));
        }
        if input.len() >= HEAD_LEN_MAX { Err(rule::HEAD_LEN) } else { Ok(Step::More) }
    }

    fn chunk_size(&mut self, input: &[u8]) -> Result<Step, Denied> {
        let Some((line, next)) = line(&input[..input.len().min(SIZE_LINE_MAX)], 0)? else {
            return if input.len() >= SIZE_LINE_MAX { Err(rule::CHUNK_SIZE) } else { Ok(Step::More) };
        };
        if line.is_empty() || !line.iter().all(u8::is_ascii_hexdigit) {
            return Err(rule::CHUNK_SIZE);
        }
        let size = std::str::from_utf8(line).ok().and_then(|digits| u64::from_str_radix(digits, 16).ok());
        let size = size.filter(|size| *size <= LEN_MAX).ok_or(rule::CHUNK_LEN)?;
        (self.trailers_len, self.trailer_count) = (0, 0);
        self.state = if size == 0 { State::Trailers } else { State::ChunkData { left: size } };
        Ok(Step::Pass(next))
    }

    fn trailers(&mut self, input: &[u8]) -> Result<Step, Denied> {
        let Some((line, next)) = line(input, 0)? else {
            return if self.trailers_len + input.len() > TRAILERS_LEN_MAX {
                Err(rule::TRAILERS_LEN)
            } else {
                Ok(Step::More)
            };
        };
        self.trailers_len += next;
        if self.trailers_len > TRAILERS_LEN_MAX {
            return Err(rule::TRAILERS_LEN);
        }
        if line.is_empty() {
            self.state = State::Head;
        } else {
            // hyper would break off without a word.
            self.trailer_count += 1;
            if self.trailer_count > HEADERS_MAX {
                return Err(rule::TRAILER_COUNT);
            }
            let name = header(line)?.0.to_ascii_lowercase();
            let is_forbidden = FORBIDDEN_TRAILERS.iter().any(|forbidden| forbidden.as_bytes() == name);
            if is_forbidden || name.starts_with(b"x-amz-") || name.starts_with(b"x-goog-") {
                return Err(rule::TRAILER);
            }
        }
        Ok(Step::Pass(next))
    }
}

/// The line that begins at `start`, without its CRLF, and where the next begins.
fn line(input: &[u8], start: usize) -> Result<Option<(&[u8], usize)>, Denied> {
    let rest = &input[start..];
    let Some(len) = memchr::memchr(b'\n', rest) else { return Ok(None) };
    let line = rest[..len].strip_suffix(b"\r").ok_or(rule::LINE_END)?;
    Ok(Some((line, start + len + 1)))
}

/// What a token may hold: every byte of a head is looked up.
static TOKEN: [bool; 256] = {
    let mut is_token = [false; 256];
    let all = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut at = 0;
    while at < all.len() {
        is_token[all[at] as usize] = true;
        at += 1;
    }
    is_token
};

fn is_token(byte: u8) -> bool {
    TOKEN[usize::from(byte)]
}

/// Name, as it was written, and value of a header.
fn header(line: &[u8]) -> Result<(&[u8], &[u8]), Denied> {
    if line.starts_with(b" ") || line.starts_with(b"\t") {
        return Err(rule::FOLDED);
    }
    let colon = memchr::memchr(b':', line).ok_or(rule::NO_COLON)?;
    let (name, value) = (&line[..colon], &line[colon + 1..]);
    if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
        return Err(rule::HEADER_NAME);
    }
    // All bytes, without a way out: so the compiler takes many at a time.
    let is_control = |byte: u8| ((byte < b' ') & (byte != b'\t')) | (byte == 0x7f);
    if value.iter().fold(false, |found, byte| found | is_control(*byte)) {
        return Err(rule::CONTROL);
    }
    Ok((name, value.trim_ascii()))
}

impl Head {
    fn line(&mut self, line: &[u8]) -> Result<(), Denied> {
        if !self.has_request_line {
            self.has_request_line = true;
            return self.request_line(line);
        }
        self.header_count += 1;
        if self.header_count > HEADERS_MAX {
            return Err(rule::HEADER_COUNT);
        }
        let (name, value) = header(line)?;
        let is = |text: &str| value.eq_ignore_ascii_case(text.as_bytes());
        let named = |known: &&str| name.eq_ignore_ascii_case(known.as_bytes());
        let Some(known) = MEANT.iter().find(|known| named(known)) else { return Ok(()) };
        match *known {
            "host" => {
                let text = std::str::from_utf8(value).ok().filter(|text| !text.is_empty());
                let host = text.ok_or(rule::HOST)?;
                if self.host.replace(host.to_owned()).is_some() {
                    return Err(rule::HOST_TWICE);
                }
            }
            "content-length" => {
                let is_number = (1..=19).contains(&value.len()) && value.iter().all(u8::is_ascii_digit);
                let len = std::str::from_utf8(value).ok().filter(|_| is_number).and_then(|text| text.parse().ok());
                let len: u64 = len.ok_or(rule::LENGTH)?;
                if len > LEN_MAX {
                    return Err(rule::BODY_LEN);
                }
                if self.content_length.replace(len).is_some() {
                    return Err(rule::LENGTH_TWICE);
                }
            }
            "transfer-encoding" => {
                if self.is_chunked || !is("chunked") {
                    return Err(rule::TRANSFER_ENCODING);
                }
                self.is_chunked = true;
            }
            "upgrade" | "http2-settings" => return Err(rule::UPGRADE),
            "connection" | "proxy-connection" => {
                let is_known = |word: &[u8]| {
                    [&b""[..], b"close", b"keep-alive", b"te"].iter().any(|known| word.eq_ignore_ascii_case(known))
                };
                if !value.split(|byte| *byte == b',').all(|word| is_known(word.trim_ascii())) {
                    return Err(rule::CONNECTION);
                }
            }
            "te" if !(is("trailers") || value.is_empty()) => {
                return Err(rule::TE);
            }
            "expect" if !is("100-continue") => return Err(rule::EXPECT),
            _ => {}
        }
        Ok(())
    }

    fn request_line(&mut self, line: &[u8]) -> Result<(), Denied> {
        let mut words = line.split(|byte| *byte == b' ');
        let mut word = || words.next().filter(|word| !word.is_empty()).ok_or(rule::REQUEST_LINE);
        let (method, target, version) = (word()?, word()?, word()?);
        if words.next().is_some() || !method.iter().all(|byte| is_token(*byte)) {
            return Err(rule::REQUEST_LINE);
        }
        if version != b"HTTP/1.1" {
            return Err(rule::VERSION);
        }
        if !METHODS.contains(&method) {
            return Err(rule::METHOD);
        }
        // What RFC 3986 does not allow in a URL, a fragment among it, clients must encode.
        if !target.iter().all(|byte| (b'!'..=b'~').contains(byte) && !b"\"#<>\\^`{|}".contains(byte)) {
            return Err(rule::URL);
        }
        if target[0] == b'/' {
            return Ok(());
        }
        let text = std::str::from_utf8(target).map_err(|_| rule::REQUEST_LINE)?;
        let scheme_len = ["http://", "https://"]
            .iter()
            .find(|scheme| text.get(..scheme.len()).is_some_and(|start| start.eq_ignore_ascii_case(scheme)));
        let rest = &text[scheme_len.ok_or(rule::URL_FORM)?.len()..];
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') {
            return Err(rule::URL_FORM);
        }
        self.authority = Some(authority.to_owned());
        Ok(())
    }

    /// What comes behind the head.
    fn framing(self) -> Result<State, Denied> {
        if !self.has_request_line {
            return Err(rule::EMPTY_LINE);
        }
        let host = self.host.ok_or(rule::NO_HOST)?;
        if self.authority.is_some_and(|authority| !authority.eq_ignore_ascii_case(&host)) {
            return Err(rule::URL_HOST);
        }
        match (self.content_length, self.is_chunked) {
            (Some(_), true) => Err(rule::BOTH_LENGTHS),
            (None, true) => Ok(State::ChunkSize),
            (None | Some(0), false) => Ok(State::Head),
            (Some(left), false) => Ok(State::Body { left }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Feeds `input` in pieces, as a connection does: what passes, and the refusal.
    fn drive(input: &[u8], step: usize) -> (Vec<u8>, Option<Denied>) {
        let mut framing = Framing::new();
        let (mut passed, mut waiting) = (Vec::new(), Vec::new());
        for piece in input.chunks(step) {
            waiting.extend_from_slice(piece);
            loop {
                match framing.step(&waiting) {
                    Ok(Step::Pass(len)) => passed.extend(waiting.drain(..len)),
                    Ok(Step::More) => break,
                    Err(denied) => return (passed, Some(denied)),
                }
            }
        }
        (passed, None)
    }

    #[track_caller]
    fn pass(input: &str) {
        for step in [1, 3, 17, 10_000] {
            assert_eq!(drive(input.as_bytes(), step), (input.as_bytes().to_vec(), None), "{input:?}");
        }
    }

    /// A request that is refused, behind one that is not.
    #[track_caller]
    fn refuse(input: &str, expected: &Denied) {
        let first = "PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc";
        for (before, step) in [("", 1), ("", 7), ("", 1 << 20), (first, 1), (first, 1 << 20)] {
            let (passed, denied) = drive(format!("{before}{input}").as_bytes(), step);
            assert_eq!(denied.as_ref(), Some(expected), "{input:?}");
            assert!(passed.starts_with(before.as_bytes()), "{input:?}");
        }
    }

    fn head(lines: &str) -> String {
        format!("GET / HTTP/1.1\r\nHost: h\r\n{lines}\r\n\r\n")
    }

    #[test]
    fn good_requests_pass() {
        let get = "GET /b/k?x=y%20z HTTP/1.1\r\nHost: s3.internal\r\nUser-Agent: a\tb \u{e9}\r\nEmpty:\r\n\r\n";
        let put = "PUT /b/k HTTP/1.1\r\nhost:h:80\r\ncontent-length:  3 \r\n\
            Connection: keep-alive\r\nexpect: 100-continue\r\n\r\na\nb";
        let chunked = "POST http://h/b HTTP/1.1\r\nHost: H\r\nTransfer-Encoding: Chunked\r\n\r\n\
            5\r\nhello\r\n00a\r\n0123456789\r\n0\r\nx-sum: 1\r\n\r\n";
        let empty = "DELETE /b/k HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nTE: trailers\r\n\r\n";
        pass(get);
        pass(&[get, put, chunked, empty, chunked, put, get].concat());
    }

    #[test]
    fn bad_heads_do_not() {
        for (line, rule) in [
            ("GET / HTTP/1.0", rule::VERSION),
            ("GET / HTTP/2.0", rule::VERSION),
            ("GET / http/1.1", rule::VERSION),
            ("GET /", rule::REQUEST_LINE),
            ("GET  / HTTP/1.1", rule::REQUEST_LINE),
            ("GET / HTTP/1.1 ", rule::REQUEST_LINE),
            (" GET / HTTP/1.1", rule::REQUEST_LINE),
            ("GET /a b HTTP/1.1", rule::REQUEST_LINE),
            ("G\u{e9}T / HTTP/1.1", rule::REQUEST_LINE),
            ("CONNECT h:443 HTTP/1.1", rule::METHOD),
            ("TRACE / HTTP/1.1", rule::METHOD),
            ("get / HTTP/1.1", rule::METHOD),
            ("REFUSED /1 HTTP/1.1", rule::METHOD),
            ("OPTIONS * HTTP/1.1", rule::URL_FORM),
            ("GET b/k HTTP/1.1", rule::URL_FORM),
            ("GET ftp://h/ HTTP/1.1", rule::URL_FORM),
            ("GET http:///k HTTP/1.1", rule::URL_FORM),
            ("GET http://u@h/k HTTP/1.1", rule::URL_FORM),
            ("GET http://other/k HTTP/1.1", rule::URL_HOST),
            ("GET http://h:81/k HTTP/1.1", rule::URL_HOST),
            ("GET /#x HTTP/1.1", rule::URL),
            ("GET /\\x HTTP/1.1", rule::URL),
            ("GET /\u{e9} HTTP/1.1", rule::URL),
            ("GET /\0 HTTP/1.1", rule::URL),
            ("GET /a\rb HTTP/1.1", rule::URL),
            ("GET /\tb HTTP/1.1", rule::URL),
        ] {
            refuse(&format!("{line}\r\nHost: h\r\n\r\n"), &rule);
        }
        refuse("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", &rule::VERSION);
        refuse("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", &rule::EMPTY_LINE);
        refuse("GET / HTTP/1.1\r\n\r\n", &rule::NO_HOST);
        refuse("GET / HTTP/1.1\nHost: h\n\n", &rule::LINE_END);
        for (line, rule) in [
            ("A: b\nC: d", rule::LINE_END),
            ("A: b\r\n c", rule::FOLDED),
            ("A: b\r\n\tc", rule::FOLDED),
            ("A: b\rC: d", rule::CONTROL),
            ("A: \0", rule::CONTROL),
            ("A: \x7f", rule::CONTROL),
            ("A : b", rule::HEADER_NAME),
            (": b", rule::HEADER_NAME),
            ("A\0: b", rule::HEADER_NAME),
            ("A(: b", rule::HEADER_NAME),
            ("nothing", rule::NO_COLON),
            ("Host: h", rule::HOST_TWICE),
            ("host: other", rule::HOST_TWICE),
            ("Content-Length: 1\r\nContent-Length: 1", rule::LENGTH_TWICE),
            ("Content-Length: 1, 1", rule::LENGTH),
            ("Content-Length: +1", rule::LENGTH),
            ("Content-Length: -1", rule::LENGTH),
            ("Content-Length: 0x1", rule::LENGTH),
            ("Content-Length:", rule::LENGTH),
            ("Content-Length: 99999999999999999999", rule::LENGTH),
            ("Content-Length: 9999999999999999999", rule::BODY_LEN),
            ("Content-Length: 1\r\nTransfer-Encoding: chunked", rule::BOTH_LENGTHS),
            ("Transfer-Encoding: chunked\r\nContent-Length: 0", rule::BOTH_LENGTHS),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding: identity", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding: gzip, chunked", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding: chunked, chunked", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding: xchunked", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding: chunked;a=b", rule::TRANSFER_ENCODING),
            ("Transfer-Encoding:\x0bchunked", rule::CONTROL),
            ("Transfer-Encoding : chunked", rule::HEADER_NAME),
            ("Upgrade: h2c", rule::UPGRADE),
            ("HTTP2-Settings: a", rule::UPGRADE),
            ("Connection: upgrade", rule::CONNECTION),
            ("Connection: close, authorization", rule::CONNECTION),
            ("TE: gzip", rule::TE),
            ("Expect: 200-ok", rule::EXPECT),
        ] {
            refuse(&head(line), &rule);
        }
        refuse(&head(&format!("A: {}", "b".repeat(HEAD_LEN_MAX))), &rule::HEAD_LEN);
        refuse(&head(&"A: b\r\n".repeat(101)), &rule::HEADER_COUNT);
        refuse(&format!("GET /{}", "a".repeat(HEAD_LEN_MAX)), &rule::HEAD_LEN);
    }

    #[test]
    fn bad_chunks_do_not() {
        for (body, rule) in [
            ("5;a=b\r\nhello\r\n", rule::CHUNK_SIZE),
            ("5 \r\nhello\r\n", rule::CHUNK_SIZE),
            ("0x5\r\nhello\r\n", rule::CHUNK_SIZE),
            ("-5\r\nhello\r\n", rule::CHUNK_SIZE),
            ("\r\nhello\r\n", rule::CHUNK_SIZE),
            ("00000000000000005\r\nhello\r\n", rule::CHUNK_SIZE),
            ("5\nhello\r\n", rule::LINE_END),
            ("5\r\nhelloX", rule::CHUNK_END),
            ("5\r\nhello\n", rule::CHUNK_END),
            ("5\r\nhello\rX", rule::CHUNK_END),
            ("ffffffffffffffff\r\n", rule::CHUNK_LEN),
            ("0\r\nContent-Length: 5\r\n\r\n", rule::TRAILER),
            ("0\r\nhost: evil\r\n\r\n", rule::TRAILER),
            ("0\r\nTransfer-Encoding: chunked\r\n\r\n", rule::TRAILER),
            ("0\r\nx-amz-acl: public-read\r\n\r\n", rule::TRAILER),
            ("0\r\nA : b\r\n\r\n", rule::HEADER_NAME),
            ("0\r\n A: b\r\n\r\n", rule::FOLDED),
            ("0\r\nA: b\n\r\n", rule::LINE_END),
        ] {
            refuse(&format!("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n{body}"), &rule);
        }
        let long = format!("A: {}\r\n", "b".repeat(100)).repeat(50);
        refuse(
            &format!("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{long}"),
            &rule::TRAILERS_LEN,
        );
        let many = "A: b\r\n".repeat(101);
        refuse(
            &format!("PUT / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n{many}"),
            &rule::TRAILER_COUNT,
        );
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces(input in proptest::collection::vec(any::<u8>(), 0..400), step in 1..40_usize) {
            let whole = drive(&input, usize::MAX);
            let pieces = drive(&input, step);
            prop_assert_eq!(&pieces.1, &whole.1);
            prop_assert!(input.starts_with(&pieces.0) && input.starts_with(&whole.0));
        }

        #[test]
        fn changed_requests_in_any_pieces(index in 0..200_usize, byte in any::<u8>(), step in 1..40_usize) {
            let mut input = b"PUT /b/k HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n\
                5\r\nhello\r\n0\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n".to_vec();
            let index = index % input.len();
            input[index] = byte;
            let whole = drive(&input, usize::MAX);
            let pieces = drive(&input, step);
            prop_assert_eq!(pieces, whole);
        }
    }
}
