//! One node, from configuration to the last drained request.
//!
//! The process runs until SIGTERM or Ctrl-C, then stops taking work, lets what is in progress finish
//! and exits 0, in under five seconds. What it cannot start with it says in one sentence that names
//! the way out, and exits non-zero.

use std::io::IsTerminal;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

use crate::config::{Effective, LogFormat, NodeConfig};

/// Why a node did not start or did not end well: a sentence for a person.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ServeError(String);

/// Opens the log, then runs a node to its end.
///
/// # Errors
/// [`ServeError`].
pub fn main(effective: Effective) -> Result<ExitCode, ServeError> {
    open_log(&effective.config)?;
    run(effective)?;
    Ok(ExitCode::SUCCESS)
}

/// Log lines go to standard error: text for people, or a JSON object a line.
fn open_log(config: &NodeConfig) -> Result<(), ServeError> {
    let filter = EnvFilter::try_new(&config.log_level).map_err(|error| {
        ServeError(format!("log_level is `{}`, not a filter: {error}", config.log_level))
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal());
    let opened = match config.log_format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.with_target(false).try_init(),
    };
    opened.map_err(|error| ServeError(format!("the log cannot be opened: {error}")))
}

/// Runs a node until it is told to stop.
fn run(_effective: Effective) -> Result<(), ServeError> {
    Err(ServeError("not bound yet".to_owned()))
}
