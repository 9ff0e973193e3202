//! The server's own hash table, in shared memory.

use crate::pg::compat;
use model::seats::Map;
use pgrx::pg_sys;
use std::ffi::{CStr, c_void};
use std::marker::PhantomData;

/// A map from `K` to numbers. Whoever uses it holds the lock that guards it.
pub struct SharedMap<K> {
    table: *mut pg_sys::HTAB,
    of: PhantomData<K>,
}

/// What a key of a map is: bytes that have no gaps, since these are compared.
///
/// # Safety
/// It is so.
pub unsafe trait Plain: Copy {}

// SAFETY: an array of bytes.
unsafe impl Plain for model::seats::Key {}
// SAFETY: an array of bytes.
unsafe impl Plain for model::seats::Id {}

#[repr(C)]
struct Entry<K> {
    key: K,
    number: u32,
}

impl<K: Plain> SharedMap<K> {
    /// How much shared memory a map with so much room takes.
    pub fn size(room: usize) -> usize {
        // SAFETY: only reckons.
        unsafe { pg_sys::hash_estimate_size(at_least_one(room), size_of::<Entry<K>>()) }
    }

    /// # Safety
    /// Only in the shmem_startup_hook, once for each name, with the room that was reserved.
    pub unsafe fn new(name: &CStr, room: usize) -> SharedMap<K> {
        let mut about = pg_sys::HASHCTL {
            keysize: size_of::<K>(),
            entrysize: size_of::<Entry<K>>(),
            ..pg_sys::HASHCTL::default()
        };
        let flags = pg_sys::HASH_ELEM | pg_sys::HASH_BLOBS | pg_sys::HASH_FIXED_SIZE;
        SharedMap {
            // SAFETY: as the caller says; the map's memory is allocated at once, and never grows.
            table: unsafe {
                compat::shared_hash(name, at_least_one(room), &mut about, flags as i32)
            },
            of: PhantomData,
        }
    }

    /// The entry of the key, if the action leaves or makes one; and whether it was there before.
    fn search(&self, key: &K, action: pg_sys::HASHACTION::Type) -> (*mut Entry<K>, bool) {
        let (key, mut found) = ((&raw const *key).cast::<c_void>(), false);
        // SAFETY: the table is in shared memory, with keys of this type, and guarded by the caller's lock. None of the
        // three actions raises anything or allocates but from the table's own memory.
        let entry = unsafe { crate::pg::ffi::hash_search(self.table, key, action, &mut found) };
        (entry.cast(), found)
    }
}

fn at_least_one(room: usize) -> i64 {
    room.max(1) as i64
}

impl<K: Plain> Map<K> for SharedMap<K> {
    fn get(&self, key: &K) -> Option<u32> {
        let (entry, _) = self.search(key, pg_sys::HASHACTION::HASH_FIND);
        // SAFETY: an entry of the table, or null; nobody changes it while the caller holds the lock.
        unsafe { entry.as_ref().map(|entry| entry.number) }
    }

    fn insert(&mut self, key: &K, number: u32) -> bool {
        let (entry, found) = self.search(key, pg_sys::HASHACTION::HASH_ENTER_NULL);
        // SAFETY: an entry of the table, or null; nobody else knows it while the caller holds the lock.
        match unsafe { entry.as_mut() } {
            Some(entry) if !found => {
                entry.number = number;
                true
            }
            _ => false,
        }
    }

    fn remove(&mut self, key: &K) {
        self.search(key, pg_sys::HASHACTION::HASH_REMOVE);
    }
}
