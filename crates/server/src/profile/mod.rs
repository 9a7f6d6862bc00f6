//! Where this process spends its processor time: samples of all its threads' stacks over some seconds.
//!
//! The kernel sends a signal after each hundredth of a second of processor time, to whichever thread is using it; the handler (of the crate
//! `pprof`) notes the stack. Threads that wait are not seen: this says what costs, not what takes long.
//!
//! **Invariants.** One profile at a time, for [`SECONDS_MAX`] at most. Nothing is measured, and no signal sent, while nobody asks;
//! and nobody may ask unless the node was configured with `profiling = true`, because whoever can ask can slow the node down a little
//! (some 1 %), and the names of functions tell what it runs.
//!
//! What it does not do: see other processes or the kernel's own functions (`benches/cost-model.py` does, by perf), or measure memory.

pub(crate) mod flame;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Samples for each second of processor time. Odd, so as not to fall into step with what happens every 10 ms.
pub(crate) const SAMPLES_HZ: i32 = 99;

/// The longest profile, seconds.
pub(crate) const SECONDS_MAX: u32 = 60;

/// Set while one is being taken. The signal and its timer are the process', so this is too.
static IS_TAKEN: AtomicBool = AtomicBool::new(false);

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProfileError {
    /// One at a time.
    #[error("a profile is being taken already: ask again when it has ended")]
    Busy,
    /// The system does not allow it.
    #[error(
        "cannot take a profile ({0}): it needs a timer of its own, and room for a file in the data directory"
    )]
    Failed(#[from] pprof::Error),
}

/// Says where samples go that find no more room in memory. The system's directory for temporary files will not do: a
/// container with a read-only root has none. The first call in a process holds.
pub(crate) fn keep_samples_in(directory: &Path) {
    // An error says that it was set before.
    let _ = tempfile::env::override_temp_dir(directory);
}

/// How often each stack was seen: function names from the thread's name inwards.
pub(crate) type Stacks = BTreeMap<Vec<String>, u64>;

struct Turn;

impl Turn {
    fn take() -> Option<Turn> {
        (!IS_TAKEN.swap(true, Ordering::AcqRel)).then_some(Turn)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        IS_TAKEN.store(false, Ordering::Release);
    }
}

/// Takes a profile of the whole process for so long.
///
/// # Errors
/// [`ProfileError`].
pub(crate) async fn take(time: Duration) -> Result<Stacks, ProfileError> {
    let turn = Turn::take().ok_or(ProfileError::Busy)?;
    let builder = pprof::ProfilerGuardBuilder::default().frequency(SAMPLES_HZ);
    // What the kernel maps into a process has no tables to unwind it by.
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    let builder = builder.blocklist(&["vdso"]);
    let guard = builder.build()?;
    tokio::time::sleep(time).await;
    // Names are looked up in the program's own tables: a second or so, which the runtime need not wait for.
    let named = tokio::task::spawn_blocking(move || {
        let report = guard.report().build();
        drop(guard);
        drop(turn);
        report.map(|report| stacks_of(&report))
    });
    match named.await {
        Ok(stacks) => Ok(stacks?),
        // It is never cancelled, so it has panicked; a profile is not worth the node.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

fn stacks_of(report: &pprof::Report) -> Stacks {
    let mut stacks = Stacks::new();
    for (frames, &count) in &report.data {
        // Not every C library tells a thread's name: then its number stands in its place, which says nothing. Threads
        // are told apart by what they run anyway.
        let is_named = frames.thread_name.parse() != Ok(frames.thread_id);
        let mut stack = vec![match is_named && !frames.thread_name.is_empty() {
            true => frames.thread_name.clone(),
            false => "threads".to_owned(),
        }];
        // Innermost first, and in each frame what was inlined first.
        let symbols = frames.frames.iter().rev();
        stack.extend(symbols.flat_map(|inlined| inlined.iter().rev().map(pprof::Symbol::name)));
        *stacks.entry(stack).or_default() += u64::try_from(count).unwrap_or(0);
    }
    stacks
}

/// One line for each stack, `thread;outer;inner COUNT`: what most tools for flame graphs read.
pub(crate) fn collapsed(stacks: &Stacks) -> String {
    let mut text = String::new();
    for (stack, count) in stacks {
        let frames: Vec<String> = stack.iter().map(|frame| frame.replace(';', ":")).collect();
        text.push_str(&frames.join(";"));
        text.push_str(&format!(" {count}\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_collapse_to_one_line_each_whatever_is_in_a_name() {
        let stack = |frames: &[&str]| frames.iter().map(|&frame| frame.to_owned()).collect();
        let stacks = Stacks::from([
            (stack(&["mds-data", "main", "<[u8; 4]>::f"]), 2),
            (stack(&["mds-data", "main"]), 1),
        ]);
        assert_eq!(
            collapsed(&stacks),
            "mds-data;main 1\nmds-data;main;<[u8: 4]>::f 2\n"
        );
    }
}
