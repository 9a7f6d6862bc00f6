//! `profile`: where a node's processor time goes, as a picture.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ureq::http::Method;

use super::client::{Call, Client};
use super::output::{self, Failure};
use crate::profile::SECONDS_MAX;

/// The node looks names up after the last sample: so much longer than the profile it may take.
const GRACE: Duration = Duration::from_secs(20);

/// Arguments of `profile`.
#[derive(Args, Debug)]
pub(super) struct ProfileArgs {
    /// For how long
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=i64::from(SECONDS_MAX)))]
    seconds: u32,
    /// The file that it is written to; `-`: standard output
    #[arg(long, default_value = "profile.svg", value_name = "FILE")]
    out: PathBuf,
    /// Stacks as lines of text, for other tools, instead of a picture
    #[arg(long)]
    collapsed: bool,
    /// HTTP address of the node
    #[arg(
        long,
        env = "MYDATASTORE_NODE",
        default_value = "127.0.0.1:8101",
        value_name = "HOST:PORT"
    )]
    node: String,
}

pub(super) fn profile(args: &ProfileArgs) -> Result<ExitCode, Failure> {
    let format = if args.collapsed { "collapsed" } else { "svg" };
    let path = format!(
        "/debug/pprof/profile?seconds={}&format={format}",
        args.seconds
    );
    let patience = Duration::from_secs(args.seconds.into()) + GRACE;
    let client = Client::new(&args.node).map_err(Failure::usage)?;
    let reply = client.call(&Call::new(Method::GET, &path).timeout(patience))?;
    if !reply.status.is_success() {
        return Err(reply.failure());
    }
    if args.out.as_os_str() == "-" {
        output::print(&reply.body)?;
        return Ok(ExitCode::SUCCESS);
    }
    std::fs::write(&args.out, &reply.body)
        .map_err(|error| Failure::usage(format!("cannot write {}: {error}", args.out.display())))?;
    output::line(args.out.display().to_string())?;
    Ok(ExitCode::SUCCESS)
}
