//! Recorded output: a test compares what it made with a file, or rewrites the file when
//! `UPDATE_GOLDEN` is set.

use std::path::Path;

/// Compares `actual` with the file at `path`, relative to this crate.
///
/// # Panics
/// If they differ, or the file is missing.
#[expect(
    clippy::disallowed_methods,
    reason = "tests read their recorded output"
)]
pub(crate) fn check(path: &str, actual: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, actual).unwrap();
        return;
    }
    let recorded = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = recorded
        .lines()
        .zip(actual.lines())
        .position(|(old, new)| old != new);
    assert!(
        recorded == actual,
        "{} differs (first at line {:?}). If that is meant, run again with UPDATE_GOLDEN=1. Now:\n{actual}",
        path.display(),
        differs.map(|line| line + 1),
    );
}
