//! User metadata on the wire: ASCII as it is, the rest as RFC 2047 encoded words, as Amazon S3 does.

use base64::Engine;
use base64::alphabet;
use base64::engine::general_purpose::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// Takes base64 with and without its padding.
const TOLERANT: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Makes a value fit a header. What [`decode`] gives back is the same text.
pub fn encode(value: &str) -> String {
    let plain = value.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        && !value.starts_with(' ')
        && !value.ends_with(' ')
        && !value.contains("  ")
        && !value.contains("=?");
    // One word, however long: readers that join several words differ about the blanks between them.
    if plain { value.to_owned() } else { format!("=?UTF-8?B?{}?=", STANDARD.encode(value)) }
}

/// Reads a header's value: encoded words of UTF-8 or Latin-1 are decoded, everything else stays as it is. Bytes that
/// are no UTF-8 are read as Latin-1, so nothing is refused.
pub fn decode(value: &[u8]) -> String {
    let text = match std::str::from_utf8(value) {
        Ok(text) => text.to_owned(),
        Err(_) => value.iter().map(|&byte| char::from(byte)).collect(),
    };
    if !text.contains("=?") {
        return text;
    }
    let mut decoded = String::new();
    let mut rest = text.as_str();
    let mut after_word = false;
    while let Some(start) = rest.find("=?") {
        let between = &rest[..start];
        if let Some((word, len)) = decode_word(&rest[start..]) {
            if !(after_word && between.chars().all(char::is_whitespace)) {
                decoded.push_str(between);
            }
            decoded.push_str(&word);
            rest = &rest[start + len..];
            after_word = true;
        } else {
            decoded.push_str(&rest[..start + 2]);
            rest = &rest[start + 2..];
            after_word = false;
        }
    }
    decoded.push_str(rest);
    decoded
}

/// Decodes the encoded word that `text` begins with; also its length.
fn decode_word(text: &str) -> Option<(String, usize)> {
    let mut fields = text.strip_prefix("=?")?.splitn(3, '?');
    let charset = fields.next()?;
    let encoding = fields.next()?;
    let tail = fields.next()?;
    let end = tail.find("?=")?;
    let payload = &tail[..end];
    let bytes = match encoding {
        "B" | "b" => TOLERANT.decode(payload).ok()?,
        "Q" | "q" => decode_q(payload)?,
        _ => return None,
    };
    let word = if charset.eq_ignore_ascii_case("utf-8") || charset.eq_ignore_ascii_case("us-ascii") {
        String::from_utf8(bytes).ok()?
    } else if charset.eq_ignore_ascii_case("iso-8859-1") {
        bytes.into_iter().map(char::from).collect()
    } else {
        return None;
    };
    Some((word, 2 + charset.len() + 1 + encoding.len() + 1 + end + 2))
}

fn decode_q(payload: &str) -> Option<Vec<u8>> {
    let mut bytes = payload.bytes();
    let mut decoded = Vec::with_capacity(payload.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'_' => b' ',
            b'=' => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                (digit(bytes.next()?)? << 4) | digit(bytes.next()?)?
            }
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for value in [
            "",
            "plain",
            "a b",
            " edge ",
            "two  blanks",
            "tab\tline\n",
            "grüße",
            "日本語 と=?",
            "=?UTF-8?B?eA==?=",
            "\u{7f}",
        ] {
            let encoded = encode(value);
            assert!(encoded.bytes().all(|byte| (0x20..0x7f).contains(&byte)), "{encoded}");
            assert_eq!(decode(encoded.as_bytes()), value);
        }
    }

    #[test]
    fn tolerant() {
        for (wire, value) in [
            (&b"=?UTF-8?Q?gr=C3=BC=C3=9Fe_x?="[..], "grüße x"),
            (b"=?utf-8?b?Z3LDvA==?= =?utf-8?b?w59l?=", "grüße"),
            (b"=?iso-8859-1?q?gr=FC?=n", "grün"),
            ("grün".as_bytes(), "grün"),
            (b"gr\xfcn", "grün"),
            (b"=?UTF-8?B?!!!?=", "=?UTF-8?B?!!!?="),
            (b"=?UTF-8?Q?=?=", "=?UTF-8?Q?=?="),
            (b"a =? b", "a =? b"),
            (b"=?UTF-8?B?Z3I", "=?UTF-8?B?Z3I"),
        ] {
            assert_eq!(decode(wire), value);
        }
    }
}
