//! The patterns of `KEYS`, `SCAN MATCH` and `CONFIG GET`: `*`, `?`, `[a-c]`, `[^x]`, and `\` before
//! anything that is to be itself.
//!
//! A pattern comes from outside, so its cost is bounded: only the last `*` is ever tried again, which
//! makes a match take at most pattern times text steps, never exponentially many.

/// Whether `text` matches all of `pattern`.
pub(super) fn matches(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut pos) = (0, 0);
    // After the last star: where in the pattern, and from where in the text it was tried last.
    let mut retry: Option<(usize, usize)> = None;
    while pos < text.len() {
        if pattern.get(at) == Some(&b'*') {
            at += 1;
            retry = Some((at, pos));
            continue;
        }
        match match_one(&pattern[at..], text[pos]) {
            Some(used) => {
                at += used;
                pos += 1;
            }
            None => {
                let Some((after_star, tried)) = retry else {
                    return false;
                };
                at = after_star;
                pos = tried + 1;
                retry = Some((after_star, pos));
            }
        }
    }
    pattern[at..].iter().all(|&byte| byte == b'*')
}

/// Matches one byte against the head of a pattern that is no star; returns the pattern bytes used.
fn match_one(pattern: &[u8], byte: u8) -> Option<usize> {
    match pattern {
        [] => None,
        [b'?', ..] => Some(1),
        [b'[', ..] => {
            let (hit, used) = match_class(pattern, byte);
            hit.then_some(used)
        }
        [b'\\', literal, ..] => (*literal == byte).then_some(2),
        [literal, ..] => (*literal == byte).then_some(1),
    }
}

/// Matches a byte against `[...]`; returns whether it is in it, and the length of the class. One that
/// is not closed ends with the pattern.
fn match_class(pattern: &[u8], byte: u8) -> (bool, usize) {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&b'^');
    at += usize::from(negated);
    let mut hit = false;
    loop {
        match pattern[at.min(pattern.len())..] {
            [] => break,
            [b']', ..] => {
                at += 1;
                break;
            }
            [b'\\', literal, ..] => {
                hit |= literal == byte;
                at += 2;
            }
            [from, b'-', to, ..] => {
                hit |= (from.min(to)..=from.max(to)).contains(&byte);
                at += 3;
            }
            [literal, ..] => {
                hit |= literal == byte;
                at += 1;
            }
        }
    }
    (hit != negated, at.min(pattern.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns_mean_what_they_mean_in_redis() {
        for (pattern, text, expected) in [
            ("*", "", true),
            ("*", "abc", true),
            ("h?llo", "hello", true),
            ("h?llo", "hllo", false),
            ("h*llo", "heeeello", true),
            ("h[ae]llo", "hallo", true),
            ("h[ae]llo", "hillo", false),
            ("h[^e]llo", "hallo", true),
            ("h[^e]llo", "hello", false),
            ("h[a-b]llo", "hbllo", true),
            ("h[b-a]llo", "hallo", true),
            ("\\*", "*", true),
            ("\\*", "x", false),
            ("", "", true),
            ("", "a", false),
            ("a", "", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbY", false),
            ("[a", "a", true),
            ("[", "a", false),
            ("a\\", "a\\", true),
            ("**a", "ba", true),
            ("[\\]]", "]", true),
            ("a*", "b", false),
            ("*a", "aab", false),
        ] {
            assert_eq!(
                matches(pattern.as_bytes(), text.as_bytes()),
                expected,
                "{pattern} {text}"
            );
        }
    }

    proptest! {
        #[test]
        fn any_pattern_is_harmless(
            pattern in prop::collection::vec(prop::sample::select(&b"*?[]^-\\ab\xff"[..]), 0..40),
            text in prop::collection::vec(prop::sample::select(&b"*?[]^-\\ab\xff"[..]), 0..40),
        ) {
            matches(&pattern, &text);
        }

        #[test]
        fn an_escaped_text_matches_itself_only(
            text in prop::collection::vec(any::<u8>(), 0..20),
            other in prop::collection::vec(any::<u8>(), 0..20),
        ) {
            let pattern: Vec<u8> = text.iter().flat_map(|&byte| [b'\\', byte]).collect();
            prop_assert!(matches(&pattern, &text));
            prop_assert_eq!(matches(&pattern, &other), text == other);
        }
    }
}
