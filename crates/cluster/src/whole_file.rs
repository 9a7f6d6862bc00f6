//! A file that is replaced as a whole: either the old content or the new is found, never a mixture.
//!
//! For the control plane's snapshot and birth plan, which grow with the member list beyond what a
//! [`mds_storage::cell::DurableCell`] holds. What a read returned is durable, as it is there.
//!
//! ```text
//! magic "MDSW" 4 | format 1 | checksum xxh3-64 of the payload 8 | payload
//! ```

use std::io;

use mds_storage::Disk;
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 4] = *b"MDSW";
const FORMAT_1: u8 = 1;
const HEADER_BYTES: usize = 13;

/// Durably replaces the file `dir/name`.
pub(crate) fn write(disk: &dyn Disk, dir: &str, name: &str, payload: &[u8]) -> io::Result<()> {
    let path = format!("{dir}/{name}");
    let temporary = format!("{path}.tmp");
    match disk.remove(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend_from_slice(&MAGIC);
    bytes.push(FORMAT_1);
    bytes.extend_from_slice(&xxh3_64(payload).to_le_bytes());
    bytes.extend_from_slice(payload);
    let mut file = disk.create(&temporary)?;
    file.append(&bytes)?;
    file.sync()?;
    drop(file);
    disk.rename(&temporary, &path)?;
    disk.sync_dir(dir)
}

/// Reads the file `dir/name`, if there is one. What is returned is durable: a crash between the
/// rename and the sync of its directory is made good here, before anybody acts on the content.
///
/// # Errors
/// If the disk fails or the content is damaged: the error names the file.
pub(crate) fn read(disk: &dyn Disk, dir: &str, name: &str) -> io::Result<Option<Vec<u8>>> {
    let path = format!("{dir}/{name}");
    let bytes = match disk.read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    match checked_payload(&bytes) {
        Ok(payload) => {
            let payload = payload.to_vec();
            disk.sync_dir(dir)?;
            Ok(Some(payload))
        }
        Err(what) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{path} is damaged: {what}"),
        )),
    }
}

fn checked_payload(bytes: &[u8]) -> Result<&[u8], String> {
    if bytes.len() < HEADER_BYTES || bytes[..4] != MAGIC {
        return Err("it does not begin as it should".to_owned());
    }
    if bytes[4] != FORMAT_1 {
        return Err(format!(
            "format {} is unknown: was it written by a newer version?",
            bytes[4]
        ));
    }
    let (header, payload) = bytes.split_at(HEADER_BYTES);
    if header[5..] != xxh3_64(payload).to_le_bytes() {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(payload)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.push(FORMAT_1);
        bytes.extend_from_slice(&xxh3_64(payload).to_le_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_noticed(
            payload in prop::collection::vec(any::<u8>(), 0..64),
            at in any::<prop::sample::Index>(),
            bit in 0u8..8,
        ) {
            let mut bytes = encoded(&payload);
            prop_assert_eq!(checked_payload(&bytes), Ok(&payload[..]));
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            prop_assert!(checked_payload(&bytes).is_err());
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = checked_payload(&bytes);
        }
    }
}
