//! How results and failures look.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;

/// Why a command ends without its result, and with which exit code.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Not found: 1.
    pub fn not_found(message: impl Into<String>) -> Failure {
        Failure::new(1, message)
    }

    /// Used wrongly: 2.
    pub fn usage(message: impl Into<String>) -> Failure {
        Failure::new(2, message)
    }

    /// Nothing was done, because something is not there: 3.
    pub fn unavailable(message: impl Into<String>) -> Failure {
        Failure::new(3, message)
    }

    /// Nobody knows whether it was done: 4.
    pub fn unknown(message: impl Into<String>) -> Failure {
        Failure::new(4, message)
    }

    fn new(code: u8, message: impl Into<String>) -> Failure {
        Failure {
            code,
            message: message.into(),
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        self.code
    }

    /// Prints it and gives the exit code.
    pub fn report(self) -> ExitCode {
        let label = match std::io::stderr().is_terminal() {
            true => "\x1b[1;31merror:\x1b[0m",
            false => "error:",
        };
        // A closed standard error leaves nobody to tell.
        let _ = writeln!(std::io::stderr(), "{label} {}", self.message);
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::unavailable(error.to_string())
    }
}

/// Writes to standard output. A reader that went away (`| head`) is no failure.
pub(crate) fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::unavailable(
            format!("cannot write to standard output: {error}"),
        )),
        _ => Ok(()),
    }
}

/// Prints a line.
pub(crate) fn line(text: impl fmt::Display) -> Result<(), Failure> {
    print(format!("{text}\n").as_bytes())
}

/// Prints a JSON document.
pub(crate) fn json(document: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(document)
        .map_err(|error| Failure::unavailable(format!("cannot write JSON: {error}")))?;
    line(text)
}

/// A table with these column heads, as wide as the terminal at most.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    if std::io::stdout().is_terminal() {
        table.set_content_arrangement(ContentArrangement::Dynamic);
    }
    table.set_header(heads.to_vec());
    table
}

/// Columns of the terminal that standard output is; none if it is no terminal, or does not say.
pub(crate) fn columns() -> Option<u16> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one `winsize`, which `size` is; of another kind of file it fails.
    let result = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) };
    (result == 0 && size.ws_col > 0).then_some(size.ws_col)
}

/// How long ago a moment was, in words. It is given in milliseconds since 1970, by the clock of whoever noted it.
pub(crate) fn ago(moment_ms: u64) -> String {
    format!("{} ago", for_long(now_ms().saturating_sub(moment_ms)))
}

/// The wall clock, milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
    since_1970.map_or(0, |since| since.as_millis() as u64)
}

/// A span of time in words.
pub(crate) fn for_long(span_ms: u64) -> String {
    match span_ms / 1_000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds => format!("{} min", seconds / 60),
    }
}

/// A number of bytes in words.
pub(crate) fn bytes(count: u64) -> String {
    let units = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match units.iter().find(|(_, size)| count >= *size) {
        Some((unit, size)) => {
            let tenths = u128::from(count) * 10 / u128::from(*size);
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

/// A word in green or red, if a person reads it.
pub(crate) fn good_or_bad(good: bool, word: &str) -> String {
    match (std::io::stdout().is_terminal(), good) {
        (false, _) => word.to_owned(),
        (true, true) => format!("\x1b[32m{word}\x1b[0m"),
        (true, false) => format!("\x1b[31m{word}\x1b[0m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_are_said_in_words() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(1_023), "1023 B");
        assert_eq!(bytes(1_536), "1.5 KiB");
        assert_eq!(bytes(3 << 30), "3.0 GiB");
        assert!(bytes(u64::MAX).ends_with("GiB"));
        assert_eq!(for_long(1_999), "1 s");
        assert_eq!(for_long(150_000), "2 min");
        assert_eq!(ago(u64::MAX), "0 s ago", "clocks differ");
    }
}
