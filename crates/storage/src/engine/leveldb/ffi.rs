//! The part of LevelDB's C API (`leveldb/c.h`, stable since 2011) that the engine uses.
//!
//! Conventions of the header: opaque pointers, lengths beside pointers, `uint8_t` for booleans, and a
//! `char**` for errors that must point to null before the call and afterwards either still does or
//! points to a message that the caller frees with `leveldb_free`.

use std::ffi::{c_char, c_int, c_uchar, c_void};

/// Declares types that exist behind pointers only.
macro_rules! opaque {
    ($($name:ident),*) => {
        $(
            #[repr(C)]
            pub(super) struct $name {
                _opaque: [u8; 0],
                // Neither sent nor shared by itself: the wrapper says what may be.
                _not_send: std::marker::PhantomData<*mut u8>,
            }
        )*
    };
}

opaque!(
    Db,
    Cache,
    FilterPolicy,
    Iterator,
    Options,
    ReadOptions,
    WriteBatch,
    WriteOptions
);

/// `leveldb_no_compression`
pub(super) const NO_COMPRESSION: c_int = 0;

#[link(name = "leveldb")]
unsafe extern "C" {
    pub(super) fn leveldb_open(
        options: *const Options,
        name: *const c_char,
        error: *mut *mut c_char,
    ) -> *mut Db;
    pub(super) fn leveldb_close(db: *mut Db);
    pub(super) fn leveldb_write(
        db: *mut Db,
        options: *const WriteOptions,
        batch: *mut WriteBatch,
        error: *mut *mut c_char,
    );
    pub(super) fn leveldb_get(
        db: *mut Db,
        options: *const ReadOptions,
        key: *const c_char,
        key_bytes: usize,
        value_bytes: *mut usize,
        error: *mut *mut c_char,
    ) -> *mut c_char;
    pub(super) fn leveldb_property_value(db: *mut Db, name: *const c_char) -> *mut c_char;
    pub(super) fn leveldb_compact_range(
        db: *mut Db,
        from: *const c_char,
        from_bytes: usize,
        to: *const c_char,
        to_bytes: usize,
    );
    pub(super) fn leveldb_free(memory: *mut c_void);

    pub(super) fn leveldb_create_iterator(
        db: *mut Db,
        options: *const ReadOptions,
    ) -> *mut Iterator;
    pub(super) fn leveldb_iter_destroy(iterator: *mut Iterator);
    pub(super) fn leveldb_iter_valid(iterator: *const Iterator) -> c_uchar;
    pub(super) fn leveldb_iter_seek(iterator: *mut Iterator, key: *const c_char, key_bytes: usize);
    pub(super) fn leveldb_iter_next(iterator: *mut Iterator);
    pub(super) fn leveldb_iter_key(iterator: *const Iterator, bytes: *mut usize) -> *const c_char;
    pub(super) fn leveldb_iter_value(iterator: *const Iterator, bytes: *mut usize)
    -> *const c_char;
    pub(super) fn leveldb_iter_get_error(iterator: *const Iterator, error: *mut *mut c_char);

    pub(super) fn leveldb_writebatch_create() -> *mut WriteBatch;
    pub(super) fn leveldb_writebatch_destroy(batch: *mut WriteBatch);
    pub(super) fn leveldb_writebatch_clear(batch: *mut WriteBatch);
    pub(super) fn leveldb_writebatch_put(
        batch: *mut WriteBatch,
        key: *const c_char,
        key_bytes: usize,
        value: *const c_char,
        value_bytes: usize,
    );
    pub(super) fn leveldb_writebatch_delete(
        batch: *mut WriteBatch,
        key: *const c_char,
        key_bytes: usize,
    );

    pub(super) fn leveldb_options_create() -> *mut Options;
    pub(super) fn leveldb_options_destroy(options: *mut Options);
    pub(super) fn leveldb_options_set_create_if_missing(options: *mut Options, value: c_uchar);
    pub(super) fn leveldb_options_set_paranoid_checks(options: *mut Options, value: c_uchar);
    pub(super) fn leveldb_options_set_write_buffer_size(options: *mut Options, bytes: usize);
    pub(super) fn leveldb_options_set_max_file_size(options: *mut Options, bytes: usize);
    pub(super) fn leveldb_options_set_cache(options: *mut Options, cache: *mut Cache);
    pub(super) fn leveldb_options_set_filter_policy(
        options: *mut Options,
        policy: *mut FilterPolicy,
    );
    pub(super) fn leveldb_options_set_compression(options: *mut Options, kind: c_int);

    pub(super) fn leveldb_filterpolicy_create_bloom(bits_per_key: c_int) -> *mut FilterPolicy;
    pub(super) fn leveldb_filterpolicy_destroy(policy: *mut FilterPolicy);
    pub(super) fn leveldb_cache_create_lru(bytes: usize) -> *mut Cache;
    pub(super) fn leveldb_cache_destroy(cache: *mut Cache);

    pub(super) fn leveldb_readoptions_create() -> *mut ReadOptions;
    pub(super) fn leveldb_readoptions_destroy(options: *mut ReadOptions);
    pub(super) fn leveldb_readoptions_set_verify_checksums(
        options: *mut ReadOptions,
        value: c_uchar,
    );
    pub(super) fn leveldb_readoptions_set_fill_cache(options: *mut ReadOptions, value: c_uchar);

    pub(super) fn leveldb_writeoptions_create() -> *mut WriteOptions;
    pub(super) fn leveldb_writeoptions_destroy(options: *mut WriteOptions);
    pub(super) fn leveldb_writeoptions_set_sync(options: *mut WriteOptions, value: c_uchar);
}
