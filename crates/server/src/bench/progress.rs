//! The line that lives while a run goes on: on standard error, and only if that is a terminal.

use std::io::{IsTerminal, Write};

use super::report::SecondBody;

/// One line, written over and over.
#[derive(Debug)]
pub(super) struct Progress {
    is_live: bool,
    is_shown: bool,
    /// It was said that a target is waited for.
    has_waited: bool,
}

impl Progress {
    pub(super) fn new() -> Progress {
        Progress {
            is_live: std::io::stderr().is_terminal(),
            is_shown: false,
            has_waited: false,
        }
    }

    /// A target is waited for. Somebody who looks into a file later is told of it too, once.
    pub(super) fn waiting(&mut self, why: &str) {
        if !self.is_live && !self.has_waited {
            let _ = writeln!(std::io::stderr(), "waiting: {why}");
        }
        self.has_waited = true;
        self.show(&format!("waiting: {why}"));
    }

    /// So many keys of so many are there after so long.
    pub(super) fn loading(&mut self, loaded: u64, keys: u64, elapsed_ns: u64) {
        self.show(&loading(loaded, keys, elapsed_ns));
    }

    /// A second is over.
    pub(super) fn measuring(&mut self, second: &SecondBody) {
        self.show(&measuring(second));
    }

    /// Takes the line away.
    pub(super) fn clear(&mut self) {
        if self.is_shown {
            self.is_shown = false;
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }

    fn show(&mut self, text: &str) {
        if self.is_live {
            self.is_shown = true;
            // A terminal that is gone leaves nobody to tell.
            let _ = write!(std::io::stderr(), "\r\x1b[K{text}");
            let _ = std::io::stderr().flush();
        }
    }
}

fn loading(loaded: u64, keys: u64, elapsed_ns: u64) -> String {
    let rate = loaded as f64 / (elapsed_ns.max(1) as f64 / 1e9);
    let left_s = (keys.saturating_sub(loaded)) as f64 / rate.max(1.0);
    let percent = 100 * loaded / keys.max(1);
    format!("loading: {percent:>3} % of {keys} keys, {rate:.0}/s, {left_s:.0} s left")
}

fn measuring(second: &SecondBody) -> String {
    let SecondBody { ops, errors, .. } = second;
    let (p50_ms, p99_ms, max_ms) = (
        second.p50_us / 1e3,
        second.p99_us / 1e3,
        second.max_us / 1e3,
    );
    let what = if second.warmup {
        "warm-up"
    } else {
        "measuring"
    };
    let at = second.second + 1;
    format!(
        "{what} {at} s: {ops} ops, {errors} errors, p50 {p50_ms:.2} p99 {p99_ms:.2} max {max_ms:.1} ms"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_far_it_is() {
        let line = loading(25_000, 100_000, 500_000_000);
        assert_eq!(line, "loading:  25 % of 100000 keys, 50000/s, 2 s left");
        let second = SecondBody {
            second: 4,
            span_s: 1.0,
            warmup: false,
            ops: 40_000,
            errors: 2,
            p50_us: 510.0,
            p99_us: 2_300.0,
            max_us: 9_000.0,
        };
        let line = measuring(&second);
        assert_eq!(
            line,
            "measuring 5 s: 40000 ops, 2 errors, p50 0.51 p99 2.30 max 9.0 ms"
        );
    }
}
