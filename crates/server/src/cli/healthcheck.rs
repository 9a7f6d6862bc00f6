//! `healthcheck`: is the node of this machine well? For containers without a shell.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use ureq::http::Method;

use super::client::{Call, Client};
use super::output::{self, Failure};
use super::settings;
use crate::config::ConfigFlags;

/// How long the node may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

/// Arguments of `healthcheck`.
#[derive(Args, Debug)]
pub(super) struct HealthcheckArgs {
    /// Only whether the process answers, not whether the node serves
    #[arg(long)]
    live: bool,
    #[command(flatten)]
    flags: ConfigFlags,
}

pub(super) fn healthcheck(args: &HealthcheckArgs) -> Result<ExitCode, Failure> {
    let addr = reachable(settings::load(&args.flags)?.config.http_listen);
    let client = Client::new(&addr.to_string()).map_err(Failure::usage)?;
    let path = if args.live { "/health" } else { "/ready" };
    let reply = client.call(&Call::new(Method::GET, path).timeout(PATIENCE))?;
    let said = String::from_utf8_lossy(&reply.body).trim().to_owned();
    if !reply.status.is_success() {
        return Err(Failure::not_found(said));
    }
    output::line(said)?;
    Ok(ExitCode::SUCCESS)
}

/// Where a listener of this machine is reached: one on all addresses also by the loopback one.
fn reachable(listen: SocketAddr) -> SocketAddr {
    let ip = match listen {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        other => other.ip(),
    };
    SocketAddr::new(ip, listen.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_on_all_addresses_is_asked_by_loopback() {
        let asked = |listen: &str| reachable(listen.parse().unwrap()).to_string();
        assert_eq!(asked("0.0.0.0:8101"), "127.0.0.1:8101");
        assert_eq!(asked("[::]:8101"), "[::1]:8101");
        assert_eq!(asked("10.0.0.1:8101"), "10.0.0.1:8101");
    }
}
