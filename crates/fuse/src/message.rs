//! A message to the kernel: a header and a body of any number of pieces, in one system call.

use std::io::IoSlice;
use std::os::fd::AsFd;

use zerocopy::IntoBytes;

use crate::Errno;
use crate::abi::OutHeader;

/// The kernel takes this many pieces at once (`UIO_MAXIOV`), of which one is the header.
const PIECES_MAX: usize = 1024 - 1;
/// With as many pieces nothing is allocated: a reply of the largest length has them if they are of 16 KiB, as TLS gives them.
const PIECES_ON_STACK: usize = 72;

/// Sends a message. The kernel takes all of it or nothing. `error` is 0, a negative errno, or the code of a notification.
///
/// # Errors
/// `ENOENT` if nobody waits for it (any more); `EINVAL` if the kernel cannot make sense of it.
pub(crate) fn send<B: AsRef<[u8]>>(device: impl AsFd, error: i32, unique: u64, body: &[B]) -> rustix::io::Result<()> {
    let body_len = body.iter().map(|piece| piece.as_ref().len()).sum::<usize>();
    let len = u32::try_from(size_of::<OutHeader>() + body_len).map_err(|_| Errno::INVAL)?;
    let header = OutHeader { len, error, unique };
    match body.len() {
        0..=1 => on_stack::<2, B>(device, &header, body),
        2..=PIECES_ON_STACK => on_stack::<{ PIECES_ON_STACK + 1 }, B>(device, &header, body),
        _ if body.len() <= PIECES_MAX => {
            let pieces = std::iter::once(header.as_bytes()).chain(body.iter().map(AsRef::as_ref));
            write(device, &pieces.map(IoSlice::new).collect::<Vec<_>>())
        }
        _ => {
            let mut joined = Vec::with_capacity(body_len);
            body.iter().for_each(|piece| joined.extend_from_slice(piece.as_ref()));
            on_stack::<2, _>(device, &header, &[joined])
        }
    }
}

/// `N` is at least one more than there are pieces.
fn on_stack<const N: usize, B: AsRef<[u8]>>(
    device: impl AsFd,
    header: &OutHeader,
    body: &[B],
) -> rustix::io::Result<()> {
    let mut pieces = [IoSlice::new(header.as_bytes()); N];
    for (piece, bytes) in pieces[1..].iter_mut().zip(body) {
        *piece = IoSlice::new(bytes.as_ref());
    }
    write(device, &pieces[..=body.len()])
}

fn write(device: impl AsFd, pieces: &[IoSlice<'_>]) -> rustix::io::Result<()> {
    rustix::io::writev(device, pieces)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the other side of a pipe gets, which stands in for the device.
    #[track_caller]
    fn check(piece_lens: &[usize]) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let body: Vec<Vec<u8>> = piece_lens.iter().zip(1..=u8::MAX).map(|(&len, byte)| vec![byte; len]).collect();
        send(&writer, -5, 1 << 63 | 7, &body).unwrap();
        let mut got = vec![0; 1 << 16];
        let len = rustix::io::read(&reader, &mut got).unwrap();
        let mut expected = Vec::new();
        expected.extend(u32::try_from(len).unwrap().to_ne_bytes());
        expected.extend((-5i32).to_ne_bytes());
        expected.extend((1u64 << 63 | 7).to_ne_bytes());
        expected.extend(body.concat());
        assert!(got[..len] == expected, "{} pieces", piece_lens.len());
    }

    #[test]
    fn any_number_of_pieces_makes_one_message() {
        check(&[]);
        check(&[0]);
        check(&[300]);
        check(&[1, 0, 2]);
        for count in [71, 72, 73, 255] {
            check(&vec![3; count]);
        }
    }

    #[test]
    fn more_pieces_than_the_kernel_takes_are_joined() {
        for count in [PIECES_MAX, PIECES_MAX + 1, 3 * PIECES_MAX] {
            let (reader, writer) = rustix::pipe::pipe().unwrap();
            let body = vec![[7u8; 9]; count];
            send(&writer, 0, 1, &body).unwrap();
            let mut got = vec![0; 1 << 16];
            let len = rustix::io::read(&reader, &mut got).unwrap();
            assert_eq!(len, 16 + 9 * count);
            assert!(got[16..len].iter().all(|&byte| byte == 7));
        }
    }
}
