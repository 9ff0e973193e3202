//! Servers that share limits, and their etcd.

use crate::cluster::Cluster;
use crate::etcd::{Etcd, Security};
use crate::link::Link;
use crate::server::Server;

pub struct Fleet {
    pub etcd: Etcd,
    /// The primaries are first.
    pub clusters: Vec<Cluster>,
    primaries: usize,
}

const NAMES: [&str; 3] = ["one", "two", "three"];

/// What the servers of a fleet are.
#[derive(Clone, Copy, Debug)]
pub enum Servers {
    /// So many, which know nothing of each other.
    Primaries(usize),
    /// A primary, and so many that follow it.
    Standbys(usize),
    /// Two primaries, and a standby of the first.
    PrimariesAndStandby,
}

impl Servers {
    /// How many primaries, and how many standbys of the first.
    fn numbers(self) -> (usize, usize) {
        match self {
            Servers::Primaries(number) => (number, 0),
            Servers::Standbys(number) => (1, number),
            Servers::PrimariesAndStandby => (2, 1),
        }
    }
}

impl Fleet {
    /// With so many members of etcd; or why there is no etcd that runs here. Logins do not wait for room.
    pub fn try_start(
        server: &Server,
        members: usize,
        servers: Servers,
        settings: &[(&str, &str)],
    ) -> Result<Fleet, String> {
        let etcd = Etcd::try_start(members, Security::Open)?;
        let endpoints = etcd.endpoints().join(",");
        Ok(Fleet::with(server, etcd, servers, settings, |_| {
            endpoints.clone()
        }))
    }

    /// The same, and each server has a link of its own to etcd.
    pub fn try_start_linked(
        server: &Server,
        members: usize,
        servers: Servers,
        settings: &[(&str, &str)],
    ) -> Result<(Fleet, Vec<Link>), String> {
        let etcd = Etcd::try_start(members, Security::Open)?;
        let (primaries, standbys) = servers.numbers();
        let ports = etcd.ports();
        let links: Vec<Link> = (0..primaries + standbys)
            .map(|_| Link::to(&ports))
            .collect();
        let endpoints = |index: usize| links[index].endpoints();
        let fleet = Fleet::with(server, etcd, servers, settings, endpoints);
        Ok((fleet, links))
    }

    /// `endpoints` of each server, by its index.
    fn with(
        server: &Server,
        etcd: Etcd,
        servers: Servers,
        settings: &[(&str, &str)],
        endpoints: impl Fn(usize) -> String,
    ) -> Fleet {
        let (primaries, standbys) = servers.numbers();
        let mut clusters: Vec<Cluster> = Vec::new();
        for (index, name) in NAMES.into_iter().enumerate().take(primaries + standbys) {
            let endpoints = endpoints(index);
            let own = [
                ("session_limit.server_name", name),
                ("session_limit.etcd_endpoints", endpoints.as_str()),
            ];
            let cluster = match clusters.first() {
                Some(primary) if index >= primaries => Cluster::standby_with(primary, &own),
                _ => {
                    let mut all = own.to_vec();
                    all.push(("session_limit.max_wait", "0"));
                    all.extend(settings);
                    Cluster::start(server, &all)
                }
            };
            clusters.push(cluster);
        }
        Fleet {
            etcd,
            clusters,
            primaries,
        }
    }

    /// On each primary.
    pub fn sql(&self, statements: &[&str]) {
        for cluster in &self.clusters[..self.primaries] {
            cluster.sql(statements);
        }
    }
}
