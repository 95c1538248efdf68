//! The tools for people: they speak the public gRPC interface and nothing else, so any databroker can be the server.

pub mod bench;
pub mod connect;
pub mod duration;
pub mod failure;
