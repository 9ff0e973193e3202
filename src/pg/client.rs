//! Who asks to be let in, and from where. The only file that touches the server's `Port`.

use crate::pg::catalog::{self, Role};
use model::limit::Object;
use pgrx::pg_sys::{self, libpq::be};
use std::ffi::CStr;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The client of a login.
pub struct Client<'a> {
    pub role: &'a CStr,
    /// None for a walsender without a database.
    pub database: Option<&'a CStr>,
    /// None over a Unix-domain socket.
    pub address: Option<IpAddr>,
    pub socket: pg_sys::pgsocket,
    pub walsender: bool,
}

impl Client<'static> {
    /// # Safety
    /// `port` is what the server passes to its ClientAuthentication hook: it lives as long as the process.
    pub unsafe fn of(port: *const be::Port) -> Client<'static> {
        // SAFETY: the server has filled these fields in, and ends its strings with a zero byte. Nothing refers to the
        // whole: where it ends depends on how the server was built.
        unsafe {
            let walsender = pg_sys::am_walsender;
            let without_database = walsender && !pg_sys::am_db_walsender;
            Client {
                role: CStr::from_ptr((*port).user_name),
                database: (!without_database).then(|| CStr::from_ptr((*port).database_name)),
                address: address(&(*port).raddr),
                socket: (*port).sock,
                walsender,
            }
        }
    }
}

/// The role whose session this process is.
pub fn own_role() -> &'static CStr {
    // SAFETY: the server's Port lives as long as the process, and has a role for whoever got as far as the hook.
    unsafe { CStr::from_ptr((*be::MyProcPort).user_name) }
}

/// The database that its client asked for; empty for a walsender without one.
pub fn own_database() -> &'static CStr {
    // SAFETY: the server's Port lives as long as the process; the name ends with a zero byte.
    unsafe {
        let name = (*be::MyProcPort).database_name;
        if name.is_null() {
            c""
        } else {
            CStr::from_ptr(name)
        }
    }
}

/// The address and the socket of this process's client; no socket if it has no client.
pub fn own_connection() -> (Option<IpAddr>, Option<pg_sys::pgsocket>) {
    // SAFETY: the server's Port lives as long as the process; a worker has none.
    unsafe {
        match be::MyProcPort.is_null() {
            true => (None, None),
            false => (
                address(&(*be::MyProcPort).raddr),
                Some((*be::MyProcPort).sock),
            ),
        }
    }
}

/// As `catalog::name_of`, for a login: the row of its own role is cached by name, not by OID.
pub fn name_of(object: Object) -> Vec<u8> {
    let own = Role::by_name(own_role()).filter(|role| object == Object::Role(role.oid));
    own.map_or_else(|| catalog::name_of(object), |role| role.name)
}

/// Whether the client takes text of the database's encoding as it is.
pub fn has_database_encoding() -> bool {
    // SAFETY: reads variables of this process.
    unsafe { pg_sys::pg_get_client_encoding() == pg_sys::GetDatabaseEncoding() }
}

/// The address as the socket has it: `remote_host` is text that reverse DNS chooses under `log_hostname`.
fn address(peer: &pg_sys::SockAddr) -> Option<IpAddr> {
    let family = libc::c_int::from(peer.addr.ss_family);
    let storage = &raw const peer.addr;
    // SAFETY: the kernel stored the struct that the family says, and a sockaddr_storage is aligned for each of them.
    unsafe {
        match family {
            libc::AF_INET => {
                let ip = (*storage.cast::<libc::sockaddr_in>()).sin_addr.s_addr;
                Some(Ipv4Addr::from(u32::from_be(ip)).into())
            }
            libc::AF_INET6 => {
                let ip = (*storage.cast::<libc::sockaddr_in6>()).sin6_addr.s6_addr;
                // A socket for both families shows an IPv4 client with an IPv4-mapped address.
                Some(IpAddr::from(Ipv6Addr::from(ip)).to_canonical())
            }
            _ => None,
        }
    }
}
