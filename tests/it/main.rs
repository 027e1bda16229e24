//! Whole-system tests: they start the real binary and speak real HTTP and WebSocket. The words they are written in are in
//! [`harness`].

mod harness;

mod applications;
mod backups;
mod bad_input;
mod command;
mod command_line;
#[cfg(feature = "failpoints")]
mod dead_letters;
mod devices;
mod doctor;
#[cfg(feature = "failpoints")]
mod failures;
mod first_minute;
mod full_disk;
mod moving;
mod queries;
mod real_tables;
#[cfg(feature = "redis")]
mod registry_away;
mod resuming;
mod rules;
mod stopping;
mod subscribing;
mod subscriptions;
mod tables;
mod users;
mod writes;
