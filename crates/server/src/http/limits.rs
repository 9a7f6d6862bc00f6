//! Every bound of the HTTP front-end that is not a configuration field.

use std::time::Duration;

/// Request line and headers of one request, bytes. More is answered 431 and the connection closed.
/// Leaves room for the longest URI (64 KiB).
pub const HEAD_BYTES_MAX: usize = 96 * 1024;

/// Headers of one request. More is answered 431.
pub const HEADERS_MAX: usize = 64;

/// How long a client may take to send a request's head, and may idle between two requests. Then
/// the connection is closed: clients that trickle bytes hold nothing for long.
pub const HEAD_READ_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a client may take to send a request's body. Then it is answered 408.
pub const BODY_READ_TIMEOUT: Duration = Duration::from_secs(30);

/// How long a client may leave sent bytes unacknowledged. Then the kernel ends the connection.
pub const SEND_STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Request bodies in memory at a time, all clients together, in KiB. A body beyond it is answered
/// 503: nothing was done.
pub const BODY_KIB_IN_FLIGHT_MAX: u32 = 256 * 1024;

/// A JSON request body, bytes. More is answered 413.
pub const JSON_BYTES_MAX: usize = 64 * 1024;

/// How much longer than its own timeout a request is waited for: the database answers by itself,
/// so this only ends what a defect left hanging.
pub const ANSWER_GRACE: Duration = Duration::from_secs(5);

/// Milliseconds a client may ask to wait; more is a bad request.
pub const TIMEOUT_MS_MAX: u32 = 600_000;

/// Records of one page, at most; more is a bad request.
pub const PAGE_RECORDS_MAX: u32 = 1_000;

/// Records of one page, unless the request says otherwise.
pub const PAGE_RECORDS: u32 = 100;

/// Epochs of one answer, at most; more is a bad request.
pub const EPOCHS_MAX: usize = 1_000;

/// Epochs of one answer, unless the request says otherwise.
pub const EPOCHS: usize = 16;

/// Keys and values of one page, bytes; a page that reaches it ends there and says where to go on.
pub const PAGE_BYTES_MAX: usize = 4 * 1024 * 1024;

/// How long one listing request looks through partitions before it answers what it has found.
pub const LIST_TIME_BUDGET: Duration = Duration::from_millis(1_000);

/// How long requests in progress may take to finish at a shutdown; then connections are cut.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);

/// Pause after a failed accept (out of file descriptors), so as not to spin.
pub const ACCEPT_RETRY_PAUSE: Duration = Duration::from_millis(100);
