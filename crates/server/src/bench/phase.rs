//! What one thread does in one phase (loading, or measuring), without the sockets: which request goes out next, and
//! what each answer means for the counts. Time is an argument.
//!
//! **Invariant.** Every request begun ends in exactly one of these: a latency in a histogram, or an error. What was
//! begun before the measured window is done like all else, and not counted but in the timeline.

use std::sync::Arc;

use super::connection::{Outgoing, Pending, What};
use super::keys::KeyForm;
use super::schedule::Schedule;
use super::tally::{OfKind, Slice, Stall, Tally};
use super::value::{STAMP_BYTES, Stamp, Values};
use super::verify::Ledger;
use super::wire::{Answer, Strange};
use super::workload::{Kind, Operations};

/// Where operations come from.
#[derive(Clone, Debug)]
pub(super) enum Source {
    /// Every key once, this thread's being every `step`-th.
    Load { next: u64, step: u64, end: u64 },
    /// A workload.
    Mix(Operations),
}

/// When a phase begins and ends, nanoseconds of the run's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Window {
    pub(super) start_ns: u64,
    /// After the warm-up.
    pub(super) measure_from_ns: u64,
    /// Nothing is sent from then on.
    pub(super) end_ns: u64,
    /// Nothing is sent after so many measured operations.
    pub(super) operations: u64,
}

/// A phase of one thread.
#[derive(Debug)]
pub(super) struct Phase {
    pub(super) window: Window,
    source: Source,
    /// Open loop only.
    pub(super) schedule: Option<Schedule>,
    values: Values,
    ledger: Option<Arc<Ledger>>,
    run: u64,
    key_form: KeyForm,
    key: Vec<u8>,
    pub(super) tally: Tally,
    pub(super) slice: Slice,
    /// New operations are still begun.
    pub(super) is_sending: bool,
}

/// What a phase needs from its plan.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) window: Window,
    pub(super) source: Source,
    pub(super) schedule: Option<Schedule>,
    pub(super) values: Values,
    pub(super) ledger: Option<Arc<Ledger>>,
    pub(super) run: u64,
    pub(super) key_form: KeyForm,
}

impl Phase {
    pub(super) fn new(parts: Parts) -> Phase {
        Phase {
            window: parts.window,
            source: parts.source,
            schedule: parts.schedule,
            values: parts.values,
            ledger: parts.ledger,
            run: parts.run,
            key: Vec::with_capacity(parts.key_form.bytes()),
            key_form: parts.key_form,
            tally: Tally::new(),
            slice: Slice::new(),
            is_sending: true,
        }
    }

    /// Begins the next operation on a connection; false if there is none any more.
    pub(super) fn begin(&mut self, out: &mut Outgoing<'_>, due_ns: u64, now_ns: u64) -> bool {
        let is_measured = due_ns >= self.window.measure_from_ns;
        if !self.is_sending || (is_measured && self.window.operations == 0) {
            self.is_sending = false;
            return false;
        }
        let Some((what, key)) = self.next_operation() else {
            self.is_sending = false;
            return false;
        };
        if is_measured {
            self.window.operations -= 1;
            if self.schedule.is_some() {
                let delay_ns = now_ns.saturating_sub(due_ns);
                self.tally.send_delay.saturating_record(delay_ns);
            }
        }
        if out.pending.is_empty() {
            *out.since_ns = now_ns;
        }
        let pending = Pending {
            what,
            key,
            begun_ns: due_ns,
            sent_ns: now_ns,
            whole_ns: due_ns,
            mark: 0,
        };
        match what {
            What::Read => self.send_read(pending, out),
            What::ReadOfRmw => match self.claim(key, out.target) {
                Ok((key, mark)) => self.send_read(
                    Pending {
                        key,
                        mark,
                        ..pending
                    },
                    out,
                ),
                Err(Taken) => self.send_read(
                    Pending {
                        what: What::Read,
                        ..pending
                    },
                    out,
                ),
            },
            What::Update | What::Insert | What::WriteOfRmw => match self.claim(key, out.target) {
                Ok((key, mark)) => self.send_write(
                    Pending {
                        key,
                        mark,
                        ..pending
                    },
                    out,
                ),
                Err(Taken) => self.send_read(
                    Pending {
                        what: What::Read,
                        ..pending
                    },
                    out,
                ),
            },
        }
        true
    }

    fn next_operation(&mut self) -> Option<(What, u64)> {
        match &mut self.source {
            Source::Load { next, step, end } => {
                let key = *next;
                *next = next.saturating_add(*step);
                (key < *end).then_some((What::Insert, key))
            }
            Source::Mix(operations) => {
                let (kind, key) = operations.next();
                let what = match kind {
                    Kind::Read => What::Read,
                    Kind::Update => What::Update,
                    Kind::Insert => What::Insert,
                    Kind::ReadModifyWrite => What::ReadOfRmw,
                };
                Some((what, key))
            }
        }
    }

    /// The key to write instead of this one, and the write's sequence.
    fn claim(&self, key: u64, target: usize) -> Result<(u64, u32), Taken> {
        match (&self.ledger, &self.source) {
            // Loading writes each key once, and everything else after it.
            (None, _) | (_, Source::Load { .. }) => Ok((key, 0)),
            (Some(ledger), Source::Mix(_)) => {
                let (key, stamp) = ledger.claim(key, target).ok_or(Taken)?;
                Ok((key, stamp.sequence))
            }
        }
    }

    fn send_read(&mut self, pending: Pending, out: &mut Outgoing<'_>) {
        self.key_form.write(pending.key, &mut self.key);
        out.wire.get(&self.key, out.output);
        let mark = match (&self.ledger, pending.what) {
            (Some(ledger), What::Read) => ledger.floor(pending.key),
            _ => pending.mark,
        };
        out.pending.push_back(Pending { mark, ..pending });
    }

    fn send_write(&mut self, pending: Pending, out: &mut Outgoing<'_>) {
        let bytes = self.values.draw_bytes();
        let is_load = matches!(self.source, Source::Load { .. });
        // What is loaded may be verified by another run.
        let is_stamped = self.ledger.is_some() || (is_load && bytes >= STAMP_BYTES);
        let stamp = is_stamped.then_some(Stamp {
            run: self.run,
            key: pending.key,
            sequence: pending.mark,
        });
        self.key_form.write(pending.key, &mut self.key);
        out.wire.set(&self.key, bytes, out.output);
        self.values.append(bytes, stamp, out.output);
        out.wire.end_of_set(out.output);
        out.pending.push_back(pending);
    }

    /// Takes an answer; whether it was a success.
    ///
    /// # Errors
    /// When nothing was asked.
    pub(super) fn complete(
        &mut self,
        answer: Answer<'_>,
        out: &mut Outgoing<'_>,
        now_ns: u64,
    ) -> Result<bool, Strange> {
        let pending = out
            .pending
            .pop_front()
            .ok_or(Strange("an answer to no request"))?;
        if let Answer::Failed { kind, text } = answer {
            self.failed(&pending, |tally| tally.errors.answered(kind, text));
            return Ok(false);
        }
        self.succeeded(&pending, answer, now_ns);
        let from_ns = (*out.since_ns).max(self.window.measure_from_ns);
        self.tally.stall.or_longer(Stall {
            span_ns: now_ns.saturating_sub(from_ns),
            from_ns: from_ns.saturating_sub(self.window.start_ns),
            connection: out.number,
            target: out.target,
        });
        *out.since_ns = now_ns;
        if pending.what == What::ReadOfRmw {
            let write = Pending {
                what: What::WriteOfRmw,
                begun_ns: now_ns,
                sent_ns: now_ns,
                ..pending
            };
            self.send_write(write, out);
        }
        Ok(true)
    }

    fn succeeded(&mut self, pending: &Pending, answer: Answer<'_>, now_ns: u64) {
        let latency_ns = now_ns.saturating_sub(pending.begun_ns);
        self.slice.latency.saturating_record(latency_ns);
        let is_measured = pending.begun_ns >= self.window.measure_from_ns;
        let kind = kind_of(pending.what);
        if is_measured {
            let of = self.tally.of_mut(kind);
            of.latency.saturating_record(latency_ns);
            if kind == Kind::Read && answer == Answer::Absent {
                of.misses += 1;
            }
        }
        if pending.what == What::WriteOfRmw && pending.whole_ns >= self.window.measure_from_ns {
            let whole_ns = now_ns.saturating_sub(pending.whole_ns);
            let OfKind { latency, .. } = self.tally.of_mut(Kind::ReadModifyWrite);
            latency.saturating_record(whole_ns);
        }
        let (Some(ledger), Source::Mix(_)) = (&self.ledger, &self.source) else {
            return;
        };
        match (pending.what, answer) {
            (What::Read, Answer::Value(value)) => {
                let result = ledger.check(pending.key, pending.mark, Some(value));
                self.tally.checked.count(result);
            }
            (What::Read, _) => {
                let result = ledger.check(pending.key, pending.mark, None);
                self.tally.checked.count(result);
            }
            (What::ReadOfRmw, answer) => {
                let value = match answer {
                    Answer::Value(value) => Some(value),
                    _ => None,
                };
                // The key is claimed: the acknowledged sequence is still that of when it was sent.
                let result = ledger.check(pending.key, ledger.floor(pending.key), value);
                self.tally.checked.count(result);
            }
            (What::Update | What::Insert | What::WriteOfRmw, _) => ledger.acknowledged(pending.key),
        }
    }

    /// The request failed: it is counted, and by its kind as `count` does.
    fn failed(&mut self, pending: &Pending, count: impl FnOnce(&mut Tally)) {
        self.slice.errors += 1;
        if let (Some(ledger), Source::Mix(_)) = (&self.ledger, &self.source)
            && pending.what != What::Read
        {
            ledger.not_acknowledged(pending.key);
        }
        if pending.begun_ns < self.window.measure_from_ns {
            return;
        }
        self.tally.of_mut(kind_of(pending.what)).errors += 1;
        if matches!(pending.what, What::ReadOfRmw | What::WriteOfRmw) {
            self.tally.of_mut(Kind::ReadModifyWrite).errors += 1;
        }
        count(&mut self.tally);
    }

    /// The connection is gone, and with it all answers that were awaited.
    pub(super) fn lost(&mut self, out: &mut Outgoing<'_>, kind: &str, text: &str) {
        while let Some(pending) = out.pending.pop_front() {
            self.failed(&pending, |tally| tally.errors.count(kind, text.as_bytes()));
        }
    }

    /// The phase has ended for a connection: a gap that is still open counts up to now.
    pub(super) fn close_gap(&mut self, out: &Outgoing<'_>, end_ns: u64) {
        let from_ns = (*out.since_ns).max(self.window.measure_from_ns);
        self.tally.stall.or_longer(Stall {
            span_ns: end_ns.saturating_sub(from_ns),
            from_ns: from_ns.saturating_sub(self.window.start_ns),
            connection: out.number,
            target: out.target,
        });
    }
}

/// Every key that could be written is being written.
#[derive(Debug)]
struct Taken;

fn kind_of(what: What) -> Kind {
    match what {
        What::Read | What::ReadOfRmw => Kind::Read,
        What::Update | What::WriteOfRmw => Kind::Update,
        What::Insert => Kind::Insert,
    }
}
