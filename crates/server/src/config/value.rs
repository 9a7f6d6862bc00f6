//! How one configuration value is written as text: the same in a flag, the environment and TOML.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// A type that a configuration field may have.
///
/// **Invariant**: `parse(text(value)) == value`, so what `mydatastore config` prints can be fed back.
pub trait ConfigValue: Sized {
    /// Reads the text form; the error says what would be right.
    fn parse(text: &str) -> Result<Self, String>;

    /// The text form.
    fn text(&self) -> String;

    /// The form in a TOML file.
    fn toml(&self) -> toml::Value {
        toml::Value::String(self.text())
    }
}

macro_rules! number_value {
    ($($int:ty),*) => {$(
        impl ConfigValue for $int {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| {
                    format!("`{text}` is not a whole number from 0 to {}", <$int>::MAX)
                })
            }

            fn text(&self) -> String {
                self.to_string()
            }

            fn toml(&self) -> toml::Value {
                match i64::try_from(*self) {
                    Ok(number) => toml::Value::Integer(number),
                    Err(_) => toml::Value::String(self.text()),
                }
            }
        }
    )*};
}

number_value!(u32, u64);

impl ConfigValue for bool {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
            .map_err(|_| format!("`{text}` is neither true nor false"))
    }

    fn text(&self) -> String {
        self.to_string()
    }

    fn toml(&self) -> toml::Value {
        toml::Value::Boolean(*self)
    }
}

impl ConfigValue for String {
    fn parse(text: &str) -> Result<Self, String> {
        Ok(text.to_owned())
    }

    fn text(&self) -> String {
        self.clone()
    }
}

impl ConfigValue for SocketAddr {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| {
            format!("`{text}` is not an address such as `127.0.0.1:7101` or `[::1]:7101`")
        })
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

impl ConfigValue for PathBuf {
    fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("a path may not be empty".to_owned());
        }
        Ok(PathBuf::from(text))
    }

    fn text(&self) -> String {
        self.to_string_lossy().into_owned()
    }
}

impl ConfigValue for Vec<String> {
    fn parse(text: &str) -> Result<Self, String> {
        let items = text.split(',').map(str::trim);
        Ok(items
            .filter(|item| !item.is_empty())
            .map(str::to_owned)
            .collect())
    }

    fn text(&self) -> String {
        self.join(",")
    }

    fn toml(&self) -> toml::Value {
        toml::Value::Array(self.iter().cloned().map(toml::Value::String).collect())
    }
}

macro_rules! word_value {
    ($(#[$doc:meta])* $name:ident { $($(#[$case_doc:meta])* $case:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum $name {
            $($(#[$case_doc])* $case,)*
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $($name::$case => $word,)* })
            }
        }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok($name::$case),)*
                    _ => Err(format!(
                        "`{text}` is none of {}",
                        [$(concat!("`", $word, "`")),*].join(", ")
                    )),
                }
            }
        }

        impl ConfigValue for $name {
            fn parse(text: &str) -> Result<Self, String> {
                text.parse()
            }

            fn text(&self) -> String {
                self.to_string()
            }
        }
    };
}

word_value! {
    /// The storage engine behind the log.
    EngineKind {
        /// The default: a log-structured merge tree in Rust.
        Fjall = "fjall",
        /// The real LevelDB; needs a build with the feature `engine-leveldb`.
        Leveldb = "leveldb",
        /// An ordered map in memory, to try things out: a node of it cannot be started again.
        Memory = "memory",
    }
}

word_value! {
    /// Who decides on changes of the ring.
    RingModeKind {
        /// Only administrators do.
        Operator = "operator",
        /// The leader lets waiting nodes join as they come, and may remove dead ones.
        Auto = "auto",
    }
}

word_value! {
    /// What becomes of a node's place on the ring when the node is told to stop.
    OnStop {
        /// It keeps its place: it will be back.
        Stay = "stay",
        /// It hands over what it holds and leaves: it will not be back.
        Leave = "leave",
    }
}

word_value! {
    /// What a node does when it hears that its cluster has removed it.
    OnRemoved {
        /// It says so and ends.
        Stop = "stop",
        /// It puts its data aside, and begins anew as another node.
        Rejoin = "rejoin",
    }
}

word_value! {
    /// How log lines look.
    LogFormat {
        /// For people.
        Text = "text",
        /// One JSON object a line, for programs.
        Json = "json",
    }
}

/// When an acknowledged write has reached the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FsyncPolicy {
    /// Before it is acknowledged.
    Always,
    /// At most this many milliseconds later.
    IntervalMs(u64),
    /// When the operating system pleases.
    Os,
}

impl fmt::Display for FsyncPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FsyncPolicy::Always => f.write_str("always"),
            FsyncPolicy::IntervalMs(ms) => write!(f, "interval:{ms}"),
            FsyncPolicy::Os => f.write_str("os"),
        }
    }
}

impl FromStr for FsyncPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("`{text}` is none of `always`, `interval:MS` (MS from 1 to 60000) and `os`");
        match text {
            "always" => Ok(FsyncPolicy::Always),
            "os" => Ok(FsyncPolicy::Os),
            _ => {
                let ms = text.strip_prefix("interval:").ok_or_else(wrong)?;
                match ms.parse() {
                    Ok(ms @ 1..=60_000) => Ok(FsyncPolicy::IntervalMs(ms)),
                    _ => Err(wrong()),
                }
            }
        }
    }
}

impl ConfigValue for FsyncPolicy {
    fn parse(text: &str) -> Result<Self, String> {
        text.parse()
    }

    fn text(&self) -> String {
        self.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn policies_and_words_read_what_they_write() {
        for text in ["always", "os", "interval:1", "interval:60000"] {
            assert_eq!(FsyncPolicy::parse(text).unwrap().text(), text);
        }
        for text in [
            "",
            "interval",
            "interval:",
            "interval:0",
            "interval:60001",
            "ALWAYS",
        ] {
            assert!(FsyncPolicy::parse(text).is_err(), "{text}");
        }
        for text in ["fjall", "leveldb", "memory"] {
            assert_eq!(EngineKind::parse(text).unwrap().text(), text);
        }
        assert_eq!(
            EngineKind::parse("badger").unwrap_err(),
            "`badger` is none of `fjall`, `leveldb`, `memory`"
        );
    }

    proptest! {
        #[test]
        fn numbers_read_what_they_write(number: u64) {
            prop_assert_eq!(u64::parse(&number.text()).unwrap(), number);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}") {
            let _ = u64::parse(&text);
            let _ = FsyncPolicy::parse(&text);
            let _ = EngineKind::parse(&text);
            let _ = Vec::<String>::parse(&text);
        }
    }
}
