//! The query of a URL, by bytes.
//!
//! Values are bytes, not text, as keys are. A parameter that nobody asked for is an error: `?ttl=5`
//! for `?ttl_ms=5` would otherwise be a value that never expires.

use std::str::FromStr;

use super::key;

/// A parsed query.
pub(super) struct Query(Vec<(String, Vec<u8>)>);

impl Query {
    /// Parses a query and refuses parameters that are not among `known`.
    pub(super) fn strict(query: Option<&str>, known: &[&str]) -> Result<Query, String> {
        let query = Query::lenient(query)?;
        let stranger = query
            .0
            .iter()
            .find(|(name, _)| !known.contains(&name.as_str()));
        match stranger {
            Some((name, _)) => Err(format!(
                "unknown parameter `{name}`: expected are {}",
                known.join(", ")
            )),
            None => Ok(query),
        }
    }

    /// Parses a query.
    pub(super) fn lenient(query: Option<&str>) -> Result<Query, String> {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty());
        let mut out: Vec<(String, Vec<u8>)> = Vec::new();
        for pair in pairs {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if out.iter().any(|(known, _)| known == name) {
                return Err(format!("parameter `{name}` is given twice"));
            }
            let value = key::decode_form(value)
                .ok_or_else(|| format!("parameter `{name}` is not valid percent-encoding"))?;
            out.push((name.to_owned(), value));
        }
        Ok(Query(out))
    }

    /// A parameter's bytes.
    pub(super) fn bytes(&self, name: &str) -> Option<&[u8]> {
        let found = self.0.iter().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_slice())
    }

    /// A parameter as a number within a range.
    pub(super) fn number<T>(&self, name: &str, least: T, most: T) -> Result<Option<T>, String>
    where
        T: FromStr + PartialOrd + std::fmt::Display,
    {
        let Some(bytes) = self.bytes(name) else {
            return Ok(None);
        };
        let text = String::from_utf8_lossy(bytes);
        match text.parse::<T>() {
            Ok(number) if number >= least && number <= most => Ok(Some(number)),
            _ => Err(format!(
                "{name} is `{text}`: it has to be a number from {least} to {most}"
            )),
        }
    }

    /// A parameter that is `true` or `false`; absent is false.
    pub(super) fn flag(&self, name: &str) -> Result<bool, String> {
        match self.bytes(name) {
            None | Some(b"false") => Ok(false),
            Some(b"true") => Ok(true),
            Some(_) => Err(format!("{name} has to be `true` or `false`")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parameters_are_bytes_and_strangers_are_refused() {
        let query = Query::strict(Some("a=%00%ff&b=1+2&c"), &["a", "b", "c"]).unwrap();
        assert_eq!(query.bytes("a").unwrap(), b"\x00\xff");
        assert_eq!(query.bytes("b").unwrap(), b"1 2");
        assert_eq!(query.bytes("c").unwrap(), b"");
        assert_eq!(query.bytes("d"), None);
        let wrong = |text, known: &[&str]| Query::strict(Some(text), known).err().unwrap();
        assert_eq!(
            wrong("ttl=5", &["r", "ttl_ms"]),
            "unknown parameter `ttl`: expected are r, ttl_ms"
        );
        assert_eq!(wrong("r=1&r=2", &["r"]), "parameter `r` is given twice");
        assert_eq!(
            wrong("r=%x", &["r"]),
            "parameter `r` is not valid percent-encoding"
        );
    }

    #[test]
    fn numbers_have_ranges() {
        let query = Query::lenient(Some("r=0&w=3&t=x&big=300")).unwrap();
        assert_eq!(query.number::<u8>("w", 1, 9), Ok(Some(3)));
        assert_eq!(query.number::<u8>("absent", 1, 9), Ok(None));
        assert!(query.number::<u8>("r", 1, 9).is_err());
        assert!(query.number::<u8>("t", 1, 9).is_err());
        assert!(query.number::<u8>("big", 1, 9).is_err());
    }

    proptest! {
        #[test]
        fn no_query_panics(text in ".{0,100}") {
            let _ = Query::strict(Some(&text), &["a"]);
        }
    }
}
