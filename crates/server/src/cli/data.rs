//! `get`, `put`, `del`, `scan`.

use std::ffi::OsString;
use std::io::{IsTerminal, Read};
use std::os::unix::ffi::OsStringExt;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Args;
use mds_types::limits::VALUE_BYTES_MAX;
use ureq::http::Method;

use super::NodeArgs;
use super::client::{Call, ClientError, Reply};
use super::output::{self, Failure};
use crate::http::bodies::{PageBody, RecordBody, WrittenBody};
use crate::http::{percent_decode, percent_encode};

/// Milliseconds that a node may need beyond the timeout it was asked to keep.
const TIMEOUT_GRACE_MS: u64 = 3_000;

/// Arguments of `get`.
#[derive(Args, Debug)]
pub(super) struct GetArgs {
    /// The key
    key: OsString,
    /// Replicas that must answer (R)
    #[arg(long, value_name = "R")]
    r: Option<u8>,
    /// How long to wait for them
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u32>,
    #[command(flatten)]
    node: NodeArgs,
}

/// Arguments of `put`.
#[derive(Args, Debug)]
pub(super) struct PutArgs {
    /// The key
    key: OsString,
    /// The value; left out, it is read from standard input
    value: Option<OsString>,
    /// Time to live, such as 500ms, 30s, 15m, 2h or 7d
    #[arg(long, value_name = "TIME")]
    ttl: Option<String>,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// Arguments of `del`.
#[derive(Args, Debug)]
pub(super) struct DelArgs {
    /// The key
    key: OsString,
    #[command(flatten)]
    write: WriteArgs,
    #[command(flatten)]
    node: NodeArgs,
}

/// What all writes take.
#[derive(Args, Debug)]
struct WriteArgs {
    /// Replicas that must have it on disk (W)
    #[arg(long, value_name = "W")]
    w: Option<u8>,
    /// How long to wait for them
    #[arg(long, value_name = "MS")]
    timeout_ms: Option<u32>,
    /// Send a write of unknown outcome again as the very same write: the token it printed
    #[arg(long, value_name = "TOKEN")]
    retry_token: Option<String>,
    /// With --retry-token: when the value expires, as the first attempt printed
    #[arg(long, value_name = "MS", requires = "retry_token")]
    expires_at_ms: Option<u64>,
}

/// Arguments of `scan`.
#[derive(Args, Debug)]
pub(super) struct ScanArgs {
    /// Only keys that begin with this
    #[arg(default_value = "")]
    prefix: OsString,
    /// Stop after this many records
    #[arg(long, default_value_t = 100, value_name = "RECORDS")]
    limit: u64,
    /// Also print values
    #[arg(long)]
    values: bool,
    /// Replicas that must answer (R)
    #[arg(long, value_name = "R")]
    r: Option<u8>,
    #[command(flatten)]
    node: NodeArgs,
}

fn key_path(key: &OsString, parameters: &[(&str, Option<String>)]) -> String {
    let key = percent_encode(&key.clone().into_vec());
    with_query(format!("/v1/kv/{key}"), parameters)
}

fn with_query(mut path: String, parameters: &[(&str, Option<String>)]) -> String {
    let mut mark = '?';
    for (name, value) in parameters {
        if let Some(value) = value {
            path.push_str(&format!("{mark}{name}={value}"));
            mark = '&';
        }
    }
    path
}

fn text<T: ToString>(number: Option<T>) -> Option<String> {
    number.map(|number| number.to_string())
}

fn with_patience(call: Call<'_>, timeout_ms: Option<u32>) -> Call<'_> {
    match timeout_ms {
        Some(ms) => call.timeout(Duration::from_millis(u64::from(ms) + TIMEOUT_GRACE_MS)),
        None => call,
    }
}

pub(super) fn get(args: &GetArgs) -> Result<ExitCode, Failure> {
    let parameters = [("r", text(args.r)), ("timeout_ms", text(args.timeout_ms))];
    let call = Call::new(Method::GET, key_path(&args.key, &parameters));
    let reply = args
        .node
        .client()?
        .call(&with_patience(call, args.timeout_ms))?;
    if !reply.status.is_success() {
        return Err(reply.failure());
    }
    if args.node.json {
        let record = RecordBody {
            key: percent_encode(&args.key.clone().into_vec()),
            version: reply.header("x-mds-version").unwrap_or_default().to_owned(),
            value_bytes: reply.body.len() as u64,
            value: Some(percent_encode(&reply.body)),
            expires_at_ms: reply
                .header("x-mds-expires-at-ms")
                .and_then(|ms| ms.parse().ok()),
        };
        output::json(&record)?;
        return Ok(ExitCode::SUCCESS);
    }
    output::print(&reply.body)?;
    if std::io::stdout().is_terminal() {
        // So that the prompt begins on a line of its own. A pipe gets the value's bytes only.
        output::print(b"\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn put(args: &PutArgs) -> Result<ExitCode, Failure> {
    let value = match &args.value {
        Some(value) => value.clone().into_vec(),
        None => read_value(std::io::stdin().lock())?,
    };
    let expires_at_ms = match (&args.ttl, args.write.expires_at_ms) {
        (Some(_), Some(_)) => {
            return Err(Failure::usage(
                "give either --ttl or --expires-at-ms, not both",
            ));
        }
        (Some(ttl), None) => Some(expiry(ttl)?),
        (None, at) => at,
    };
    let parameters = [
        ("w", text(args.write.w)),
        ("timeout_ms", text(args.write.timeout_ms)),
        ("expires_at_ms", text(expires_at_ms)),
    ];
    let call = Call::new(Method::PUT, key_path(&args.key, &parameters)).body(&value);
    write(call, &args.write, &args.node, expires_at_ms)
}

pub(super) fn del(args: &DelArgs) -> Result<ExitCode, Failure> {
    if args.write.expires_at_ms.is_some() {
        return Err(Failure::usage("--expires-at-ms is for put"));
    }
    let parameters = [
        ("w", text(args.write.w)),
        ("timeout_ms", text(args.write.timeout_ms)),
    ];
    let call = Call::new(Method::DELETE, key_path(&args.key, &parameters));
    write(call, &args.write, &args.node, None)
}

fn write(
    call: Call<'_>,
    args: &WriteArgs,
    node: &NodeArgs,
    expires_at_ms: Option<u64>,
) -> Result<ExitCode, Failure> {
    let call = match &args.retry_token {
        Some(token) => call.header("idempotency-key", token.clone()),
        None => call,
    };
    let reply = match node.client()?.call(&with_patience(call, args.timeout_ms)) {
        Ok(reply) => reply,
        Err(error @ ClientError::NoAnswer { .. }) => {
            return Err(Failure::unknown(format!(
                "{error}\nwhether the write happened is not known: read the key, or write it again"
            )));
        }
        Err(error) => return Err(error.into()),
    };
    if !reply.status.is_success() {
        return Err(write_failure(&reply, expires_at_ms));
    }
    let written: WrittenBody = reply.json()?;
    match node.json {
        true => output::json(&written)?,
        false => {
            output::line(format!(
                "ok, on {} replicas, version {}",
                written.acked, written.version
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn write_failure(reply: &Reply, expires_at_ms: Option<u64>) -> Failure {
    let failure = reply.failure();
    match (failure.code(), expires_at_ms) {
        (4, Some(at)) => Failure::unknown(format!("{failure} --expires-at-ms {at}")),
        // A gateway time-out of a write without a token is of unknown outcome all the same.
        (3, _) if reply.status.as_u16() == 504 => Failure::unknown(failure.to_string()),
        _ => failure,
    }
}

fn read_value(from: impl Read) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let mut limited = from.take(VALUE_BYTES_MAX as u64 + 1);
    limited
        .read_to_end(&mut value)
        .map_err(|error| Failure::usage(format!("cannot read the value: {error}")))?;
    match value.len() > VALUE_BYTES_MAX {
        true => Err(Failure::usage(format!(
            "the value is larger than the limit of {VALUE_BYTES_MAX} bytes"
        ))),
        false => Ok(value),
    }
}

fn expiry(ttl: &str) -> Result<u64, Failure> {
    let ttl_ms = duration_ms(ttl).ok_or_else(|| {
        Failure::usage(format!(
            "--ttl is `{ttl}`: expected a time such as 500ms, 30s, 15m, 2h, 7d"
        ))
    })?;
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let at_ms = now_ms.checked_add(ttl_ms);
    at_ms.ok_or_else(|| Failure::usage("--ttl is too far in the future"))
}

/// `500ms`, `30s`, `15m`, `2h`, `7d`. Zero is no time to live.
fn duration_ms(text: &str) -> Option<u64> {
    let split = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    (ms > 0).then_some(ms)
}

pub(super) fn scan(args: &ScanArgs) -> Result<ExitCode, Failure> {
    let client = args.node.client()?;
    let prefix = percent_encode(&args.prefix.clone().into_vec());
    let mut cursor: Option<String> = None;
    let mut left = args.limit;
    let mut table = output::table(&["key", "bytes", "version", "expires at (ms)", "value"]);
    let mut records = Vec::new();
    while left > 0 {
        let parameters = [
            ("prefix", Some(prefix.clone())),
            ("limit", Some(left.min(1_000).to_string())),
            ("values", Some(args.values.to_string())),
            ("r", text(args.r)),
            (
                "cursor",
                cursor
                    .as_ref()
                    .map(|cursor| percent_encode(cursor.as_bytes())),
            ),
        ];
        let page: PageBody = client.get(&with_query("/v1/list".to_owned(), &parameters))?;
        left = left.saturating_sub(page.records.len() as u64);
        records.extend(page.records);
        cursor = page.next;
        if cursor.is_none() {
            break;
        }
    }
    if args.node.json {
        output::json(&records)?;
        return Ok(ExitCode::SUCCESS);
    }
    for record in &records {
        let value = record.value.as_deref().map(|value| shortened(shown(value)));
        table.add_row([
            shown(&record.key),
            record.value_bytes.to_string(),
            record.version.clone(),
            text(record.expires_at_ms).unwrap_or_default(),
            value.unwrap_or_default(),
        ]);
    }
    output::line(table)?;
    let more = match cursor {
        Some(_) => "; there are more: raise --limit",
        None => "",
    };
    output::line(format!("{} records{more}", records.len()))?;
    Ok(ExitCode::SUCCESS)
}

/// Percent-encoded bytes for a person: as text where they are plain text, else as they are.
fn shown(encoded: &str) -> String {
    let decoded = percent_decode(encoded).and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded {
        Some(text) if !text.chars().any(char::is_control) => text,
        _ => encoded.to_owned(),
    }
}

/// Letters of a value that a table shows; `--json` and `get` give all.
const SHOWN_MAX: usize = 60;

fn shortened(text: String) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        assert_eq!(duration_ms("500ms"), Some(500));
        assert_eq!(duration_ms("30s"), Some(30_000));
        assert_eq!(duration_ms("7d"), Some(604_800_000));
        for text in [
            "",
            "5",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "5w",
            "99999999999999999999s",
            "1s1",
        ] {
            assert_eq!(duration_ms(text), None, "{text}");
        }
    }

    #[test]
    fn keys_become_paths() {
        let key = OsString::from_vec(b"a/b ?\xff".to_vec());
        let parameters = [
            ("r", Some("2".to_owned())),
            ("w", None),
            ("x", Some("1".to_owned())),
        ];
        assert_eq!(key_path(&key, &parameters), "/v1/kv/a/b%20%3F%FF?r=2&x=1");
    }

    #[test]
    fn values_are_bounded() {
        assert_eq!(read_value(&b"\x00\xff"[..]).unwrap(), b"\x00\xff");
        let failure = read_value(std::io::repeat(0)).unwrap_err();
        assert_eq!(failure.code(), 2);
    }

    #[test]
    fn people_see_text_where_it_is_text() {
        assert_eq!(shown("a%20b"), "a b");
        assert_eq!(shown("%FF"), "%FF");
        assert_eq!(shown("a%0Ab"), "a%0Ab");
    }
}
