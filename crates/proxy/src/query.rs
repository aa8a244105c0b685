//! What is percent-encoded is decoded once, and strictly.

use crate::Denied;

/// Most parameters of a query. The longest that clients send (a presigned upload) has some twenty.
const PARAMETERS_MAX: usize = 64;

/// Undoes percent-encoding, once. `+` is a plus.
pub(crate) fn decode(text: &str, what: &'static str) -> Result<String, Denied> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        if byte != b'%' {
            bytes.push(byte);
            rest = tail;
            continue;
        }
        let mut decoded = [0_u8];
        let digits = tail.get(..2).ok_or(Denied::Malformed(what))?;
        hex::decode_to_slice(digits, &mut decoded).map_err(|_| Denied::Malformed(what))?;
        bytes.push(decoded[0]);
        rest = &tail[2..];
    }
    // Overlong forms are no UTF-8, so they end here, too.
    String::from_utf8(bytes).map_err(|_| Denied::Malformed(what))
}

/// The parameters of a request, decoded; no name twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Reads what stands behind the `?`.
    pub(crate) fn parse(raw: Option<&str>) -> Result<Self, Denied> {
        const WHAT: &str = "the query is not percent-encoded UTF-8";
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in raw.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name, WHAT)?, decode(value, WHAT)?);
            if value.contains('\0') || name.contains('\0') {
                return Err(Denied::Malformed("the query holds a NUL"));
            }
            if pairs.iter().any(|(other, _)| *other == name) {
                return Err(Denied::Invalid("a parameter of the query is given twice"));
            }
            if pairs.len() == PARAMETERS_MAX {
                return Err(Denied::TooLarge("the query has too many parameters"));
            }
            pairs.push((name, value));
        }
        Ok(Self(pairs))
    }

    /// All of them, in the order in which they came.
    pub(crate) fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(known, _)| known == name)?;
        Some(self.0.remove(index).1)
    }

    /// Takes out all whose name fits.
    pub(crate) fn drain(&mut self, fits: impl Fn(&str) -> bool) -> Vec<(String, String)> {
        let (taken, kept) = std::mem::take(&mut self.0).into_iter().partition(|(name, _)| fits(name));
        self.0 = kept;
        taken
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoded_once_and_strictly() {
        let all = Query::parse(Some("a=b%2Fc+d&uploads&e=%25%32%45&f=")).unwrap();
        let pairs: Vec<_> = all.pairs().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(pairs, [("a", "b/c+d"), ("uploads", ""), ("e", "%2E"), ("f", "")]);
        for bad in ["a=%", "a=%2", "a=%zz", "%ff", "a=%C0%AF", "a=%00", "a=1&a=1", "acl&%61cl=", "a=%ED%A0%80"] {
            assert!(Query::parse(Some(bad)).is_err(), "{bad}");
        }
        let many: Vec<String> = (0..65).map(|n| format!("p{n}")).collect();
        assert!(matches!(Query::parse(Some(&many.join("&"))), Err(Denied::TooLarge(_))));
    }
}
