//! Nexxus: a realtime synchronisation backend. `ARCHITECTURE.md` is the map; `pipeline` is the page to begin with.

pub mod cli;
pub mod config;

pub mod api;
pub mod pipeline;
pub mod transport;

pub mod worker;

pub mod matcher;

pub mod domain;
pub mod messages;

pub mod node;

pub mod http;
pub mod service;
pub mod telemetry;
