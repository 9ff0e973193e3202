//! The unit tests of the extension's pure modules. Compiled here, without pgrx, they need no server
//! around them, and what they prove includes that the model knows nothing of PostgreSQL.

#![allow(dead_code)]

#[path = "../../src/decide.rs"]
mod decide;
#[path = "../../src/limit.rs"]
mod limit;
#[path = "../../src/sessions.rs"]
mod sessions;
