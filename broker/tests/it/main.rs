//! Brokers in this process and as processes of their own, seen through their public interface. One binary.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod auth;
mod broker;
mod limits;
mod process;
mod records;
mod services;
mod streams;
mod terminal;
mod tls;
mod tools;
