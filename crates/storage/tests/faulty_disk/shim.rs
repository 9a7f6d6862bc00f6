//! A disk that gets full, slow or broken while a real process uses it, without root: a shared library
//! that is preloaded (`LD_PRELOAD`) into the process and stands between it and the system's calls.
//!
//! It concerns files below `$FAULTY_DISK_ROOT/HOME/data`, whatever `HOME` is, and takes its orders from
//! the file `$FAULTY_DISK_ROOT/HOME/faults`, which it maps into memory: the test changes that file, and the
//! next call sees it. There it also counts what it did, so that a test can tell a fault that was withstood
//! from one that never happened. A process has one home: the first that it touches.
//!
//! **Room** is a number of bytes that may still be written. A write takes from it, is cut short where it
//! ends (as a real one is), and fails with `ENOSPC` when there is none; new files and directories fail then
//! as well. What is deleted gives no room back: on a full disk others are faster. **Slowness** is a pause
//! before each sync. **Brokenness** is `EIO` from each sync.
//!
//! What it does not do: see raw system calls, io_uring or memory-mapped writes (the database uses none),
//! or forget unsynced data; that is for simulated disks.
//!
//! Compiled by the tests themselves, with the toolchain that compiled them; it uses nothing but the
//! standard library and the C library below it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

// The places of the numbers in the file of orders; `mod.rs` beside this file has the same list.
const ROOM: usize = 0;
const SYNC_DELAY_MS: usize = 1;
const SYNCS_FAIL: usize = 2;
const WRITES: usize = 3;
const WRITES_REFUSED: usize = 4;
const SYNCS: usize = 5;
const SYNCS_DELAYED: usize = 6;
const SYNCS_FAILED: usize = 7;
const PLACES: usize = 8;

/// There is room for everything.
const ENDLESS: u64 = u64::MAX;

const EIO: c_int = 5;
const ENOSPC: c_int = 28;
const O_CREAT: c_int = 0o100;
const FALLOC_FL_KEEP_SIZE_OR_0: c_int = 1;
const RTLD_NEXT: *mut c_void = -1isize as *mut c_void;
const PROT_READ_WRITE: c_int = 3;
const MAP_SHARED: c_int = 1;
const MAP_FAILED: *mut c_void = -1isize as *mut c_void;

/// Longest path that is looked at.
const PATH_BYTES_MAX: usize = 4096;

#[repr(C)]
pub struct IoVec {
    base: *const c_void,
    len: usize,
}

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn readlink(path: *const c_char, into: *mut c_char, bytes: usize) -> isize;
    fn access(path: *const c_char, mode: c_int) -> c_int;
    fn mmap(
        at: *mut c_void,
        len: usize,
        prot: c_int,
        flags: c_int,
        fd: c_int,
        offset: i64,
    ) -> *mut c_void;
    fn __errno_location() -> *mut c_int;
}

fn fail(errno: c_int) {
    // SAFETY: the C library's own place for this thread.
    unsafe { *__errno_location() = errno };
}

/// The next library's function of a name, which every C library has.
fn real(place: &AtomicUsize, name: &CStr) -> usize {
    let mut found = place.load(SeqCst);
    if found == 0 {
        // SAFETY: a string that ends with a zero byte.
        found = unsafe { dlsym(RTLD_NEXT, name.as_ptr()) } as usize;
        if found == 0 {
            std::process::abort();
        }
        place.store(found, SeqCst);
    }
    found
}

macro_rules! real {
    ($name:expr, fn($($kind:ty),*) -> $result:ty) => {{
        static PLACE: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: the C library's function of this name has this signature.
        unsafe {
            std::mem::transmute::<usize, unsafe extern "C" fn($($kind),*) -> $result>(real(&PLACE, $name))
        }
    }};
}

/// The one home of this process and its numbers.
struct Home {
    name: Vec<u8>,
    numbers: &'static [AtomicU64; PLACES],
}

static ROOT: OnceLock<Option<Vec<u8>>> = OnceLock::new();
static HOME: OnceLock<Option<Home>> = OnceLock::new();

/// The numbers that rule a path, if any do.
fn numbers_of(path: &[u8]) -> Option<&'static [AtomicU64; PLACES]> {
    let root = ROOT.get_or_init(|| {
        let root = std::env::var_os("FAULTY_DISK_ROOT")?;
        Some([root.as_encoded_bytes(), b"/"].concat())
    });
    let below = path.strip_prefix(root.as_deref()?)?;
    let slash = below.iter().position(|&byte| byte == b'/')?;
    let (name, rest) = (&below[..slash], &below[slash + 1..]);
    let rest = rest.strip_prefix(b"data")?;
    if !rest.is_empty() && !rest.starts_with(b"/") {
        return None;
    }
    let home = HOME
        .get_or_init(|| open_home(root.as_deref()?, name))
        .as_ref()?;
    (home.name == name).then_some(home.numbers)
}

fn open_home(root: &[u8], name: &[u8]) -> Option<Home> {
    let text = String::from_utf8([root, name, b"/faults"].concat()).ok()?;
    // No new file, so this comes by `open` below and no further.
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open(Path::new(&text))
        .ok()?;
    let bytes = PLACES * size_of::<AtomicU64>();
    if file.metadata().ok()?.len() < bytes as u64 {
        return None;
    }
    // SAFETY: a new mapping of an open file, which stays when the file is closed.
    let at = unsafe {
        mmap(
            ptr::null_mut(),
            bytes,
            PROT_READ_WRITE,
            MAP_SHARED,
            file.as_raw_fd(),
            0,
        )
    };
    if at == MAP_FAILED {
        return None;
    }
    // SAFETY: mapped for good, long enough, aligned to a page, and only used as atomics.
    let numbers = unsafe { &*at.cast::<[AtomicU64; PLACES]>() };
    Some(Home {
        name: name.to_owned(),
        numbers,
    })
}

/// The numbers that rule an open file.
fn numbers_of_fd(fd: c_int) -> Option<&'static [AtomicU64; PLACES]> {
    let mut link = [0u8; 32];
    write!(&mut link[..31], "/proc/self/fd/{fd}").ok()?;
    let mut path = [0u8; PATH_BYTES_MAX];
    // SAFETY: a string that ends with a zero byte, and room for the answer. The caller's `errno` is kept.
    let bytes = unsafe {
        let errno = *__errno_location();
        let bytes = readlink(link.as_ptr().cast(), path.as_mut_ptr().cast(), path.len());
        *__errno_location() = errno;
        bytes
    };
    numbers_of(&path[..usize::try_from(bytes).ok()?])
}

/// Takes room for a write: how much of it fits, at least one byte of any. `None`: it is refused.
fn take_room(numbers: &[AtomicU64; PLACES], wanted: usize) -> Option<usize> {
    let wanted = wanted as u64;
    let take = |room: u64| (room != ENDLESS).then(|| room - room.min(wanted));
    let room = numbers[ROOM]
        .fetch_update(SeqCst, SeqCst, take)
        .unwrap_or(ENDLESS);
    if room == 0 && wanted > 0 {
        numbers[WRITES_REFUSED].fetch_add(1, SeqCst);
        fail(ENOSPC);
        return None;
    }
    numbers[WRITES].fetch_add(1, SeqCst);
    Some(room.min(wanted) as usize)
}

/// Whether a name cannot be created for want of room.
fn refuses_creation(path: *const c_char) -> bool {
    // SAFETY: what a caller of `open` or `mkdir` promises: a string that ends with a zero byte.
    let text = unsafe { CStr::from_ptr(path) };
    let Some(numbers) = numbers_of(text.to_bytes()) else {
        return false;
    };
    // SAFETY: as above.
    let is_refused = numbers[ROOM].load(SeqCst) == 0 && unsafe { access(path, 0) } != 0;
    if is_refused {
        numbers[WRITES_REFUSED].fetch_add(1, SeqCst);
        fail(ENOSPC);
    }
    is_refused
}

/// What happens before a sync; false if it fails.
fn before_sync(fd: c_int) -> bool {
    let Some(numbers) = numbers_of_fd(fd) else {
        return true;
    };
    numbers[SYNCS].fetch_add(1, SeqCst);
    let delay_ms = numbers[SYNC_DELAY_MS].load(SeqCst);
    if delay_ms > 0 {
        std::thread::sleep(Duration::from_millis(delay_ms));
        numbers[SYNCS_DELAYED].fetch_add(1, SeqCst);
    }
    if numbers[SYNCS_FAIL].load(SeqCst) == 0 {
        return true;
    }
    numbers[SYNCS_FAILED].fetch_add(1, SeqCst);
    fail(EIO);
    false
}

// SAFETY of all functions below: they take what the C library's functions of the same names take, and
// hand it on. (`open` is variadic in C; on the platforms concerned its third argument comes like any other.)

macro_rules! interpose_open {
    ($($name:ident, $text:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(path: *const c_char, flags: c_int, mode: u32) -> c_int {
            if flags & O_CREAT != 0 && refuses_creation(path) {
                return -1;
            }
            let real = real!($text, fn(*const c_char, c_int, u32) -> c_int);
            unsafe { real(path, flags, mode) }
        }
    )*};
}

interpose_open! {
    open, c"open";
    open64, c"open64";
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn mkdir(path: *const c_char, mode: u32) -> c_int {
    if refuses_creation(path) {
        return -1;
    }
    let real = real!(c"mkdir", fn(*const c_char, u32) -> c_int);
    unsafe { real(path, mode) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(fd: c_int, from: *const c_void, bytes: usize) -> isize {
    let real = real!(c"write", fn(c_int, *const c_void, usize) -> isize);
    let fits = match numbers_of_fd(fd) {
        Some(numbers) => take_room(numbers, bytes),
        None => Some(bytes),
    };
    fits.map_or(-1, |fits| unsafe { real(fd, from, fits) })
}

macro_rules! interpose_pwrite {
    ($($name:ident, $text:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, from: *const c_void, bytes: usize, at: i64) -> isize {
            let real = real!($text, fn(c_int, *const c_void, usize, i64) -> isize);
            let fits = match numbers_of_fd(fd) {
                Some(numbers) => take_room(numbers, bytes),
                None => Some(bytes),
            };
            fits.map_or(-1, |fits| unsafe { real(fd, from, fits, at) })
        }
    )*};
}

interpose_pwrite! {
    pwrite, c"pwrite";
    pwrite64, c"pwrite64";
}

/// Of a vector that is ruled, the first part alone is written: the caller goes on with the rest.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn writev(fd: c_int, parts: *const IoVec, count: c_int) -> isize {
    let real = real!(c"writev", fn(c_int, *const IoVec, c_int) -> isize);
    let Some(numbers) = numbers_of_fd(fd) else {
        return unsafe { real(fd, parts, count) };
    };
    let all = unsafe { std::slice::from_raw_parts(parts, usize::try_from(count).unwrap_or(0)) };
    let Some(first) = all.iter().find(|part| part.len > 0) else {
        return 0;
    };
    let Some(fits) = take_room(numbers, first.len) else {
        return -1;
    };
    let cut = IoVec {
        base: first.base,
        len: fits,
    };
    unsafe { real(fd, &cut, 1) }
}

macro_rules! interpose_fallocate {
    ($($name:ident, $text:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int, mode: c_int, at: i64, bytes: i64) -> c_int {
            // Other modes give room back or move what is there.
            if mode & !FALLOC_FL_KEEP_SIZE_OR_0 == 0
                && let Some(numbers) = numbers_of_fd(fd)
                && let Ok(wanted) = usize::try_from(bytes)
                && take_room(numbers, wanted).is_none_or(|fits| fits < wanted)
            {
                fail(ENOSPC);
                return -1;
            }
            let real = real!($text, fn(c_int, c_int, i64, i64) -> c_int);
            unsafe { real(fd, mode, at, bytes) }
        }
    )*};
}

interpose_fallocate! {
    fallocate, c"fallocate";
    fallocate64, c"fallocate64";
}

macro_rules! interpose_sync {
    ($($name:ident, $text:literal;)*) => {$(
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name(fd: c_int) -> c_int {
            if !before_sync(fd) {
                return -1;
            }
            let real = real!($text, fn(c_int) -> c_int);
            unsafe { real(fd) }
        }
    )*};
}

interpose_sync! {
    fsync, c"fsync";
    fdatasync, c"fdatasync";
    syncfs, c"syncfs";
}
