//! Profiles over HTTP. One test alone takes them: they are of the whole process, one at a time.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

#[inline(never)]
fn spins_for_the_profile(stop: &AtomicBool) -> u64 {
    let mut turns = 0u64;
    while !stop.load(Ordering::Relaxed) {
        turns = turns.wrapping_mul(31).wrapping_add(7);
    }
    turns
}

#[test]
fn a_profile_has_to_be_allowed() {
    let served = Served::new();
    let answer = served.get("/debug/pprof/profile?seconds=1");
    assert_eq!(answer.status, 403);
    assert!(
        answer.text().contains("profiling = true"),
        "{}",
        answer.text()
    );
}

#[test]
fn a_profile_names_what_the_process_does_and_there_is_one_at_a_time() {
    let served = Served::with(|config| config.profiling = true);
    for (query, what) in [
        ("seconds=0", "seconds"),
        ("seconds=61", "seconds"),
        ("seconds=x", "seconds"),
        ("format=pdf", "format"),
        ("second=1", "second"),
    ] {
        let answer = served.get(&format!("/debug/pprof/profile?{query}"));
        assert_eq!(answer.status, 400, "{query}");
        assert!(answer.text().contains(what), "{query}: {}", answer.text());
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| spins_for_the_profile(&stop));
        let builder = &mut tokio::runtime::Builder::new_current_thread();
        let runtime = builder.enable_all().build().unwrap();
        // The first has begun when the second is asked for: they are polled in this order.
        let (stacks, refused) = runtime.block_on(async {
            let first = crate::profile::take(Duration::from_secs(1));
            let served = &served;
            let second = async { served.get("/debug/pprof/profile?seconds=1") };
            tokio::join!(biased; first, second)
        });
        assert_eq!(refused.status, 409, "{}", refused.text());
        let stacks = crate::profile::collapsed(&stacks.unwrap());
        assert!(stacks.contains("spins_for_the_profile"), "{stacks}");
        let picture = served.get("/debug/pprof/profile?seconds=1");
        stop.store(true, Ordering::Relaxed);
        assert_eq!(picture.status, 200, "{}", picture.text());
        assert!(picture.text().starts_with("<svg "));
        assert!(picture.text().contains("spins_for_the_profile"));
    });
}
