//! What is borrowed from the server. Nothing here knows limits. Whatever is unsafe and is neither a hook nor shared
//! memory is here.

pub mod backend;
pub mod catalog;
pub mod client;
pub mod compat;
pub mod connect_privilege;
pub mod etcd_library;
pub mod ffi;
pub mod labels;
pub mod lwlock;
pub mod memberships;
pub mod memory;
pub mod scan;
pub mod shared_map;
