//! One flag for each field, made from the table.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, Command, FromArgMatches};

use super::fields::FIELDS;

const FILE_FLAG: &str = "config";

/// The configuration flags that were given, not yet read as values.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ConfigFlags {
    /// The TOML file.
    pub file: Option<PathBuf>,
    /// Text by field name.
    pub values: BTreeMap<&'static str, String>,
}

impl FromArgMatches for ConfigFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = ConfigFlags::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        if let Some(file) = matches.get_one::<PathBuf>(FILE_FLAG) {
            self.file = Some(file.clone());
        }
        for field in FIELDS {
            if let Some(text) = matches.get_one::<String>(field.name) {
                self.values.insert(field.name, text.clone());
            }
        }
        Ok(())
    }
}

impl Args for ConfigFlags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(FILE_FLAG)
            .long("config")
            .value_name("FILE")
            .value_parser(clap::value_parser!(PathBuf))
            .help(format!(
                "TOML file with any of the fields below [env: {}]",
                super::ENV_CONFIG_FILE
            ));
        FIELDS.iter().fold(command.arg(file), |command, field| {
            let default = match field.default_text() {
                text if text.is_empty() => String::new(),
                text => format!(" [default: {text}]"),
            };
            command.arg(
                Arg::new(field.name)
                    .long(field.flag())
                    .value_name(field.unit)
                    .help_heading("Node configuration")
                    .help(format!("{}{default}", field.meaning))
                    .long_help(format!(
                        "{}\nIf set badly: {}\n[env: {}]{default}",
                        field.meaning,
                        field.breaks,
                        field.env()
                    )),
            )
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_is_a_flag() {
        let command = ConfigFlags::augment_args(Command::new("test"));
        command.clone().debug_assert();
        let arguments = [
            "test",
            "--config",
            "a.toml",
            "--data-dir",
            "x",
            "--fsync",
            "os",
        ];
        let matches = command.try_get_matches_from(arguments).unwrap();
        let flags = ConfigFlags::from_arg_matches(&matches).unwrap();
        assert_eq!(flags.file, Some(PathBuf::from("a.toml")));
        assert_eq!(flags.values["data_dir"], "x");
        assert_eq!(flags.values["fsync"], "os");
        assert_eq!(flags.values.len(), 2);
    }
}
