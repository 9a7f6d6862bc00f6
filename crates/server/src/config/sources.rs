//! Flag over environment over file over default, remembering which one it was.

use std::fmt;
use std::path::{Path, PathBuf};

use super::fields::{FIELDS, Field, NodeConfig};
use super::flags::ConfigFlags;

/// Bytes of a configuration file, at most; a larger one is surely the wrong file.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Where a value came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// Nobody said otherwise.
    Default,
    /// The TOML file.
    File,
    /// A `MYDATASTORE_*` variable.
    Env,
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Origin::Default => "default",
            Origin::File => "file",
            Origin::Env => "env",
            Origin::Flag => "flag",
        })
    }
}

/// Why there is no configuration to run with. All are for a person to mend.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not TOML.
    #[error("{path} is not TOML: {message}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        message: String,
    },
    /// The file has a key that no field has.
    #[error("{path} has an unknown field `{field}`{hint}; `mydatastore config` lists all fields")]
    Unknown {
        /// The file.
        path: PathBuf,
        /// The key.
        field: String,
        /// A field of a similar name, in words.
        hint: String,
    },
    /// A value is not of the field's type.
    #[error("{place}: {message}")]
    Value {
        /// Which flag, variable or key.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// Values that cannot be run with.
    #[error("{}", .0.join("\n"))]
    Invalid(Vec<String>),
}

/// A valid configuration, and where each value came from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Effective {
    /// The values.
    pub config: NodeConfig,
    /// One for each of [`FIELDS`].
    pub origins: Vec<Origin>,
}

impl Effective {
    /// Puts the configuration together from flags, the environment and the file that they name.
    ///
    /// # Errors
    /// [`ConfigError`], whose text says what to mend.
    pub fn load(
        flags: &ConfigFlags,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Effective, ConfigError> {
        let file = flags
            .file
            .clone()
            .or_else(|| env(super::ENV_CONFIG_FILE).map(PathBuf::from));
        let table = match &file {
            Some(path) => read_file(path)?,
            None => toml::Table::new(),
        };
        let mut effective = Effective {
            config: NodeConfig::default(),
            origins: vec![Origin::Default; FIELDS.len()],
        };
        for (index, field) in FIELDS.iter().enumerate() {
            if let Some(value) = table.get(field.name) {
                let place = format!("{} in the configuration file", field.name);
                let text = toml_text(value).map_err(|message| ConfigError::Value {
                    place: place.clone(),
                    message,
                })?;
                effective.set(index, field, Origin::File, &text, place)?;
            }
            if let Some(text) = env(&field.env()) {
                effective.set(index, field, Origin::Env, &text, field.env())?;
            }
            if let Some(text) = flags.values.get(field.name) {
                let place = format!("--{}", field.flag());
                effective.set(index, field, Origin::Flag, text, place)?;
            }
        }
        effective.config.validate().map_err(ConfigError::Invalid)?;
        Ok(effective)
    }

    fn set(
        &mut self,
        index: usize,
        field: &Field,
        origin: Origin,
        text: &str,
        place: String,
    ) -> Result<(), ConfigError> {
        (field.set)(&mut self.config, text)
            .map_err(|message| ConfigError::Value { place, message })?;
        self.origins[index] = origin;
        Ok(())
    }

    /// The whole configuration as a TOML file that says the same.
    pub fn to_toml(&self) -> String {
        config_toml(&self.config, |_| true)
    }
}

impl NodeConfig {
    /// The TOML file of what differs from the default.
    pub fn to_toml(&self) -> String {
        config_toml(self, |field| field.text(self) != field.default_text())
    }
}

fn config_toml(config: &NodeConfig, included: impl Fn(&Field) -> bool) -> String {
    let mut out = String::new();
    for field in FIELDS.iter().filter(|field| included(field)) {
        out.push_str(&format!(
            "# {} [{}]\n{} = {}\n",
            field.meaning,
            field.unit,
            field.name,
            field.toml(config)
        ));
    }
    out
}

fn read_file(path: &Path) -> Result<toml::Table, ConfigError> {
    let unreadable = |source| ConfigError::Read {
        path: path.to_owned(),
        source,
    };
    if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES_MAX {
        return Err(unreadable(std::io::Error::other("it is larger than 1 MiB")));
    }
    let text = std::fs::read_to_string(path).map_err(unreadable)?;
    let table: toml::Table =
        text.parse()
            .map_err(|error: toml::de::Error| ConfigError::Syntax {
                path: path.to_owned(),
                message: error.to_string(),
            })?;
    for key in table.keys() {
        if !FIELDS.iter().any(|field| field.name == key) {
            return Err(ConfigError::Unknown {
                path: path.to_owned(),
                field: key.clone(),
                hint: similar(key),
            });
        }
    }
    Ok(table)
}

/// The text form of a TOML value, which the field's own parser then reads.
fn toml_text(value: &toml::Value) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(value) => Ok(value.to_string()),
        toml::Value::Array(items) => {
            let texts: Result<Vec<_>, _> = items.iter().map(toml_text).collect();
            Ok(texts?.join(","))
        }
        other => Err(format!("a {} is not expected here", other.type_str())),
    }
}

/// Names a field that the writer may have meant.
fn similar(key: &str) -> String {
    let wanted = key.replace('-', "_").to_lowercase();
    let close = FIELDS.iter().find(|field| {
        field.name == wanted
            || field.name.starts_with(&wanted)
            || wanted.starts_with(field.name)
            || field.name.strip_suffix("_ms") == Some(wanted.as_str())
    });
    match close {
        Some(field) if !wanted.is_empty() => format!(" (did you mean `{}`?)", field.name),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn load(
        file: Option<&str>,
        env: &[(&str, &str)],
        flags: &[(&'static str, &str)],
    ) -> Result<Effective, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let mut given = ConfigFlags::default();
        if let Some(text) = file {
            let path = dir.path().join("node.toml");
            std::fs::write(&path, text).unwrap();
            given.file = Some(path);
        }
        for &(name, value) in flags {
            given.values.insert(name, value.to_owned());
        }
        let env = |name: &str| {
            let found = env.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        Effective::load(&given, &env)
    }

    fn origin(effective: &Effective, name: &str) -> Origin {
        let index = FIELDS.iter().position(|field| field.name == name).unwrap();
        effective.origins[index]
    }

    #[test]
    fn flag_beats_env_beats_file_beats_default() {
        let file = "zone = \"file\"\nweight = 10\nname = \"file\"\n";
        let env = [("MYDATASTORE_ZONE", "env"), ("MYDATASTORE_WEIGHT", "20")];
        let effective = load(Some(file), &env, &[("zone", "flag")]).unwrap();
        assert_eq!(effective.config.zone, "flag");
        assert_eq!(effective.config.weight, 20);
        assert_eq!(effective.config.name, "file");
        assert_eq!(effective.config.fsync.to_string(), "always");
        assert_eq!(origin(&effective, "zone"), Origin::Flag);
        assert_eq!(origin(&effective, "weight"), Origin::Env);
        assert_eq!(origin(&effective, "name"), Origin::File);
        assert_eq!(origin(&effective, "fsync"), Origin::Default);
    }

    #[test]
    fn mistakes_are_named() {
        let text = |result: Result<Effective, ConfigError>| result.unwrap_err().to_string();
        let unknown = text(load(Some("request-timeout = 5"), &[], &[]));
        assert!(
            unknown.contains("unknown field `request-timeout`"),
            "{unknown}"
        );
        assert!(
            unknown.contains("did you mean `request_timeout_ms`?"),
            "{unknown}"
        );
        assert_eq!(
            text(load(None, &[("MYDATASTORE_WEIGHT", "much")], &[])),
            "MYDATASTORE_WEIGHT: `much` is not a whole number from 0 to 4294967295"
        );
        assert_eq!(
            text(load(None, &[], &[("engine", "rocks")])),
            "--engine: `rocks` is none of `fjall`, `leveldb`, `memory`"
        );
        assert!(text(load(Some("name = {a = 1}"), &[], &[])).contains("a table is not expected"));
        assert!(text(load(Some("name = "), &[], &[])).contains("is not TOML"));
        assert!(
            text(load(
                None,
                &[(crate::config::ENV_CONFIG_FILE, "/no/such")],
                &[]
            ))
            .contains("cannot read the configuration file /no/such")
        );
    }

    #[test]
    fn what_is_printed_can_be_read_back() {
        let effective = load(
            None,
            &[],
            &[
                ("seeds", "a:1,b:2"),
                ("fsync", "interval:10"),
                ("name", "x \"y\" \\z"),
            ],
        )
        .unwrap();
        let again = load(Some(&effective.to_toml()), &[], &[]).unwrap();
        assert_eq!(again.config, effective.config);
        let short = effective.config.to_toml();
        assert!(!short.contains("data_dir"), "{short}");
        assert_eq!(
            load(Some(&short), &[], &[]).unwrap().config,
            effective.config
        );
    }

    proptest! {
        /// Whatever stands in the file: an error or a valid configuration, never a panic.
        #[test]
        fn no_file_panics(text in "(?s).{0,200}") {
            if let Ok(effective) = load(Some(&text), &[], &[]) {
                prop_assert!(effective.config.validate().is_ok());
            }
        }
    }
}
