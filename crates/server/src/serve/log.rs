//! The log: one line an event, on standard error.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use super::ServeError;
use crate::config::{LogFormat, NodeConfig};

/// Opens the log of this process: text for people, coloured on a terminal only, or a JSON object a
/// line.
pub(super) fn open(config: &NodeConfig) -> Result<(), ServeError> {
    let filter = EnvFilter::try_new(directives(&config.log_level)).map_err(|error| {
        ServeError(format!(
            "log_level is `{}`, not a filter: {error}",
            config.log_level
        ))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    let opened = match config.log_format {
        LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            lines.with_ansi(ansi).with_target(false).try_init()
        }
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    opened.map_err(|error| ServeError(format!("the log cannot be opened: {error}")))
}

/// The crates whose life a bare level is about.
const OWN_CRATES: &[&str] = &["mydatastore", "mds_node", "mds_cluster", "mds_storage"];

/// A bare level is meant for this program. Libraries say at `info` what only their authors
/// understand, openraft even at `warn` (a vote that a busy peer did not answer).
fn directives(log_level: &str) -> String {
    let Ok(level) = log_level.trim().parse::<LevelFilter>() else {
        return log_level.to_owned();
    };
    let others = level.min(LevelFilter::WARN);
    let own = OWN_CRATES.iter().map(|name| format!(",{name}={level}"));
    format!("{others},openraft=error{}", own.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_level_is_about_this_program() {
        assert_eq!(
            directives("info"),
            "warn,openraft=error,mydatastore=info,mds_node=info,mds_cluster=info,mds_storage=info"
        );
        assert!(directives("error").starts_with("error,"));
        assert_eq!(directives("info,openraft=debug"), "info,openraft=debug");
        for level in ["error", "warn", "info", "debug", "trace", "off"] {
            assert!(EnvFilter::try_new(directives(level)).is_ok(), "{level}");
        }
    }
}
