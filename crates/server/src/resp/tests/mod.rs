//! The front-end over a stand-in for the database: golden scripts, and properties.

mod fake;
mod pipelines;
mod scans;
mod scripts;

use bytes::BytesMut;
use mds_node::api::Now;
use mds_node::front::Frontend;

use super::RespFront;
use fake::FakeCore;

const CONN: u64 = 7;

/// One connection to a front-end over a stand-in core.
struct Client {
    front: RespFront,
    core: FakeCore,
    now: Now,
}

impl Client {
    fn new() -> Client {
        let mut front = RespFront::new(1);
        front.open(CONN, "192.0.2.1:5555".to_owned());
        Client {
            front,
            core: FakeCore::new(),
            now: Now {
                mono_ns: 1_000_000_000,
                wall_us: 1_700_000_000_000_000,
            },
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        let mut input = BytesMut::from(bytes);
        self.front
            .on_bytes(self.now, CONN, &mut input, &mut self.core);
        assert!(input.is_empty());
    }

    /// Answers one request: the `pick`th of those waiting. False if there is none.
    fn answer_one(&mut self, pick: usize) -> bool {
        let Some((tag, result)) = self.core.complete(pick, self.now) else {
            return false;
        };
        self.front.on_done(self.now, tag, result, &mut self.core);
        true
    }

    /// Answers everything, in the order asked.
    fn answer_all(&mut self) {
        while self.answer_one(0) {}
    }

    fn output(&mut self) -> Vec<u8> {
        self.front.take_output(CONN).unwrap_or_default().to_vec()
    }

    /// Sends, lets everything be answered, and returns what came out.
    fn roundtrip(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.send(bytes);
        self.answer_all();
        self.output()
    }

    fn text(&mut self, line: &str) -> String {
        let out = self.roundtrip(format!("{line}\r\n").as_bytes());
        String::from_utf8(out).unwrap()
    }
}
