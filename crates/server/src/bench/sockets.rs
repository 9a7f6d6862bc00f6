//! The TCP sockets of this machine, from the kernel's tables `/proc/net/tcp` and `/proc/net/tcp6`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// A TCP socket of this machine.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Socket {
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) is_listening: bool,
    /// By which its owner is found.
    pub(super) inode: u64,
}

/// The state of a listening socket in `/proc/net/tcp`.
const LISTENING: &str = "0A";

/// All of them; none where there are no such tables.
pub(super) fn all() -> Vec<Socket> {
    let table = |name: &str| std::fs::read_to_string(name).unwrap_or_default();
    let mut sockets = sockets_in(&table("/proc/net/tcp"));
    sockets.extend(sockets_in(&table("/proc/net/tcp6")));
    sockets
}

/// Reads a table of the form of `/proc/net/tcp` or `/proc/net/tcp6`. Lines that make no sense are skipped.
fn sockets_in(table: &str) -> Vec<Socket> {
    let lines = table.lines().skip(1);
    let sockets = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (words.next()?, words.next()?, words.next()?);
        Some(Socket {
            local: address(local)?,
            remote: address(remote)?,
            is_listening: state == LISTENING,
            inode: words.nth(5)?.parse().ok()?,
        })
    });
    sockets.collect()
}

/// `0100007F:1BBD`: each four bytes of the address as a number of this machine's byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| u32::from_str_radix(ip.get(at * 8..at * 8 + 8)?, 16).ok();
    let ip = match ip.len() {
        8 => IpAddr::from(word(0)?.to_ne_bytes()),
        32 => {
            let mut bytes = [0; 16];
            for (at, four) in bytes.chunks_exact_mut(4).enumerate() {
                four.copy_from_slice(&word(at)?.to_ne_bytes());
            }
            Ipv6Addr::from(bytes).to_canonical()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1BBD 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 101 1 0 100 0 0 10 0
   1: 0100007F:1BBD 0100007F:C350 01 00000000:00000000 00:00000000 00000000  1000        0 102 1 0 20 4 30 10 -1
   garbage
";

    #[test]
    fn the_table_of_sockets_is_understood() {
        let sockets = sockets_in(TCP);
        assert_eq!(sockets.len(), 2);
        assert_eq!(sockets[0].local, "127.0.0.1:7101".parse().unwrap());
        assert!(sockets[0].is_listening);
        assert_eq!(sockets[1].remote, "127.0.0.1:50000".parse().unwrap());
        assert_eq!((sockets[1].is_listening, sockets[1].inode), (false, 102));
        let mapped = address("0000000000000000FFFF00000100007F:1BBD");
        assert_eq!(mapped, Some("127.0.0.1:7101".parse().unwrap()));
        let six = address("00000000000000000000000001000000:0050");
        assert_eq!(six, Some("[::1]:80".parse().unwrap()));
        for text in ["", "0100007F", "01:02", "0100007G:0050"] {
            assert_eq!(address(text), None, "{text}");
        }
    }
}
