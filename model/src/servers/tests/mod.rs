//! Servers with real tables, decisions and protocols, and an etcd in memory between them.

mod any_steps;
mod every_order;
mod exactly;
mod fake_etcd;
mod world;
