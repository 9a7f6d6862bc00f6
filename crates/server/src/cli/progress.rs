//! Following a change of the ring to its end: whom it waits for, and how much there is left to copy.
//!
//! The asked node knows the stage and who is waited for; how far a copying node is, only that node knows, so it
//! is asked too. On a terminal there is one line that lives; else a line is printed when the stage or those that
//! are waited for change, and now and then when only figures do.
//!
//! The time left is the partitions left by the rate that was watched here: keys are spread by hash, so
//! partitions are about alike. It is not said before enough was watched, and not of verification, which waits for
//! epochs to be closed.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

use ureq::http::Method;

use super::client::{Call, Client};
use super::output::{self, Failure};
use super::ring::fate_in;
use crate::http::bodies::{BlockerBody, CopyingBody, TransitionBody};

/// Pause between two looks at a change that is waited for.
const LOOK_PAUSE: Duration = Duration::from_millis(250);

/// A change that is waited for may be out of sight for this long, as when the asked node is restarted.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// A copying node is asked how far it is at most this often.
const FIGURES_PAUSE: Duration = Duration::from_secs(1);

/// How long it may take to say so: a look must not hang on one node.
const FIGURES_PATIENCE: Duration = Duration::from_secs(2);

/// Without a terminal, figures alone are worth a new line this often.
const FIGURES_LINE_PAUSE: Duration = Duration::from_secs(5);

/// No time left is told before so much time was watched...
const WATCHED_MIN: Duration = Duration::from_secs(2);

/// ...and so many partitions were copied in it.
const WATCHED_PARTITIONS_MIN: u64 = 8;

/// Columns of a terminal that does not say how many it has.
const COLUMNS: u16 = 80;

/// Asks those that copy how far they are.
pub(super) fn ask_blockers(client: &Client, now: &mut TransitionBody) {
    for blocker in &mut now.blocked_by {
        if is_to_ask(blocker) {
            blocker.copying = copying_of(client, &blocker.http);
        }
    }
}

fn is_to_ask(blocker: &BlockerBody) -> bool {
    blocker.waits_for == "ready"
        && blocker.alive
        && blocker.copying.is_none()
        && !blocker.http.is_empty()
}

fn copying_of(client: &Client, addr: &str) -> Option<CopyingBody> {
    let call = Call::new(Method::GET, "/v1/transition").timeout(FIGURES_PATIENCE);
    // Who does not answer is waited for all the same.
    let reply = client.call_at(addr, &call).ok()?;
    let body: TransitionBody = reply.json().ok()?;
    body.copying
}

/// Waits for the end of a change.
pub(crate) struct Waiting<'a> {
    client: &'a Client,
    request: &'a str,
    began: Instant,
    teller: Teller,
    /// What copying nodes said last, by id.
    watched: BTreeMap<String, Watched>,
}

/// What one copying node said.
struct Watched {
    /// When, since the waiting began.
    at: Duration,
    copying: Option<CopyingBody>,
    pace: Option<Pace>,
}

impl<'a> Waiting<'a> {
    /// Of the request of this name. `tells`: a person wants to see what happens.
    pub(crate) fn new(client: &'a Client, request: &'a str, tells: bool) -> Waiting<'a> {
        let manner = match (tells, std::io::stdout().is_terminal()) {
            (false, _) => Manner::Silent,
            (true, true) => Manner::Live,
            (true, false) => Manner::Lines,
        };
        Waiting {
            client,
            request,
            began: Instant::now(),
            teller: Teller::new(manner),
            watched: BTreeMap::new(),
        }
    }

    /// Waits until the change has finished, or for so long at most. One that was called off is a failure.
    pub(crate) fn until_ended(
        mut self,
        patience: Option<Duration>,
    ) -> Result<TransitionBody, Failure> {
        let mut seen = Instant::now();
        loop {
            match self.client.get::<TransitionBody>("/v1/transition") {
                Ok(mut now) => {
                    seen = Instant::now();
                    self.tell(&mut now)?;
                    match fate_in(&now, self.request) {
                        Some("finished") => return Ok(now),
                        Some("aborted") => {
                            return Err(Failure::unavailable(
                                "the change was called off: the ring is as it was before it",
                            ));
                        }
                        _ => {}
                    }
                }
                Err(failure) if seen.elapsed() > SILENCE_MAX => return Err(failure),
                Err(_) => {}
            }
            if patience.is_some_and(|patience| self.began.elapsed() > patience) {
                return Err(Failure::unavailable(format!(
                    "not ended after {} s; it goes on by itself: `mydatastore transition` shows it. \
                     Last seen: {}",
                    self.began.elapsed().as_secs(),
                    self.teller.told.1
                )));
            }
            std::thread::sleep(LOOK_PAUSE);
        }
    }

    fn tell(&mut self, now: &mut TransitionBody) -> Result<(), Failure> {
        self.watch(now);
        let left_s = |blocker: &BlockerBody| {
            let watched = self.watched.get(&blocker.id)?;
            let left = blocker.copying?.left;
            watched.pace?.left_s(watched.at, left)
        };
        let (plain, words) = (progress(now, None), progress(now, Some(&left_s)));
        self.teller.tell(plain, words)
    }

    /// Asks those that copy how far they are, not too often.
    fn watch(&mut self, now: &mut TransitionBody) {
        self.watched
            .retain(|id, _| now.blocked_by.iter().any(|blocker| blocker.id == *id));
        for blocker in &mut now.blocked_by {
            if blocker.waits_for != "ready" || !blocker.alive {
                continue;
            }
            let known = self.watched.get(&blocker.id);
            let elapsed = self.began.elapsed();
            let is_fresh = known.is_some_and(|known| elapsed - known.at < FIGURES_PAUSE);
            let pace = known.and_then(|known| known.pace);
            if is_fresh {
                blocker.copying = known.and_then(|known| known.copying);
                continue;
            }
            if is_to_ask(blocker) {
                blocker.copying = copying_of(self.client, &blocker.http);
            }
            let at = self.began.elapsed();
            let pace = blocker
                .copying
                .map(|copying| Pace::watched(pace, at, copying.left));
            let watched = Watched {
                at,
                copying: blocker.copying,
                pace,
            };
            self.watched.insert(blocker.id.clone(), watched);
        }
    }
}

/// What is left was so much at that time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Pace {
    at: Duration,
    left: u64,
}

impl Pace {
    /// The pace from here on: the one before, unless there is more to do than there was then.
    fn watched(before: Option<Pace>, at: Duration, left: u64) -> Pace {
        match before {
            Some(before) if left <= before.left => before,
            _ => Pace { at, left },
        }
    }

    /// Seconds until nothing is left, if that can be told.
    fn left_s(self, now: Duration, left: u64) -> Option<u64> {
        let (elapsed, done) = (now.saturating_sub(self.at), self.left.saturating_sub(left));
        if elapsed < WATCHED_MIN || done < WATCHED_PARTITIONS_MIN || left == 0 {
            return None;
        }
        let left_ms = elapsed.as_millis() * u128::from(left) / u128::from(done);
        Some(u64::try_from(left_ms / 1_000).unwrap_or(u64::MAX))
    }
}

/// How the seconds that a blocker still copies are found.
type LeftOf<'a> = &'a dyn Fn(&BlockerBody) -> Option<u64>;

/// One line about a change; with figures, if it is said how the time left is found.
fn progress(now: &TransitionBody, left_s: Option<LeftOf<'_>>) -> String {
    let in_words = |blocker: &BlockerBody| {
        let name = match blocker.name.is_empty() {
            true => &blocker.id,
            false => &blocker.name,
        };
        let dead = if blocker.alive { "" } else { ", which is dead" };
        let missing = match left_s {
            Some(left_s) => missing(blocker, left_s(blocker)),
            None => because(blocker).to_owned(),
        };
        format!("{name}{dead} ({missing})")
    };
    let blockers: Vec<String> = now.blocked_by.iter().map(in_words).collect();
    match blockers.is_empty() {
        true => format!("ring version {}: {}", now.version, now.stage),
        false => format!(
            "ring version {}: {}, blocked by {}",
            now.version,
            now.stage,
            blockers.join("; ")
        ),
    }
}

fn because(blocker: &BlockerBody) -> &'static str {
    match blocker.waits_for.as_str() {
        "ready" => "copies and verifies",
        _ => "has not acknowledged",
    }
}

/// What a blocker has not done yet, with figures as far as they are known.
pub(super) fn missing(blocker: &BlockerBody, left_s: Option<u64>) -> String {
    let Some(copying) = blocker.copying.filter(|_| blocker.waits_for == "ready") else {
        return because(blocker).to_owned();
    };
    if copying.left > 0 {
        let soon = left_s.map_or(String::new(), |left_s| {
            format!(
                ", about {} to go",
                output::for_long(left_s.saturating_mul(1_000))
            )
        });
        return format!(
            "copies: {} of {} partitions left, {} done{soon}",
            copying.left,
            copying.partitions,
            output::bytes(copying.bytes)
        );
    }
    match (copying.unverified, copying.bytes) {
        (0, _) => because(blocker).to_owned(),
        (unverified, 0) => format!("verifies: {unverified} partitions left"),
        (unverified, bytes) => format!(
            "verifies: {unverified} partitions left, {} copied",
            output::bytes(bytes)
        ),
    }
}

/// How somebody is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Manner {
    Silent,
    /// One line, written over.
    Live,
    /// Lines that stay.
    Lines,
}

/// Tells what has changed, and not what has not.
struct Teller {
    manner: Manner,
    /// What was told last: without figures and with them.
    told: (String, String),
    at: Option<Instant>,
    /// A line waits to be written over.
    is_open: bool,
}

impl Teller {
    fn new(manner: Manner) -> Teller {
        Teller {
            manner,
            told: Default::default(),
            at: None,
            is_open: false,
        }
    }

    fn tell(&mut self, plain: String, words: String) -> Result<(), Failure> {
        let since = self.at.map_or(Duration::MAX, |at| at.elapsed());
        if let Some(text) = self.text(&plain, &words, since) {
            output::print(text.as_bytes())?;
            self.at = Some(Instant::now());
            self.is_open = self.manner == Manner::Live;
            self.told = (plain, words);
        } else if self.manner == Manner::Silent {
            self.told = (plain, words);
        }
        Ok(())
    }

    /// What is to be written now, `since` after something was written last.
    fn text(&self, plain: &str, words: &str, since: Duration) -> Option<String> {
        let is_news = self.told.0 != plain;
        let has_changed = self.told.1 != words;
        match self.manner {
            Manner::Lines if is_news || (has_changed && since >= FIGURES_LINE_PAUSE) => {
                Some(format!("{words}\n"))
            }
            // What was waited for stays to be read.
            Manner::Live if is_news || has_changed => {
                let end = if is_news && self.is_open { "\n" } else { "" };
                Some(format!(
                    "{end}\r\x1b[2K{}",
                    clipped(words, output::columns().unwrap_or(COLUMNS))
                ))
            }
            Manner::Silent | Manner::Live | Manner::Lines => None,
        }
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        if self.is_open {
            // A closed standard output leaves nobody to tell.
            let _ = output::print(b"\n");
        }
    }
}

/// As much as fits into a line: a terminal that breaks it could not take it back.
fn clipped(words: &str, columns: u16) -> String {
    let chars_max = usize::from(columns).saturating_sub(1);
    if words.chars().count() <= chars_max {
        return words.to_owned();
    }
    let kept: String = words.chars().take(chars_max.saturating_sub(1)).collect();
    format!("{kept}…")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copying(left: u64) -> TransitionBody {
        TransitionBody {
            version: 7,
            stage: "stream".to_owned(),
            blocked_by: vec![BlockerBody {
                name: "node-4".to_owned(),
                waits_for: "ready".to_owned(),
                alive: true,
                copying: Some(CopyingBody {
                    partitions: 192,
                    left,
                    unverified: 12,
                    records: 5,
                    bytes: 3 << 20,
                }),
                ..BlockerBody::default()
            }],
            ..TransitionBody::default()
        }
    }

    #[test]
    fn progress_names_whom_it_waits_for_and_what_is_left() {
        let now = copying(120);
        assert_eq!(
            progress(&now, None),
            "ring version 7: stream, blocked by node-4 (copies and verifies)"
        );
        assert_eq!(
            progress(&now, Some(&|_| Some(130))),
            "ring version 7: stream, blocked by node-4 (copies: 120 of 192 partitions left, 3.0 MiB done, \
             about 2 min to go)"
        );
        assert_eq!(
            progress(&copying(0), Some(&|_| None)),
            "ring version 7: stream, blocked by node-4 (verifies: 12 partitions left, 3.0 MiB copied)"
        );
        let mut dead = copying(1);
        dead.blocked_by[0].alive = false;
        dead.blocked_by[0].waits_for = "ack".to_owned();
        assert_eq!(
            progress(&dead, Some(&|_| None)),
            "ring version 7: stream, blocked by node-4, which is dead (has not acknowledged)"
        );
    }

    #[test]
    fn no_time_left_is_told_before_enough_was_watched() {
        let at = Duration::from_secs;
        let pace = Pace::watched(None, at(1), 100);
        assert_eq!(pace, Pace::watched(Some(pace), at(9), 60));
        assert_eq!(pace.left_s(at(2), 50), None, "too short");
        assert_eq!(pace.left_s(at(60), 93), None, "too little");
        assert_eq!(pace.left_s(at(11), 50), Some(10));
        assert_eq!(pace.left_s(at(11), 0), None);
        let anew = Pace::watched(Some(pace), at(20), 101);
        assert_eq!(anew.left, 101, "it began again");
    }

    #[test]
    fn lines_stay_and_a_live_line_is_written_over() {
        let (plain, first, second) = ("a".to_owned(), "a 1".to_owned(), "a 2".to_owned());
        let told = |manner| Teller {
            told: (plain.clone(), first.clone()),
            is_open: false,
            ..Teller::new(manner)
        };
        let soon = Duration::from_secs(1);
        let lines = told(Manner::Lines);
        assert_eq!(lines.text(&plain, &second, soon), None);
        let late = lines.text(&plain, &second, FIGURES_LINE_PAUSE);
        assert_eq!(late.as_deref(), Some("a 2\n"));
        assert_eq!(lines.text("b", "b 1", soon).as_deref(), Some("b 1\n"));
        let mut live = told(Manner::Live);
        live.is_open = true;
        assert_eq!(live.text(&plain, &first, soon), None);
        let over = live.text(&plain, &second, soon);
        assert_eq!(over.as_deref(), Some("\r\x1b[2Ka 2"));
        let news = live.text("b", "b 1", soon);
        assert_eq!(news.as_deref(), Some("\n\r\x1b[2Kb 1"));
        live.is_open = false;
        assert_eq!(told(Manner::Silent).text("b", "b 1", soon), None);
        assert_eq!(clipped(&"ä".repeat(200), 80).chars().count(), 79);
        assert_eq!(clipped("short", 80), "short");
    }
}
