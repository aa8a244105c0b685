//! Frames of logs that are appended to by a process that may be killed: length, CRC-32C, payload.
//!
//! What it had begun to append is no whole frame, or its sum is wrong: the log ends before it.

/// Length and sum before each payload.
const HEAD_LEN: usize = 8;
/// No payload is longer: names, tags and 2 KB of metadata.
const PAYLOAD_LEN_MAX: usize = 1 << 20;

/// Begins a frame, whose payload is appended next; gives what [`end`] needs.
pub(crate) fn begin(log: &mut Vec<u8>) -> usize {
    let at = log.len();
    log.extend([0; HEAD_LEN]);
    at
}

/// Ends a frame.
pub(crate) fn end(log: &mut [u8], at: usize) {
    let (len, sum) = (log.len() - at - HEAD_LEN, sum(&log[at + HEAD_LEN..]));
    log[at..at + 4].copy_from_slice(&u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes());
    log[at + 4..at + HEAD_LEN].copy_from_slice(&sum.to_le_bytes());
}

/// The payload of the whole frame at an offset, and where it ends.
pub(crate) fn at(log: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let head = log.get(at..at.checked_add(HEAD_LEN)?)?;
    let len = usize::try_from(u32::from_le_bytes(head[..4].try_into().ok()?)).ok()?;
    let end = at + HEAD_LEN + len;
    let payload = log.get(at + HEAD_LEN..end).filter(|_| (1..=PAYLOAD_LEN_MAX).contains(&len))?;
    (sum(payload) == u32::from_le_bytes(head[4..].try_into().ok()?)).then_some((payload, end))
}

fn sum(payload: &[u8]) -> u32 {
    u32::try_from(crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, payload)).unwrap_or_default()
}
