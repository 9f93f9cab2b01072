//! A fleet: several workers on PostgreSQL and Redis servers of the test's own, which it stops, wipes and cuts off.
//!
//! The servers' programs are this machine's: `postgres` and `initdb` from `PATH` or `/usr/lib/postgresql/*/bin`,
//! `redis-server` from `PATH`.

mod disk;
mod jobs;
mod messages;
mod proxy;
mod scenarios;
mod schedule;
mod secrets;
mod servers;
mod site;
mod soak;
