//! Bytes as percent-encoded text, and back: keys in paths, queries and JSON.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode as encoded};

/// What is escaped: everything but letters, digits and what no URL parser takes for itself.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'/')
    .remove(b':')
    .remove(b'@')
    .remove(b',');

/// The text form of bytes.
pub fn encode(bytes: &[u8]) -> String {
    encoded(bytes, ESCAPED).to_string()
}

/// The bytes of a text form. None if a `%` is not followed by two hexadecimal digits.
///
/// Stricter than most decoders on purpose: a mangled escape would silently be another key.
pub fn decode(text: &str) -> Option<Vec<u8>> {
    decode_with(text, false)
}

/// As [`decode`], for a query as forms send it, where `+` is a space.
pub(super) fn decode_form(text: &str) -> Option<Vec<u8>> {
    decode_with(text, true)
}

fn decode_with(text: &str, plus_is_space: bool) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut out = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'%' => (hex(bytes.next()?)? << 4) | hex(bytes.next()?)?,
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Some(out)
}

fn hex(digit: u8) -> Option<u8> {
    // A hexadecimal digit is below 16.
    char::from(digit).to_digit(16).map(|value| value as u8)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mangled_escapes_are_refused() {
        for text in ["%", "%4", "%zz", "a%2", "%%20"] {
            assert_eq!(decode(text), None, "{text}");
        }
        assert_eq!(decode("a%2Fb+c").unwrap(), b"a/b+c");
        assert_eq!(decode_form("a%2Fb+c").unwrap(), b"a/b c");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let text = encode(&bytes);
            prop_assert_eq!(decode(&text).unwrap(), bytes.clone());
            prop_assert_eq!(decode_form(&text).unwrap(), bytes);
        }

        #[test]
        fn no_text_panics(text in ".{0,100}") {
            let _ = decode(&text);
            let _ = decode_form(&text);
        }
    }
}
