//! Whole-system tests: they start the real binary and speak real HTTP and WebSocket. The words they are written in are in
//! [`harness`].

mod harness;

mod first_minute;
mod real_tables;
mod subscriptions;
