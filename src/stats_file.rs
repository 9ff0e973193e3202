//! The file that keeps the statistics over a clean restart.
//!
//! It is the postmaster's. It is there only while the server is down: written at the end of a clean shutdown, or when a
//! start fails, and removed as it is read at the start, so that no crash brings old numbers back. Nothing about it can
//! keep the server from starting or stopping: whatever is wrong with it, the statistics begin anew, and the log says so.

use crate::error;
use crate::pg::backend::now;
use model::counters::{MAX_BYTES, Statistics};
use pgrx::pg_sys::{self, DBState};
use std::fs::{self, File};
use std::io::{self, Read, Write};

/// In the data directory, which is the postmaster's working directory.
const FILE: &str = "pg_stat/session_limit.stat";
const NEW_FILE: &str = "pg_stat/session_limit.stat.tmp";
const DIRECTORY: &str = "pg_stat";
const CONTROL_FILE: &str = "global/pg_control";
/// There until a copy of a running server, as pg_basebackup makes it, is first started.
const BACKUP_LABEL: &str = "backup_label";

/// Run by the postmaster as it starts, with the memory to itself.
pub fn load(statistics: &mut Statistics) {
    statistics.reset(now());
    let loaded = match take() {
        Ok(Some(bytes)) => statistics.decode(&bytes).map_err(String::from),
        Ok(None) => {
            // Else there were none yet.
            if !has_shut_down() && !fs::exists(BACKUP_LABEL).unwrap_or(false) {
                statistics.lose();
            }
            Ok(())
        }
        Err(error) => Err(error.to_string()),
    };
    if let Err(why) = loaded {
        statistics.lose();
        error::stats_are_lost(FILE, &why);
    }
}

/// Reads the file and removes it. None if there is none.
fn take() -> io::Result<Option<Vec<u8>>> {
    let about = match fs::symlink_metadata(FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        about => about?,
    };
    // Opening a pipe could take forever.
    if !about.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let file = File::open(FILE);
    fs::remove_file(FILE)?;
    File::open(DIRECTORY)?.sync_all()?;
    let mut bytes = Vec::new();
    file?.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(Some(bytes))
}

/// Run by the postmaster when all its children are gone: after a shutdown, a crash, or a start that failed.
pub fn save(statistics: &Statistics) {
    if !has_shut_down() {
        return;
    }
    if let Err(error) = put(&statistics.encode()) {
        let _ = fs::remove_file(NEW_FILE);
        error::stats_are_not_kept(FILE, &error);
    }
}

/// Whether the server was shut down cleanly, or stopped before anyone could log in. The postmaster's exit code does not
/// tell: it is 0 also after an immediate shutdown, which may have ended a backend in the middle of a change, and 1 when
/// the server cannot start.
fn has_shut_down() -> bool {
    const STATE: usize = std::mem::offset_of!(pg_sys::ControlFileData, state);
    let mut start = [0; STATE + size_of::<DBState::Type>()];
    let read = File::open(CONTROL_FILE).and_then(|mut file| file.read_exact(&mut start));
    let state = start
        .last_chunk()
        .map(|state| DBState::Type::from_ne_bytes(*state));
    read.is_ok()
        && matches!(
            state,
            Some(DBState::DB_SHUTDOWNED | DBState::DB_SHUTDOWNED_IN_RECOVERY)
        )
}

/// Writes the file whole, or not at all.
fn put(bytes: &[u8]) -> io::Result<()> {
    // Whatever is left there is removed: opening a pipe could take forever.
    let _ = fs::remove_file(NEW_FILE);
    let mut file = File::create_new(NEW_FILE)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(NEW_FILE, FILE)?;
    File::open(DIRECTORY)?.sync_all()
}
