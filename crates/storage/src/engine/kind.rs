//! Which engines there are, and how one is opened by name.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use super::{Engine, EngineError, FjallEngine, MemoryEngine, ReopeningEngine};

/// Default bound on an engine's block cache, in bytes. More makes scans cheaper; of single records the store keeps
/// those that are asked for itself.
pub const CACHE_BYTES_DEFAULT: u64 = 32 * 1024 * 1024;

/// The engines by name. The name is what a data directory remembers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum EngineKind {
    /// The default: log-structured, with key-value separation, in Rust.
    #[default]
    Fjall,
    /// The C++ LevelDB, where it was built in.
    LevelDb,
    /// An ordered map in memory; **its content dies with the process**.
    Memory,
}

impl EngineKind {
    /// Every engine, also those that are not built in.
    pub const ALL: [EngineKind; 3] = [EngineKind::Fjall, EngineKind::LevelDb, EngineKind::Memory];

    /// The engine's name.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Fjall => "fjall",
            EngineKind::LevelDb => "leveldb",
            EngineKind::Memory => "memory",
        }
    }
}

impl fmt::Display for EngineKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// No engine has this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no engine is called {0:?}: choose fjall, leveldb or memory")]
pub struct UnknownEngine(pub String);

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<EngineKind, UnknownEngine> {
        EngineKind::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownEngine(name.to_owned()))
    }
}

/// What can be chosen about an engine when it is opened.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Bound on the block cache, in bytes.
    pub cache_bytes: u64,
}

impl Default for EngineOptions {
    fn default() -> EngineOptions {
        EngineOptions {
            cache_bytes: CACHE_BYTES_DEFAULT,
        }
    }
}

/// Opens, or creates, the engine called `name` in the directory `path`, with default options.
///
/// # Errors
/// For an unknown name, an engine that is not built in, a directory that another process uses, and
/// damaged or unreadable files.
pub fn open(name: &str, path: &Path) -> Result<Arc<dyn Engine>, EngineError> {
    let kind = name
        .parse()
        .map_err(|error: UnknownEngine| EngineError::Stopped(error.to_string()))?;
    open_with(kind, path, &EngineOptions::default())
}

/// Opens, or creates, an engine in the directory `path`.
///
/// # Errors
/// As [`open`].
pub fn open_with(
    kind: EngineKind,
    path: &Path,
    options: &EngineOptions,
) -> Result<Arc<dyn Engine>, EngineError> {
    let (at, options) = (path.to_owned(), options.clone());
    match kind {
        EngineKind::Fjall => {
            let open = move || Ok(Box::new(FjallEngine::open(&at, &options)?) as Box<dyn Engine>);
            Ok(Arc::new(ReopeningEngine::open(Box::new(open))?))
        }
        // It writes nothing that could find a disk full.
        EngineKind::Memory => Ok(Arc::new(MemoryEngine::open(path)?)),
        #[cfg(feature = "engine-leveldb")]
        EngineKind::LevelDb => {
            let open = move || {
                let engine = super::LevelDbEngine::open(&at, &options)?;
                Ok(Box::new(engine) as Box<dyn Engine>)
            };
            Ok(Arc::new(ReopeningEngine::open(Box::new(open))?))
        }
        #[cfg(not(feature = "engine-leveldb"))]
        EngineKind::LevelDb => Err(EngineError::Stopped(
            "this binary was built without LevelDB; build it with `--features engine-leveldb` (it \
             needs the system library, Debian: libleveldb-dev), or choose the engine fjall"
                .to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        let error = "rocksdb".parse::<EngineKind>().unwrap_err();
        assert!(error.to_string().contains("rocksdb"));
        let directory = tempfile::tempdir().unwrap();
        let Err(error) = open("rocksdb", directory.path()) else {
            panic!("an unknown engine was opened");
        };
        assert!(error.to_string().contains("fjall"), "{error}");
    }

    #[cfg(not(feature = "engine-leveldb"))]
    #[test]
    fn leveldb_without_its_feature_says_how_to_get_it() {
        let directory = tempfile::tempdir().unwrap();
        let Err(error) = open("leveldb", directory.path()) else {
            panic!("LevelDB is not built in");
        };
        assert!(
            error.to_string().contains("--features engine-leveldb"),
            "{error}"
        );
    }
}
