//! `config`, and how any command that needs one gets its node configuration.

use std::process::ExitCode;

use clap::Args;

use super::output::{self, Failure};
use crate::config::{ConfigFlags, Effective, Origin};
use crate::http::admin::config_fields;

/// Arguments of `config`.
#[derive(Args, Debug)]
pub(super) struct ConfigArgs {
    /// Print JSON, for programs
    #[arg(long, conflicts_with = "toml")]
    json: bool,
    /// Print a TOML file that says the same
    #[arg(long)]
    toml: bool,
    #[command(flatten)]
    flags: ConfigFlags,
}

/// The configuration of a node started here and now with these flags.
pub(super) fn load(flags: &ConfigFlags) -> Result<Effective, Failure> {
    let env = |name: &str| std::env::var(name).ok();
    Effective::load(flags, &env).map_err(|error| Failure::usage(error.to_string()))
}

pub(super) fn config(args: &ConfigArgs) -> Result<ExitCode, Failure> {
    let effective = load(&args.flags)?;
    if args.toml {
        output::print(effective.to_toml().as_bytes())?;
        return Ok(ExitCode::SUCCESS);
    }
    let fields = config_fields(&effective);
    if args.json {
        output::json(&fields)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = output::table(&["field", "value", "from", "default", "meaning; if set badly"]);
    for (field, origin) in fields.iter().zip(&effective.origins) {
        let origin = match origin {
            Origin::Default => origin.to_string(),
            _ => output::good_or_bad(true, &origin.to_string()),
        };
        table.add_row([
            format!("{}\n[{}]", field.name, field.unit),
            field.value.clone(),
            origin,
            field.default.clone(),
            format!("{}\n{}", field.meaning, field.breaks),
        ]);
    }
    output::line(table)?;
    output::line(
        "Set by --flag, MYDATASTORE_FIELD or `field = ...` in a TOML file, the first the strongest.\n\
         N, R, W and partitions belong to the cluster: see `mydatastore init --help`.",
    )?;
    Ok(ExitCode::SUCCESS)
}
